/* A process from nothing to its first instruction.
 *
 * The child is made by CLONE_VM (clone(2)): it runs in our memory, on a stack of its own,
 * while our calling thread waits until it has executed its program or exited. Nothing is
 * copied, so it is as fast with 1 GB of heap as with 1 MB, and what it writes to `struct child`
 * we can read afterwards: the failed step and its errno. The price is what the child may
 * do (child.c): it shares the locks of our other threads, which run on, and our thread's errno,
 * which we must leave alone meanwhile.
 *
 * Not CLONE_VFORK, which would wait for us. That wait has no end where a directory or
 * program does not answer (a server of NFS that is away, FUSE, a lease on the file, fcntl(2),
 * which its owner may take), and it ends too early: execve(2) wakes the parent before the child has
 * left our memory (exec_mmap() in the kernel). Instead the child holds one end of a pipe that
 * it closes by executing or exiting, both of which come after that. What takes longer than we
 * have patience is killed.
 *
 * Signals are blocked in the calling thread around the clone, and so in the child from
 * birth: a handler of ours can't run in it, on our memory. It resets every disposition and
 * unblocks just before it executes. One that comes in between kills it then, and the death is
 * found as any other.
 *
 * A child that has changed its uid still shares the memory of a privileged daemon. Its new
 * user can't attach to it: when ids or capabilities change the kernel marks the memory
 * as not dumpable (commit_creds(); prctl(2), PR_SET_DUMPABLE), and ptrace(2) then asks for
 * CAP_SYS_PTRACE. That marks our memory as well, so the mark is taken back once nobody shares
 * it, and not a moment earlier: who may look at the child then holds the daemon. What remains is
 * that the new user may signal the child. Only SIGKILL and SIGSTOP get through.
 * Ids are changed as late as can be: after them there come a few calls, chdir and execve.
 *
 * Linux 5.4 is enough (waitid(2) on a pidfd, which the daemon needs anyway). What is newer
 * or often forbidden by a container's seccomp filter has a fallback: clone3, and
 * CLONE_INTO_CGROUP (5.7). */
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

enum { LAST_WAIT = 1000 }; /* milliseconds for what was killed to be gone */

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
static int clone_newly(struct child *child, char *stack, int *ret_pidfd)
{
    bool into = child->spec->cgroup_fd >= 0;
    const uint64_t args[] = {
        /* struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal */
        CLONE_VM | CLONE_PIDFD | (into ? CLONE_INTO_CGROUP : 0),
        (uintptr_t)ret_pidfd, 0, 0, SIGCHLD,
        /* stack, stack_size, tls */
        (uintptr_t)stack, CHILD_STACK, 0,
        /* set_tid, set_tid_size, cgroup: not known to 5.3, so given only when needed */
        0, 0, (uint64_t)child->spec->cgroup_fd,
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

static int clone_newly(struct child *child, char *stack, int *ret_pidfd)
{
    (void)child, (void)stack, (void)ret_pidfd;
    return -ENOSYS;
}

#endif

/* Returns the pid or -errno. */
static int make_child(struct child *child, char *stack, int *ret_pidfd)
{
    int pid = clone_newly(child, stack, ret_pidfd);
    if (pid != -ENOSYS)
        return pid;
    const int flags = CLONE_VM | CLONE_PIDFD | SIGCHLD;
    pid = clone(child_main, stack + CHILD_STACK, flags, child, ret_pidfd);
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

/* Whether the child has left our memory, within so many milliseconds (-1: however long). Nothing
 * here may fail, as errno is the child's. */
static bool has_left(int sign, int milliseconds)
{
    struct pollfd end = {.fd = sign};
    return poll(&end, 1, milliseconds) > 0;
}

/* What the child needs of memory: one mapping, its lowest page a guard. The sanitizer may
 * remember the frames of an earlier child there, which it never left. */
static char *map_stack(size_t guard)
{
    char *memory = mmap(NULL, guard + CHILD_STACK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    if (mprotect(memory, guard, PROT_NONE) < 0) {
        (void)munmap(memory, guard + CHILD_STACK);
        return NULL;
    }
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(memory, guard + CHILD_STACK);
#endif
    return memory;
}

/* Make a child and wait until it has left our memory; -ETIME: it took too long, and is killed.
 * `ret_shared`: it is there still, since the kernel can't end it yet. Returns the pid or -errno. */
static int raise_child(struct child *child, char *stack, int *ret_pidfd, bool *ret_shared)
{
    int patience = child->spec->patience_ms ? child->spec->patience_ms : -1;
    int sign[2];
    int rc = make_sign(child->spec, sign);
    if (rc < 0)
        return rc;
    int pid = make_child(child, stack, ret_pidfd);
    (void)close(sign[1]);
    if (pid > 0 && !has_left(sign[0], patience)) {
        (void)kill(pid, SIGKILL);
        *ret_shared = !has_left(sign[0], LAST_WAIT);
        if (!*ret_shared)
            (void)waitpid(pid, NULL, 0);
        (void)close(*ret_pidfd);
        pid = -ETIME;
    }
    (void)close(sign[0]);
    return pid;
}

/* With signals blocked, and our memory as dumpable afterwards as it was before. */
static int raise_quietly(struct child *child, char *stack, int *ret_pidfd, bool *ret_shared)
{
    const uint64_t all = ~(uint64_t)0;
    uint64_t mask;
    int dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
    /* Not sigprocmask(), which leaves out glibc's own signals. */
    (void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &mask, SIGSET_BYTES);
    int pid = raise_child(child, stack, ret_pidfd, ret_shared);
    (void)syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, SIGSET_BYTES);
    /* 2 can't be set, and need not be: the kernel sets nothing that is more open. */
    if (!*ret_shared && dumpable == 1 && prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 1)
        (void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    return pid;
}

static int fail(struct spawn_result *ret_, int32_t step, int32_t index, int error)
{
    ret_->step = step;
    ret_->index = index;
    return -error;
}

static int outcome(const struct child *child, int pid, int pidfd, struct spawn_result *ret_)
{
    if (pid == -ETIME)
        return fail(ret_, child->step, -1, ETIME);
    if (pid < 0)
        return fail(ret_, cgroup_refused(child, -pid) ? SPAWN_STEP_CGROUP : SPAWN_STEP_CLONE, -1, -pid);
    if (child->error) {
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
        (void)close(pidfd);
        return fail(ret_, child->step, child->index, child->error);
    }
    ret_->pid = pid;
    ret_->pidfd = pidfd;
    return 0;
}

int spawn(const struct spawn_spec *spec, struct spawn_result *ret_)
{
    const size_t guard = (size_t)sysconf(_SC_PAGESIZE);
    struct child *child = calloc(1, sizeof *child + spec->n_fds * sizeof *child->sources);
    char *memory = map_stack(guard);
    int rc, pidfd = -1;
    bool shared = false;
    if (child && memory) {
        child->spec = spec;
        child->index = -1;
        int pid = raise_quietly(child, memory + guard, &pidfd, &shared);
        rc = outcome(child, pid, pidfd, ret_);
    } else {
        rc = fail(ret_, SPAWN_STEP_CLONE, -1, ENOMEM);
    }
    if (shared) /* it runs nothing of ours any more, but it will still end on that stack */
        return rc;
    if (memory)
        (void)munmap(memory, guard + CHILD_STACK);
    free(child);
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
