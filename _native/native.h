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
#include <stdbool.h>
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
    int32_t sign;
    bool left;     /* whether `sign` is readable already */
    int32_t step;  /* enum spawn_step: where it failed */
    int32_t index; /* likewise: which of rlimits or fds it was, -1 if no one's turn */
};

/* A process that is yet to execute its program. */
struct child;

/* Make a process, and wait a moment for it. 0: ret_ holds pid and pidfd, the caller's own, and `sign`, which becomes readable
 * when the process has executed its program, or has ended without; spawn_end() is to follow, and
 * what `spec` points to is to stay until then. -errno: there is no process, and ret_->step says why.
 * Both are for one thread alone, which lives as long as the daemon. */
int spawn_begin(const struct spawn_spec *spec, struct spawn_result *ret_, struct child **ret_child);

/* Let go of it, and close its sign. 0: it has executed its program, or was killed at ret_->step.
 * -EAGAIN: neither yet, and nothing was done. Another -errno: it failed at ret_->step, and is for
 * the caller to reap. */
int spawn_end(struct child *child, struct spawn_result *ret_);
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

/* What a process has used and holds. */
struct proc_figures {
    int32_t pid;       /* 0: there is none of that number, or no more */
    int32_t ppid;
    int32_t nice;
    char name[16];     /* as much of it as fits, not always with a NUL at its end */
    uint64_t start;    /* clock ticks since boot */
    uint64_t cpu;      /* clock ticks, in its own code and the kernel's */
    uint64_t virtual_size; /* bytes */
    uint64_t resident; /* pages */
    uint64_t read_at;  /* nanoseconds since boot, CLOCK_BOOTTIME */
};

/* Of `n` processes, in that order. 0, or -errno (no descriptor is left, say): then they
 * are not to be looked at. */
int proc_read(const int32_t *pids, size_t n, struct proc_figures *ret_figures);

/* ---- the pump: bytes from pipes to where they go --------------------------------- */

/* A pipe is a stream. Streams of one kind (the stdouts of one watcher) share an outlet,
 * which says what is done to their lines; it leads to a sink, where several outlets may
 * end.
 *
 * Who frees what. The pump frees nothing that it gave out: after a stream's
 * PUMP_STREAM_EOF and a sink's PUMP_SINK_CLOSED was taken, the pump has forgotten it, and
 * its owner calls stream_free or sink_free; outlet_free when no stream of it is left. */
struct pump;
struct sink;
struct outlet;
struct stream;

enum pump_event_kind {
    PUMP_STREAM_EOF,           /* all it wrote is in its sink; descriptor closed;
                                  error = errno of the read that ended it, or 0 */
    PUMP_SINK_FAILED,          /* error = errno; its streams are held back; retried
                                  (EPIPE and EIO of a borrowed fd: discarded from now) */
    PUMP_SINK_RECOVERED,       /* error = what it had failed with */
    PUMP_SINK_ROTATION_FAILED, /* the old file is written on; tried again later */
    PUMP_SINK_OWNER_FAILED,    /* owner, group or mode could not be set; written all the same */
    PUMP_SINK_CLOSED,
    PUMP_SINK_ROTATED,         /* there is one backup more */
    PUMP_SINK_DIRTY,           /* bytes were written; see sink_file_clean */
    PUMP_SINK_REOPENED,        /* sink_reopen was done; a failure of it was taken before */
    PUMP_OUTLET_LOSS,          /* lines were left out; see outlet_losses */
    PUMP_TAPPED,               /* see pump_tap_take; id = 0 */
};

struct pump_event {
    int32_t kind;
    int32_t error;
    uint64_t id; /* of the stream, outlet or sink, as given at its creation */
};

/* The one pump thread; it starts with all signals blocked. All bytes that were read and
 * not yet written lie in one arena; with `memfd` >= 0 that is the file's memory (made
 * as large as the arena, sparse; duplicated). It outlives the process, which may be killed
 * at any time: a pump that is made of a memfd that holds an arena takes it over. What was
 * on its way goes on when a stream is added by its old id, a sink opened by its old key.
 * -EPROTO: it is not empty, and no arena of this version. */
int pump_new(int32_t memfd, struct pump **ret_pump);
/* Readable while pump_take has something to give. Owned by the pump. */
int pump_eventfd(const struct pump *pump);
/* At most `cap` events, oldest first; returns how many. Clears the eventfd when it
 * has given the last. Of a sink's states (FAILED to CLOSED) only the newest is kept. */
int pump_take(struct pump *pump, struct pump_event *ret_events, size_t cap);
/* Loop turns so far: a watchdog sees the thread alive by asking it to turn. */
uint64_t pump_heartbeat(const struct pump *pump);
void pump_ping(struct pump *pump);
/* Close every stream and sink, wait at most timeout_ms for what they hold to be
 * written, end the thread. Returns the bytes that could not be written; the events that
 * are left can be taken. -ETIMEDOUT: the thread hangs in a system call (a dead disk);
 * then nothing may be freed. */
int64_t pump_stop(struct pump *pump, int32_t timeout_ms);
/* After pump_stop, when every stream, outlet and sink was freed. */
void pump_free(struct pump *pump);

/* In place of pump_stop, for another process to go on: end the thread and close what it
 * writes to, but write nothing. Streams keep their descriptors, see stream_detach. 0 or
 * -ETIMEDOUT, as pump_stop. */
int pump_park(struct pump *pump, int32_t timeout_ms);

enum pending_kind {
    PENDING_LINE = 1,    /* the unfinished line of a stream */
    PENDING_BATCH = 2,   /* whole lines of a sink */
    PENDING_RECORDS = 3, /* the same with a struct record before each run of lines */
};

/* What another process has left in the arena, and nobody took up. */
struct orphan {
    uint64_t id;     /* of the stream; of a sink: as it was */
    uint64_t length; /* bytes; of a stream they may be more than a line */
    const char *key; /* of the sink; NULL: a stream. Until it is taken up */
    int32_t kind;
};

/* At most `cap` of them; returns how many there are. In the thread that adds streams and
 * opens sinks. */
size_t pump_orphans(struct pump *pump, struct orphan *ret_orphans, size_t cap);

/* ---- sinks */

enum sink_flags {
    SINK_BORROWED_FD = 1, /* write to `fd`; never reopen or rotate it */
    SINK_SYNC = 2,        /* tell PUMP_SINK_DIRTY */
    SINK_STAMPED = 4,     /* backups are named by `suffix`, not numbered */
};

/* A file that streams write to. Strings are copied. */
struct file_spec {
    const char *path;      /* absolute; NULL with SINK_BORROWED_FD */
    const char *key;       /* what it is known by to the next process; NULL: not at all */
    const char *suffix;    /* of the next backup, with SINK_STAMPED */
    int64_t rotate_at;     /* CLOCK_REALTIME seconds: rotate then; 0: never */
    uint64_t max_bytes;    /* rotate at a line's end before passing this; 0: never */
    uint64_t max_held;     /* bytes gathered before it counts as full */
    int64_t owner;         /* of the file; -1: as it comes */
    int64_t group;
    int32_t mode;          /* -1: 0666 less the umask */
    int32_t fd;            /* with SINK_BORROWED_FD: duplicated, not consumed */
    uint32_t flags;        /* enum sink_flags */
    uint32_t backup_count; /* path.1 (newest) to path.N; 0: never rotate to numbers */
    uint32_t rotate_age;   /* seconds since the file was made; 0: never */
    uint32_t refresh_ms;   /* how long bytes may wait to be written together */
};

/* A file is opened by the pump; a failure to open is an event (PUMP_SINK_FAILED) and
 * is retried, and the streams wait meanwhile. -EINVAL: no path, or a relative one. */
int sink_file_new(struct pump *pump, uint64_t id, const struct file_spec *spec, struct sink **ret_sink);
/* Go on with other options; path, fd and SINK_BORROWED_FD are not looked at. */
void sink_file_set(struct sink *sink, const struct file_spec *spec);
/* Rotate at the next line end, whatever the size; an empty file is left as it is. */
void sink_file_rotate(struct sink *sink);
/* Have PUMP_SINK_DIRTY told again; returns a duplicate of the descriptor, to be synced
 * and closed by the caller, or -errno. */
int sink_file_clean(struct sink *sink);
/* While it is locked no backup is renamed: a rotation that is due waits. Brief! */
void sink_file_lock(struct sink *sink);
void sink_file_unlock(struct sink *sink);

/* systemd's journal. */
struct journal_spec {
    const char *path;       /* of the socket: .../socket, or with `header` .../stdout */
    const char *key;        /* as of a file */
    const char *header;     /* of a connection of the stream protocol; NULL: entries */
    uint64_t max_held;
    uint32_t refresh_ms;
    bool credentials;       /* stream protocol: lines come from the streams' pids */
};

int sink_journal_new(struct pump *pump, uint64_t id, const struct journal_spec *spec,
                     struct sink **ret_sink);

/* Lines for another thread, which takes them with sink_queue_take. One batch waits
 * there and one more is gathered; then the streams wait. */
int sink_queue_new(struct pump *pump, uint64_t id, const char *key, uint64_t max_held,
                   struct sink **ret_sink);

enum record_flags {
    RECORD_PARTIAL = 1, /* ends in the midst of a line that the stream's next one continues */
};

/* What stands before each run of whole lines (or piece of a line longer than max_line)
 * in a batch; the next record begins 8-aligned after its bytes. */
struct record {
    uint64_t stream; /* id of the stream; 0: a record of loss */
    uint64_t label;  /* the pump's own */
    int32_t pid;
    uint32_t flags;  /* enum record_flags */
    uint32_t length; /* bytes that follow */
    uint32_t reserved;
};

/* Wait for the next batch, at most timeout_ms (-1: for ever). Returns its length, 0 on
 * time-out, -EPIPE once the sink is closed and empty. The batch before it is given
 * back. One thread at a time; never after sink_free. */
int64_t sink_queue_take(struct sink *sink, char **ret_data, int32_t timeout_ms);
/* Of the batch that it took, all is done before the record at `next`: after a crash that
 * does not come again. */
void sink_queue_did(struct sink *sink, const char *next);

/* Open it again, now: a file was renamed, or what made it fail is mended. PUMP_SINK_REOPENED
 * comes when that was tried. */
void sink_reopen(struct sink *sink);
/* No stream is added any more; PUMP_SINK_CLOSED comes when the last one has ended and
 * all is written. */
void sink_close(struct sink *sink);
/* Only after its PUMP_SINK_CLOSED was taken. */
void sink_free(struct sink *sink);

/* ---- outlets */

enum line_format {
    FORMAT_RAW,    /* bytes pass as they are */
    FORMAT_PREFIX, /* BEFORE TIME LABEL line AFTER newline */
    FORMAT_JSON,   /* {"time":TIME LABEL,"message":line} newline; LABEL is further members */
    FORMAT_RECORD, /* for queues and journals: LABEL is journal fields, each NAME=value\n */
};

enum time_form {
    TIME_NONE,
    TIME_STRFTIME, /* by time_format, strftime(3), local time */
    TIME_ISO,      /* ISO 8601 with microseconds and offset, local time */
    TIME_TAI64N,   /* external TAI64N label as daemontools writes it */
};

enum outlet_flags {
    OUTLET_DROP = 1,         /* where the sink is full: leave lines out and count them */
    OUTLET_LEVEL_PREFIX = 2, /* journal: <N> before a line is its priority */
};

/* What is done to the lines of streams. Strings are copied, NULL is empty. */
struct outlet_spec {
    const char *time_format;
    const char *before;
    const char *after;
    const char *name;             /* for records of loss */
    const char *label;            /* of these records, in place of a stream's */
    const char *const *patterns;  /* each begins with + or -, see select.c */
    uint32_t n_patterns;
    int32_t format;               /* enum line_format */
    int32_t time_form;            /* enum time_form */
    uint32_t flags;               /* enum outlet_flags */
    int32_t priority;             /* journal: of lines without <N> */
    uint32_t max_line;            /* a longer line is passed on in pieces */
    uint64_t rate_lines;          /* at most so many lines in rate_ns; 0: any number */
    uint64_t rate_ns;
    uint64_t rate_burst;
};

/* Since its beginning. Bytes count newlines. */
struct losses {
    uint64_t dropped_lines; /* where the sink was full */
    uint64_t dropped_bytes;
    uint64_t suppressed_lines; /* above the rate */
    uint64_t suppressed_bytes;
};

/* -EINVAL: a format that the sink can't take. */
int outlet_new(struct sink *sink, uint64_t id, const struct outlet_spec *spec,
               struct outlet **ret_outlet);
void outlet_losses(const struct outlet *outlet, struct losses *ret_losses);
/* When every stream of it was freed. */
void outlet_free(struct outlet *outlet);

/* ---- streams */

struct stream_spec {
    uint64_t id;        /* an old one takes up what another process left of it */
    const char *label;  /* what the outlet's format puts before a line; copied */
    int32_t fd;
    int32_t pid;
    uint32_t tail;      /* bytes of the newest output to remember, at most */
};

/* Read `fd` to its end (EIO ends a terminal, pty(7)) into the outlet's sink; it is made
 * non-blocking, and the pump's own from now (on failure it stays the caller's). No
 * wake-up of the pump: the first byte wakes it. -ESHUTDOWN: the sink was closed. */
int pump_add(struct outlet *outlet, const struct stream_spec *spec, struct stream **ret_stream);
/* Read what is there now, then behave as at the end of the file. */
void stream_close(struct stream *stream);
/* The newest output, oldest byte first; returns how many bytes; ret_at: the number of
 * bytes that were read when the last of them came. Any thread. */
size_t stream_tail(struct stream *stream, char *ret_buffer, size_t size, uint64_t *ret_at);
/* Bytes read from it so far. */
uint64_t stream_bytes(const struct stream *stream);
void stream_losses(const struct stream *stream, struct losses *ret_losses);
/* Whether a copy of all it reads from now on goes to pump_tap_take. */
void stream_tap(struct stream *stream, bool on);
/* After pump_park: the descriptor, or -1; the caller's from now. */
int stream_detach(struct stream *stream);
/* Only after its PUMP_STREAM_EOF was taken, or after pump_park. */
void stream_free(struct stream *stream);

/* A piece of what was read, in the tap; its bytes follow, the next one is 8-aligned. */
struct tapped {
    uint64_t stream; /* id */
    uint64_t at;     /* bytes of the stream up to its end */
    uint64_t missed; /* bytes that came before it and found the tap full */
    uint32_t length;
    uint32_t reserved;
};

/* What was read from tapped streams, at most `size` bytes (at least 128 KiB) of whole
 * records; returns how many bytes. */
size_t pump_tap_take(struct pump *pump, char *ret_data, size_t size);
