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

/* ---- spawn.c: a process from nothing to its first instruction -------------------- */

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

/* ---- pump.c, sink.c: bytes from pipes to where they go --------------------------- */

struct pump;
struct sink;
struct stream;

enum sink_flags {
    SINK_RAW = 0,
    SINK_PID = 1,        /* each line begins with the time (if asked) and "[pid] | " */
    SINK_BORROWED_FD = 2 /* write to `fd` and never reopen or rotate it */
};

/* A file that streams write to. Strings are copied. */
struct file_spec {
    const char *path;         /* NULL with SINK_BORROWED_FD */
    int32_t fd;               /* with SINK_BORROWED_FD: duplicated, not consumed */
    uint32_t flags;           /* enum sink_flags */
    const char *time_format;  /* strftime(3), local time, before each line; or NULL */
    const char *before;       /* bytes before each line's stamp (a colour), or NULL */
    const char *after;        /* bytes before each line's newline, or NULL */
    uint64_t max_bytes;       /* rotate at a line's end before passing this; 0: never */
    uint32_t backup_count;    /* path.1 (newest) to path.N; 0: never rotate */
    uint32_t refresh_ms;      /* how long bytes may wait to be written together */
    uint32_t max_line;        /* a longer line is written in pieces of this */
    uint32_t mode;            /* of a file that is created */
};

enum pump_event_kind {
    PUMP_STREAM_EOF,     /* all that was written is in the sink's file; descriptor closed */
    PUMP_SINK_FAILED,    /* error = errno; its streams are held back; retried */
    PUMP_SINK_RECOVERED,
};

struct pump_event {
    int32_t kind;
    int32_t error;
    uint64_t id;  /* of the stream or sink, as given at its creation */
};

/* The one pump thread. pump_new starts it with all signals blocked. */
int pump_new(struct pump **ret_pump);
/* Readable while pump_take has something to give. Owned by the pump. */
int pump_eventfd(const struct pump *pump);
/* At most `cap` events, oldest first; returns how many. Clears the eventfd when it
 * has given the last. */
int pump_take(struct pump *pump, struct pump_event *ret_events, size_t cap);
/* Loop turns so far: a watchdog sees the thread alive by asking it to turn. */
uint64_t pump_heartbeat(const struct pump *pump);
void pump_ping(struct pump *pump);
/* Write out what is held, wait at most timeout_ms, end the thread, free the pump.
 * Streams and sinks must not be used afterwards. -ETIMEDOUT: bytes were left. */
int pump_stop(struct pump *pump, int32_t timeout_ms);

/* A file is opened by the pump; a failure to open is an event (PUMP_SINK_FAILED) and
 * is retried, and the streams wait meanwhile. */
int sink_file_new(struct pump *pump, uint64_t id, const struct file_spec *spec, struct sink **ret_sink);
/* Lines for a thread of Python: whole lines (or pieces of max_line), bounded by
 * `capacity` bytes; when it is full its streams wait. */
int sink_ring_new(struct pump *pump, uint64_t id, uint32_t capacity, uint32_t max_line, struct sink **ret_sink);

/* What stands before each run of bytes that sink_ring_read returns. */
struct ring_record {
    uint64_t stream;  /* id of the stream */
    int32_t pid;
    uint32_t length;  /* bytes that follow; the next record begins 8-aligned after them */
};

/* Wait until the ring has bytes, at most timeout_ms (-1: for ever); copy whole records
 * to ret_buffer. Returns the bytes copied, 0 on time-out, -EPIPE once the sink is
 * closed and empty. May be called by one thread at a time; blocks without the GIL. */
int64_t sink_ring_read(struct sink *sink, char *ret_buffer, size_t size, int32_t timeout_ms);
/* Reopen at once, as after a rename by another program. */
void sink_reopen(struct sink *sink);
/* Write what is held, then close; the sink frees itself when its last stream ends. */
void sink_close(struct sink *sink);

/* Read `fd` (consumed; made non-blocking) to its end into `sink`. No wake-up of the
 * pump: the first byte wakes it. `tail` bytes of the newest output are remembered. */
int pump_add(struct pump *pump, int32_t fd, uint64_t id, int32_t pid, struct sink *sink, uint32_t tail,
             struct stream **ret_stream);
/* Read what is there now, then behave as at the end of the file. */
void stream_close(struct stream *stream);
/* The newest output, oldest byte first; returns how many bytes. Any thread. */
size_t stream_tail(struct stream *stream, char *ret_buffer, size_t size);
/* Bytes read from it so far. */
uint64_t stream_bytes(const struct stream *stream);
/* Only after its PUMP_STREAM_EOF was taken. */
void stream_free(struct stream *stream);
