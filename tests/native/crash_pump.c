/* A pump that is killed by SIGKILL over and over, at any moment, while writers go on; each
 * time another process goes on with its arena. In the end each line is where it belongs,
 * whole, once and in its writer's order.
 *
 * Arguments: kills, and the longest time between two in microseconds. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "native.h"

enum { WRITERS = 24, LONGEST = 400, BACKUPS = 1000 };

enum place { COMMON, ROTATED, SELECTED, PREFIXED, ENTRIES, RUNS, PLACES };
static const char *const names[PLACES] = {"common", "rotated", "selected", "prefixed", "entries", "runs"};

struct shared {
    _Atomic bool over;
    _Atomic unsigned lines[WRITERS];
};

static struct shared *shared;
static char directory[4000];
static int memfd, pipes[WRITERS];

/* A process of ours, that does not outlive the test. */
static pid_t start(void)
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
        CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    return pid;
}

static unsigned draw(unsigned *seed, unsigned below)
{
    *seed = *seed * 1103515245 + 12345;
    return (*seed >> 16) % below;
}

static const char *path_of(const char *name)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static void write_all(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t n = write(fd, data, length);
        if (n < 0 && errno == EINTR)
            continue;
        CHECK(n > 0);
        data += n;
        length -= (size_t)n;
    }
}

/* ---- writers --------------------------------------------------------------------- */

/* Lines "ID NUMBER LENGTH xxx\n", in writes that know nothing of lines, until it is over. */
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

/* ---- what stands for journald ---------------------------------------------------- */

static int bind_to(const char *name, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0), size = 1 << 20;
    snprintf(address.sun_path, sizeof address.sun_path, "%s", name);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (type == SOCK_STREAM)
        CHECK(listen(fd, 10000) == 0);
    return fd;
}

/* The message of each entry is a line; an empty datagram is the end. */
static void collect_entries(int fd)
{
    static char data[1 << 18];
    FILE *log = fopen("entries", "w");
    ssize_t n;
    while ((n = recv(fd, data, sizeof data - 1, 0)) > 0) {
        data[n] = '\0';
        const char *message = strstr(data, "MESSAGE=");
        CHECK(message && data[n - 1] == '\n' && strncmp(data, "WHO=", 4) == 0);
        message += 8;
        fwrite(message, 1, (size_t)(data + n - message), log);
    }
    fclose(log);
    _exit(0);
}

/* The lines of one connection after the other; a line that says nothing is the end. */
static void collect_runs(int fd)
{
    FILE *log = fopen("runs", "w");
    for (;;) {
        FILE *in = fdopen(accept(fd, NULL, NULL), "r");
        char *line = NULL;
        size_t size = 0;
        ssize_t n = getline(&line, &size, in);
        if (n == 1)
            break;
        CHECK(n < 0 || strcmp(line, "header\n") == 0);
        while ((n = getline(&line, &size, in)) > 0)
            fwrite(line, 1, (size_t)n, log);
        free(line);
        fclose(in);
    }
    fclose(log);
    _exit(0);
}

static void start_collectors(void)
{
    int entries = bind_to("entries.socket", SOCK_DGRAM), runs = bind_to("runs.socket", SOCK_STREAM);
    if (start() == 0)
        collect_entries(entries);
    if (start() == 0)
        collect_runs(runs);
    close(entries);
    close(runs);
}

static void end_collectors(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "entries.socket"};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK(sendto(fd, "", 0, 0, (struct sockaddr *)&address, sizeof address) == 0);
    close(fd);
    strcpy(address.sun_path, "runs.socket");
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == 0 && write(fd, "\n", 1) == 1);
    close(fd);
}

/* ---- the one that is killed ------------------------------------------------------ */

static struct sink *open_sink(struct pump *pump, enum place place)
{
    uint64_t id = 1000 + (uint64_t)getpid() * PLACES + place;
    struct sink *sink;
    struct journal_spec journal = {.key = names[place], .path = path_of(place == RUNS ? "runs.socket" : "entries.socket")};
    struct file_spec file = {.key = names[place], .owner = -1, .group = -1, .mode = 0600, .fd = -1};
    if (place == RUNS)
        journal.header = "header\n";
    if (place == ROTATED) {
        file.max_bytes = 1000000;
        file.backup_count = BACKUPS;
    }
    if (place == COMMON)
        file.refresh_ms = 2;
    if (place == ENTRIES || place == RUNS)
        CHECK(sink_journal_new(pump, id, &journal, &sink) == 0);
    if (place < ENTRIES)
        file.path = path_of(names[place]);
    if (place < ENTRIES)
        CHECK(sink_file_new(pump, id, &file, &sink) == 0);
    return sink;
}

static struct outlet *open_outlet(struct sink *sink, enum place place)
{
    static const char *const all[] = {"+*"};
    struct outlet_spec spec = {.max_line = 65536, .priority = 6, .format = FORMAT_RAW};
    struct outlet *outlet;
    if (place == SELECTED) {
        spec.patterns = all;
        spec.n_patterns = 1;
    }
    if (place == PREFIXED)
        spec.format = FORMAT_PREFIX;
    if (place == ENTRIES || place == RUNS)
        spec.format = FORMAT_RECORD;
    CHECK(outlet_new(sink, 999, &spec, &outlet) == 0);
    return outlet;
}

/* Until all streams have ended, or it is killed. */
static void pump_lines(void)
{
    struct pump *pump;
    struct sink *sinks[PLACES];
    struct outlet *outlets[PLACES];
    struct stream *stream;
    CHECK(pump_new(memfd, &pump) == 0);
    for (int i = 0; i < PLACES; i++) {
        sinks[i] = open_sink(pump, (enum place)i);
        outlets[i] = open_outlet(sinks[i], (enum place)i);
    }
    for (unsigned id = 0; id < WRITERS; id++) {
        char label[20];
        enum place place = (enum place)(id % PLACES);
        snprintf(label, sizeof label, place == PREFIXED ? "<%u>" : "WHO=%u\n", id);
        struct stream_spec spec = {.id = id + 1, .fd = pipes[id], .pid = (int32_t)id, .label = label};
        CHECK(pump_add(outlets[place], &spec, &stream) == 0);
    }
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

/* ---- what arrived ---------------------------------------------------------------- */

static unsigned expected[WRITERS], doubled[PLACES];

static unsigned take_number(const char **at, char end)
{
    unsigned number = 0;
    CHECK(**at >= '0' && **at <= '9');
    while (**at >= '0' && **at <= '9')
        number = 10 * number + (unsigned)(*(*at)++ - '0');
    CHECK(*(*at)++ == end);
    return number;
}

static void check_line(const char *at, const char *newline, enum place place)
{
    unsigned prefix = 0, id, number, fill;
    if (place == PREFIXED) {
        CHECK(*at++ == '<');
        prefix = take_number(&at, '>');
    }
    id = take_number(&at, ' '), number = take_number(&at, ' '), fill = take_number(&at, ' ');
    CHECK(id < WRITERS && id % PLACES == place && newline == at + fill);
    CHECK(place != PREFIXED || prefix == id);
    if (number > expected[id])
        fprintf(stderr, "%s: writer %u: %u follows %u\n", names[place], id, number, expected[id]);
    CHECK(number <= expected[id]); /* else some are lost */
    if (number < expected[id])
        doubled[place]++;
    else
        expected[id]++;
}

static bool check_file(const char *name, enum place place)
{
    struct stat st;
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    CHECK(fstat(fd, &st) == 0);
    char *data = malloc((size_t)st.st_size + 1), *end = data + st.st_size;
    CHECK(read(fd, data, (size_t)st.st_size) == st.st_size);
    *end = '\0';
    for (char *at = data, *newline; at < end; at = newline + 1) {
        newline = memchr(at, '\n', (size_t)(end - at));
        if (!newline || *at == '\0') {
            fprintf(stderr, "%s: torn at %ld: %.80s\n", name, (long)(at - data), at);
            abort();
        }
        check_line(at, newline, place);
    }
    free(data);
    close(fd);
    return true;
}

static void check_place(enum place place)
{
    char name[64];
    for (int n = BACKUPS; place == ROTATED && n > 0; n--) {
        snprintf(name, sizeof name, "rotated.%d", n);
        check_file(name, place);
    }
    CHECK(check_file(names[place], place));
    for (unsigned id = place; id < WRITERS; id += PLACES) {
        if (expected[id] != atomic_load(&shared->lines[id]))
            fprintf(stderr, "%s: writer %u: %u of %u\n", names[place], id, expected[id], shared->lines[id]);
        CHECK(expected[id] == shared->lines[id]);
    }
}

int main(int argc, char **argv)
{
    unsigned kills = argc > 1 ? (unsigned)atoi(argv[1]) : 150, seed = (unsigned)getpid();
    unsigned longest = argc > 2 ? (unsigned)atoi(argv[2]) : 4000;
    int status;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memfd = memfd_create("arena", MFD_CLOEXEC);
    CHECK(memfd >= 0 && shared != MAP_FAILED && getcwd(directory, sizeof directory));
    start_collectors();
    start_writers();
    for (unsigned i = 0; i < kills; i++) {
        pid_t pid = start_pump();
        usleep(draw(&seed, longest) + (i % 8 == 0 ? 20000 : 0)); /* at times it gets on */
        CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, &status, 0) == pid);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
    atomic_store(&shared->over, true);
    pid_t pid = start_pump();
    CHECK(waitpid(pid, &status, 0) == pid);
    if (status)
        fprintf(stderr, "the last one: status %x\n", (unsigned)status);
    CHECK(status == 0);
    for (int left = WRITERS; left; left--)
        CHECK(wait(&status) > 0 && status == 0);
    end_collectors();
    CHECK(wait(&status) > 0 && status == 0 && wait(&status) > 0 && status == 0);
    unsigned lines = 0;
    for (int i = 0; i < PLACES; i++)
        check_place((enum place)i);
    for (unsigned id = 0; id < WRITERS; id++)
        lines += expected[id];
    printf("%u lines, %u kills\n", lines, kills);
    for (int i = 0; i < PLACES; i++)
        printf("%s: %u lines came twice\n", names[i], doubled[i]);
    return 0;
}
