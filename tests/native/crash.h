/* What the tests share that kill a pump: the places it writes to, the lines it is given
 * ("ID NUMBER LENGTH xxx\n", of numbered writers), what stands for journald. */
#ifndef SYSUP_TESTS_CRASH_H
#define SYSUP_TESTS_CRASH_H
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "check.h"
#include "native.h"

enum place { COMMON, ROTATED, SELECTED, PREFIXED, ENTRIES, RUNS, LENT, PLACES };
static const char *const names[PLACES] = {"common", "rotated", "selected", "prefixed", "entries", "runs", "lent"};

/* Writer `id` writes to place id % PLACES. */
enum { WRITERS = 4 * PLACES, BACKUPS = 1000 };

static char directory[4000];
static int lent = -1; /* the socket that the place of this name is */

/* ---- in general ------------------------------------------------------------------ */

/* A process of ours, that does not outlive the test. */
static inline pid_t start(void)
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
        CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    return pid;
}

static inline unsigned draw(unsigned *seed, unsigned below)
{
    *seed = *seed * 1103515245 + 12345;
    return (*seed >> 16) % below;
}

static inline void write_all(int fd, const char *data, size_t length)
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

static inline const char *path_of(const char *name)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

/* ---- the pump's side ------------------------------------------------------------- */

static inline struct sink *open_sink(struct pump *pump, enum place place, uint64_t max_bytes)
{
    uint64_t id = 1000 + (uint64_t)getpid() * PLACES + place;
    struct sink *sink;
    struct journal_spec journal = {.key = names[place], .path = path_of(place == RUNS ? "runs.socket" : "entries.socket")};
    struct file_spec file = {.key = names[place], .owner = -1, .group = -1, .mode = 0600, .fd = -1};
    if (place == RUNS)
        journal.header = "header\n";
    if (place == ROTATED) {
        file.max_bytes = max_bytes;
        file.backup_count = BACKUPS;
    }
    if (place == COMMON)
        file.refresh_ms = 2;
    if (place == LENT) {
        file.flags = SINK_BORROWED_FD;
        file.fd = lent;
    } else if (place < ENTRIES) {
        file.path = path_of(names[place]);
    }
    if (place == ENTRIES || place == RUNS)
        CHECK(sink_journal_new(pump, id, &journal, &sink) == 0);
    else
        CHECK(sink_file_new(pump, id, &file, &sink) == 0);
    return sink;
}

static inline struct outlet *open_outlet(struct sink *sink, enum place place)
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

static inline struct stream *add_stream(struct outlet *outlet, unsigned id, int fd)
{
    char label[20];
    struct stream *stream;
    snprintf(label, sizeof label, id % PLACES == PREFIXED ? "<%u>" : "WHO=%u\n", id);
    struct stream_spec spec = {.id = id + 1, .fd = fd, .pid = (int32_t)id, .label = label};
    CHECK(pump_add(outlet, &spec, &stream) == 0);
    return stream;
}

/* ---- what stands for journald ---------------------------------------------------- */

static inline int bind_to(const char *name, int type)
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

/* Given what came, NULL: all that was sent before the end was marked. */
typedef void collected(enum place place, const char *data, size_t length);

/* The message of each entry; an empty datagram marks the end. */
static inline void collect_entries(int fd, collected *give)
{
    static char data[1 << 18];
    for (;;) {
        ssize_t n = recv(fd, data, sizeof data - 1, 0);
        CHECK(n >= 0);
        if (n == 0) {
            give(ENTRIES, NULL, 0);
            continue;
        }
        data[n] = '\0';
        const char *message = strstr(data, "MESSAGE=");
        CHECK(message && data[n - 1] == '\n' && strncmp(data, "WHO=", 4) == 0);
        message += 8;
        give(ENTRIES, message, (size_t)(data + n - message));
    }
}

/* The lines of one connection after the other; a line that says nothing marks the end. */
static inline void collect_runs(int fd, collected *give)
{
    for (;;) {
        FILE *in = fdopen(accept(fd, NULL, NULL), "r");
        char *line = NULL;
        size_t size = 0;
        ssize_t n = getline(&line, &size, in);
        CHECK(n <= 1 || strcmp(line, "header\n") == 0);
        if (n == 1)
            give(RUNS, NULL, 0);
        while ((n = getline(&line, &size, in)) > 0)
            give(RUNS, line, (size_t)n);
        free(line);
        fclose(in);
    }
}

/* What comes to the lent socket; a zero marks the end. */
static inline void collect_lent(int fd, collected *give)
{
    static char data[1 << 16];
    ssize_t n;
    while ((n = read(fd, data, sizeof data)) > 0) {
        bool ends = data[n - 1] == '\0';
        if (n > ends)
            give(LENT, data, (size_t)n - ends);
        if (ends)
            give(LENT, NULL, 0);
    }
    _exit(0);
}

static inline void start_collectors(collected *give)
{
    int entries = bind_to("entries.socket", SOCK_DGRAM), runs = bind_to("runs.socket", SOCK_STREAM), ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    lent = ends[0];
    if (start() == 0)
        collect_entries(entries, give);
    if (start() == 0)
        collect_runs(runs, give);
    if (start() == 0)
        collect_lent(ends[1], give);
    close(entries);
    close(runs);
    close(ends[1]);
}

static inline void mark_end(enum place place)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "entries.socket"};
    if (place == ENTRIES) {
        int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
        CHECK(sendto(fd, "", 0, 0, (struct sockaddr *)&address, sizeof address) == 0);
        close(fd);
    } else if (place == RUNS) {
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        strcpy(address.sun_path, "runs.socket");
        CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == 0 && write(fd, "\n", 1) == 1);
        close(fd);
    } else if (place == LENT) {
        write_all(lent, "", 1);
    }
}

/* ---- what arrived ---------------------------------------------------------------- */

static unsigned expected[WRITERS];

static inline unsigned take_number(const char **at, char end)
{
    unsigned number = 0;
    CHECK(**at >= '0' && **at <= '9');
    while (**at >= '0' && **at <= '9')
        number = 10 * number + (unsigned)(*(*at)++ - '0');
    CHECK(*(*at)++ == end);
    return number;
}

static inline void check_line(enum place place, const char *at, const char *newline)
{
    unsigned prefix = 0, id, number, fill;
    if (place == PREFIXED) {
        CHECK(*at++ == '<');
        prefix = take_number(&at, '>');
    }
    id = take_number(&at, ' '), number = take_number(&at, ' '), fill = take_number(&at, ' ');
    CHECK(id < WRITERS && id % PLACES == place && newline == at + fill);
    CHECK(place != PREFIXED || prefix == id);
    if (number != expected[id])
        fprintf(stderr, "%s: writer %u: %u in place of %u\n", names[place], id, number, expected[id]);
    CHECK(number == expected[id]); /* else some are lost, or doubled */
    expected[id]++;
}

/* Each line of a writer is there, whole and once, after those before it; "#" is nobody's. */
static inline void check_text(enum place place, const char *data, size_t length)
{
    const char *end = data + length;
    for (const char *at = data, *newline; at < end; at = newline + 1) {
        newline = memchr(at, '\n', (size_t)(end - at));
        if (!newline || *at == '\0') {
            fprintf(stderr, "%s: torn at %ld: %.80s\n", names[place], (long)(at - data), at);
            abort();
        }
        if (*at != '#')
            check_line(place, at, newline);
    }
}

static inline bool check_file(enum place place, const char *name)
{
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    off_t size = lseek(fd, 0, SEEK_END);
    char *data = malloc((size_t)size + 1);
    CHECK(pread(fd, data, (size_t)size, 0) == size);
    data[size] = '\0';
    check_text(place, data, (size_t)size);
    free(data);
    close(fd);
    return true;
}

static inline const char *backup_name(enum place place, int n)
{
    static char name[64];
    snprintf(name, sizeof name, "%s.%d", names[place], n);
    return name;
}

/* The file, and its backups. */
static inline void check_files(enum place place)
{
    int n = 1;
    while (access(backup_name(place, n), F_OK) == 0)
        n++;
    while (--n > 0)
        CHECK(check_file(place, backup_name(place, n)));
    CHECK(check_file(place, names[place]));
}

#endif
