/* A pump that is killed by SIGKILL over and over, at any moment, while writers go on; each
 * time another process goes on with its arena. In the end each line is where it belongs,
 * whole, once and in its writer's order.
 *
 * Arguments: kills, and the longest time between two in microseconds. */
#include <poll.h>
#include <sys/wait.h>

#include "crash.h"

enum { LONGEST = 400 };

struct shared {
    _Atomic bool over;
    _Atomic unsigned lines[WRITERS];
    _Atomic bool collected[PLACES];
};

static struct shared *shared;
static int memfd, pipes[WRITERS];

/* ---- writers --------------------------------------------------------------------- */

/* Lines in writes that know nothing of lines, until it is over. */
static void write_lines(unsigned id, int fd)
{
    unsigned seed = id + 1, number = 0;
    char buffer[1 << 13];
    size_t held = 0;
    while (!atomic_load(&shared->over)) {
        unsigned length = draw(&seed, LONGEST);
        held += (size_t)sprintf(buffer + held, "%u %u %u ", id, number++, length);
        memset(buffer + held, 'x', length);
        held += length;
        buffer[held++] = '\n';
        while (held > sizeof buffer / 2 || (held && draw(&seed, 4) == 0)) {
            size_t n = 1 + draw(&seed, (unsigned)held);
            write_all(fd, buffer, n);
            memmove(buffer, buffer + n, held -= n);
        }
        if (draw(&seed, 40) == 0)
            usleep(draw(&seed, 2000));
    }
    write_all(fd, buffer, held);
    atomic_store(&shared->lines[id], number);
    _exit(0);
}

static void start_writers(void)
{
    for (unsigned id = 0; id < WRITERS; id++) {
        int ends[2];
        CHECK(pipe2(ends, O_CLOEXEC) == 0);
        pipes[id] = ends[0];
        if (start() == 0)
            write_lines(id, ends[1]);
        close(ends[1]);
    }
}

/* What does not go to a file goes to one here. */
static void keep(enum place place, const char *data, size_t length)
{
    static FILE *log;
    if (!log)
        log = fopen(names[place], "w");
    if (data) {
        CHECK(fwrite(data, 1, length, log) == length);
        return;
    }
    fclose(log);
    atomic_store(&shared->collected[place], true);
    _exit(0);
}

/* ---- the one that is killed ------------------------------------------------------ */

/* Until all streams have ended, or it is killed. */
static void pump_lines(void)
{
    struct pump *pump;
    struct sink *sinks[PLACES];
    struct outlet *outlets[PLACES];
    CHECK(pump_new(memfd, &pump) == 0);
    for (int i = 0; i < PLACES; i++) {
        sinks[i] = open_sink(pump, (enum place)i, 1000000);
        outlets[i] = open_outlet(sinks[i], (enum place)i);
    }
    for (unsigned id = 0; id < WRITERS; id++)
        add_stream(outlets[id % PLACES], id, pipes[id]);
    struct orphan orphan;
    CHECK(pump_orphans(pump, &orphan, 1) == 0);
    for (int ended = 0, closed = 0; closed < PLACES;) {
        struct pump_event event;
        struct pollfd events = {.fd = pump_eventfd(pump), .events = POLLIN};
        poll(&events, 1, -1);
        if (pump_take(pump, &event, 1) < 1)
            continue;
        CHECK(event.kind == PUMP_STREAM_EOF || event.kind == PUMP_SINK_CLOSED || event.kind == PUMP_SINK_ROTATED);
        closed += event.kind == PUMP_SINK_CLOSED;
        ended += event.kind == PUMP_STREAM_EOF;
        if (ended == WRITERS && event.kind == PUMP_STREAM_EOF)
            for (int i = 0; i < PLACES; i++)
                sink_close(sinks[i]);
    }
    CHECK(pump_stop(pump, 10000) == 0);
    _exit(0);
}

static pid_t start_pump(void)
{
    pid_t pid = start();
    if (pid == 0)
        pump_lines();
    return pid;
}

static void kill_often(unsigned kills, unsigned longest)
{
    unsigned seed = (unsigned)getpid();
    int status;
    for (unsigned i = 0; i < kills; i++) {
        pid_t pid = start_pump();
        usleep(draw(&seed, longest) + (i % 8 == 0 ? 20000 : 0)); /* at times it gets on */
        CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, &status, 0) == pid);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
}

int main(int argc, char **argv)
{
    unsigned kills = argc > 1 ? (unsigned)atoi(argv[1]) : 150, lines = 0;
    int status;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memfd = memfd_create("arena", MFD_CLOEXEC);
    CHECK(memfd >= 0 && shared != MAP_FAILED && getcwd(directory, sizeof directory));
    start_collectors(keep);
    start_writers();
    kill_often(kills, argc > 2 ? (unsigned)atoi(argv[2]) : 4000);
    atomic_store(&shared->over, true);
    pid_t pid = start_pump();
    CHECK(waitpid(pid, &status, 0) == pid);
    if (status)
        fprintf(stderr, "the last one: status %x\n", (unsigned)status);
    CHECK(status == 0);
    for (int left = WRITERS; left; left--)
        CHECK(wait(&status) > 0 && status == 0);
    for (int place = ENTRIES; place <= LENT; place++) {
        mark_end((enum place)place);
        CHECK(wait(&status) > 0 && status == 0 && atomic_load(&shared->collected[place]));
    }
    for (int place = 0; place < PLACES; place++)
        check_files((enum place)place);
    for (unsigned id = 0; id < WRITERS; id++) {
        if (expected[id] != atomic_load(&shared->lines[id]))
            fprintf(stderr, "writer %u: %u of %u\n", id, expected[id], shared->lines[id]);
        CHECK(expected[id] == shared->lines[id]);
        lines += expected[id];
    }
    printf("%u lines, %u kills\n", lines, kills);
    return 0;
}
