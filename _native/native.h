/* The whole C API of sysup, and the cffi declarations: build.py feeds this file to
 * cffi with its '#' lines removed, so it holds no macro but the guard and includes.
 *
 * C is mechanism, Python is policy. What is here knows descriptors, bytes, numbers
 * and ids; never a watcher's name or a rule.
 *
 * Conventions. A function that can fail returns 0 (or a count) or -errno, never logs,
 * and leaves its outputs untouched on failure; outputs are named ret_. Nothing here
 * calls back into Python. Every descriptor opened here is O_CLOEXEC. */
#ifndef SYSUP_NATIVE_H
#define SYSUP_NATIVE_H
#include <stddef.h>
#include <stdint.h>
#endif

/* ---- spawn.c, child.c: a process from nothing to its first instruction ---------- */

/* Where in the child a spawn failed; spawn_step_name() gives the word for messages. */
enum spawn_step {
    SPAWN_STEP_CLONE,
    SPAWN_STEP_SIGNALS,
    SPAWN_STEP_SESSION,
    SPAWN_STEP_FDS,
    SPAWN_STEP_CGROUP,
    SPAWN_STEP_RLIMIT,
    SPAWN_STEP_NICE,
    SPAWN_STEP_OOM_SCORE_ADJ,
    SPAWN_STEP_AFFINITY,
    SPAWN_STEP_UMASK,
    SPAWN_STEP_GROUPS,
    SPAWN_STEP_GID,
    SPAWN_STEP_UID,
    SPAWN_STEP_CAPABILITIES,
    SPAWN_STEP_NO_NEW_PRIVS,
    SPAWN_STEP_CWD,
    SPAWN_STEP_EXEC,
};

enum spawn_flags {
    SPAWN_NEW_SESSION = 1,   /* setsid(2) */
    SPAWN_NO_NEW_PRIVS = 2,  /* prctl(PR_SET_NO_NEW_PRIVS) */
    SPAWN_CAPABILITIES = 4,  /* keep only `capabilities` (bounding, permitted, ambient) */
};

/* Descriptor `from` of the daemon becomes `to` in the child. */
struct spawn_fd {
    int32_t from;
    int32_t to;
};

/* soft and hard in the kernel's units; UINT64_MAX = infinity. */
struct spawn_rlimit {
    int32_t resource;
    uint64_t soft;
    uint64_t hard;
};

struct spawn_spec {
    const char *file;      /* what to execute; searched in `search` if it has no '/' */
    const char *search;    /* directories, ':' between them; NULL: do not search */
    char **argv;           /* NULL-terminated; argv[0] need not be `file` */
    char **envp;           /* NULL-terminated, the whole environment */
    char *listen_pid;      /* room for 11 bytes inside an envp string, or NULL: the
                              child's pid is written there in decimal, NUL-terminated */
    const char *cwd;       /* NULL: the daemon's */
    const struct spawn_fd *fds; /* all that the child has; nothing else leaks */
    size_t n_fds;
    const struct spawn_rlimit *rlimits;
    size_t n_rlimits;
    const uint32_t *groups; /* supplementary groups */
    int32_t n_groups;       /* -1: keep the daemon's */
    int64_t uid;            /* -1: keep */
    int64_t gid;            /* -1: keep */
    int32_t umask;          /* -1: keep */
    int32_t nice;           /* INT32_MIN: keep */
    int32_t oom_score_adj;  /* INT32_MIN: keep */
    const uint64_t *cpus;   /* affinity as a bit set of n_cpus words; NULL: keep */
    size_t n_cpus;
    uint64_t capabilities;  /* a bit for each CAP_*, see SPAWN_CAPABILITIES */
    uint32_t flags;         /* enum spawn_flags */
    int32_t cgroup_fd;      /* directory of the cgroup to be born into; -1: the daemon's */
};

struct spawn_result {
    int32_t pid;
    int32_t pidfd;
    int32_t step;  /* enum spawn_step, written on failure alone */
    int32_t index; /* likewise: which of rlimits or fds it was, -1 if no one's turn */
};

/* Start a process; returns when it has executed its program or has failed to.
 * 0: ret_ holds pid and pidfd (owned by the caller). -errno: ret_->step says where,
 * and no process and no descriptor is left behind. Call it in one thread at a time. */
int spawn(const struct spawn_spec *spec, struct spawn_result *ret_);
const char *spawn_step_name(int32_t step);

/* Be the parent of all orphans below: prctl(2), PR_SET_CHILD_SUBREAPER. 0 or -errno. */
int become_subreaper(void);

/* ---- proc.c: a look at all processes --------------------------------------------- */

/* One line of /proc: who descends from whom. */
struct proc_entry {
    int32_t pid;
    int32_t ppid;
    int32_t pgrp;
    int32_t session;
    uint64_t start;  /* clock ticks since boot, proc(5) starttime */
    char state;      /* proc(5): R, S, D, Z (no thread of it runs), ... */
};

/* Every process of the system, at most `cap` of them; returns how many there are
 * (which may exceed `cap`: call again with more room) or -errno. */
int proc_scan(struct proc_entry *ret_entries, size_t cap);

/* ---- pump.c, stream.c, sink.c, file.c, queue.c: bytes from pipes to where they go -- */

/* Who frees what. The pump frees nothing that it gave out: after a stream's
 * PUMP_STREAM_EOF and a sink's PUMP_SINK_CLOSED was taken, the pump has forgotten it, and
 * its owner calls stream_free or sink_free. */
struct pump;
struct sink;
struct stream;

enum sink_flags {
    SINK_BORROWED_FD = 1, /* write to `fd`; never reopen or rotate it */
};

/* A file that streams write to. Strings are copied. */
struct file_spec {
    const char *path;      /* absolute; NULL with SINK_BORROWED_FD */
    int32_t fd;            /* with SINK_BORROWED_FD: duplicated, not consumed */
    uint32_t flags;        /* enum sink_flags */
    uint64_t max_bytes;    /* rotate at a line's end before passing this; 0: never */
    uint32_t backup_count; /* path.1 (newest) to path.N; 0: never rotate */
    uint32_t refresh_ms;   /* how long bytes may wait to be written together */
    uint32_t max_line;     /* a longer line may be interrupted by another stream's */
    uint32_t mode;         /* of a file that is created */
};

/* What stands around each line of a stream: BEFORE TIME MIDDLE line AFTER newline.
 * Each may be NULL; strings are copied. */
struct line_style {
    const char *before;
    const char *time_format; /* strftime(3), local time */
    const char *middle;
    const char *after;
};

enum pump_event_kind {
    PUMP_STREAM_EOF,           /* all it wrote is in its sink; descriptor closed;
                                  error = errno of the read that ended it, or 0 */
    PUMP_SINK_FAILED,          /* error = errno; its streams are held back; retried
                                  (EPIPE and EIO of a borrowed fd: discarded from now) */
    PUMP_SINK_RECOVERED,       /* error = what it had failed with */
    PUMP_SINK_ROTATION_FAILED, /* the old file is written on; tried again later */
    PUMP_SINK_CLOSED,
};

struct pump_event {
    int32_t kind;
    int32_t error;
    uint64_t id; /* of the stream or sink, as given at its creation */
};

/* The one pump thread. pump_new starts it with all signals blocked. */
int pump_new(struct pump **ret_pump);
/* Readable while pump_take has something to give. Owned by the pump. */
int pump_eventfd(const struct pump *pump);
/* At most `cap` events, oldest first; returns how many. Clears the eventfd when it
 * has given the last. Of a sink only the newest event is kept. */
int pump_take(struct pump *pump, struct pump_event *ret_events, size_t cap);
/* Loop turns so far: a watchdog sees the thread alive by asking it to turn. */
uint64_t pump_heartbeat(const struct pump *pump);
void pump_ping(struct pump *pump);
/* Close every stream and sink, wait at most timeout_ms for what they hold to be
 * written, end the thread. Returns the bytes that could not be written; the events that
 * are left can be taken. -ETIMEDOUT: the thread hangs in a system call (a dead disk);
 * then nothing may be freed. */
int64_t pump_stop(struct pump *pump, int32_t timeout_ms);
/* After pump_stop, when every stream and sink was freed. */
void pump_free(struct pump *pump);

/* A file is opened by the pump; a failure to open is an event (PUMP_SINK_FAILED) and
 * is retried, and the streams wait meanwhile. -EINVAL: no path, or a relative one. */
int sink_file_new(struct pump *pump, uint64_t id, const struct file_spec *spec, struct sink **ret_sink);
/* Go on with other numbers (max_bytes to mode); path, fd and flags are not looked at. */
void sink_file_set(struct sink *sink, const struct file_spec *spec);
/* Lines for another thread, which takes them with sink_queue_take. One batch waits
 * there and one more is gathered; then the streams wait. */
int sink_queue_new(struct pump *pump, uint64_t id, uint32_t max_line, struct sink **ret_sink);

/* What stands before each run of whole lines (or piece of a line longer than max_line)
 * in a batch; the next record begins 8-aligned after its bytes. */
struct queue_record {
    uint64_t stream; /* id of the stream */
    int32_t pid;
    uint32_t length; /* bytes that follow */
};

/* Wait for the next batch, at most timeout_ms (-1: for ever). Returns its length, 0 on
 * time-out, -EPIPE once the sink is closed and empty. The batch before it is given
 * back. One thread at a time; never after sink_free. */
int64_t sink_queue_take(struct sink *sink, char **ret_data, int32_t timeout_ms);
/* Open the file again, now: it was renamed, or what made it fail is mended. */
void sink_reopen(struct sink *sink);
/* No stream is added any more; PUMP_SINK_CLOSED comes when the last one has ended and
 * all is written. */
void sink_close(struct sink *sink);
/* Only after its PUMP_SINK_CLOSED was taken. */
void sink_free(struct sink *sink);

/* Read `fd` to its end into `sink`; it is made non-blocking, and the pump's own from
 * now (on failure it stays the caller's). No wake-up of the pump: the first byte wakes
 * it. `style` NULL: bytes pass as they are (a queue takes no other). `tail` bytes of
 * the newest output are remembered. -ESHUTDOWN: the sink was closed. */
int pump_add(struct pump *pump, int32_t fd, uint64_t id, int32_t pid, struct sink *sink,
             const struct line_style *style, uint32_t tail, struct stream **ret_stream);
/* Read what is there now, then behave as at the end of the file. */
void stream_close(struct stream *stream);
/* The newest output, oldest byte first; returns how many bytes. Any thread. */
size_t stream_tail(struct stream *stream, char *ret_buffer, size_t size);
/* Bytes read from it so far. */
uint64_t stream_bytes(const struct stream *stream);
/* Only after its PUMP_STREAM_EOF was taken. */
void stream_free(struct stream *stream);
