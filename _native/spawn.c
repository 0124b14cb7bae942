/* A process from nothing to its first instruction.
 *
 * The child is made by CLONE_VM (clone(2)): it runs in our memory, on a stack of its own.
 * Nothing is copied, so it is as fast with 1 GB of heap as with 1 MB, and what it writes to
 * `struct child` we can read afterwards: the failed step and its errno. The price is what the child
 * may do (child.c): it shares the locks of all our threads, and the errno of the calling one. What
 * it does to its oom_score_adj is done to all who share its memory (__set_oom_adj() in the
 * kernel), so one that is to have another gets a copy of it.
 *
 * Nobody waits for it for long. How long it takes is not ours to say: it needs a processor, of which a
 * thousand others may want one, and a directory or program need not answer (a server of NFS that
 * is away, FUSE, a lease on the file, fcntl(2), which its owner may take). So it holds one end
 * of a pipe that it closes by executing or exiting. Both close descriptors only after the memory was
 * left (exec_mmap(), exit_mm() in the kernel); the wait of CLONE_VFORK ends before.
 *
 * Signals are blocked in the calling thread around the clone, and so in the child from
 * birth: a handler of ours can't run in it, on our memory. It resets every disposition and
 * unblocks just before it executes. One that comes in between kills it then, and the death is
 * found as any other.
 *
 * A child that has changed its uid still shares the memory of a privileged daemon. Its new
 * user can't attach to it: when ids or capabilities change the kernel marks the memory
 * as not dumpable (commit_creds(); prctl(2), PR_SET_DUMPABLE), and ptrace(2) then asks for
 * CAP_SYS_PTRACE. That marks our memory as well, so the mark is taken back once no child shares
 * it, and not a moment earlier: who may look at the child then holds the daemon. What remains is
 * that the new user may signal the child. Only SIGKILL and SIGSTOP get through.
 * Ids are changed as late as can be: after them there come a few calls, chdir and execve.
 *
 * The OOM killer ends all who share the memory of its victim, and spares a child only where its
 * parent waits in vfork(2). A cgroup of a slot with a limit of its own (memory.max), which is
 * exceeded while a child is in it and on the way, so costs the daemon.
 *
 * Linux 5.4 is enough (waitid(2) on a pidfd, which the daemon needs anyway). What is newer
 * or often forbidden by a container's seccomp filter has a fallback: clone3, and
 * CLONE_INTO_CGROUP (5.7). */
#include "child.h"

#include "call.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

/* Nanoseconds that we wait for the child. If there is a processor for it, it is through by then;
 * and if that is to be ours, we had better leave it. */
enum { AT_ONCE = 400000 };

/* Whether the child can't run beside us: it uses our errno, or the sanitizer's notes of our thread.
 * Then we wait longer, and kill it. */
#if defined(CALLS_USE_ERRNO) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { PATIENCE = 4 };
#else
enum { PATIENCE = 0 };
#endif

#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif

#ifdef __x86_64__

/* clone3(2), for which glibc has no wrapper: the system call returns twice, in the child on an
 * empty stack, so what the child does next must be in registers. Other
 * architectures do without, and so without CLONE_INTO_CGROUP. */
static long clone3(const uint64_t *args, size_t size, int (*function)(void *), void *argument)
{
    long rc = SYS_clone3;
    register int (*r8)(void *) __asm__("r8") = function;
    register void *r9 __asm__("r9") = argument;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t" /* the outermost frame, for debuggers */
                     "mov %%r9, %%rdi\n\t"
                     "call *%%r8\n\t"
                     "ud2\n"
                     "1:"
                     : "+a"(rc)
                     : "D"(args), "S"(size), "r"(r8), "r"(r9)
                     : "rcx", "r11", "cc", "memory");
    return rc;
}

/* Returns the pid or -errno; -ENOSYS when the older way must do. */
static int clone_newly(struct child *child, int *ret_pidfd)
{
    char *stack = (char *)child - CHILD_STACK;
    bool into = child->spec.cgroup_fd >= 0;
    const uint64_t args[] = {
        /* struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal */
        (child->shares ? CLONE_VM : 0) | CLONE_PIDFD | (into ? CLONE_INTO_CGROUP : 0),
        (uintptr_t)ret_pidfd, 0, 0, SIGCHLD,
        /* stack, stack_size, tls */
        (uintptr_t)stack, CHILD_STACK, 0,
        /* set_tid, set_tid_size, cgroup: not known to 5.3, so given only when needed */
        0, 0, (uint64_t)child->spec.cgroup_fd,
    };
    child->in_cgroup = into;
    long rc = clone3(args, into ? sizeof args : 8 * sizeof *args, child_main, child);
    /* EPERM: old seccomp filters; E2BIG: a cgroup, before 5.7. A real EPERM meets the
     * older way as well. */
    if (rc != -ENOSYS && rc != -EPERM && rc != -E2BIG)
        return (int)rc;
    child->in_cgroup = false;
    return -ENOSYS;
}

#else

static int clone_newly(struct child *child, int *ret_pidfd)
{
    (void)child, (void)ret_pidfd;
    return -ENOSYS;
}

#endif

/* Returns the pid or -errno. */
static int make_child(struct child *child, int *ret_pidfd)
{
    int pid = clone_newly(child, ret_pidfd);
    if (pid != -ENOSYS)
        return pid;
    const int flags = (child->shares ? CLONE_VM : 0) | CLONE_PIDFD | SIGCHLD;
    pid = clone(child_main, child, flags, child, ret_pidfd);
    return pid < 0 ? -errno : pid;
}

/* Whether it is the cgroup that clone3 failed for (cgroup_css_set_fork() in the kernel), and
 * not the lack of memory or processes. */
static bool cgroup_refused(const struct child *child, int error)
{
    return child->in_cgroup && error != EAGAIN && error != ENOMEM && error != EMFILE && error != ENFILE;
}

/* A pipe whose second end the child closes by executing or exiting. It is above all that the child
 * is to have, so none of that takes its place (arrange_fds). */
static int make_sign(const struct spawn_spec *spec, int ret_ends[2])
{
    const int above = above_all(spec);
    if (pipe2(ret_ends, O_CLOEXEC) < 0)
        return -errno;
    if (ret_ends[1] >= above)
        return 0;
    int moved = fcntl(ret_ends[1], F_DUPFD_CLOEXEC, above);
    int rc = moved < 0 ? -errno : 0;
    (void)close(ret_ends[1]);
    ret_ends[1] = moved;
    if (rc < 0)
        (void)close(ret_ends[0]);
    return rc;
}

/* Whether the child has left our memory, within this time. */
static bool has_left(const struct child *child, struct timespec within)
{
    struct pollfd end = {.fd = child->sign};
    return ppoll(&end, 1, &within, NULL) > 0;
}

static size_t guard_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Of one mapping: a guard page, the stack, and `struct child`, which we are to see also if the
 * child has a copy of our memory. */
static size_t memory_size(const struct spawn_spec *spec)
{
    const size_t page = guard_size(), size = sizeof(struct child) + spec->n_fds * sizeof(int32_t);
    return page + CHILD_STACK + (size + page - 1) / page * page;
}

static char *memory_of(struct child *child)
{
    return (char *)child - CHILD_STACK - guard_size();
}

/* What was used by others before. To get and give back memory needs a lock of it all, which a
 * child may hold that waits for a processor. */
static struct {
    struct child *children[8];
    size_t n;
} spare;

static void release(struct child *child)
{
    if (child->shares && spare.n < sizeof spare.children / sizeof *spare.children)
        spare.children[spare.n++] = child;
    else
        (void)munmap(memory_of(child), memory_size(&child->spec));
}

static struct child *take_spare(size_t size)
{
    if (spare.n == 0 || memory_size(&spare.children[spare.n - 1]->spec) != size)
        return NULL;
    return spare.children[--spare.n];
}

static struct child *map_memory(size_t size, bool shares)
{
    const size_t guard = guard_size();
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        (shares ? MAP_PRIVATE : MAP_SHARED) | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE,
                        -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    if (mprotect(memory, guard, PROT_NONE) < 0) {
        (void)munmap(memory, size);
        return NULL;
    }
    return (void *)(memory + guard + CHILD_STACK);
}

static struct child *allocate(const struct spawn_spec *spec)
{
    const size_t size = memory_size(spec);
    const bool shares = spec->oom_score_adj == INT32_MIN;
    struct child *child = shares ? take_spare(size) : NULL;
    if (!child)
        child = map_memory(size, shares);
    if (!child)
        return NULL;
#ifdef __SANITIZE_ADDRESS__
    /* It may remember the frames of an earlier child there, which that never left. */
    ASAN_UNPOISON_MEMORY_REGION(memory_of(child), size);
#endif
    *child = (struct child){.shares = shares, .spec = *spec, .index = -1};
    return child;
}

/* How many children share our memory, and whether it was dumpable before. */
static struct {
    size_t children;
    int dumpable;
} shared;

static void share_with(const struct child *child)
{
    if (child->shares && shared.children++ == 0)
        shared.dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
}

static void unshare_with(const struct child *child)
{
    if (!child->shares || --shared.children > 0)
        return;
    /* 2 can't be set, and need not be: the kernel sets nothing that is more open. */
    if (shared.dumpable == 1 && prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 1)
        (void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

/* With signals blocked; closes our end of the child's sign. Returns the pid or -errno. */
static int make_quietly(struct child *child, int *ret_pidfd, bool *ret_left)
{
    const uint64_t all = ~(uint64_t)0;
    uint64_t mask;
    /* Not sigprocmask(), which leaves out glibc's own signals. */
    (void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &mask, SIGSET_BYTES);
    int pid = make_child(child, ret_pidfd);
    (void)close(child->own_sign);
    *ret_left = pid > 0 && has_left(child, (struct timespec){PATIENCE, AT_ONCE});
    if (pid > 0 && PATIENCE && !*ret_left)
        (void)kill(pid, SIGKILL);
    (void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, SIGSET_BYTES);
    return pid;
}

static int fail(struct spawn_result *ret_, int32_t step, int32_t index, int error)
{
    ret_->step = step;
    ret_->index = index;
    return -error;
}

int spawn_begin(const struct spawn_spec *spec, struct spawn_result *ret_, struct child **ret_child)
{
    struct child *child = allocate(spec);
    if (!child)
        return fail(ret_, SPAWN_STEP_CLONE, -1, ENOMEM);
    int sign[2], pidfd = -1;
    int rc = make_sign(spec, sign);
    if (rc < 0) {
        release(child);
        return fail(ret_, SPAWN_STEP_CLONE, -1, -rc);
    }
    child->sign = sign[0];
    child->own_sign = sign[1];
    share_with(child);
    bool left;
    int pid = make_quietly(child, &pidfd, &left);
    if (pid < 0) {
        rc = fail(ret_, cgroup_refused(child, -pid) ? SPAWN_STEP_CGROUP : SPAWN_STEP_CLONE, -1, -pid);
        unshare_with(child);
        (void)close(sign[0]);
        release(child);
        return rc;
    }
    *ret_ = (struct spawn_result){.pid = pid, .pidfd = pidfd, .sign = sign[0], .left = left, .index = -1};
    child->pid = pid;
    *ret_child = child;
    return 0;
}

/* Whether it has ended: then nothing else counts, as its sign may be held by others, too (who was
 * forked by another thread while it was made). ECHILD: it was even reaped. */
static bool has_ended(const struct child *child)
{
    siginfo_t info = {0};
    int rc = waitid(P_PID, (id_t)child->pid, &info, WEXITED | WNOHANG | WNOWAIT);
    return rc < 0 ? errno == ECHILD : info.si_pid == child->pid;
}

int spawn_end(struct child *child, struct spawn_result *ret_)
{
    if (!has_left(child, (struct timespec){0}) && !has_ended(child))
        return -EAGAIN;
    int rc = fail(ret_, child->step, child->index, child->error);
    unshare_with(child);
    (void)close(child->sign);
    release(child);
    return rc;
}

const char *spawn_step_name(int32_t step)
{
    switch ((enum spawn_step)step) {
    case SPAWN_STEP_CLONE: return "clone";
    case SPAWN_STEP_SIGNALS: return "signals";
    case SPAWN_STEP_SESSION: return "session";
    case SPAWN_STEP_FDS: return "fds";
    case SPAWN_STEP_CGROUP: return "cgroup";
    case SPAWN_STEP_RLIMIT: return "rlimit";
    case SPAWN_STEP_NICE: return "nice";
    case SPAWN_STEP_OOM_SCORE_ADJ: return "oom_score_adj";
    case SPAWN_STEP_AFFINITY: return "affinity";
    case SPAWN_STEP_UMASK: return "umask";
    case SPAWN_STEP_GROUPS: return "groups";
    case SPAWN_STEP_GID: return "gid";
    case SPAWN_STEP_UID: return "uid";
    case SPAWN_STEP_CAPABILITIES: return "capabilities";
    case SPAWN_STEP_NO_NEW_PRIVS: return "no_new_privs";
    case SPAWN_STEP_CWD: return "cwd";
    case SPAWN_STEP_EXEC: return "exec";
    }
    return "unknown";
}

int become_subreaper(void)
{
    return prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0 ? -errno : 0;
}
