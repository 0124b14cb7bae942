/* Streams, and what is done to their lines; pump.h has the theory. */
#ifndef SYSUP_STREAM_H
#define SYSUP_STREAM_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "target.h"

struct sink;

/* In the arena, for records that outlive the process. */
struct label {
    int32_t priority; /* of its outlet ... */
    uint32_t flags;   /* ... as these */
    uint64_t length;
    char data[];
};

/* What of a stream outlives the process, beside bytes. */
struct saved_stream {
    uint64_t bytes;
    uint64_t fate;
    struct losses losses;
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

struct tap {
    struct target target;
    pthread_mutex_t lock;
    char *data;      /* a circle of TAP_BYTES; made with the first tap */
    uint64_t begin;
    uint64_t end;
};

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

/* reading.c */
/* What read(2) does, or -errno. */
ssize_t stream_read(struct stream *stream, char *window, size_t limit);

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

#endif
