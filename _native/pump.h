/* What the parts of the pump share; native.h is what Python sees.
 *
 *   pump.c     the thread: one epoll loop, requests in, events out, pauses
 *   stream.c   a pipe: when it is read, what is remembered of it, how it ends
 *   lines.c    what a read brings, cut into lines, put into the batch of its sink
 *   outlet.c   what is done to lines: left out, counted, stamped, put in a form
 *   select.c   patterns of lines
 *   form.c     times and JSON
 *   tap.c      a copy of what is read, for whoever looks on
 *   sink.c     a batch and the state of where it goes; who waits for it
 *   file.c     a destination: a file; or a borrowed descriptor
 *   rotate.c   its backups
 *   journal.c  a destination: systemd's journal
 *   queue.c    a destination: a thread of Python
 *   send.c     messages to sockets
 *   arena.c    the memory of batches and unfinished lines
 *   restore.c  what another process left in it
 *
 * The life of a byte: read(2) puts it straight into its sink's batch, behind a gap as
 * long as the stream's unfinished line; if a newline came, the unfinished line fills the
 * gap and the batch grows up to that newline; what follows the newline becomes the
 * stream's unfinished line. So whole lines are all a batch ever holds, no line is copied
 * but the one that a read has cut, and a stream at rest owns no buffer. Where something
 * is to be done to each line, it is copied once, on its way into the batch.
 *
 * Threads. Everything here belongs to the pump's thread, but for fields that say "under
 * the lock", atomics, and the locks of queue, arena, tap and a file's names. No lock is
 * held during I/O, so a caller never waits for a disk (but for the renaming of backups,
 * which is what a file's lock is for). A caller reaches the pump by bits in a target's
 * `requests` and the wake eventfd; the pump reaches its owner by a target's one `event`,
 * its `notices` and the events eventfd. Both queues are linked through the targets
 * themselves: telling needs no memory and cannot fail. */
#ifndef SYSUP_PUMP_H
#define SYSUP_PUMP_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>

#include "arena.h"
#include "native.h"

enum {
    READ_BYTES = 1 << 16,   /* of one read: all that a pipe holds, pipe(7) */
    WORKED_BYTES = 1 << 15, /* of one read whose lines are looked at one by one */
    BATCH_BYTES = 1 << 16,  /* a sink that holds this much is written at once */
    HELD_BYTES = 1 << 17,   /* one that cannot be written holds so much, by default */
    FULLNESS = 16,
};

#define NEVER INT64_MAX
#define MILLISECOND INT64_C(1000000)

enum target_kind { TARGET_STREAM, TARGET_SINK, TARGET_OUTLET, TARGET_TAP };

enum request {
    REQUEST_CLOSE = 1,
    REQUEST_REOPEN = 2,
    REQUEST_SET = 4,  /* a sink has new options */
    REQUEST_LOOK = 8, /* a sink may have something to do */
    REQUEST_ROTATE = 16,
};

/* Events that come beside the newest state; a bit each in a target's `notices`. */
enum { FIRST_NOTICE = PUMP_SINK_ROTATED, N_NOTICES = PUMP_TAPPED + 1 - FIRST_NOTICE };

/* What a request or an event is about: the head of every stream and sink. */
struct target {
    enum target_kind kind;
    uint64_t id;
    struct pump *pump;
    /* under the lock */
    uint32_t requests;
    bool asked;    /* in the pump's queue of requests */
    bool told;     /* in the queue of events */
    bool gone;     /* its last event was posted; requests are ignored */
    bool has_event;
    uint32_t notices;
    struct target *next_asked;
    struct target *next_told;
    struct pump_event event;
    struct target *previous, *next; /* in the list of all targets that aren't gone */
};

/* In the arena, for records that outlive the process. */
struct label {
    int32_t priority; /* of its outlet ... */
    uint32_t flags;   /* ... as these */
    uint64_t length;
    char data[];
};

/* What of a stream and of a sink outlives the process, beside bytes. */
struct saved_stream {
    uint64_t bytes;
    uint64_t fate;
    struct losses losses;
};

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

/* A stamp, made anew when the second changes. */
struct stamp {
    enum time_form form;
    char *format;
    time_t second;
    size_t length;
    size_t fraction; /* where in `text` its digits are, if it has them */
    char text[64];
};

struct pattern {
    bool selects;
    char *text;
};

/* Lets so many lines pass in a time, and `burst` at once: each costs one of the credit that
 * grows with time. */
struct rate {
    double lines_per_ns;
    double burst; /* 0: no limit */
    double credit;
    int64_t at;
};

struct outlet {
    struct target target;
    struct sink *sink;
    enum line_format format;
    uint32_t flags;
    int32_t priority;
    uint32_t max_line;
    bool works;       /* lines are looked at one by one */
    char *before, *after, *name;
    size_t before_length, after_length;
    size_t frame;     /* most bytes that a line grows by, but for its label and escapes */
    struct stamp stamp;
    struct pattern *patterns;
    uint32_t n_patterns;
    struct rate rate;
    struct label *label;
    _Atomic uint64_t dropped_lines, dropped_bytes, suppressed_lines, suppressed_bytes;
    struct losses noted; /* what the records of loss have told so far */
    int64_t note_at;     /* when the next one is due; NEVER: nothing to tell */
    struct outlet *next_noting;
};

/* What becomes of the line that a stream is in the midst of. */
enum fate {
    FATE_OPEN, /* at its beginning: nothing is decided */
    FATE_KEPT,
    FATE_DESELECTED,
    FATE_SUPPRESSED,
    FATE_DROPPED,
};

enum stream_state {
    STREAM_WATCHED, /* epoll tells when there is something */
    STREAM_RESTING, /* wrote little: let be until its sink wakes it: in `resting` */
    STREAM_PARKED,  /* its sink takes nothing now: in the sink's `parked` */
    STREAM_ENDED,   /* in the sink's `ended` until its bytes are written */
};

struct stream {
    struct target target;
    struct outlet *outlet;
    struct sink *sink;   /* the outlet's */
    struct stream *next; /* in `resting`, `parked` or `ended` */
    enum stream_state state;
    enum fate fate;
    int fd;
    int32_t pid;
    int32_t error;       /* what ended it */
    bool closing;        /* ends after `leftover` more bytes, or none */
    bool hung_up;        /* nobody has the other end */
    _Atomic bool tapped;
    int64_t since;       /* of its rest: when this time of one began ... */
    uint32_t lately;     /* ... its bytes (no more are counted than are many) ... */
    uint32_t before;     /* ... and those of the time before */
    size_t leftover;
    uint64_t end_mark;   /* value of sink->appended that holds its last byte */
    struct block *partial; /* the unfinished line */
    struct block *raw;     /* what another process has read and not looked at; or NULL */
    bool is_pipe;
    bool packets;          /* a read of it brings less than it has */
    struct label *label;
    struct saved_stream *saved;
    uint64_t tap_missed;
    uint64_t base;         /* bytes that another process read */
    _Atomic uint64_t bytes;
    _Atomic uint64_t dropped_lines, dropped_bytes, suppressed_lines, suppressed_bytes;
    pthread_mutex_t tail_lock;
    char *tail;          /* the newest bytes; a circle once it is tail_size long */
    uint32_t tail_room;
    uint32_t tail_size;
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

struct tap {
    struct target target;
    pthread_mutex_t lock;
    char *data;      /* a circle of TAP_BYTES; made with the first tap */
    uint64_t begin;
    uint64_t end;
};

/* What another process left in the arena. */
struct left_stream {
    uint64_t id;
    struct block *saved; /* NULL: taken up */
    struct block *partial;
    struct block *raw;
};

struct left_sink {
    uint64_t id;
    struct block *saved; /* NULL: taken up */
    struct block *batch;
    struct block *sent;
};

struct left {
    struct left_stream *streams; /* by id */
    struct left_sink *sinks;     /* by id */
    size_t n_streams;
    size_t n_sinks;
};

struct pump {
    pthread_t thread;
    int epoll;
    int wake;   /* eventfd: requests wait */
    int events; /* eventfd: events wait */
    int memfd;  /* of the arena, or -1 */
    struct arena *arena;
    struct left left;
    struct tap tap;
    _Atomic uint64_t turns;
    pthread_mutex_t lock;
    struct target *asked, **asked_last;
    struct target *told, **told_last;
    struct target *targets;
    bool stop_asked;
    bool park_asked;
    int64_t stop_at;
    bool ended;
    pthread_cond_t end;
    /* the thread's own */
    bool stopping;
    uint64_t lost;         /* bytes that pump_stop left unwritten */
    int64_t now;           /* CLOCK_MONOTONIC, ns, at the turn's beginning */
    struct sink *agenda;
    int64_t next_due;      /* the earliest deadline on the agenda */
    struct block *scratch; /* WORKED_BYTES */
    /* what this turn read, for the pooling of small writes */
    uint32_t turn_reads;
    uint64_t turn_bytes;
    uint32_t turn_fullest; /* of its reads, in FULLNESS parts of what it might have been */
    int64_t pause;         /* 0: no pooling */
};

/* pump.c */
int64_t clock_ns(void);
int64_t wall_seconds(void);
/* Among those that pump_stop ends; -ESHUTDOWN after it. */
int target_list(struct target *target, struct pump *pump, enum target_kind kind, uint64_t id);
void target_unlist(struct target *target);
void target_ask(struct target *target, uint32_t requests);
/* Tell the owner; after a `last` event the target is no longer the pump's. */
void target_tell(struct target *target, enum pump_event_kind kind, int error, bool last);
int pump_watch(struct pump *pump, int fd, uint32_t epoll_events, struct target *target);
/* Watch it for other events; 0: only for a hang-up, which is always told (epoll_ctl(2)). */
int pump_rewatch(struct pump *pump, int fd, uint32_t epoll_events, struct target *target);
void pump_unwatch(struct pump *pump, int fd);

/* restore.c */
int pump_restore(struct pump *pump);
/* What is left of a stream, and of a sink, becomes this one's; false: nothing is. */
bool left_stream(struct stream *stream);
bool left_sink(struct sink *sink, const char *key);
void left_again(struct stream *stream); /* it could not be added */
void left_free(struct pump *pump);

/* form.c */
int stamp_init(struct stamp *stamp, enum time_form form, const char *format);
void stamp_refresh(struct stamp *stamp);
/* `text` as the inside of a JSON string, at `to`, which has 6 times its room; NULL: it is
 * not UTF-8. */
char *put_json(char *to, const char *text, size_t length);
char *put_base64(char *to, const char *data, size_t length);

/* select.c */
int patterns_new(const char *const *texts, uint32_t n, struct pattern **ret_patterns);
void patterns_free(struct pattern *patterns, uint32_t n);
bool patterns_select(const struct pattern *patterns, uint32_t n, const char *line, size_t length);

/* outlet.c */
/* What is to become of a line that begins with `text` (all of it, if it isn't longer
 * than max_line). */
enum fate outlet_judge(struct outlet *outlet, int64_t now, const char *text, size_t length);
/* Count bytes, and `lines` ends of lines, that are left out. */
void outlet_lose(struct stream *stream, enum fate fate, size_t lines, size_t bytes);
/* Most bytes that outlet_put adds for `length` bytes of a line. */
size_t outlet_room(const struct outlet *outlet, const struct label *label, size_t length);
/* A line in its form, or a piece of one. */
enum piece {
    PIECE_FIRST = 1,   /* begins the line */
    PIECE_LAST = 2,    /* ends it */
    PIECE_RESUMED = 4, /* goes on after a line of another stream */
    PIECE_WHOLE = PIECE_FIRST | PIECE_LAST,
};
char *outlet_put(const struct outlet *outlet, const struct label *label, char *to, const char *text,
                 size_t length, unsigned piece);
/* Write a record of what was lost since the last; `at_once`: now or never. */
void outlet_note(struct outlet *outlet, bool at_once);
int label_new(const struct outlet *outlet, uint64_t owner, const char *text, struct label **ret_label);
void label_free(struct pump *pump, struct label *label);

/* tap.c */
int tap_init(struct tap *tap, struct pump *pump);
void tap_free(struct tap *tap);
void tap_copy(struct stream *stream, const char *data, size_t length, uint64_t at);

/* lines.c */
/* One read of at most `limit` bytes; returns what read(2) does, or -errno; -ENOMEM has read
 * nothing. `full`: the sink takes nothing, so its lines are left out. */
ssize_t lines_read(struct stream *stream, size_t limit, bool full);
/* Put what the end of the stream leaves unfinished, and what is to be said of it; 0 or
 * -ENOMEM. */
int lines_end(struct stream *stream);
/* Bytes of the unfinished line. */
size_t lines_held(const struct stream *stream);
void lines_forget(struct stream *stream);
/* What stands in sink->open_line for a stream, or for somebody who is gone. */
#define LINE_OF_NOBODY UINT64_MAX
static inline uint64_t line_mark(const struct stream *stream) { return stream->target.id + 1; }

/* stream.c */
/* `length` bytes were read, of the `limit` that might have been. */
void stream_took(struct stream *stream, const char *data, size_t length, size_t limit);
void stream_ready(struct stream *stream, uint32_t epoll_events);
void stream_serve(struct stream *stream, uint32_t requests);
/* It has rested. */
void stream_wake(struct stream *stream);
/* Its sink takes bytes again. */
void stream_resume(struct stream *stream);
/* End it now, unread bytes or not; returns the bytes that are lost. */
size_t stream_abandon(struct stream *stream);

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

static inline struct block *block_of(const void *data)
{
    return (struct block *)((char *)data - offsetof(struct block, data));
}

/* file.c */
int file_open(struct sink *sink);
/* Whether the name is still the file we write; else another program has renamed it. */
bool file_is_ours(const struct file *file);
/* Its directory, to be closed by the caller; or -errno. */
int file_directory(const struct file *file);

/* send.c */
enum { MESSAGES = 64 };
/* How many were sent, or -errno; `note` is kept in saved->size. */
int send_noted(struct sink *sink, int fd, const struct msghdr *messages, int n, uint64_t note);
/* Of the newest ones, which another process may have had in hand. */
bool was_sent(const struct sink *sink, unsigned n);
size_t sent_length(const struct sink *sink, unsigned n);

/* rotate.c */
bool rotate_is_due(struct sink *sink);
/* How many of the `length` bytes at `data` belong into the file as it is; 0: rotate. */
size_t rotate_share(struct sink *sink, const char *data, size_t length);
/* 0: a new file is open, or the old one goes on because renaming failed (told as an
 * event: no child should wait until somebody mends a directory); else -errno. */
int rotate_file(struct sink *sink);

#endif
