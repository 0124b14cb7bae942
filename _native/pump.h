/* What the parts of the pump share; native.h is what Python sees.
 *
 *   pump.c    the thread: one epoll loop, requests in, events out, pauses
 *   stream.c  a pipe: read, cut into lines, put into the batch of its sink
 *   style.c   what stands around its lines
 *   sink.c    a batch and the state of where it goes; who waits for it
 *   file.c    a destination: a file, rotated; or a borrowed descriptor
 *   queue.c   a destination: a thread of Python
 *
 * The life of a byte: read(2) puts it straight into its sink's batch, behind a gap as
 * long as the stream's unfinished line; if a newline came, the unfinished line fills the
 * gap and the batch grows up to that newline; what follows the newline becomes the
 * stream's unfinished line. So whole lines are all a batch ever holds, no line is copied
 * but the one that a read has cut, and a stream at rest owns no buffer.
 *
 * Threads. Everything here belongs to the pump's thread, but for fields that say "under
 * the lock", atomics, and the queue's own lock. No lock is held during I/O, so a caller
 * never waits for a disk. A caller reaches the pump by bits in a target's `requests` and
 * the wake eventfd; the pump reaches its owner by a target's one `event` and the events
 * eventfd. Both queues are linked through the targets themselves: telling needs no
 * memory and cannot fail. */
#ifndef SYSUP_PUMP_H
#define SYSUP_PUMP_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "native.h"

enum {
    READ_BYTES = 1 << 16,   /* of one read: all that a pipe holds, pipe(7) */
    STYLED_BYTES = 1 << 15, /* of one read whose lines grow by what stands around them */
    BATCH_BYTES = 1 << 17,  /* a sink that holds this much is written at once */
    SLAB_BYTES = 1 << 18,   /* memory of a batch, at first */
    SPARE_SLABS = 4,
    FULLNESS = 16,
};

#define NEVER INT64_MAX
#define MILLISECOND INT64_C(1000000)

enum target_kind { TARGET_STREAM, TARGET_SINK };

enum request {
    REQUEST_CLOSE = 1,
    REQUEST_REOPEN = 2,
    REQUEST_SET = 4,  /* a sink has new options */
    REQUEST_LOOK = 8, /* a sink may have something to do */
};

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
    struct target *next_asked;
    struct target *next_told;
    struct pump_event event;
    struct target *previous, *next; /* in the list of all targets that aren't gone */
};

/* Memory of a batch, from mmap(2): untouched pages cost nothing, and it grows in place. */
struct slab {
    char *data;
    size_t size;
};

/* What stands around a line. `prefix` is before + time + middle, made anew when the
 * second changes. */
struct style {
    char *before, *time_format, *middle, *after;
    size_t before_length, middle_length, after_length;
    size_t frame; /* most bytes that one line grows by, its newline too */
    time_t second;
    size_t prefix_length;
    char prefix[];
};

enum stream_state {
    STREAM_WATCHED, /* epoll tells when there is something */
    STREAM_PARKED,  /* its sink takes nothing now: in the sink's `parked` */
    STREAM_ENDED,   /* in the sink's `ended` until its bytes are written */
};

struct stream {
    struct target target;
    struct sink *sink;
    struct stream *next; /* in `parked` or `ended` */
    enum stream_state state;
    int fd;
    int32_t pid;
    int32_t error;       /* what ended it */
    bool closing;        /* ends after `leftover` more bytes, or none */
    size_t leftover;
    uint64_t end_mark;   /* value of sink->appended that holds its last byte */
    char *partial;       /* the unfinished line */
    size_t partial_length;
    size_t partial_size;
    struct style *style; /* NULL: raw */
    _Atomic uint64_t bytes;
    pthread_mutex_t tail_lock;
    char *tail;          /* a circle of tail_size, written at bytes % tail_size */
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
    void (*set)(struct sink *sink);   /* take over new options; NULL: has none */
    void (*close)(struct sink *sink); /* by the pump: no byte will come */
    void (*free)(struct sink *sink);  /* by the owner */
    size_t header;                    /* bytes before each run of lines */
};

struct file_options {
    uint64_t max_bytes;
    uint32_t backup_count, refresh_ms, max_line, mode;
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
    int fd;
    enum file_how how;
    bool watched;          /* in epoll */
    bool rotates;          /* a regular file */
    bool line_ends;        /* the last byte written ended a line */
    uint64_t size;
    int64_t rotate_after;  /* after a failed rotation */
    struct file_options options;
    struct file_options asked; /* by sink_file_set; under the lock */
};

struct queue {
    pthread_mutex_t lock;
    pthread_cond_t filled;
    struct slab waiting;   /* handed over, not yet taken */
    size_t waiting_length;
    struct slab held;      /* in the reader's hands */
    struct slab spent;     /* given back */
    bool wanted;           /* tell the pump when `waiting` was taken */
    bool closed;
};

struct sink {
    struct target target;
    const struct sink_kind *kind;
    enum sink_state state;
    int error;               /* of SINK_FAILED, as last told */
    uint32_t max_line;
    uint32_t refresh_ms;
    uint32_t streams;        /* not yet ended; under the lock */
    bool refuses;            /* sink_close was called; under the lock */
    bool closing;
    /* the batch: [begin, end) of slab is to be written */
    struct slab slab;
    size_t begin;
    size_t end;
    uint64_t appended;       /* bytes ever put into the batch ... */
    uint64_t written;        /* ... and ever taken from it */
    const void *open_line;   /* whose line the batch ends in the midst of; or NULL */
    struct stream *parked;
    struct stream *ended;
    struct stream **ended_last;
    /* agenda: sinks that have something to do, and when */
    bool on_agenda;
    int64_t deadline;
    int64_t backoff;
    struct sink *next_due;
    union {
        struct file file;
        struct queue queue;
    };
};

struct pump {
    pthread_t thread;
    int epoll;
    int wake;   /* eventfd: requests wait */
    int events; /* eventfd: events wait */
    _Atomic uint64_t turns;
    pthread_mutex_t lock;
    struct target *asked, **asked_last;
    struct target *told, **told_last;
    struct target *targets;
    bool stop_asked;
    int64_t stop_at;
    bool ended;
    pthread_cond_t end;
    /* the thread's own */
    bool stopping;
    uint64_t lost;         /* bytes that pump_stop left unwritten */
    int64_t now;           /* CLOCK_MONOTONIC, ns, at the turn's beginning */
    struct sink *agenda;
    int64_t next_due;      /* the earliest deadline on the agenda */
    struct slab spares[SPARE_SLABS];
    int n_spares;
    char *scratch;         /* STYLED_BYTES */
    /* what this turn read, for the pooling of small writes */
    uint32_t turn_reads;
    uint64_t turn_bytes;
    uint32_t turn_fullest; /* of its reads, in FULLNESS parts of what it might have been */
    int64_t pause;         /* 0: no pooling */
};

/* pump.c */
int64_t clock_ns(void);
/* Among those that pump_stop ends; -ESHUTDOWN after it. */
int target_list(struct target *target, struct pump *pump, enum target_kind kind, uint64_t id);
void target_unlist(struct target *target);
void target_ask(struct target *target, uint32_t requests);
/* Tell the owner; after a `last` event the target is no longer the pump's. */
void target_tell(struct target *target, enum pump_event_kind kind, int error, bool last);
int pump_watch(struct pump *pump, int fd, uint32_t epoll_events, struct target *target);
void pump_unwatch(struct pump *pump, int fd);
int slab_take(struct pump *pump, struct slab *ret_slab);
void slab_give(struct pump *pump, struct slab slab, size_t used);
void slab_unmap(struct slab slab);

/* style.c */
int style_new(const struct line_style *spec, struct style **ret_style);
void style_free(struct style *style);
void style_refresh(struct style *style);

/* stream.c */
void stream_ready(struct stream *stream);
void stream_serve(struct stream *stream, uint32_t requests);
/* Its sink takes bytes again. */
void stream_resume(struct stream *stream);
/* End it now, unread bytes or not; returns the bytes that are lost. */
size_t stream_abandon(struct stream *stream);

/* sink.c */
/* The rest of a zeroed sink; from then on it is the pump's. */
int sink_init(struct sink *sink, struct pump *pump, uint64_t id, const struct sink_kind *kind);
bool sink_takes(const struct sink *sink);
/* Room for `size` bytes behind the batch, or NULL: no memory. */
char *sink_room(struct sink *sink, size_t size);
/* The batch now ends at `end`, which lies in the room. */
void sink_commit(struct sink *sink, const char *end);
void sink_schedule(struct sink *sink, int64_t when);
void sink_flush(struct sink *sink);
/* The batch grew. */
void sink_gathered(struct sink *sink);
/* Nobody reads it any more, nor will: drop the batch and all that comes. */
void sink_discard(struct sink *sink, int error);
void sink_fail(struct sink *sink, int error);
void sink_park(struct sink *sink, struct stream *stream);
void sink_stream_ended(struct sink *sink, struct stream *stream);
void sink_serve(struct sink *sink, uint32_t requests);
/* What is due; at the end of every turn. */
void sink_turn(struct sink *sink);
/* Close it now, written or not; returns the bytes that are lost. */
size_t sink_abandon(struct sink *sink);
static inline size_t sink_holds(const struct sink *sink) { return sink->end - sink->begin; }

#endif
