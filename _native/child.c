/* What a new process does between clone and execve.
 *
 * It runs in the daemon's memory while the daemon runs on (see spawn.c), so it makes system
 * calls and nothing else: no malloc, no stdio, and no function of glibc that touches errno, which
 * is the daemon's, or the set*id ones, which signal every thread they know of. Everything that is
 * not memory it has for itself: descriptors, dispositions, mask, directory, umask, limits, ids. It
 * prepares them in the order of STEPS below; each step returns 0 or -errno.
 *
 * Linux 5.4 is enough: close_range(2) (5.9) has a fallback. */
#include "child.h"

#include "call.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

/* Where the plain numbers mean 16-bit ids (i386, arm), the 32-bit calls have names of
 * their own. */
#ifndef SYS_setresuid32
#define SYS_setresuid32 SYS_setresuid
#define SYS_setresgid32 SYS_setresgid
#define SYS_setgroups32 SYS_setgroups
#define SYS_geteuid32 SYS_geteuid
#endif

static int checked(long rc)
{
    return rc < 0 ? (int)rc : 0;
}

/* execve(2) resets handlers but lets ignored signals stay ignored, such as Python's SIGPIPE. */
static int reset_signals(struct child *child)
{
    (void)child;
    /* The kernel's own struct sigaction, zeroed (SIG_DFL), whatever its layout is here;
     * glibc's sigaction() refuses the two signals that it keeps for itself. */
    const uint64_t action[8] = {0};
    for (int signum = 1; signum <= LAST_SIGNAL; signum++) {
        if (signum == SIGKILL || signum == SIGSTOP)
            continue;
        int rc = checked(call(SYS_rt_sigaction, signum, action, NULL, SIGSET_BYTES));
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int start_session(struct child *child)
{
    return child->spec.flags & SPAWN_NEW_SESSION ? checked(call(SYS_setsid)) : 0;
}

static int write_file(int directory, const char *path, const char *text)
{
    long fd = call(SYS_openat, directory, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return (int)fd;
    int rc = checked(call(SYS_write, fd, text, strlen(text)));
    (void)call(SYS_close, fd);
    return rc;
}

/* "0" stands for the writer (Documentation/admin-guide/cgroup-v2.rst). */
static int join_cgroup(struct child *child)
{
    if (child->spec.cgroup_fd < 0 || child->in_cgroup)
        return 0;
    return write_file(child->spec.cgroup_fd, "cgroup.procs", "0");
}

/* Decimal, NUL-terminated; returns the length. */
static size_t format_number(char ret_text[12], int32_t number)
{
    char reversed[11];
    size_t n = 0, length = 0;
    uint32_t rest = number < 0 ? -(uint32_t)number : (uint32_t)number;
    do
        reversed[n++] = (char)('0' + rest % 10);
    while ((rest /= 10) > 0);
    if (number < 0)
        ret_text[length++] = '-';
    while (n > 0)
        ret_text[length++] = reversed[--n];
    ret_text[length] = '\0';
    return length;
}

static int set_oom_score_adj(struct child *child)
{
    if (child->spec.oom_score_adj == INT32_MIN)
        return 0;
    char text[12];
    (void)format_number(text, child->spec.oom_score_adj);
    return write_file(AT_FDCWD, "/proc/self/oom_score_adj", text);
}

/* The first descriptor from `at` on that it is to have, or its sign; INT32_MAX: there is none. */
static int32_t next_kept(const struct child *child, int32_t at)
{
    int32_t next = child->own_sign >= at ? child->own_sign : INT32_MAX;
    for (size_t i = 0; i < child->spec.n_fds; i++) {
        int32_t to = child->spec.fds[i].to;
        if (to >= at && to < next)
            next = to;
    }
    return next;
}

/* Before close_range(2) could do it: close each descriptor that /proc lists. */
static int close_listed(const struct child *child)
{
    _Alignas(struct dirent64) char buffer[4096];
    long directory = call(SYS_openat, AT_FDCWD, "/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return (int)directory;
    long size;
    while ((size = call(SYS_getdents64, directory, buffer, sizeof buffer)) > 0) {
        const struct dirent64 *entry;
        for (long at = 0; at < size; at += entry->d_reclen) {
            entry = (const struct dirent64 *)(const void *)(buffer + at);
            if (*entry->d_name == '.')
                continue;
            int fd = 0;
            for (const char *digit = entry->d_name; *digit; digit++)
                fd = fd * 10 + (*digit - '0');
            if (fd != directory && next_kept(child, fd) != fd)
                (void)call(SYS_close, fd);
        }
    }
    (void)call(SYS_close, directory);
    return checked(size);
}

/* Now, and not when the program is executed: that may take its time, in which others would not see
 * the end of a pipe or connection that we close, nor the next daemon get our lock. */
static int close_the_rest(const struct child *child)
{
    for (int32_t at = 0;; at++) {
        const int32_t next = next_kept(child, at);
        const unsigned last = next == INT32_MAX ? ~0U : (unsigned)next - 1;
        int rc = next == at ? 0 : checked(call(SYS_close_range, at, last, 0));
        /* ENOSYS: before 5.9; EPERM: a seccomp filter. */
        if (rc == -ENOSYS || rc == -EPERM)
            return close_listed(child);
        if (rc < 0 || next == INT32_MAX)
            return rc;
        at = next;
    }
}

int32_t above_all(const struct spawn_spec *spec)
{
    int32_t above = 0;
    for (size_t i = 0; i < spec->n_fds; i++)
        if (spec->fds[i].to >= above)
            above = spec->fds[i].to + 1;
    return above;
}

/* All at once: a descriptor may be the target of one entry and the source of another. So
 * every source that is in the way of a target is first moved above all of them. */
static int arrange_fds(struct child *child)
{
    const struct spawn_spec *spec = &child->spec;
    const int32_t above = above_all(spec);
    for (size_t i = 0; i < spec->n_fds; i++) {
        child->index = (int32_t)i;
        child->sources[i] = spec->fds[i].from;
        if (spec->fds[i].from < above && spec->fds[i].from != spec->fds[i].to)
            child->sources[i] = (int32_t)call(SYS_fcntl, spec->fds[i].from, F_DUPFD_CLOEXEC, above);
        if (child->sources[i] < 0)
            return child->sources[i];
    }
    for (size_t i = 0; i < spec->n_fds; i++) {
        child->index = (int32_t)i;
        const int32_t from = child->sources[i], to = spec->fds[i].to;
        /* dup3 clears FD_CLOEXEC, but refuses two that are the same. */
        int rc = checked(from == to ? call(SYS_fcntl, from, F_SETFD, 0) : call(SYS_dup3, from, to, 0));
        if (rc < 0)
            return rc;
    }
    child->index = -1;
    return close_the_rest(child);
}

static int set_rlimits(struct child *child)
{
    const struct spawn_spec *spec = &child->spec;
    for (size_t i = 0; i < spec->n_rlimits; i++) {
        const struct spawn_rlimit *limit = &spec->rlimits[i];
        /* The kernel's struct rlimit64, where infinity is ~0 as in ours. */
        const uint64_t values[2] = {limit->soft, limit->hard};
        child->index = (int32_t)i;
        int rc = checked(call(SYS_prlimit64, 0, limit->resource, values, NULL));
        if (rc < 0)
            return rc;
    }
    child->index = -1;
    return 0;
}

static int set_nice(struct child *child)
{
    if (child->spec.nice == INT32_MIN)
        return 0;
    return checked(call(SYS_setpriority, PRIO_PROCESS, 0, child->spec.nice));
}

static int set_affinity(struct child *child)
{
    const struct spawn_spec *spec = &child->spec;
    if (!spec->cpus)
        return 0;
    return checked(call(SYS_sched_setaffinity, 0, spec->n_cpus * sizeof *spec->cpus, spec->cpus));
}

static int set_umask(struct child *child)
{
    if (child->spec.umask >= 0)
        (void)call(SYS_umask, child->spec.umask);
    return 0;
}

static int set_groups(struct child *child)
{
    if (child->spec.n_groups < 0)
        return 0;
    return checked(call(SYS_setgroups32, child->spec.n_groups, child->spec.groups));
}

/* The kernel would take 2^32 for root and 2^32 - 1 for "as it is", which is root as well. */
static int set_ids(long number, int64_t id)
{
    if (id >= UINT32_MAX)
        return -EINVAL;
    return id < 0 ? 0 : checked(call(number, id, id, id));
}

/* Who has a session keyring possesses all keys in it, whoever's they are (keyrings(7)): another
 * user gets a new, empty one, as a service does (systemd.exec(5), KeyringMode=). Made as
 * our user, whose quota is the larger. Where there is no such call, there are no keys to be had. */
static int leave_keyring(struct child *child)
{
    const int64_t uid = child->spec.uid;
    if (uid >= 0 && uid != call(SYS_geteuid32))
        (void)call(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
    return 0;
}

static int set_gid(struct child *child)
{
    return set_ids(SYS_setresgid32, child->spec.gid);
}

/* Needs CAP_SETPCAP, so before the uid is changed; that would also empty the permitted
 * set but for PR_SET_KEEPCAPS, which execve(2) clears again. */
static int bound_capabilities(struct child *child)
{
    const struct spawn_spec *spec = &child->spec;
    if (!(spec->flags & SPAWN_CAPABILITIES))
        return 0;
    for (int cap = 0; cap < 64; cap++) {
        if (spec->capabilities >> cap & 1)
            continue;
        long has = call(SYS_prctl, PR_CAPBSET_READ, cap, 0, 0, 0);
        if (has < 0)
            break; /* EINVAL: the kernel knows no more */
        int rc = has ? checked(call(SYS_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0)) : 0;
        if (rc < 0)
            return rc;
    }
    return checked(call(SYS_prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0));
}

static int set_uid(struct child *child)
{
    return set_ids(SYS_setresuid32, child->spec.uid);
}

/* The ambient set is what a program without file capabilities starts with; a capability
 * must be permitted and inheritable to be in it (capabilities(7)). */
static int set_capabilities(struct child *child)
{
    const struct spawn_spec *spec = &child->spec;
    if (!(spec->flags & SPAWN_CAPABILITIES))
        return 0;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    for (int half = 0; half < 2; half++) {
        uint32_t set = (uint32_t)(spec->capabilities >> (32 * half));
        data[half] = (struct __user_cap_data_struct){set, set, set};
    }
    int rc = checked(call(SYS_capset, &header, data));
    for (int cap = 0; cap < 64 && rc == 0; cap++)
        if (spec->capabilities >> cap & 1)
            rc = checked(call(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0));
    return rc;
}

static int set_no_new_privs(struct child *child)
{
    if (!(child->spec.flags & SPAWN_NO_NEW_PRIVS))
        return 0;
    return checked(call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static int change_directory(struct child *child)
{
    return child->spec.cwd ? checked(call(SYS_chdir, child->spec.cwd)) : 0;
}

/* As execvp(3): go on where nothing was found; what was found but may not be executed is told
 * only if nothing better is. An empty element is the current directory. Unlike execvp a
 * file without a known format is not given to a shell. */
static int search_and_execute(const struct spawn_spec *spec)
{
    char path[PATH_MAX];
    size_t length = strlen(spec->file);
    int found = -ENOENT;
    const char *end;
    for (const char *at = spec->search;; at = end + 1) {
        end = strchrnul(at, ':');
        size_t prefix = (size_t)(end - at);
        if (prefix + 1 + length < sizeof path) {
            memcpy(path, at, prefix);
            path[prefix] = '/';
            memcpy(path + prefix + (prefix > 0), spec->file, length + 1);
            int rc = checked(call(SYS_execve, path, spec->argv, spec->envp));
            if (rc == -EACCES)
                found = -EACCES;
            else if (rc != -ENOENT && rc != -ENOTDIR && rc != -ESTALE && rc != -ENODEV &&
                     rc != -ETIMEDOUT)
                return rc;
        }
        if (*end == '\0')
            return found;
    }
}

static int execute(struct child *child)
{
    const struct spawn_spec *spec = &child->spec;
    const uint64_t none = 0;
    if (spec->listen_pid) {
        char text[12];
        memcpy(spec->listen_pid, text, format_number(text, (int32_t)call(SYS_getpid)) + 1);
    }
    int rc = checked(call(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, SIGSET_BYTES));
    if (rc < 0)
        return rc;
    if (spec->search && *spec->file && !strchr(spec->file, '/'))
        return search_and_execute(spec);
    return checked(call(SYS_execve, spec->file, spec->argv, spec->envp));
}

/* What opens files comes before the limits that could forbid it, what needs privilege
 * before the ids, and what is to be judged by the new ids after them. Until it is as nice as it is to
 * be, and in a session of its own (sched(7), autogroup), it has the precedence of the daemon, which
 * may wait for a lock of the memory that it holds. */
static const struct {
    int32_t step;
    int (*take)(struct child *child);
} STEPS[] = {
    {SPAWN_STEP_SIGNALS, reset_signals},
    {SPAWN_STEP_CGROUP, join_cgroup},
    {SPAWN_STEP_OOM_SCORE_ADJ, set_oom_score_adj},
    {SPAWN_STEP_FDS, arrange_fds},
    {SPAWN_STEP_RLIMIT, set_rlimits},
    {SPAWN_STEP_AFFINITY, set_affinity},
    {SPAWN_STEP_UMASK, set_umask},
    {SPAWN_STEP_SESSION, start_session},
    {SPAWN_STEP_NICE, set_nice},
    {SPAWN_STEP_UID, leave_keyring},
    {SPAWN_STEP_GROUPS, set_groups},
    {SPAWN_STEP_GID, set_gid},
    {SPAWN_STEP_CAPABILITIES, bound_capabilities},
    {SPAWN_STEP_UID, set_uid},
    {SPAWN_STEP_CAPABILITIES, set_capabilities},
    {SPAWN_STEP_NO_NEW_PRIVS, set_no_new_privs},
    {SPAWN_STEP_CWD, change_directory},
    {SPAWN_STEP_EXEC, execute},
};

/* Does not return: there is nothing to return to. */
int child_main(void *argument)
{
    struct child *child = argument;
    for (size_t i = 0; i < sizeof STEPS / sizeof *STEPS; i++) {
        child->step = STEPS[i].step;
        int rc = STEPS[i].take(child);
        if (rc < 0) {
            child->error = -rc;
            break;
        }
    }
    return (int)call(SYS_exit_group, 127);
}
