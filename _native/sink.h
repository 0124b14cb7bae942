/* Where streams lead; pump.h has the theory. */
#ifndef SYSUP_SINK_H
#define SYSUP_SINK_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "stream.h"

/* What of a sink outlives the process, beside bytes. */
struct saved_sink {
    uint64_t open_line;
    uint64_t skip;    /* bytes of the batch's first record that are gone */
    uint64_t writing; /* the write that is under way: its bytes or messages; 0: none */
    uint64_t size;    /* of the file, before it; of messages: their sender's note */
    uint64_t device;
    uint64_t inode;   /* 0: messages */
    uint64_t cut;     /* the last byte that was written did not end a line */
    char key[];
};

enum sink_state {
    SINK_READY,
    SINK_BUSY,      /* takes nothing now and will tell: EPOLLOUT, or the reader */
    SINK_FAILED,    /* or not yet opened; tried again at `deadline` */
    SINK_DISCARDS,  /* a borrowed descriptor whose reader is gone */
};

struct sink;

/* A kind of destination. */
struct sink_kind {
    /* Write the batch from `begin`; 0, -EAGAIN when the rest must wait, or -errno. */
    int (*flush)(struct sink *sink);
    /* Open, or open again; 0 or -errno. */
    int (*open)(struct sink *sink);
    /* When all is written; 0 or -errno; NULL: nothing to do then. */
    int (*rest)(struct sink *sink);
    void (*set)(struct sink *sink);   /* take over new options; NULL: has none */
    void (*close)(struct sink *sink); /* by the pump: no byte will come */
    void (*free)(struct sink *sink);  /* by the owner */
    bool records;                     /* a struct record stands before each run of lines */
};

struct file_options {
    uint64_t max_bytes, max_held;
    int64_t rotate_at, owner, group;
    int32_t mode;
    uint32_t flags, backup_count, rotate_age, refresh_ms;
    char suffix[40];
};

enum file_how {
    HOW_WRITE,
    HOW_SEND,   /* a socket */
    HOW_POLLED, /* blocking: write little, after poll(2) */
};

struct file {
    char *path;            /* NULL: borrowed */
    char *directory;       /* the two parts of path */
    const char *name;
    int fd;                /* changes under the lock */
    enum file_how how;
    bool watched;          /* in epoll */
    bool rotates;          /* a regular file */
    bool line_ends;        /* the last byte written ended a line */
    bool rotate_now;       /* asked for, or its time has come */
    _Atomic bool clean;    /* nothing was written since sink_file_clean */
    uint64_t size;
    int64_t made;          /* CLOCK_REALTIME, s */
    int64_t rotate_after;  /* after a failed rotation */
    int64_t look_after;    /* whether the name is still this file's */
    dev_t device;
    ino_t inode;
    pthread_mutex_t names; /* held while backups are renamed */
    struct file_options options;
    struct file_options asked; /* by sink_file_set; under the lock */
};

struct journal {
    char *path;
    char *header;
    int fd;
    bool watched;
    bool credentials;
    bool owes_newline;     /* stream protocol: the last line sent has not ended */
    int64_t pause;         /* of a full queue, before more is sent */
    int unread;            /* bytes of ours in the queue when it was full */
};

struct queue {
    pthread_mutex_t lock;
    pthread_cond_t filled;
    struct block *waiting; /* handed over, not yet taken */
    struct block *held;    /* in the reader's hands */
    bool wanted;           /* tell the pump when `waiting` was taken */
    bool closed;
};

struct sink {
    struct target target;
    const struct sink_kind *kind;
    enum sink_state state;
    int error;               /* of SINK_FAILED, as last told */
    uint32_t refresh_ms;
    uint64_t max_held;
    uint32_t streams;        /* not yet ended; under the lock */
    bool refuses;            /* sink_close was called; under the lock */
    bool insists;            /* its owner wants it opened afresh, whatever it costs */
    bool reopening;          /* PUMP_SINK_REOPENED is to be told */
    bool closing;
    struct block *batch;     /* what is to be written; NULL: nothing */
    uint64_t appended;       /* bytes ever put into the batch ... */
    uint64_t written;        /* ... and ever taken from it */
    uint64_t open_line;      /* whose line the batch ends in the midst of: see line_mark */
    uint64_t skip;           /* bytes of its first record that are gone */
    struct saved_sink *saved;
    struct block *sent;      /* of struct mmsghdr, see send.c; NULL: nothing */
    struct stream *resting;
    int64_t rest_until;      /* of these; NEVER: there are none */
    struct stream *parked;
    struct stream *ended;
    struct stream **ended_last;
    struct outlet *noting;   /* have a record of loss to write */
    /* agenda: sinks that have something to do, and when */
    bool on_agenda;
    int64_t flush_at;        /* when the batch is to be written, if not before */
    int64_t deadline;
    int64_t backoff;
    struct sink *next_due;
    union {
        struct file file;
        struct journal journal;
        struct queue queue;
    };
};

/* sink.c */
/* The rest of a zeroed sink; from then on it is the pump's. */
int sink_init(struct sink *sink, struct pump *pump, uint64_t id, const char *key,
              const struct sink_kind *kind);
/* Whether it takes bytes of an outlet that waits, or of one that leaves lines out. */
bool sink_takes(const struct sink *sink, const struct outlet *outlet);
/* Room for `size` bytes behind the batch, or NULL: no memory. */
char *sink_room(struct sink *sink, size_t size);
/* The batch now ends at `end`, which lies in the room. */
void sink_commit(struct sink *sink, const char *end);
/* Have all of it, as it is now, among the changes that arena_commit makes. */
void sink_save(struct sink *sink);
void sink_schedule(struct sink *sink, int64_t when);
void sink_flush(struct sink *sink);
/* The batch grew. */
void sink_gathered(struct sink *sink);
/* `size` bytes at the batch's beginning were taken. */
void sink_took(struct sink *sink, size_t size);
/* Nobody reads it any more, nor will: drop the batch and all that comes. */
void sink_discard(struct sink *sink, int error);
void sink_fail(struct sink *sink, int error);
void sink_park(struct sink *sink, struct stream *stream);
/* How long a stream may be left unread: half of the time that its bytes may wait, for they
 * wait in the batch too. 0: not at all. */
int64_t sink_rest_time(const struct sink *sink);
/* Read the stream again after that. */
void sink_rest(struct sink *sink, struct stream *stream);
void sink_unrest(struct sink *sink, struct stream *stream);
void sink_stream_ended(struct sink *sink, struct stream *stream);
void sink_serve(struct sink *sink, uint32_t requests);
/* What is due; at the end of every turn. */
void sink_turn(struct sink *sink);
/* Close it now, written or not; returns the bytes that are lost. */
size_t sink_abandon(struct sink *sink);
/* Where the next record begins after one that ends at `to`. */
char *sink_align(const struct sink *sink, char *to);
static inline size_t sink_holds(const struct sink *sink) { return block_holds(sink->batch); }


/* file.c */
int file_open(struct sink *sink);
/* Whether the name is still the file we write; else another program has renamed it. */
bool file_is_ours(const struct file *file);
/* Its directory, to be closed by the caller; or -errno. */
int file_directory(const struct file *file);

/* written.c */
/* Say what will be written, for file_settle. */
void file_announce(struct sink *sink, size_t length);
/* The file has these bytes of the batch. */
void file_took(struct sink *sink, size_t n);
/* Another process may have died in a write: take what it has written. */
void file_settle(struct sink *sink);

/* send.c */
enum { MESSAGES = 64 };
/* How many were sent, or -errno; `note` is kept in saved->size. */
int send_noted(struct sink *sink, int fd, const struct msghdr *messages, int n, uint64_t note);
/* Of the newest ones, which another process may have had in hand. */
bool was_sent(const struct sink *sink, unsigned n);
size_t sent_length(const struct sink *sink, unsigned n);
/* To the journal: adjust the pause that there was before it, if there was one ... */
void send_begins(struct sink *sink);
void send_ends(struct sink *sink);
/* ... and wait for room, where that is the error. Returns -EAGAIN then, else -error. */
int send_failed(struct sink *sink, int error);

/* rotate.c */
bool rotate_is_due(struct sink *sink);
/* How many of the `length` bytes at `data` belong into the file as it is; 0: rotate. */
size_t rotate_share(struct sink *sink, const char *data, size_t length);
/* 0: a new file is open, or the old one goes on because renaming failed (told as an
 * event: no child should wait until somebody mends a directory); else -errno. */
int rotate_file(struct sink *sink);

#endif
