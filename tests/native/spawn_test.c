/* What a spawned child is, seen from inside it, and what is left of one that failed.
 *
 * All of it is done three times: as the kernel allows it, with a seccomp filter that
 * answers ENOSYS to what old kernels don't have, and with one that forbids it by EPERM, as
 * old containers do. */
#include "native.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOBODY 65534

#define CHECK(condition)                                                                     \
    do {                                                                                     \
        if (!(condition)) {                                                                  \
            fprintf(stderr, "%s:%d: not so: %s (errno %d)\n", __FILE__, __LINE__, #condition, \
                    errno);                                                                  \
            exit(1);                                                                         \
        }                                                                                    \
    } while (0)

static char *no_env[] = {NULL};

static struct spawn_spec plain(char **argv)
{
    return (struct spawn_spec){
        .file = argv[0], .argv = argv, .envp = no_env, .n_groups = -1, .uid = -1, .gid = -1,
        .umask = -1, .nice = INT32_MIN, .oom_score_adj = INT32_MIN, .cgroup_fd = -1,
        .flags = SPAWN_NEW_SESSION,
    };
}

static int open_fds(void)
{
    int n = 0;
    DIR *directory = opendir("/proc/self/fd");
    CHECK(directory);
    while (readdir(directory))
        n++;
    closedir(directory);
    return n;
}

/* Start one and wait until it has executed its program, or has failed to: then it is reaped. */
static int spawn(const struct spawn_spec *spec, struct spawn_result *ret_)
{
    struct child *child;
    struct spawn_result found;
    int rc = spawn_begin(spec, &found, &child);
    if (rc == 0) {
        *ret_ = found;
        struct pollfd sign = {.fd = found.sign, .events = POLLIN};
        CHECK(poll(&sign, 1, 60000) == 1);
        rc = spawn_end(child, &found);
        CHECK(rc != -EAGAIN);
        if (rc < 0) {
            CHECK(waitpid(ret_->pid, NULL, 0) == ret_->pid);
            close(ret_->pidfd);
        }
    }
    ret_->step = found.step;
    ret_->index = found.index;
    return rc;
}

/* Run it with its stdout in a pipe; returns what it printed. */
static const char *output_of(struct spawn_spec spec, const struct spawn_fd *more, size_t n_more)
{
    static char text[65536];
    int pipe_[2], status;
    CHECK(pipe2(pipe_, O_CLOEXEC) == 0);
    struct spawn_fd fds[16] = {{pipe_[1], 1}, {2, 2}};
    for (size_t i = 0; i < n_more; i++)
        fds[2 + i] = more[i];
    spec.fds = fds;
    spec.n_fds = 2 + n_more;
    struct spawn_result result;
    int rc = spawn(&spec, &result);
    if (rc < 0)
        fprintf(stderr, "%s: %s\n", spawn_step_name(result.step), strerror(-rc));
    CHECK(rc == 0);
    close(pipe_[1]);
    size_t size = 0;
    ssize_t got;
    while ((got = read(pipe_[0], text + size, sizeof text - size - 1)) > 0)
        size += (size_t)got;
    text[size] = '\0';
    close(pipe_[0]);
    CHECK(waitpid(result.pid, &status, 0) == result.pid && status == 0);
    close(result.pidfd);
    return text;
}

static const char *shell(struct spawn_spec spec, char *script)
{
    char *argv[] = {"/bin/sh", "-c", script, NULL};
    spec.file = argv[0];
    spec.argv = argv;
    return output_of(spec, NULL, 0);
}

/* Where it fails, and that nothing is left. */
static void fails(struct spawn_spec spec, int32_t step, int error)
{
    int before = open_fds();
    struct spawn_result result = {.step = -7};
    int rc = spawn(&spec, &result);
    if (rc != -error || result.step != step)
        fprintf(stderr, "%d at %s\n", rc, spawn_step_name(result.step));
    CHECK(rc == -error);
    CHECK(result.step == step);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    CHECK(open_fds() == before);
}

static void test_ids(void)
{
    char *argv[] = {"/bin/sh", NULL};
    uint32_t groups[] = {4, 20};
    struct spawn_spec spec = plain(argv);
    spec.uid = NOBODY, spec.gid = 12, spec.groups = groups, spec.n_groups = 2;
    const char *status = shell(spec, "while read -r l; do echo \"$l\"; done </proc/self/status");
    CHECK(strstr(status, "Uid:\t65534\t65534\t65534\t65534\n"));
    CHECK(strstr(status, "Gid:\t12\t12\t12\t12\n"));
    CHECK(strstr(status, "Groups:\t4 20\n"));
    /* Our memory could be looked at by that user meanwhile, but for the kernel's mark. */
    CHECK(prctl(PR_GET_DUMPABLE) == 1);
    spec.uid = UINT32_MAX;
    fails(spec, SPAWN_STEP_UID, EINVAL);
    spec.gid = (int64_t)1 << 32;
    fails(spec, SPAWN_STEP_GID, EINVAL);
}

static void test_signals(void)
{
    char *argv[] = {"/bin/sh", NULL};
    sigset_t blocked, mask;
    CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR && signal(SIGRTMAX, SIG_IGN) != SIG_ERR);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    CHECK(sigprocmask(SIG_SETMASK, &blocked, NULL) == 0);
    const char *status = shell(plain(argv), "while read -r l; do echo \"$l\"; done </proc/self/status");
    CHECK(strstr(status, "SigBlk:\t0000000000000000\n"));
    CHECK(strstr(status, "SigIgn:\t0000000000000000\n"));
    CHECK(sigprocmask(SIG_SETMASK, NULL, &mask) == 0 && sigismember(&mask, SIGUSR1) == 1);
    CHECK(sigismember(&mask, SIGUSR2) == 0);
    sigemptyset(&mask);
    CHECK(sigprocmask(SIG_SETMASK, &mask, NULL) == 0);
}

static void test_fds(void)
{
    /* Three files whose descriptors change places: 10 -> 11 -> 12 -> 10; 13 stays, 14 leaks. */
    const int at[] = {10, 11, 12, 13, 14};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        char text[2] = {(char)('a' + i), 0};
        int fd = memfd_create(text, 0);
        CHECK(fd >= 0 && write(fd, text, 1) == 1 && lseek(fd, 0, SEEK_SET) == 0);
        CHECK(dup2(fd, at[i]) == at[i] && close(fd) == 0);
    }
    const struct spawn_fd more[] = {{10, 11}, {11, 12}, {12, 10}, {13, 13}, {10, 20}};
    char *script = "for f in /proc/self/fd/*; do echo ${f##*/} $(readlink $f); done; cat /dev/fd/10";
    char *argv[] = {"/bin/bash", "-c", script, NULL};
    char *envp[] = {"PATH=/usr/bin:/bin", NULL};
    struct spawn_spec spec = plain(argv);
    spec.envp = envp;
    const char *listed = output_of(spec, more, 5);
    CHECK(strstr(listed, "10 /memfd:c (deleted)\n11 /memfd:a (deleted)\n12 /memfd:b (deleted)\n"));
    CHECK(strstr(listed, "13 /memfd:d (deleted)\n") && strstr(listed, "20 /memfd:a (deleted)\n"));
    CHECK(!strstr(listed, "memfd:e"));
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        CHECK(fcntl(at[i], F_GETFD) == 0); /* ours are as they were */
        close(at[i]);
    }
    const struct spawn_fd bad[] = {{2, 2}, {99, 1}};
    spec.fds = bad, spec.n_fds = 2;
    struct spawn_result result;
    CHECK(spawn(&spec, &result) == -EBADF && result.step == SPAWN_STEP_FDS && result.index == 1);
}

static void test_limits(void)
{
    char *argv[] = {"/bin/sh", NULL};
    struct spawn_rlimit limits[] = {{RLIMIT_NOFILE, 3, 100}, {RLIMIT_CORE, 0, 0}};
    const uint64_t cpus = 1;
    struct spawn_spec spec = plain(argv);
    spec.rlimits = limits, spec.n_rlimits = 2;
    spec.oom_score_adj = 500; /* needs a descriptor, though three are all there may be */
    spec.nice = 5, spec.umask = 027, spec.cpus = &cpus, spec.n_cpus = 1;
    spec.cwd = "/usr", spec.flags |= SPAWN_NO_NEW_PRIVS;
    char *cat[] = {"/bin/cat", "/proc/self/limits", "/proc/self/status", "/proc/self/oom_score_adj", NULL};
    spec.argv = cat, spec.file = cat[0];
    limits[0].soft = 10; /* cat has files to open */
    const char *text = output_of(spec, NULL, 0);
    CHECK(strstr(text, "Max open files            10                   100 "));
    CHECK(strstr(text, "Umask:\t0027\n") && strstr(text, "NoNewPrivs:\t1\n"));
    CHECK(strstr(text, "Cpus_allowed_list:\t0\n") && strstr(text, "\n500\n"));
    char *where[] = {"/bin/pwd", NULL};
    spec.argv = where, spec.file = where[0];
    CHECK(strcmp(output_of(spec, NULL, 0), "/usr\n") == 0);
    char *nice_[] = {"/usr/bin/nice", NULL};
    spec.argv = nice_, spec.file = nice_[0], spec.nice = 7;
    CHECK(atoi(output_of(spec, NULL, 0)) == 7);
    limits[0].soft = 3;
    char *truth[] = {"/nonexistent", NULL};
    spec.argv = truth, spec.file = truth[0];
    fails(spec, SPAWN_STEP_EXEC, ENOENT);
    limits[1].soft = 1;
    struct spawn_result result;
    CHECK(spawn(&spec, &result) == -EINVAL && result.step == SPAWN_STEP_RLIMIT && result.index == 1);
}

static void test_capabilities(void)
{
    char *argv[] = {"/bin/cat", "/proc/self/status", NULL};
    struct spawn_spec spec = plain(argv);
    spec.flags |= SPAWN_CAPABILITIES;
    spec.capabilities = 1 << 10 | 1 << 5; /* CAP_NET_BIND_SERVICE, CAP_KILL */
    spec.uid = NOBODY;
    const char *names[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};
    const char *status = output_of(spec, NULL, 0);
    for (int i = 0; i < 5; i++) {
        char line[64];
        snprintf(line, sizeof line, "%s:\t0000000000000420\n", names[i]);
        CHECK(strstr(status, line));
    }
    spec.capabilities = 0;
    spec.uid = -1;
    CHECK(strstr(output_of(spec, NULL, 0), "CapEff:\t0000000000000000\n"));
    spec.capabilities = (uint64_t)1 << 63;
    fails(spec, SPAWN_STEP_CAPABILITIES, EINVAL);
}

static void write_file(const char *path, const char *text, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && close(fd) == 0);
}

static void test_search(void)
{
    char *argv[] = {"prog", NULL};
    struct spawn_spec spec = plain(argv);
    (void)mkdir("denied", 0755), (void)mkdir("found", 0755), (void)mkdir("folder", 0755);
    (void)mkdir("folder/prog", 0755);
    write_file("denied/prog", "#!/bin/sh\necho denied\n", 0644);
    write_file("found/prog", "#!/bin/sh\necho found\n", 0755);
    write_file("bare", "echo bare\n", 0755);
    write_file("orphan", "#!/nonexistent/sh\n", 0755);
    spec.search = "nowhere:found/prog:denied:folder:found";
    CHECK(strcmp(output_of(spec, NULL, 0), "found\n") == 0);
    spec.search = "nowhere:denied:nowhere";
    fails(spec, SPAWN_STEP_EXEC, EACCES);
    spec.search = "nowhere:folder";
    fails(spec, SPAWN_STEP_EXEC, EACCES);
    spec.search = "";
    fails(spec, SPAWN_STEP_EXEC, ENOENT);
    spec.cwd = "found"; /* an empty element is where it then is */
    CHECK(strcmp(output_of(spec, NULL, 0), "found\n") == 0);
    spec.cwd = NULL, spec.search = NULL;
    fails(spec, SPAWN_STEP_EXEC, ENOENT);
    spec.search = "/bin";
    char *long_name = calloc(1, 5000);
    CHECK(long_name);
    memset(long_name, 'x', 4999);
    spec.file = long_name;
    fails(spec, SPAWN_STEP_EXEC, ENOENT);
    spec.file = "bare", spec.search = ".";
    fails(spec, SPAWN_STEP_EXEC, ENOEXEC);
    spec.file = "./orphan";
    fails(spec, SPAWN_STEP_EXEC, ENOENT);
    spec.file = "";
    fails(spec, SPAWN_STEP_EXEC, ENOENT);
    free(long_name);
}

static void test_listen_pid(void)
{
    char variable[] = "LISTEN_PID=xxxxxxxxxxx";
    char *envp[] = {variable, NULL};
    char *argv[] = {"/bin/sh", NULL};
    struct spawn_spec spec = plain(argv);
    spec.envp = envp;
    spec.listen_pid = strchr(variable, '=') + 1;
    CHECK(strcmp(shell(spec, "[ $LISTEN_PID = $$ ] && echo mine"), "mine\n") == 0);
}

static void test_failing_steps(void)
{
    char *argv[] = {"/bin/true", NULL};
    struct spawn_spec spec = plain(argv);
    spec.cwd = "/nonexistent";
    fails(spec, SPAWN_STEP_CWD, ENOENT);
    spec = plain(argv), spec.oom_score_adj = 1001;
    fails(spec, SPAWN_STEP_OOM_SCORE_ADJ, EINVAL);
    const uint64_t none = 0;
    spec = plain(argv), spec.cpus = &none, spec.n_cpus = 1;
    fails(spec, SPAWN_STEP_AFFINITY, EINVAL);
    const uint32_t groups[] = {UINT32_MAX};
    spec = plain(argv), spec.groups = groups, spec.n_groups = 1;
    fails(spec, SPAWN_STEP_GROUPS, EINVAL);
    spec = plain(argv), spec.cgroup_fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct spawn_result result;
    CHECK(spawn(&spec, &result) < 0 && result.step == SPAWN_STEP_CGROUP);
    close(spec.cgroup_fd);
    for (int step = 0; step <= SPAWN_STEP_EXEC; step++)
        CHECK(strcmp(spawn_step_name(step), "unknown") != 0);
}

/* A cgroup v2 where we may make a group: that of a systemd machine, or a hybrid one. */
static int make_cgroup(char *ret_path, size_t size)
{
    const char *roots[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
    for (int i = 0; i < 2; i++) {
        struct stat info;
        snprintf(ret_path, size, "%s/cgroup.procs", roots[i]);
        if (stat(ret_path, &info) < 0)
            continue;
        snprintf(ret_path, size, "%s/sysup-test-%d", roots[i], getpid());
        if (mkdir(ret_path, 0755) == 0)
            return open(ret_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
    return -1;
}

static void test_cgroup(void)
{
    char path[128];
    char *argv[] = {"/bin/cat", "/proc/self/cgroup", NULL};
    struct spawn_spec spec = plain(argv);
    spec.cgroup_fd = make_cgroup(path, sizeof path);
    if (spec.cgroup_fd < 0) {
        fprintf(stderr, "no cgroup can be made here: CLONE_INTO_CGROUP is not tested\n");
        return;
    }
    bool inside = strstr(output_of(spec, NULL, 0), strrchr(path, '/')) != NULL;
    close(spec.cgroup_fd);
    CHECK(rmdir(path) == 0);
    CHECK(inside);
}


static void test_scan(void)
{
    static struct proc_entry entries[65536];
    int n = proc_scan(entries, 65536);
    CHECK(n > 1 && n < 65536);
    bool found = false;
    for (int i = 0; i < n; i++)
        if (entries[i].pid == getpid()) {
            found = true;
            CHECK(entries[i].ppid == getppid() && entries[i].pgrp == getpgrp());
            CHECK(entries[i].session == getsid(0) && entries[i].state == 'R' && entries[i].start > 0);
        }
    CHECK(found);
    const int32_t pids[] = {getpid(), INT32_MAX, -1, 0};
    struct proc_figures figures[4];
    CHECK(proc_read(pids, 4, figures) == 0);
    CHECK(figures[0].pid == getpid() && figures[0].ppid == getppid() && figures[0].start > 0);
    CHECK(figures[0].resident > 0 && figures[0].virtual_size > figures[0].resident);
    CHECK(figures[0].nice == getpriority(PRIO_PROCESS, 0) && figures[0].read_at > 0);
    CHECK(figures[1].pid == 0 && figures[2].pid == 0 && figures[3].pid == 0);
    CHECK(prctl(PR_SET_NAME, ") Z 1 (2) 3 4 5") == 0);
    struct proc_figures renamed;
    CHECK(proc_read(pids, 1, &renamed) == 0);
    CHECK(memcmp(renamed.name, ") Z 1 (2) 3 4 5", 16) == 0);
    CHECK(renamed.ppid == getppid() && renamed.start == figures[0].start);
    CHECK(renamed.cpu >= figures[0].cpu && renamed.read_at >= figures[0].read_at);
    struct rlimit limit, none = {0, 0};
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    none.rlim_max = limit.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    CHECK(proc_read(pids, 1, &renamed) == -EMFILE);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK(proc_scan(entries, 1) > 1);
    /* A name that would mislead: what follows its last ')' counts. */
    char *argv[] = {"./a) Z 1 1 1 (", NULL};
    CHECK(symlink("/bin/cat", argv[0]) == 0 || errno == EEXIST);
    int hold[2];
    CHECK(pipe2(hold, O_CLOEXEC) == 0);
    const struct spawn_fd fds[] = {{hold[0], 0}, {2, 1}, {2, 2}};
    struct spawn_spec spec = plain(argv);
    spec.fds = fds, spec.n_fds = 3;
    struct spawn_result result;
    CHECK(spawn(&spec, &result) == 0);
    n = proc_scan(entries, 65536);
    found = false;
    for (int i = 0; i < n; i++)
        found |= entries[i].pid == result.pid && entries[i].ppid == getpid() &&
                 entries[i].session == result.pid && entries[i].state != 'Z';
    CHECK(found);
    close(hold[0]), close(hold[1]);
    CHECK(waitpid(result.pid, NULL, 0) == result.pid);
    close(result.pidfd);
}

/* Children that fail at every call leave our errno alone while they run beside us, in whatever number. */
static void test_beside_us(void)
{
    enum { MANY = 200 };
    char *argv[] = {"/nosuch/program", NULL};
    struct child *children[MANY];
    struct spawn_result results[MANY];
    struct spawn_spec spec = plain(argv);
    int before = open_fds();
    spec.search = "/nosuch:/nosuch/either", spec.file = "nosuch";
    for (int i = 0; i < MANY; i++)
        CHECK(spawn_begin(&spec, &results[i], &children[i]) == 0);
    for (int i = 0; i < MANY; i++) {
        struct pollfd sign = {.fd = results[i].sign, .events = POLLIN};
        errno = EXFULL;
        while (poll(&sign, 1, 0) == 0)
            CHECK(errno == EXFULL);
        CHECK(errno == EXFULL);
        struct spawn_result result;
        CHECK(spawn_end(children[i], &result) == -ENOENT && result.step == SPAWN_STEP_EXEC);
        CHECK(waitpid(results[i].pid, NULL, 0) == results[i].pid);
        close(results[i].pidfd);
    }
    CHECK(open_fds() == before);
}

static void run_all(void)
{
    test_beside_us();
    test_signals();
    test_fds();
    test_limits();
    test_search();
    test_listen_pid();
    test_scan();
    if (geteuid() == 0) {
        test_ids();
        test_capabilities();
        test_failing_steps();
        test_cgroup();
    } else {
        fprintf(stderr, "not root: ids, capabilities, cgroups are not tested\n");
    }
}

/* Answer `error` to the system calls that a spawn can do without. */
static void pretend_old_kernel(int error)
{
    const uint32_t answer = SECCOMP_RET_ERRNO | (uint32_t)error;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_close_range, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, answer),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    if (geteuid() != 0)
        CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0);
    CHECK(syscall(SYS_close_range, 100, 100, 0) == -1 && errno == error);
}

int main(void)
{
    const int refusals[] = {0, ENOSYS, EPERM};
    for (int i = 0; i < 3; i++) {
        int status;
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            if (refusals[i])
                pretend_old_kernel(refusals[i]);
            run_all();
            exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid);
        if (status != 0) {
            fprintf(stderr, "with %s\n", refusals[i] ? strerror(refusals[i]) : "all of the kernel");
            return 1;
        }
    }
    return 0;
}
