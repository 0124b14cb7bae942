/* Two streams into one sink, of any bytes in any pieces, which may be full at any time:
 * each byte comes out once, in the order of its stream, or is counted; and no line has
 * bytes of both. The streams' bytes are told apart by their highest bit. */
#include "single.h"

enum { STREAMS = 2, MOST = 1 << 16 };

struct side {
    int writing;
    struct stream *stream;
    uint8_t in[MOST];
    size_t n_in, n_newlines;
};

static uint8_t out[8 * MOST];
static size_t n_out;
static bool takes;

static int flush(struct sink *sink)
{
    if (!takes)
        return -EAGAIN;
    size_t n = block_holds(sink->batch);
    CHECK(n_out + n <= sizeof out);
    memcpy(out + n_out, sink->batch->data + sink->batch->begin, n);
    n_out += n;
    sink_took(sink, n);
    return 0;
}

static int open_sink(struct sink *sink)
{
    (void)sink;
    return 0;
}

static void close_sink(struct sink *sink)
{
    (void)sink;
}

static const struct sink_kind kind = {
    .flush = flush, .open = open_sink, .close = close_sink, .free = close_sink};

static uint8_t mark(uint8_t byte, int side)
{
    if (byte == '\n' || (byte & 0x7f) == '\n')
        return '\n';
    return side ? byte | 0x80 : byte & 0x7f;
}

static void feed(struct pump *pump, struct side *side, int number, struct input *input)
{
    uint8_t piece[64];
    size_t n = 0, wanted = take_byte(input) % sizeof piece;
    while (n < wanted && input->at < input->end) {
        piece[n] = mark((uint8_t)take_byte(input), number);
        side->n_newlines += piece[n] == '\n';
        n++;
    }
    CHECK(side->n_in + n <= MOST);
    memcpy(side->in + side->n_in, piece, n);
    side->n_in += n;
    if (n)
        CHECK(write(side->writing, piece, n) == (ssize_t)n);
    if (side->stream->state == STREAM_WATCHED)
        stream_ready(side->stream, EPOLLIN);
    pump->now += MILLISECOND / 2;
    sink_turn(side->stream->sink);
    single_settle(pump);
}

static void end(struct pump *pump, struct side *side)
{
    close(side->writing);
    while (side->stream->state != STREAM_ENDED) {
        if (side->stream->state != STREAM_PARKED)
            stream_ready(side->stream, EPOLLIN | EPOLLHUP);
        pump->now += MILLISECOND;
        sink_turn(side->stream->sink);
    }
    sink_turn(side->stream->sink);
    single_settle(pump);
}

/* What came out of one side, without newlines, is what went in, where nothing was lost. */
static void check_side(const struct side *side, int number, bool lossless)
{
    size_t at = 0;
    size_t found = 0;
    for (size_t i = 0; i < n_out; i++) {
        if (out[i] == '\n' || (out[i] >> 7) != number)
            continue;
        while (at < side->n_in && (side->in[at] == '\n' || (!lossless && side->in[at] != out[i])))
            at++;
        CHECK(at < side->n_in && side->in[at] == out[i]);
        at++;
        found++;
    }
    if (lossless)
        CHECK(found == side->n_in - side->n_newlines);
}

/* No line has bytes of both; those between are of records of loss, which are ASCII. */
static void check_lines(void)
{
    int of = -1;
    for (size_t i = 0; i < n_out; i++) {
        int number = out[i] >> 7;
        if (out[i] == '\n') {
            of = -1;
        } else {
            CHECK(of < 0 || of == number);
            of = number;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, data + (size < MOST / 2 ? size : MOST / 2)};
    struct pump *pump = single_pump();
    struct sink *sink = calloc(1, sizeof *sink);
    unsigned choice = take_byte(&input);
    bool drops = choice & 1;
    static struct side sides[STREAMS];
    struct outlet *outlet;
    n_out = 0;
    takes = true;
    sink->max_held = 64 + take_byte(&input);
    sink->refresh_ms = choice >> 2 & 3;
    CHECK(sink_init(sink, pump, 1, NULL, &kind) == 0);
    sink_turn(sink); /* opens it */
    const char *patterns[] = {"-\x7f*"};
    struct outlet_spec spec = {
        .format = FORMAT_RAW,
        .max_line = 1 + take_byte(&input) % 40,
        .flags = drops ? OUTLET_DROP : 0,
        .patterns = patterns,
        .n_patterns = choice >> 1 & 1, /* line by line, though it fits almost nothing */
    };
    CHECK(outlet_new(sink, 2, &spec, &outlet) == 0);
    for (int i = 0; i < STREAMS; i++) {
        int ends[2];
        CHECK(pipe2(ends, O_CLOEXEC) == 0);
        sides[i] = (struct side){.writing = ends[1]};
        struct stream_spec s = {.id = 10 + (uint64_t)i, .fd = ends[0], .pid = i, .tail = 16};
        CHECK(pump_add(outlet, &s, &sides[i].stream) == 0);
    }
    while (input.at < input.end) {
        unsigned step = take_byte(&input);
        takes = step & 2 || step & 4;
        feed(pump, &sides[step & 1], step & 1, &input);
    }
    takes = true;
    for (int i = 0; i < STREAMS; i++)
        end(pump, &sides[i]);
    struct losses losses;
    outlet_losses(outlet, &losses);
    bool lossless = !losses.dropped_bytes && !spec.n_patterns;
    if (lossless)
        check_lines();
    for (int i = 0; i < STREAMS && !losses.dropped_bytes && !spec.n_patterns; i++)
        check_side(&sides[i], i, lossless);
    CHECK(losses.dropped_bytes <= sides[0].n_in + sides[1].n_in);
    for (int i = 0; i < STREAMS; i++)
        stream_free(sides[i].stream);
    outlet_free(outlet);
    CHECK(block_holds(sink->batch) == 0);
    arena_give(pump->arena, sink->batch);
    free(sink);
    pump->targets = NULL;
    pump_free(pump);
    return 0;
}
