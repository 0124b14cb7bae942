/* The pump with many writers, sinks of every kind, and an owner that never lets it alone:
 * reopening, changing, closing, looking at tails. Every line must arrive once, whole and
 * in its writer's order; what the sanitizers see must be clean. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "native.h"

enum { WRITERS = 24, LINES = 1500, ROUNDS = 8, LONGEST = 400, QUEUES = 4, PLAIN = 4 };

/* ---- writers --------------------------------------------------------------------- */

struct writer {
    pthread_t thread;
    unsigned id;
    int fd;
    struct stream *stream;
    bool ended;
};

static unsigned draw(unsigned *seed, unsigned below)
{
    *seed = *seed * 1103515245 + 12345;
    return (*seed >> 16) % below;
}

static void write_all(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t n = write(fd, data, length);
        CHECK(n > 0);
        data += n;
        length -= (size_t)n;
    }
}

/* Lines "ID NUMBER LENGTH xxx\n", in writes that know nothing of lines. */
static void *write_lines(void *argument)
{
    struct writer *writer = argument;
    unsigned seed = writer->id + 1;
    char buffer[1 << 13];
    size_t held = 0;
    for (unsigned number = 0; number < LINES; number++) {
        unsigned length = draw(&seed, LONGEST);
        held += (size_t)sprintf(buffer + held, "%u %u %u ", writer->id, number, length);
        memset(buffer + held, 'x', length);
        held += length;
        buffer[held++] = '\n';
        while (held > sizeof buffer / 2 || (held && draw(&seed, 4) == 0)) {
            size_t n = 1 + draw(&seed, (unsigned)held);
            write_all(writer->fd, buffer, n);
            memmove(buffer, buffer + n, held -= n);
        }
    }
    write_all(writer->fd, buffer, held);
    close(writer->fd);
    return NULL;
}

/* ---- what arrived ---------------------------------------------------------------- */

static unsigned expected[WRITERS];

static unsigned take_number(const char **at)
{
    char *end;
    unsigned number = (unsigned)strtoul(*at, &end, 10);
    CHECK(end != *at && *end == ' ');
    *at = end + 1;
    return number;
}

/* Whole lines, each the next of its writer. */
static void check_lines(const char *data, size_t length)
{
    const char *end = data + length;
    while (data < end) {
        const char *newline = memchr(data, '\n', (size_t)(end - data));
        CHECK(newline);
        unsigned id = take_number(&data), number = take_number(&data), fill = take_number(&data);
        CHECK(id < WRITERS && number == expected[id]);
        CHECK(newline == data + fill);
        expected[id]++;
        data = newline + 1;
    }
}

static bool check_file(const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return false;
    struct stat st;
    CHECK(fstat(fileno(file), &st) == 0);
    char *data = malloc((size_t)st.st_size + 1);
    CHECK(fread(data, 1, (size_t)st.st_size, file) == (size_t)st.st_size);
    data[st.st_size] = '\0';
    check_lines(data, (size_t)st.st_size);
    free(data);
    fclose(file);
    unlink(path);
    return true;
}

static void check_rotated(const char *path, unsigned backups)
{
    char name[64];
    for (unsigned n = backups; n > 0; n--) {
        snprintf(name, sizeof name, "%s.%u", path, n);
        check_file(name);
    }
    CHECK(check_file(path));
}

static void *read_queue(void *argument)
{
    struct sink *sink = argument;
    char *data;
    int64_t length;
    while ((length = sink_queue_take(sink, &data, -1)) >= 0) {
        const char *at = data;
        while (at < data + length) {
            struct record record;
            memcpy(&record, at, sizeof record);
            at += sizeof record;
            CHECK(record.pid == (int32_t)record.stream + 1000);
            check_lines(at, record.length);
            at += (record.length + 7) / 8 * 8;
        }
    }
    CHECK(length == -EPIPE);
    return NULL;
}

/* ---- the owner ------------------------------------------------------------------- */

enum { ROTATED, COMMON, LENT, QUEUE, SINKS };

static struct outlet *outlet_of(struct sink *sink, uint64_t id, int32_t format, uint32_t flags)
{
    struct outlet_spec spec = {.format = format, .flags = flags, .max_line = 65536};
    struct outlet *outlet;
    CHECK(outlet_new(sink, id, &spec, &outlet) == 0);
    return outlet;
}

static int add(struct outlet *outlet, int fd, uint64_t id, int32_t pid, uint32_t tail,
               struct stream **ret_stream)
{
    struct stream_spec spec = {.id = id, .fd = fd, .pid = pid, .tail = tail};
    return pump_add(outlet, &spec, ret_stream);
}

struct app {
    struct pump *pump;
    struct sink *sinks[SINKS];
    struct outlet *outlets[SINKS];
    bool closed[SINKS];
    struct writer writers[WRITERS];
    pthread_t reader;
    int lent[2];
    int left;
};

static struct file_spec spec_of(const char *path)
{
    return (struct file_spec){.path = path, .owner = -1, .group = -1, .mode = 0600, .fd = -1};
}

static void absolute(char *ret_path, size_t size, const char *name)
{
    CHECK(getcwd(ret_path, size - strlen(name) - 1));
    strcat(strcat(ret_path, "/"), name);
}

static void open_sinks(struct app *app)
{
    char path[4096];
    absolute(path, sizeof path, "rotated");
    struct file_spec spec = spec_of(path);
    spec.max_bytes = 100000;
    spec.backup_count = 200;
    CHECK(sink_file_new(app->pump, WRITERS + ROTATED, &spec, &app->sinks[ROTATED]) == 0);
    absolute(path, sizeof path, "common");
    spec = spec_of(path);
    spec.refresh_ms = 2;
    CHECK(sink_file_new(app->pump, WRITERS + COMMON, &spec, &app->sinks[COMMON]) == 0);
    CHECK(pipe2(app->lent, O_CLOEXEC) == 0);
    spec = spec_of(NULL);
    spec.flags = SINK_BORROWED_FD;
    spec.fd = app->lent[1];
    CHECK(sink_file_new(app->pump, WRITERS + LENT, &spec, &app->sinks[LENT]) == 0);
    close(app->lent[1]);
    CHECK(sink_queue_new(app->pump, WRITERS + QUEUE, NULL, 0, &app->sinks[QUEUE]) == 0);
    for (int i = 0; i < SINKS; i++)
        app->outlets[i] = outlet_of(app->sinks[i], WRITERS + SINKS + (uint64_t)i,
                                    i == QUEUE ? FORMAT_RECORD : FORMAT_RAW, 0);
    CHECK(pthread_create(&app->reader, NULL, read_queue, app->sinks[QUEUE]) == 0);
}

/* The slow reader of the lent pipe; its lines are checked like the others. */
static void *read_lent(void *argument)
{
    struct app *app = argument;
    size_t length = 0, size = (size_t)WRITERS * LINES * (LONGEST + 64);
    char *data = malloc(size);
    ssize_t n;
    while ((n = read(app->lent[0], data + length, 3000)) > 0)
        length += (size_t)n;
    check_lines(data, length);
    free(data);
    close(app->lent[0]);
    return NULL;
}

static void start_writers(struct app *app)
{
    for (unsigned id = 0; id < WRITERS; id++) {
        struct writer *writer = &app->writers[id];
        int ends[2];
        CHECK(pipe2(ends, O_CLOEXEC) == 0);
        *writer = (struct writer){.id = id, .fd = ends[1]};
        CHECK(add(app->outlets[id % SINKS], ends[0], id, (int32_t)id + 1000, 700,
                  &writer->stream) == 0);
        stream_tap(writer->stream, id % 3 == 0);
        CHECK(pthread_create(&writer->thread, NULL, write_lines, writer) == 0);
        app->left++;
    }
}

static void take_events(struct app *app)
{
    struct pump_event events[5];
    int n;
    while ((n = pump_take(app->pump, events, 5)) > 0) {
        for (int i = 0; i < n; i++) {
            uint64_t id = events[i].id;
            if (events[i].kind == PUMP_STREAM_EOF) {
                CHECK(events[i].error == 0 && !app->writers[id].ended);
                app->writers[id].ended = true;
                stream_free(app->writers[id].stream);
                app->left--;
            } else if (events[i].kind == PUMP_TAPPED) {
                static char tapped[1 << 17];
                while (pump_tap_take(app->pump, tapped, sizeof tapped))
                    continue;
            } else if (events[i].kind != PUMP_SINK_ROTATED && events[i].kind != PUMP_SINK_DIRTY
                       && events[i].kind != PUMP_SINK_REOPENED) {
                CHECK(events[i].kind == PUMP_SINK_CLOSED && !app->closed[id - WRITERS]);
                app->closed[id - WRITERS] = true;
                app->left--;
            }
        }
    }
}

static void disturb(struct app *app, unsigned *seed)
{
    struct writer *writer = &app->writers[draw(seed, WRITERS)];
    char tail[900];
    if (!writer->ended) {
        uint64_t at;
        size_t n = stream_tail(writer->stream, tail, sizeof tail, &at);
        CHECK(n <= at);
        CHECK(n <= 700 && n <= stream_bytes(writer->stream));
    }
    struct file_spec spec = spec_of(NULL);
    spec.refresh_ms = draw(seed, 4);
    spec.flags = SINK_SYNC;
    if (draw(seed, 4) == 0)
        sink_file_set(app->sinks[COMMON], &spec);
    if (draw(seed, 8) == 0)
        sink_file_rotate(app->sinks[ROTATED]);
    if (draw(seed, 8) == 0) {
        int fd = sink_file_clean(app->sinks[COMMON]);
        CHECK(fd >= 0 || fd == -EBADF);
        if (fd >= 0)
            close(fd);
        sink_file_lock(app->sinks[ROTATED]);
        sink_file_unlock(app->sinks[ROTATED]);
    }
    if (draw(seed, 4) == 0)
        sink_reopen(app->sinks[draw(seed, SINKS)]);
    pump_ping(app->pump);
}

static void wait_for_all(struct app *app, unsigned *seed)
{
    while (app->left) {
        struct pollfd events = {.fd = pump_eventfd(app->pump), .events = POLLIN};
        poll(&events, 1, 1);
        take_events(app);
        if (app->left > SINKS)
            disturb(app, seed);
    }
}

static void test_conservation(unsigned round)
{
    struct app app = {0};
    unsigned seed = round;
    pthread_t lent;
    memset(expected, 0, sizeof expected);
    CHECK(pump_new(round % 2 ? -1 : memfd_create("arena", MFD_CLOEXEC), &app.pump) == 0);
    open_sinks(&app);
    CHECK(pthread_create(&lent, NULL, read_lent, &app) == 0);
    start_writers(&app);
    wait_for_all(&app, &seed);
    for (unsigned id = 0; id < WRITERS; id++)
        pthread_join(app.writers[id].thread, NULL);
    for (int i = 0; i < SINKS; i++) {
        outlet_free(app.outlets[i]);
        sink_close(app.sinks[i]);
    }
    app.left = SINKS;
    wait_for_all(&app, &seed);
    pthread_join(app.reader, NULL);
    pthread_join(lent, NULL);
    for (int i = 0; i < SINKS; i++)
        sink_free(app.sinks[i]);
    CHECK(pump_heartbeat(app.pump) > 0);
    CHECK(pump_stop(app.pump, 1000) == 0);
    pump_free(app.pump);
    check_rotated("rotated", 200);
    CHECK(check_file("common"));
    for (unsigned id = 0; id < WRITERS; id++)
        CHECK(expected[id] == LINES);
}

/* A sink that can never be opened: stopping in time counts what is lost, and frees all. */
static void test_stop_in_trouble(void)
{
    struct pump *pump;
    struct sink *sink;
    struct stream *stream;
    struct file_spec spec = spec_of("/nonexistent/directory/file");
    int ends[2];
    CHECK(pump_new(-1, &pump) == 0);
    CHECK(sink_file_new(pump, 1, &spec, &sink) == 0);
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    struct outlet *outlet = outlet_of(sink, 5, FORMAT_RAW, 0);
    CHECK(add(outlet, ends[0], 2, 3, 10, &stream) == 0);
    write_all(ends[1], "12345\n789", 9);
    CHECK(pump_stop(pump, 150) == 9);
    struct pump_event events[8];
    bool eof = false, closed = false;
    int n = pump_take(pump, events, 8);
    for (int i = 0; i < n; i++) {
        eof = eof || (events[i].kind == PUMP_STREAM_EOF && events[i].error == ETIMEDOUT);
        closed = closed || events[i].kind == PUMP_SINK_CLOSED;
    }
    CHECK(eof && closed);
    struct stream *late;
    CHECK(add(outlet, ends[1], 4, 3, 10, &late) == -ESHUTDOWN);
    stream_free(stream);
    outlet_free(outlet);
    sink_free(sink);
    pump_free(pump);
    close(ends[1]);
}

/* Streams closed by their owner while writers go on: nobody waits for them. */
static void test_close_in_flight(void)
{
    enum { N = 50 };
    struct pump *pump;
    struct sink *sink;
    struct stream *streams[N];
    int writing[N];
    struct file_spec spec = spec_of("/dev/null");
    CHECK(pump_new(-1, &pump) == 0);
    CHECK(sink_file_new(pump, N, &spec, &sink) == 0);
    struct outlet *outlet = outlet_of(sink, N + 1, FORMAT_RAW, 0);
    for (int i = 0; i < N; i++) {
        int ends[2];
        CHECK(pipe2(ends, O_CLOEXEC) == 0);
        writing[i] = ends[1];
        CHECK(add(outlet, ends[0], (uint64_t)i, i, 0, &streams[i]) == 0);
        write_all(ends[1], "unfinished", 10);
        stream_close(streams[i]);
        stream_close(streams[i]);
    }
    for (int left = N; left;) {
        struct pump_event event;
        struct pollfd events = {.fd = pump_eventfd(pump), .events = POLLIN};
        poll(&events, 1, -1);
        if (pump_take(pump, &event, 1) == 1) {
            CHECK(event.kind == PUMP_STREAM_EOF && stream_bytes(streams[event.id]) == 10);
            stream_close(streams[event.id]);
            stream_free(streams[event.id]);
            left--;
        }
    }
    outlet_free(outlet);
    sink_close(sink);
    CHECK(pump_stop(pump, 1000) == 0);
    sink_free(sink);
    pump_free(pump);
    for (int i = 0; i < N; i++)
        close(writing[i]);
}

int main(void)
{
    for (unsigned round = 1; round <= ROUNDS; round++)
        test_conservation(round);
    test_stop_in_trouble();
    test_close_in_flight();
    return 0;
}
