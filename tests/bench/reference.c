/* What a supervisor cannot beat: the bare loop, without policy, config or control.
 *
 *     reference COUNT LOG MAX_BYTES PAUSE_US COMMAND...
 *
 * Keeps COUNT processes of COMMAND running: each that dies is replaced at once. With a LOG
 * other than "-" what they print goes there in whole lines; before it grows larger than
 * MAX_BYTES (0: never) it is renamed to LOG.1, LOG.2 and so on. PAUSE_US > 0 sleeps after each
 * round, so that small writes pool. SIGTERM is passed on and ends it when all are dead. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BUFFER = 1 << 16, EVENTS = 64 };

struct slot {
    pid_t pid;
    int pipe;    /* where its output is read, or -1 */
    size_t held; /* bytes of a line that has not ended */
    char *bytes; /* room for the held ones and BUFFER read after them */
};

static struct slot *slots;
static long n_slots;
static int epoll_fd, log_fd = -1;
static const char *log_name;
static size_t log_size, log_most;
static useconds_t pause_us;
static char **command;
static posix_spawnattr_t attributes;

static void must(bool holds, const char *what) {
    if (!holds) {
        perror(what);
        exit(2);
    }
}

static void start(struct slot *slot) {
    posix_spawn_file_actions_t actions;
    int ends[2] = {-1, -1};
    posix_spawn_file_actions_init(&actions);
    if (log_fd >= 0) {
        must(pipe2(ends, O_CLOEXEC) == 0, "pipe");
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    }
    extern char **environ;
    errno = posix_spawn(&slot->pid, command[0], &actions, &attributes, command, environ);
    must(errno == 0, command[0]);
    posix_spawn_file_actions_destroy(&actions);
    slot->pipe = ends[0];
    slot->held = 0;
    if (log_fd >= 0) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = slot};
        close(ends[1]);
        must(fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0, "fcntl");
        must(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, ends[0], &event) == 0, "epoll_ctl");
    }
}

static void open_log(void) {
    log_fd = open(log_name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    must(log_fd >= 0, log_name);
    log_size = 0;
}

static void rotate(void) {
    static int rotated;
    char name[4096];
    snprintf(name, sizeof name, "%s.%d", log_name, ++rotated);
    close(log_fd);
    must(rename(log_name, name) == 0, name);
    open_log();
}

static void write_log(const char *bytes, size_t size) {
    if (log_most && log_size && log_size + size > log_most)
        rotate();
    log_size += size;
    while (size > 0) {
        ssize_t n = write(log_fd, bytes, size);
        must(n >= 0, "write");
        bytes += n;
        size -= (size_t)n;
    }
}

/* Pass on the lines that are whole; false at the end of the output. */
static bool pump(struct slot *slot) {
    if (slot->held >= BUFFER) {
        write_log(slot->bytes, slot->held);
        slot->held = 0;
    }
    ssize_t n = read(slot->pipe, slot->bytes + slot->held, BUFFER);
    if (n <= 0)
        return n < 0;
    size_t filled = slot->held + (size_t)n;
    const char *end = memrchr(slot->bytes, '\n', filled);
    size_t whole = end ? (size_t)(end - slot->bytes) + 1 : 0;
    write_log(slot->bytes, whole);
    slot->held = filled - whole;
    memmove(slot->bytes, slot->bytes + whole, slot->held);
    return true;
}

static void end_output(struct slot *slot) {
    if (slot->pipe < 0)
        return;
    do
        errno = 0;
    while (pump(slot) && errno != EAGAIN);
    close(slot->pipe);
    slot->pipe = -1;
}

/* Returns how many live afterwards. */
static long reap(bool replace) {
    for (pid_t pid; (pid = waitpid(-1, NULL, WNOHANG)) > 0;) {
        for (long i = 0; i < n_slots; i++) {
            if (slots[i].pid != pid)
                continue;
            end_output(&slots[i]);
            slots[i].pid = 0;
            if (replace)
                start(&slots[i]);
        }
    }
    long living = 0;
    for (long i = 0; i < n_slots; i++)
        living += slots[i].pid != 0;
    return living;
}

static void set_up(int argc, char **argv) {
    if (argc < 6) {
        fputs("usage: reference COUNT LOG MAX_BYTES PAUSE_US COMMAND...\n", stderr);
        exit(2);
    }
    n_slots = atol(argv[1]);
    log_name = argv[2];
    log_most = (size_t)atoll(argv[3]);
    pause_us = (useconds_t)atoi(argv[4]);
    command = argv + 5;
    if (strcmp(log_name, "-") != 0)
        open_log();
    slots = calloc((size_t)n_slots, sizeof *slots);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    must(slots && epoll_fd >= 0, "epoll");
    for (long i = 0; i < n_slots && log_fd >= 0; i++)
        must((slots[i].bytes = malloc(2 * BUFFER)) != NULL, "malloc");
}

static int watch_signals(void) {
    sigset_t watched, none;
    sigemptyset(&none);
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigaddset(&watched, SIGTERM);
    sigprocmask(SIG_BLOCK, &watched, NULL);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    int fd = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    must(fd >= 0 && epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0, "signalfd");
    return fd;
}

int main(int argc, char **argv) {
    set_up(argc, argv);
    int signal_fd = watch_signals();
    for (long i = 0; i < n_slots; i++)
        start(&slots[i]);

    bool ending = false;
    for (long living = n_slots; !ending || living > 0;) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(epoll_fd, events, EVENTS, -1);
        bool signalled = false;
        for (int i = 0; i < n; i++) {
            struct slot *slot = events[i].data.ptr;
            signalled |= slot == NULL;
            if (slot && slot->pipe >= 0 && !pump(slot))
                end_output(slot);
        }
        struct signalfd_siginfo info;
        while (signalled && read(signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
            if (info.ssi_signo != SIGTERM)
                continue;
            ending = true;
            for (long i = 0; i < n_slots; i++)
                if (slots[i].pid > 0)
                    kill(slots[i].pid, SIGTERM);
        }
        if (signalled)
            living = reap(!ending);
        if (pause_us)
            usleep(pause_us);
    }
}
