/* Lines of any bytes as journal entries: what arrives are well-formed entries, whose
 * messages are the lines, in order, whatever the queue's room. */
#include <sys/socket.h>

#include "single.h"

enum { MOST = 1 << 15 };

static const char label[] = "SYSUP_WATCHER=w\nSYSLOG_PID=7\n";

static uint8_t in[MOST], out[2 * MOST];
static size_t n_in, n_out;
static int receiving;

static const char *skip(const char *at, const char *end, const char *text)
{
    size_t n = strlen(text);
    return (size_t)(end - at) >= n && memcmp(at, text, n) == 0 ? at + n : NULL;
}

/* The message goes to `out`, with a newline unless it is part of a line. */
static void check_entry(const char *at, const char *end)
{
    at = skip(at, end, label);
    CHECK(at);
    at = skip(at, end, "PRIORITY=");
    CHECK(at && *at >= '0' && *at <= '7');
    unsigned priority = (unsigned)(*at - '0');
    at = skip(at + 1, end, "\n");
    CHECK(at);
    const char *partial = skip(at, end, "SYSUP_PARTIAL=1\n");
    at = skip(partial ? partial : at, end, "MESSAGE=");
    CHECK(at && end > at && end[-1] == '\n');
    size_t length = (size_t)(end - 1 - at);
    CHECK(!memchr(at, '\n', length));
    if (priority != 6) { /* it was said before the line, and taken off */
        n_out += (size_t)sprintf((char *)out + n_out, "<%u>", priority);
    }
    memcpy(out + n_out, at, length);
    n_out += length;
    if (!partial)
        out[n_out++] = '\n';
}

static void receive_all(void)
{
    static char datagram[MOST];
    ssize_t n;
    while ((n = recv(receiving, datagram, sizeof datagram, MSG_DONTWAIT)) > 0)
        check_entry(datagram, datagram + n);
}

static struct sink *journal(struct pump *pump)
{
    int ends[2], small = 4096;
    struct journal_spec spec = {.path = "/nonexistent/socket"};
    struct sink *sink;
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
    setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    receiving = ends[0];
    CHECK(sink_journal_new(pump, 1, &spec, &sink) == 0);
    sink->journal.fd = ends[1];
    sink->state = SINK_READY;
    return sink;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, data + (size < MOST / 2 ? size : MOST / 2)};
    struct pump *pump = single_pump();
    struct sink *sink = journal(pump);
    struct outlet *outlet;
    struct stream *stream;
    int ends[2];
    n_in = n_out = 0;
    memset(out, 0, sizeof out);
    struct outlet_spec spec = {
        .format = FORMAT_RECORD,
        .priority = 6,
        .flags = OUTLET_LEVEL_PREFIX,
        .max_line = 4 + take_byte(&input),
        .label = label,
    };
    CHECK(outlet_new(sink, 2, &spec, &outlet) == 0);
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    struct stream_spec s = {.id = 3, .fd = ends[0], .pid = 7, .label = label};
    CHECK(pump_add(outlet, &s, &stream) == 0);
    while (input.at < input.end) {
        size_t left = (size_t)(input.end - input.at), n = take_byte(&input);
        n = n < left - 1 ? n : left - 1;
        CHECK(write(ends[1], input.at, n) == (ssize_t)n);
        memcpy(in + n_in, input.at, n);
        n_in += n;
        input.at += n;
        if (stream->state == STREAM_WATCHED)
            stream_ready(stream, EPOLLIN);
        if (n % 3)
            receive_all();
        sink_turn(sink);
        single_settle(pump);
    }
    close(ends[1]);
    while (stream->state != STREAM_ENDED || sink_holds(sink)) {
        receive_all();
        if (stream->state == STREAM_WATCHED)
            stream_ready(stream, EPOLLIN);
        sink_turn(sink);
    }
    receive_all();
    single_settle(pump);
    if (n_in && in[n_in - 1] != '\n')
        in[n_in++] = '\n'; /* an entry is a line, also the last */
    /* "<6>" says what is so anyway: it is taken off and not to be told from nothing. */
    size_t at = 0;
    for (size_t i = 0; i < n_out; i++, at++) {
        while (n_in - at >= 3 && memcmp(in + at, "<6>", 3) == 0 && memcmp(out + i, "<6>", 3) != 0)
            at += 3;
        CHECK(at < n_in && in[at] == out[i]);
    }
    while (n_in - at >= 3 && memcmp(in + at, "<6>", 3) == 0)
        at += 3;
    CHECK(at == n_in);
    stream_free(stream);
    outlet_free(outlet);
    close(sink->journal.fd);
    close(receiving);
    arena_give(pump->arena, sink->batch);
    sink_free(sink);
    pump->targets = NULL;
    pump_free(pump);
    return 0;
}
