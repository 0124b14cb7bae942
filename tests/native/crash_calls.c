/* A pump that is killed by SIGKILL before and after each of its system calls, in turn, or
 * some instructions later, and goes on in another process: each line arrives whole, once
 * and in order.
 *
 * What it reads comes in two parts. The first is in the pipes when a pump begins, and when
 * it was read the pump is parked; then the second follows, and the pipes are closed; the
 * next pump goes on to the end. One of the two is traced and killed; where that is the
 * first, the second part comes before anyone looks at what is left.
 *
 * Arguments: a place alone, by its name or "terminals". Or, by numbers as a failure tells
 * them, a case: a place, whether its streams are terminals, which of the two pumps is
 * killed, at which call, how many instructions later, at which call the one after it. */
#include <poll.h>
#include <pty.h>
#include <sys/ptrace.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <termios.h>

#include "crash.h"

enum { STREAMS = WRITERS / PLACES, ROOM = 1 << 16, ROTATE_BYTES = 1500, MOST_STEPS = 400 };

/* Lines of each stream, and the bytes of the first part. */
static const unsigned n_lines[STREAMS] = {3, 4, 10, 40};
static const size_t cuts[STREAMS] = {2, 15, 500, 2000};

struct text {
    char data[ROOM];
    _Atomic size_t length;
    _Atomic unsigned ends;
};

static struct text *collected_texts; /* of each place; shared */
static char texts[WRITERS][ROOM];
static size_t lengths[WRITERS];

/* A case. */
struct crash {
    enum place place;
    bool terminals;
    bool last;      /* the second pump is killed, not the first */
    unsigned call;  /* at which stop: each call has two */
    unsigned steps; /* instructions later */
    unsigned again; /* at which stop the next one is killed; 0: not at all */
};

/* What a case has. */
struct scene {
    int memfd;
    int fds[STREAMS];
    int writers[STREAMS];
};

/* ---- what is read ---------------------------------------------------------------- */

static void make_texts(void)
{
    for (unsigned id = 0; id < WRITERS; id++) {
        unsigned seed = id + 1;
        for (unsigned n = 0; n < n_lines[id / PLACES]; n++) {
            unsigned fill = draw(&seed, 150);
            char *at = texts[id] + lengths[id];
            at += sprintf(at, "%u %u %u ", id, n, fill);
            memset(at, 'x', fill);
            at[fill] = '\n';
            lengths[id] = (size_t)(at + fill + 1 - texts[id]);
        }
        CHECK(lengths[id] > cuts[id / PLACES]);
    }
}

static void open_stream(struct scene *scene, unsigned n, bool terminal)
{
    int ends[2];
    if (terminal) {
        struct termios raw = {0};
        cfmakeraw(&raw);
        CHECK(openpty(&ends[0], &ends[1], NULL, &raw, NULL) == 0);
    } else {
        CHECK(pipe2(ends, O_CLOEXEC) == 0);
    }
    scene->fds[n] = ends[0];
    scene->writers[n] = ends[1];
}

static void set_scene(struct scene *scene, const struct crash *crash)
{
    scene->memfd = memfd_create("arena", MFD_CLOEXEC);
    CHECK(scene->memfd >= 0);
    for (unsigned n = 0; n < STREAMS; n++) {
        unsigned id = crash->place + PLACES * n;
        open_stream(scene, n, crash->terminals);
        write_all(scene->writers[n], texts[id], cuts[n]);
        expected[id] = 0;
    }
    unlink(names[crash->place]);
    for (int n = 1; unlink(backup_name(crash->place, n)) == 0; n++)
        continue;
    collected_texts[crash->place].length = 0;
    collected_texts[crash->place].ends = 0;
}

static void write_second_part(struct scene *scene, enum place place)
{
    for (unsigned n = 0; n < STREAMS; n++) {
        unsigned id = place + PLACES * n;
        write_all(scene->writers[n], texts[id] + cuts[n], lengths[id] - cuts[n]);
        close(scene->writers[n]);
    }
}

/* Others do so to files that they share with a pump. */
static void disturb(enum place place)
{
    if (place == COMMON) {
        int fd = open(names[place], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        CHECK(fd >= 0);
        write_all(fd, "# another's\n", 12);
        close(fd);
    } else if (place == SELECTED) {
        rename(names[place], backup_name(place, 1));
    }
}

static void clear_scene(struct scene *scene)
{
    for (unsigned n = 0; n < STREAMS; n++)
        close(scene->fds[n]);
    close(scene->memfd);
}

/* ---- the pumps ------------------------------------------------------------------- */

struct pumping {
    struct pump *pump;
    struct sink *sink;
    struct stream *streams[STREAMS];
};

static void begin(struct pumping *pumping, const struct scene *scene, enum place place)
{
    CHECK(pump_new(scene->memfd, &pumping->pump) == 0);
    pumping->sink = open_sink(pumping->pump, place, ROTATE_BYTES);
    struct outlet *outlet = open_outlet(pumping->sink, place);
    for (unsigned n = 0; n < STREAMS; n++)
        pumping->streams[n] = add_stream(outlet, place + PLACES * n, scene->fds[n]);
    struct orphan orphan;
    CHECK(pump_orphans(pumping->pump, &orphan, 1) == 0);
}

/* Until the first part was read. No call that would be counted is in the waiting. */
static void pump_first(const struct scene *scene, enum place place)
{
    struct pumping pumping;
    begin(&pumping, scene, place);
    for (unsigned n = 0; n < STREAMS; n++)
        while (stream_bytes(pumping.streams[n]) < cuts[n])
            continue;
    CHECK(pump_park(pumping.pump, 10000) == 0);
    _exit(0);
}

static void pump_last(const struct scene *scene, enum place place)
{
    struct pumping pumping;
    begin(&pumping, scene, place);
    for (int ended = 0, closed = 0; !closed;) {
        struct pump_event event;
        struct pollfd events = {.fd = pump_eventfd(pumping.pump), .events = POLLIN};
        poll(&events, 1, -1);
        if (pump_take(pumping.pump, &event, 1) < 1)
            continue;
        CHECK(event.kind == PUMP_STREAM_EOF || event.kind == PUMP_SINK_CLOSED || event.kind == PUMP_SINK_ROTATED);
        closed += event.kind == PUMP_SINK_CLOSED;
        ended += event.kind == PUMP_STREAM_EOF;
        if (ended == STREAMS && event.kind == PUMP_STREAM_EOF)
            sink_close(pumping.sink);
    }
    CHECK(pump_stop(pumping.pump, 10000) == 0);
    _exit(0);
}

static pid_t start_pump(const struct scene *scene, enum place place, bool last, bool traced)
{
    pid_t pid = start();
    if (pid)
        return pid;
    if (traced) {
        CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
        raise(SIGSTOP);
    }
    if (last)
        pump_last(scene, place);
    pump_first(scene, place);
    return 0;
}

static void pump(const struct scene *scene, enum place place, bool last)
{
    int status;
    pid_t pid = start_pump(scene, place, last, false);
    CHECK(waitpid(pid, &status, 0) == pid);
    if (status)
        fprintf(stderr, "status %x\n", (unsigned)status);
    CHECK(status == 0);
}

/* ---- killing --------------------------------------------------------------------- */

static void on_alarm(int signal)
{
    (void)signal;
}

/* The next thread of it that stops; 0: the process ended, -1: an alarm. */
static pid_t next_stop(pid_t pid, int *ret_status)
{
    for (;;) {
        pid_t thread = waitpid(-1, ret_status, __WALL);
        CHECK(thread > 0 || errno == EINTR);
        if (thread < 0 || WIFSTOPPED(*ret_status))
            return thread;
        if (thread == pid)
            return 0;
    }
}

/* Let it go on by single instructions, the other threads as they like; a call that waits
 * ends it. False: the process ended. */
static bool step(pid_t pid, pid_t thread, unsigned steps)
{
    struct itimerval soon = {.it_value.tv_usec = 20000}, never = {0};
    pid_t stopped = thread;
    int status;
    setitimer(ITIMER_REAL, &soon, NULL);
    for (unsigned done = 0; stopped > 0 && done < steps; done += stopped == thread) {
        ptrace(stopped == thread ? PTRACE_SINGLESTEP : PTRACE_SYSCALL, stopped, NULL, NULL);
        stopped = next_stop(pid, &status);
    }
    setitimer(ITIMER_REAL, &never, NULL);
    return stopped != 0;
}

/* Run it until its `call`th stop, and some steps; false: it ended before that. */
static bool run_and_kill(pid_t pid, unsigned call, unsigned steps)
{
    unsigned left = call;
    int status;
    pid_t thread;
    CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
    CHECK(ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL) == 0);
    ptrace(PTRACE_SYSCALL, pid, NULL, NULL);
    while ((thread = next_stop(pid, &status)) && (WSTOPSIG(status) != (SIGTRAP | 0x80) || left--)) {
        int signal = WSTOPSIG(status);
        bool ours = signal == SIGSTOP || signal == SIGTRAP || signal == (SIGTRAP | 0x80);
        ptrace(PTRACE_SYSCALL, thread, NULL, ours ? 0 : (long)signal);
    }
    if (thread == 0) {
        CHECK(status == 0);
        return false;
    }
    if (step(pid, thread, steps)) {
        kill(pid, SIGKILL);
        while ((thread = next_stop(pid, &status)))
            ptrace(PTRACE_CONT, thread, NULL, NULL);
    }
    return true;
}

/* ---- what arrived ---------------------------------------------------------------- */

static void keep(enum place place, const char *data, size_t length)
{
    struct text *text = &collected_texts[place];
    if (!data) {
        atomic_fetch_add(&text->ends, 1);
        return;
    }
    CHECK(length <= ROOM - text->length);
    memcpy(text->data + text->length, data, length);
    text->length += length;
}

static void check_all(enum place place)
{
    struct text *text = &collected_texts[place];
    if (place >= ENTRIES) {
        mark_end(place);
        while (!atomic_load(&text->ends))
            usleep(50);
        check_text(place, text->data, text->length);
    } else {
        check_files(place);
    }
    for (unsigned n = 0; n < STREAMS; n++)
        CHECK(expected[place + PLACES * n] == n_lines[n]);
}

/* False: there is no such call any more. */
static bool try(const struct crash *crash)
{
    struct scene scene;
    set_scene(&scene, crash);
    if (crash->last) {
        pump(&scene, crash->place, false);
        write_second_part(&scene, crash->place);
    }
    pid_t pid = start_pump(&scene, crash->place, crash->last, true);
    bool killed = run_and_kill(pid, crash->call, crash->steps);
    disturb(crash->place);
    if (!crash->last)
        write_second_part(&scene, crash->place);
    if (crash->again)
        run_and_kill(start_pump(&scene, crash->place, true, true), crash->again, 0);
    pump(&scene, crash->place, true);
    check_all(crash->place);
    clear_scene(&scene);
    return killed;
}

static struct crash now;

static void tell(int signal)
{
    (void)signal;
    fprintf(stderr, "in the case: %u %u %u %u %u %u\n", now.place, now.terminals, now.last, now.call, now.steps, now.again);
}

static unsigned try_all(enum place place, bool terminals, bool last)
{
    static unsigned seed = 1;
    now = (struct crash){.place = place, .terminals = terminals, .last = last};
    while (try(&now)) {
        now.steps = 1 + draw(&seed, MOST_STEPS);
        now.again = 1 + draw(&seed, 2 * now.call + 1);
        if (now.call % 3 == 0)
            try(&now);
        now.steps = now.again = 0;
        now.call++;
    }
    return now.call;
}

int main(int argc, char **argv)
{
    collected_texts = mmap(NULL, PLACES * sizeof(struct text), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(collected_texts != MAP_FAILED && getcwd(directory, sizeof directory));
    struct sigaction waken = {.sa_handler = on_alarm}, failed = {.sa_handler = tell};
    CHECK(sigaction(SIGALRM, &waken, NULL) == 0 && sigaction(SIGABRT, &failed, NULL) == 0);
    make_texts();
    start_collectors(keep);
    if (argc > 6) {
        now = (struct crash){
            (enum place)atoi(argv[1]), atoi(argv[2]), atoi(argv[3]),
            (unsigned)atoi(argv[4]), (unsigned)atoi(argv[5]), (unsigned)atoi(argv[6]),
        };
        return !try(&now);
    }
    for (int place = 0; place <= PLACES; place++) {
        bool terminals = place == PLACES;
        enum place to = terminals ? COMMON : (enum place)place;
        const char *name = terminals ? "terminals" : names[place];
        for (int last = 0; last < 2 && (argc < 2 || strcmp(argv[1], name) == 0); last++)
            printf("%s: %u calls\n", name, try_all(to, terminals, last));
    }
    return 0;
}
