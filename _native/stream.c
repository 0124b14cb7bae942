/* One pipe: read, cut into lines, put into the batch of its sink.
 *
 * Lines. A batch gets whole lines only, so those of several streams never mix in it. The
 * exceptions end in the midst of a line, and leave the stream's mark in sink->open_line:
 * a line that grew to max_line, the unfinished line at the end of a raw stream, and any
 * bytes when there is no memory to hold them back. If another stream is next, a newline
 * comes first. A stream whose lines have a form has its last one finished for it.
 *
 * There are two ways to read. Directly, when nothing is done to a line: into the batch.
 * Else into a buffer of the pump, and from there line by line: `fate` remembers what was
 * decided about a line while it comes in pieces, so it is taken or left out as a whole.
 * That is also how lines are left out when the sink is full. */
#include "pump.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { TAIL_LEAST = 64 };

/* ---- the tail and the unfinished line ------------------------------------------- */

/* Under the tail's lock: grow until the tail has its size; until then it is no circle. */
static bool tail_grow(struct stream *stream, uint64_t wanted)
{
    uint64_t room = stream->tail_room ? stream->tail_room : TAIL_LEAST;
    while (room < wanted)
        room *= 2;
    if (room > stream->tail_size)
        room = stream->tail_size;
    if (room <= stream->tail_room)
        return true;
    char *larger = realloc(stream->tail, room);
    if (!larger)
        return false;
    stream->tail = larger;
    stream->tail_room = (uint32_t)room;
    return true;
}

static void tail_put(struct stream *stream, uint64_t before, const char *data, size_t length)
{
    if (!tail_grow(stream, before + length)) {
        stream->tail_size = stream->tail_room = 0;
        return;
    }
    size_t room = stream->tail_room, skip = length > room ? length - room : 0;
    size_t at = (before + skip) % room, n = length - skip;
    size_t first = n < room - at ? n : room - at;
    memcpy(stream->tail + at, data + skip, first);
    memcpy(stream->tail, data + skip + first, n - first);
}

/* What is new, for all who want to know. */
static void remember(struct stream *stream, const char *data, size_t length)
{
    uint64_t before = atomic_load_explicit(&stream->bytes, memory_order_relaxed);
    if (stream->tail_size) {
        pthread_mutex_lock(&stream->tail_lock);
        tail_put(stream, before, data, length);
        atomic_store_explicit(&stream->bytes, before + length, memory_order_relaxed);
        pthread_mutex_unlock(&stream->tail_lock);
    } else {
        atomic_store_explicit(&stream->bytes, before + length, memory_order_relaxed);
    }
    if (atomic_load_explicit(&stream->tapped, memory_order_relaxed))
        tap_copy(stream, data, length, before + length);
}

/* For the pooling of small writes. */
static void account(struct pump *pump, size_t length, size_t limit)
{
    pump->turn_reads++;
    pump->turn_bytes += length;
    uint32_t fullness = (uint32_t)(length * FULLNESS / limit);
    if (fullness > pump->turn_fullest)
        pump->turn_fullest = fullness;
}

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

static void partial_drop(struct stream *stream)
{
    arena_give(stream->target.pump->arena, stream->partial);
    stream->partial = NULL;
}

static size_t partial_length(const struct stream *stream)
{
    return block_holds(stream->partial);
}

/* ---- directly -------------------------------------------------------------------- */

static bool interrupts(const struct stream *stream)
{
    const struct sink *sink = stream->sink;
    return sink->open_line && sink->open_line != stream && !sink->kind->records;
}

static char *put_record(struct stream *stream, char *to, size_t length, uint32_t flags)
{
    struct record record = {
        .stream = stream->target.id,
        .label = stream->label,
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
    return header + interrupts(stream) + partial_length(stream);
}

/* Fill the gap at `base`, which `length` bytes follow. */
static void fill_gap(struct stream *stream, char *base, size_t length, uint32_t flags)
{
    size_t partial = partial_length(stream);
    bool interrupt = interrupts(stream);
    if (stream->sink->kind->records)
        base = put_record(stream, base, partial + length, flags);
    if (interrupt)
        *base++ = '\n';
    if (partial)
        memcpy(base, stream->partial->data, partial);
}

/* The run of lines from `base` to `end` is complete: it is the batch's. */
static void seal(struct stream *stream, char *end)
{
    struct sink *sink = stream->sink;
    while (sink->kind->records && (end - sink->batch->data) % 8)
        *end++ = '\0';
    sink_commit(sink, end);
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
    ssize_t n = read(stream->fd, fresh, limit);
    if (n <= 0)
        return n < 0 ? -errno : 0;
    size_t length = (size_t)n;
    remember(stream, fresh, length);
    account(stream->target.pump, length, limit);
    char *newline = memrchr(fresh, '\n', length);
    size_t whole = newline ? (size_t)(newline + 1 - fresh) : 0;
    size_t rest = length - whole, held = rest + (whole ? 0 : partial_length(stream));
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
    if (!whole) {
        partial_add(stream, fresh, rest);
        return n;
    }
    fill_gap(stream, base, whole, piece ? RECORD_PARTIAL : 0);
    partial_drop(stream);
    stream->partial = partial;
    partial_add(stream, fresh + whole, rest);
    seal(stream, fresh + whole); /* last: its padding may lie on the rest */
    sink->open_line = piece ? stream : NULL;
    stream->fate = piece ? FATE_KEPT : FATE_OPEN;
    return n;
}

/* ---- line by line ---------------------------------------------------------------- */

/* A read that is passed on line by line. */
struct work {
    struct stream *stream;
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
    while ((work->to - work->stream->sink->batch->data) % 8)
        *work->to++ = '\0';
    work->record = NULL;
    work->flags = 0;
}

static void commit(struct work *work)
{
    close_record(work);
    if (work->to)
        sink_commit(work->stream->sink, work->to);
    work->to = work->room_end = NULL;
}

/* Room for `size` bytes at `to`; writes the batch where there is little. False: no memory. */
static bool make_room(struct work *work, size_t size)
{
    struct sink *sink = work->stream->sink;
    size += 1 + sizeof(struct record) + 8;
    if (work->to && (size_t)(work->room_end - work->to) >= size)
        return true;
    commit(work);
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
        outlet_lose(stream, FATE_DROPPED, piece & PIECE_LAST ? 1 : 0, length + (piece & PIECE_LAST ? 1 : 0));
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
    if (!(piece & PIECE_FIRST) && sink->open_line != stream)
        piece |= PIECE_RESUMED;
    work->to = outlet_put(outlet, stream->label, work->to, text, length, piece);
    sink->open_line = piece & PIECE_LAST || outlet->format == FORMAT_JSON ? NULL : stream;
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
    bool judged = stream->fate == FATE_OPEN;
    if (judged) {
        piece |= PIECE_FIRST;
        stream->fate = work->full ? FATE_DROPPED
                                  : outlet_judge(stream->outlet, stream->target.pump->now, text, length);
    }
    if (stream->fate == FATE_KEPT && work->full) {
        stream->fate = FATE_DROPPED; /* the rest of a line that was begun */
        judged = true;
        if (stream->sink->open_line == stream)
            stream->sink->open_line = stream->sink;
    }
    if (stream->fate == FATE_KEPT)
        put_piece(work, text, length, piece);
    else
        outlet_lose(stream, stream->fate, judged, length + ends); /* it may never end */
    if (ends)
        stream->fate = FATE_OPEN;
}

/* The unfinished line, to which more was added; `ends`: its newline follows. */
static void take_partial(struct work *work, bool ends)
{
    struct stream *stream = work->stream;
    take_piece(work, stream->partial->data, partial_length(stream), ends);
    partial_drop(stream);
}

/* Text without a newline, which `ends` says follows: with the unfinished line before it a
 * line, or pieces of max_line bytes and what is left. */
static void take_text(struct work *work, const char *text, size_t length, bool ends)
{
    struct stream *stream = work->stream;
    size_t most = stream->outlet->max_line, held = partial_length(stream);
    if (held) {
        size_t n = length < most - held ? length : most - held;
        if (partial_room(stream, held + n)) {
            partial_add(stream, text, n);
            text += n;
            length -= n;
        }
        if (length == 0 && !ends)
            return;
        take_partial(work, ends && length == 0);
        if (ends && length == 0)
            return;
    }
    for (; length > most; text += most, length -= most)
        take_piece(work, text, most, false);
    if (ends)
        take_piece(work, text, length, true);
    else if (length && partial_room(stream, length))
        partial_add(stream, text, length);
    else if (length)
        take_piece(work, text, length, false);
}

static ssize_t read_worked(struct stream *stream, size_t limit, bool full)
{
    struct work work = {.stream = stream, .full = full};
    if (limit > WORKED_BYTES)
        limit = WORKED_BYTES;
    char *from = stream->target.pump->scratch;
    ssize_t n = read(stream->fd, from, limit);
    if (n <= 0)
        return n < 0 ? -errno : 0;
    remember(stream, from, (size_t)n);
    account(stream->target.pump, (size_t)n, limit);
    stamp_refresh(&stream->outlet->stamp);
    const char *end = from + n, *newline;
    while ((newline = memchr(from, '\n', (size_t)(end - from)))) {
        take_text(&work, from, (size_t)(newline - from), true);
        from += newline + 1 - from;
    }
    take_text(&work, from, (size_t)(end - from), false);
    commit(&work);
    return n;
}

/* ---- rest ------------------------------------------------------------------------ */

enum { LITTLE_BYTES = READ_BYTES / 4 };

/* What it brings in the time of a rest, in this one and the last. */
static bool is_quiet(struct stream *stream, size_t length, int64_t rest)
{
    int64_t now = stream->target.pump->now, passed = now - stream->since;
    if (passed > rest) {
        stream->before = passed > 4 * rest ? 0 : stream->lately;
        stream->lately = 0;
        stream->since = now;
    }
    if (stream->lately < LITTLE_BYTES)
        stream->lately += (uint32_t)length;
    return stream->lately < LITTLE_BYTES && stream->before < LITTLE_BYTES;
}

/* Where bytes may wait, a stream that brings few is not read at each of its writes, but
 * after a rest: what it writes meanwhile waits in the pipe, where there is room for four
 * times what it brought lately. Its end is heard at once all the same. */
static void rest_if_quiet(struct stream *stream, size_t length)
{
    int64_t rest = sink_rest_time(stream->sink);
    if (rest && is_quiet(stream, length, rest) && stream->state == STREAM_WATCHED && !stream->closing &&
        !stream->hung_up && !atomic_load_explicit(&stream->tapped, memory_order_relaxed))
        sink_rest(stream->sink, stream);
}

void stream_wake(struct stream *stream)
{
    stream->state = STREAM_WATCHED;
    if (pump_rewatch(stream->target.pump, stream->fd, EPOLLIN, &stream->target) < 0)
        sink_park(stream->sink, stream);
}

/* ---- the end --------------------------------------------------------------------- */

/* The line that the end of the stream leaves unfinished. */
static int put_last_line(struct stream *stream)
{
    struct sink *sink = stream->sink;
    size_t held = partial_length(stream);
    const struct outlet *outlet = stream->outlet;
    bool full = outlet->flags & OUTLET_DROP && !sink_takes(sink, outlet);
    bool finish = outlet->format == FORMAT_PREFIX && (held || sink->open_line == stream);
    if (finish || (held && (outlet->works || stream->fate != FATE_OPEN || full))) {
        struct work work = {.stream = stream, .full = full, .over = true};
        stamp_refresh(&stream->outlet->stamp);
        take_piece(&work, held ? stream->partial->data : "", held, finish || outlet->format == FORMAT_JSON);
        commit(&work);
    } else if (held) {
        size_t gap = gap_length(stream);
        char *base = sink_room(sink, gap + 8);
        if (!base)
            return -ENOMEM;
        fill_gap(stream, base, 0, 0);
        seal(stream, base + gap);
        sink->open_line = stream;
    }
    partial_drop(stream);
    if (stream->outlet->note_at != NEVER)
        outlet_note(stream->outlet, true);
    if (sink->open_line == stream)
        sink->open_line = sink; /* of nobody who could go on with it */
    return 0;
}

/* Its sink has all its bytes, though not yet written: no more is read. */
static void end_stream(struct stream *stream, int error)
{
    if (put_last_line(stream) < 0) {
        sink_fail(stream->sink, ENOMEM);
        sink_park(stream->sink, stream); /* and meet the end again later */
        return;
    }
    if (stream->state == STREAM_RESTING)
        sink_unrest(stream->sink, stream);
    if (stream->state == STREAM_WATCHED)
        pump_unwatch(stream->target.pump, stream->fd);
    close(stream->fd);
    stream->fd = -1;
    stream->error = error;
    stream->state = STREAM_ENDED;
    sink_stream_ended(stream->sink, stream);
}

size_t stream_abandon(struct stream *stream)
{
    if (stream->state == STREAM_ENDED)
        return 0;
    int unread = 0;
    ioctl(stream->fd, FIONREAD, &unread);
    size_t lost = (size_t)unread;
    if (stream->state == STREAM_PARKED)
        stream->sink->parked = NULL; /* each of them is abandoned */
    if (put_last_line(stream) < 0) {
        lost += partial_length(stream);
        partial_drop(stream);
    }
    end_stream(stream, ETIMEDOUT);
    return lost;
}

/* ---- reading --------------------------------------------------------------------- */

/* One read. Returns the bytes, or 0 when there is no more to do now. */
static size_t read_once(struct stream *stream, size_t limit)
{
    struct sink *sink = stream->sink;
    const struct outlet *outlet = stream->outlet;
    bool full = !sink_takes(sink, outlet);
    if (full && !(outlet->flags & OUTLET_DROP)) {
        sink_park(sink, stream);
        return 0;
    }
    bool works = outlet->works || full || stream->fate == FATE_DROPPED;
    ssize_t n = works ? read_worked(stream, limit, full) : read_directly(stream, limit);
    if (n > 0) {
        sink_gathered(sink);
        rest_if_quiet(stream, (size_t)n);
        return (size_t)n;
    }
    if (n == -ENOMEM) {
        sink_fail(sink, ENOMEM);
        sink_park(sink, stream);
    } else if (n == 0 || n == -EIO) { /* EIO: nobody has the terminal open any more, pty(7) */
        end_stream(stream, 0);
    } else if (n != -EAGAIN && n != -EINTR) {
        end_stream(stream, (int)-n);
    } else if (stream->closing) {
        stream->leftover = 0;
    }
    return 0;
}

/* A stream that was closed by its owner: what its pipe held then, and no more, for who
 * holds the other end may never stop. */
static void read_leftover(struct stream *stream)
{
    while (stream->leftover) {
        size_t n = read_once(stream, stream->leftover < READ_BYTES ? stream->leftover : READ_BYTES);
        stream->leftover -= n;
        if (n == 0 && stream->leftover)
            return; /* parked, or ended */
    }
    if (stream->state != STREAM_ENDED)
        end_stream(stream, 0);
}

void stream_ready(struct stream *stream, uint32_t epoll_events)
{
    stream->hung_up = stream->hung_up || epoll_events & EPOLLHUP;
    if (stream->state == STREAM_RESTING)
        sink_unrest(stream->sink, stream);
    if (stream->state == STREAM_WATCHED)
        read_once(stream, READ_BYTES);
}

void stream_serve(struct stream *stream, uint32_t requests)
{
    if (!(requests & REQUEST_CLOSE) || stream->state == STREAM_ENDED || stream->closing)
        return;
    int unread = 0;
    ioctl(stream->fd, FIONREAD, &unread);
    stream->closing = true;
    stream->leftover = (size_t)unread;
    if (stream->state == STREAM_RESTING)
        sink_unrest(stream->sink, stream);
    if (stream->state == STREAM_WATCHED)
        read_leftover(stream);
}

void stream_resume(struct stream *stream)
{
    if (stream->closing) {
        read_leftover(stream);
        return;
    }
    if (pump_watch(stream->target.pump, stream->fd, EPOLLIN, &stream->target) == 0)
        stream->state = STREAM_WATCHED;
    else
        sink_park(stream->sink, stream);
}

/* ---- from outside ---------------------------------------------------------------- */

static int join(struct stream *stream, struct pump *pump, uint64_t id)
{
    struct sink *sink = stream->sink;
    pthread_mutex_lock(&pump->lock);
    bool refuses = sink->refuses;
    sink->streams += !refuses;
    pthread_mutex_unlock(&pump->lock);
    return refuses ? -ESHUTDOWN : target_list(&stream->target, pump, TARGET_STREAM, id);
}

static int watch(struct stream *stream, struct pump *pump, uint64_t id)
{
    int flags = fcntl(stream->fd, F_GETFL);
    if (flags < 0 || fcntl(stream->fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    int rc = join(stream, pump, id);
    if (rc < 0)
        return rc;
    rc = pump_watch(pump, stream->fd, EPOLLIN, &stream->target);
    if (rc < 0) {
        pthread_mutex_lock(&pump->lock);
        stream->sink->streams--;
        pthread_mutex_unlock(&pump->lock);
        target_unlist(&stream->target);
    }
    return rc;
}

int pump_add(struct outlet *outlet, const struct stream_spec *spec, struct stream **ret_stream)
{
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return -ENOMEM;
    stream->outlet = outlet;
    stream->sink = outlet->sink;
    stream->fd = spec->fd;
    stream->pid = spec->pid;
    stream->tail_size = spec->tail;
    pthread_mutex_init(&stream->tail_lock, NULL);
    int rc = label_new(outlet, spec->label, &stream->label);
    if (rc == 0)
        rc = watch(stream, outlet->sink->target.pump, spec->id);
    if (rc < 0)
        stream_free(stream);
    else
        *ret_stream = stream;
    return rc;
}

void stream_close(struct stream *stream)
{
    target_ask(&stream->target, REQUEST_CLOSE);
}

size_t stream_tail(struct stream *stream, char *ret_buffer, size_t size, uint64_t *ret_at)
{
    pthread_mutex_lock(&stream->tail_lock);
    uint64_t bytes = stream_bytes(stream);
    size_t room = stream->tail ? stream->tail_room : 0, n = bytes < room ? (size_t)bytes : room;
    if (n > size)
        n = size;
    if (n) {
        size_t at = (bytes - n) % room, first = n < room - at ? n : room - at;
        memcpy(ret_buffer, stream->tail + at, first);
        memcpy(ret_buffer + first, stream->tail, n - first);
    }
    *ret_at = bytes;
    pthread_mutex_unlock(&stream->tail_lock);
    return n;
}

uint64_t stream_bytes(const struct stream *stream)
{
    return atomic_load_explicit(&stream->bytes, memory_order_relaxed);
}

void stream_losses(const struct stream *stream, struct losses *ret_losses)
{
    *ret_losses = (struct losses){
        atomic_load_explicit(&stream->dropped_lines, memory_order_relaxed),
        atomic_load_explicit(&stream->dropped_bytes, memory_order_relaxed),
        atomic_load_explicit(&stream->suppressed_lines, memory_order_relaxed),
        atomic_load_explicit(&stream->suppressed_bytes, memory_order_relaxed),
    };
}

void stream_tap(struct stream *stream, bool on)
{
    atomic_store_explicit(&stream->tapped, on, memory_order_relaxed);
}

void stream_free(struct stream *stream)
{
    pthread_mutex_destroy(&stream->tail_lock);
    free(stream->label);
    free(stream->tail);
    free(stream);
}
