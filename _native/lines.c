/* What a read brings, put into the batch of its sink line by line or as a whole.
 *
 * A batch gets whole lines only, so those of several streams never mix in it. The
 * exceptions end in the midst of a line, and leave the stream's mark in sink->open_line:
 * a line that grew to max_line, the unfinished line at the end of a raw stream, and any
 * bytes when there is no memory to hold them back. If another stream is next, a newline
 * comes first. A stream whose lines have a form has its last one finished for it.
 *
 * There are two ways to read. Directly, when nothing is done to a line: into the batch.
 * Else into a buffer of the pump, and from there line by line: `fate` remembers what was
 * decided about a line while it comes in pieces, so it is taken or left out as a whole.
 * That is also how lines are left out when the sink is full.
 *
 * Both end in one change of the arena: the batch grows, the unfinished line is another,
 * what was read is passed on. Where the batch must be written in the midst of a read, the
 * change is up to the line that has no room, and the rest of the read stays as it is. */
#include "pump.h"

#include <errno.h>
#include <string.h>

/* ---- the unfinished line --------------------------------------------------------- */

static bool partial_room(struct stream *stream, size_t size)
{
    struct arena *arena = stream->target.pump->arena;
    struct block *block = stream->partial;
    block = block ? arena_grow(arena, block, size) : arena_take(arena, stream->target.id, PENDING_LINE, size);
    if (block)
        stream->partial = block;
    return block != NULL;
}

static void partial_add(struct stream *stream, const char *data, size_t length)
{
    if (length == 0)
        return;
    memcpy(stream->partial->data + stream->partial->end, data, length);
    stream->partial->end += length;
}

void lines_forget(struct stream *stream)
{
    arena_give(stream->target.pump->arena, stream->partial);
    stream->partial = NULL;
}

size_t lines_held(const struct stream *stream)
{
    return block_holds(stream->partial);
}

/* ---- all at once ------------------------------------------------------------------ */

/* All that has changed, at once; `source` is what was passed on, `spent` the unfinished
 * line that was. */
static void save(struct stream *stream, enum fate fate, struct block *source, struct block *spent)
{
    struct arena *arena = stream->target.pump->arena;
    struct saved_stream *saved = stream->saved;
    struct losses losses;
    stream_losses(stream, &losses);
    sink_save(stream->sink);
    if (stream->partial)
        block_save(arena, stream->partial);
    if (source)
        block_save(arena, source);
    if (spent)
        arena_change(arena, &spent->saved, 0);
    arena_change(arena, &saved->bytes, stream_bytes(stream));
    arena_change(arena, &saved->fate, fate);
    arena_change(arena, &saved->losses.dropped_lines, losses.dropped_lines);
    arena_change(arena, &saved->losses.dropped_bytes, losses.dropped_bytes);
    arena_change(arena, &saved->losses.suppressed_lines, losses.suppressed_lines);
    arena_change(arena, &saved->losses.suppressed_bytes, losses.suppressed_bytes);
    arena_change(arena, &arena_reading(arena)->window, 0);
    arena_commit(arena);
    arena_give(arena, spent);
}

/* ---- directly -------------------------------------------------------------------- */

static bool interrupts(const struct stream *stream)
{
    const struct sink *sink = stream->sink;
    return sink->open_line && sink->open_line != line_mark(stream) && !sink->kind->records;
}

static char *put_record(struct stream *stream, char *to, size_t length, uint32_t flags)
{
    struct record record = {
        .stream = stream->target.id,
        .label = arena_offset(stream->target.pump->arena, stream->label),
        .pid = stream->pid,
        .flags = flags,
        .length = (uint32_t)length,
    };
    memcpy(to, &record, sizeof record);
    return to + sizeof record;
}

/* Bytes that come before those of a read. */
static size_t gap_length(const struct stream *stream)
{
    size_t header = stream->sink->kind->records ? sizeof(struct record) : 0;
    return header + interrupts(stream) + lines_held(stream);
}

/* Fill the gap at `base`, which `length` bytes follow. */
static void fill_gap(struct stream *stream, char *base, size_t length, uint32_t flags)
{
    size_t partial = lines_held(stream);
    bool interrupt = interrupts(stream);
    if (stream->sink->kind->records)
        base = put_record(stream, base, partial + length, flags);
    if (interrupt)
        *base++ = '\n';
    if (partial)
        memcpy(base, stream->partial->data, partial);
}

/* Returns what read(2) does, or -errno; -ENOMEM has read nothing. */
static ssize_t read_directly(struct stream *stream, size_t limit)
{
    struct sink *sink = stream->sink;
    size_t gap = gap_length(stream);
    char *base = sink_room(sink, gap + limit + 8);
    if (!base)
        return -ENOMEM;
    char *fresh = base + gap;
    ssize_t n = stream_read(stream, fresh, limit);
    if (n <= 0)
        return n;
    size_t length = (size_t)n;
    stream_took(stream, fresh, length, limit);
    char *newline = memrchr(fresh, '\n', length);
    size_t whole = newline ? (size_t)(newline + 1 - fresh) : 0;
    size_t rest = length - whole, held = rest + (whole ? 0 : lines_held(stream));
    bool piece = held >= stream->outlet->max_line;
    struct block *partial = NULL;
    if (!piece && whole && rest) {
        partial = arena_take(stream->target.pump->arena, stream->target.id, PENDING_LINE, rest);
        piece = !partial;
    } else if (!piece && rest) {
        piece = !partial_room(stream, held);
    }
    if (piece) {
        whole = length;
        rest = 0;
    }
    struct block *spent = NULL;
    if (whole) {
        fill_gap(stream, base, whole, piece ? RECORD_PARTIAL : 0);
        spent = stream->partial;
        stream->partial = partial;
        sink_commit(sink, sink_align(sink, fresh + whole));
        sink->open_line = piece ? line_mark(stream) : 0;
        stream->fate = piece ? FATE_KEPT : FATE_OPEN;
    }
    partial_add(stream, fresh + whole, rest);
    save(stream, stream->fate, NULL, spent);
    return n;
}

/* ---- line by line ---------------------------------------------------------------- */

/* A read that is passed on line by line. */
struct work {
    struct stream *stream;
    struct block *source; /* what was read, from what is not passed on yet; or NULL */
    struct block *spent;  /* the unfinished line, when it was passed on */
    enum fate fate;       /* the stream's, before the line that is being passed on */
    char *to;         /* where the batch goes on; NULL: not asked for yet */
    char *room_end;
    char *record;     /* the header of the run of lines so far, or NULL */
    uint32_t flags;   /* of that record */
    bool full;        /* the sink takes nothing more: lines are left out */
    bool over;        /* nothing follows: an unfinished line is no part of a longer one */
};

static void close_record(struct work *work)
{
    if (!work->record)
        return;
    size_t length = (size_t)(work->to - work->record) - sizeof(struct record);
    put_record(work->stream, work->record, length, work->flags);
    work->to = sink_align(work->stream->sink, work->to);
    work->record = NULL;
    work->flags = 0;
}

static void commit(struct work *work, enum fate fate)
{
    close_record(work);
    if (work->to)
        sink_commit(work->stream->sink, work->to);
    work->to = work->room_end = NULL;
    save(work->stream, fate, work->source, work->spent);
    work->spent = NULL;
}

/* Room for `size` bytes at `to`; writes the batch where there is little. False: no memory. */
static bool make_room(struct work *work, size_t size)
{
    struct sink *sink = work->stream->sink;
    size += 1 + sizeof(struct record) + 8;
    if (work->to && (size_t)(work->room_end - work->to) >= size)
        return true;
    commit(work, work->fate);
    if (sink_holds(sink) >= BATCH_BYTES && sink->state == SINK_READY)
        sink_flush(sink);
    work->to = sink_room(sink, size);
    work->room_end = work->to ? sink->batch->data + sink->batch->size : NULL;
    return work->to != NULL;
}

static void put_piece(struct work *work, const char *text, size_t length, unsigned piece)
{
    struct stream *stream = work->stream;
    struct sink *sink = stream->sink;
    const struct outlet *outlet = stream->outlet;
    if (!make_room(work, outlet_room(outlet, stream->label, length))) {
        bool ends = piece & PIECE_LAST;
        outlet_lose(stream, FATE_DROPPED, ends, length + ends);
        return;
    }
    if (sink->kind->records) {
        if (!work->record) {
            work->record = work->to;
            work->to += sizeof(struct record);
        }
    } else if (interrupts(stream)) {
        *work->to++ = '\n';
    }
    if (!(piece & PIECE_FIRST) && sink->open_line != line_mark(stream))
        piece |= PIECE_RESUMED;
    work->to = outlet_put(outlet, stream->label, work->to, text, length, piece);
    sink->open_line = piece & PIECE_LAST || outlet->format == FORMAT_JSON ? 0 : line_mark(stream);
    if (!(piece & PIECE_LAST)) {
        work->flags = work->over ? 0 : RECORD_PARTIAL;
        close_record(work);
    }
}

/* A line, or a piece of one; `ends`: its newline follows, which is not in `length`. */
static void take_piece(struct work *work, const char *text, size_t length, bool ends)
{
    struct stream *stream = work->stream;
    unsigned piece = ends ? PIECE_LAST : 0;
    work->fate = stream->fate;
    bool judged = stream->fate == FATE_OPEN;
    if (judged) {
        piece |= PIECE_FIRST;
        stream->fate = work->full ? FATE_DROPPED
                                  : outlet_judge(stream->outlet, stream->target.pump->now, text, length);
    }
    if (stream->fate == FATE_KEPT && work->full) {
        stream->fate = FATE_DROPPED; /* the rest of a line that was begun */
        judged = true;
        if (stream->sink->open_line == line_mark(stream))
            stream->sink->open_line = LINE_OF_NOBODY;
    }
    if (stream->fate == FATE_KEPT)
        put_piece(work, text, length, piece);
    else
        outlet_lose(stream, stream->fate, judged, length + ends); /* it may never end */
    if (ends)
        stream->fate = FATE_OPEN;
}

/* A piece of what was read. */
static void take_read(struct work *work, const char *text, size_t length, bool ends)
{
    work->source->begin = (uint64_t)(text - work->source->data);
    take_piece(work, text, length, ends);
}

/* The unfinished line, to which was added what comes before `text`; `ends`: its newline
 * follows. */
static void take_partial(struct work *work, const char *text, bool ends)
{
    struct stream *stream = work->stream;
    work->source->begin = (uint64_t)(text - work->source->data);
    take_piece(work, stream->partial->data, lines_held(stream), ends);
    work->spent = stream->partial;
    stream->partial = NULL;
}

/* Text without a newline, which `ends` says follows: with the unfinished line before it a
 * line, or pieces of max_line bytes and what is left. */
static void take_text(struct work *work, const char *text, size_t length, bool ends)
{
    struct stream *stream = work->stream;
    size_t most = stream->outlet->max_line, held = lines_held(stream);
    if (held) {
        size_t room = held < most ? most - held : 0, n = length < room ? length : room;
        if (partial_room(stream, held + n)) {
            partial_add(stream, text, n);
            text += n;
            length -= n;
        }
        if (length == 0 && !ends)
            return;
        take_partial(work, text, ends && length == 0);
        if (ends && length == 0)
            return;
    }
    for (; length > most; text += most, length -= most)
        take_read(work, text, most, false);
    if (ends)
        take_read(work, text, length, true);
    else if (length && partial_room(stream, length))
        partial_add(stream, text, length);
    else if (length)
        take_read(work, text, length, false);
}

static void pass_on(struct stream *stream, struct block *source, bool full)
{
    struct work work = {.stream = stream, .source = source, .full = full};
    const char *from = source->data + source->begin, *end = source->data + source->end, *newline;
    stamp_refresh(&stream->outlet->stamp);
    while ((newline = memchr(from, '\n', (size_t)(end - from)))) {
        take_text(&work, from, (size_t)(newline - from), true);
        from = newline + 1;
    }
    take_text(&work, from, (size_t)(end - from), false);
    source->begin = source->end;
    commit(&work, stream->fate);
}

static ssize_t read_worked(struct stream *stream, size_t limit, bool full)
{
    struct pump *pump = stream->target.pump;
    struct block *scratch = pump->scratch;
    if (limit > WORKED_BYTES)
        limit = WORKED_BYTES;
    scratch->owner = stream->target.id;
    scratch->begin = scratch->end = 0;
    ssize_t n = stream_read(stream, scratch->data, limit);
    if (n <= 0)
        return n;
    scratch->end = (size_t)n;
    stream_took(stream, scratch->data, (size_t)n, limit);
    save(stream, stream->fate, scratch, NULL);
    pass_on(stream, scratch, full);
    return n;
}

static ssize_t take_raw(struct stream *stream, bool full)
{
    struct block *raw = stream->raw;
    ssize_t n = (ssize_t)block_holds(raw);
    pass_on(stream, raw, full);
    stream->raw = NULL;
    arena_give(stream->target.pump->arena, raw);
    return n;
}

/* ---- from outside ---------------------------------------------------------------- */

ssize_t lines_read(struct stream *stream, size_t limit, bool full)
{
    if (stream->raw)
        return take_raw(stream, full);
    bool works = stream->outlet->works || full || stream->fate == FATE_DROPPED;
    return works ? read_worked(stream, limit, full) : read_directly(stream, limit);
}

int lines_end(struct stream *stream)
{
    struct sink *sink = stream->sink;
    size_t held = lines_held(stream);
    const struct outlet *outlet = stream->outlet;
    bool full = outlet->flags & OUTLET_DROP && !sink_takes(sink, outlet);
    bool finish = outlet->format == FORMAT_PREFIX && (held || sink->open_line == line_mark(stream));
    struct block *spent = stream->partial;
    if (finish || (held && (outlet->works || stream->fate != FATE_OPEN || full))) {
        struct work work = {.stream = stream, .full = full, .over = true};
        stamp_refresh(&stream->outlet->stamp);
        take_piece(&work, held ? spent->data : "", held, finish || outlet->format == FORMAT_JSON);
        stream->partial = NULL;
        work.spent = spent;
        commit(&work, stream->fate);
    } else if (held) {
        size_t gap = gap_length(stream);
        char *base = sink_room(sink, gap + 8);
        if (!base)
            return -ENOMEM;
        fill_gap(stream, base, 0, 0);
        sink_commit(sink, sink_align(sink, base + gap));
        sink->open_line = line_mark(stream);
        stream->partial = NULL;
        save(stream, stream->fate, NULL, spent);
    }
    lines_forget(stream);
    if (stream->outlet->note_at != NEVER)
        outlet_note(stream->outlet, true);
    if (sink->open_line == line_mark(stream))
        sink->open_line = LINE_OF_NOBODY; /* who could go on with it is gone */
    return 0;
}
