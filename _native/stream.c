/* One pipe: when it is read and when it rests, what is remembered of it, how it ends. */
#include "pump.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TAIL_LEAST = 64 };

/* ---- the tail -------------------------------------------------------------------- */

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

/* For the pooling of small writes. */
static void account(struct pump *pump, size_t length, size_t limit)
{
    pump->turn_reads++;
    pump->turn_bytes += length;
    uint32_t fullness = (uint32_t)(length * FULLNESS / limit);
    if (fullness > pump->turn_fullest)
        pump->turn_fullest = fullness;
}

void stream_took(struct stream *stream, const char *data, size_t length, size_t limit)
{
    uint64_t before = atomic_load_explicit(&stream->bytes, memory_order_relaxed);
    if (stream->tail_size) {
        pthread_mutex_lock(&stream->tail_lock);
        tail_put(stream, before - stream->base, data, length);
        atomic_store_explicit(&stream->bytes, before + length, memory_order_relaxed);
        pthread_mutex_unlock(&stream->tail_lock);
    } else {
        atomic_store_explicit(&stream->bytes, before + length, memory_order_relaxed);
    }
    if (atomic_load_explicit(&stream->tapped, memory_order_relaxed))
        tap_copy(stream, data, length, before + length);
    account(stream->target.pump, length, limit);
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

/* Its sink has all its bytes, though not yet written: no more is read. */
static void end_stream(struct stream *stream, int error)
{
    if (lines_end(stream) < 0) {
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
    size_t lost = (size_t)unread + block_holds(stream->raw);
    arena_give(stream->target.pump->arena, stream->raw);
    stream->raw = NULL;
    if (stream->state == STREAM_PARKED)
        stream->sink->parked = NULL; /* each of them is abandoned */
    if (lines_end(stream) < 0) {
        lost += lines_held(stream);
        lines_forget(stream);
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
    ssize_t n = lines_read(stream, limit, full);
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
    if (requests & REQUEST_LOOK && stream->state == STREAM_WATCHED)
        read_once(stream, READ_BYTES);
    if (!(requests & REQUEST_CLOSE) || stream->state == STREAM_ENDED || stream->closing)
        return;
    int unread = 0;
    ioctl(stream->fd, FIONREAD, &unread);
    stream->closing = true;
    stream->leftover = (size_t)unread + block_holds(stream->raw);
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
    if (pump_watch(stream->target.pump, stream->fd, EPOLLIN, &stream->target) < 0) {
        sink_park(stream->sink, stream);
        return;
    }
    stream->state = STREAM_WATCHED;
    if (stream->raw)
        read_once(stream, READ_BYTES);
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
    if (flags < 0 || (!(flags & O_NONBLOCK) && fcntl(stream->fd, F_SETFL, flags | O_NONBLOCK) < 0))
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

static int take_saved(struct stream *stream, struct pump *pump)
{
    if (left_stream(stream))
        return 0;
    struct block *block = arena_take(pump->arena, stream->target.id, BLOCK_STREAM, sizeof *stream->saved);
    if (!block)
        return -ENOMEM;
    stream->saved = (struct saved_stream *)block->data;
    *stream->saved = (struct saved_stream){0};
    block->end = sizeof *stream->saved;
    block_keep(block);
    return 0;
}

int pump_add(struct outlet *outlet, const struct stream_spec *spec, struct stream **ret_stream)
{
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return -ENOMEM;
    struct pump *pump = outlet->sink->target.pump;
    struct stat st;
    stream->target.id = spec->id;
    stream->target.pump = pump;
    stream->outlet = outlet;
    stream->sink = outlet->sink;
    stream->fd = spec->fd;
    stream->pid = spec->pid;
    stream->tail_size = spec->tail;
    stream->is_pipe = fstat(spec->fd, &st) == 0 && S_ISFIFO(st.st_mode);
    pthread_mutex_init(&stream->tail_lock, NULL);
    int rc = label_new(outlet, spec->id, spec->label, &stream->label);
    if (rc == 0)
        rc = take_saved(stream, pump);
    bool raw = stream->raw;
    if (rc == 0)
        rc = watch(stream, pump, spec->id);
    if (rc < 0) {
        left_again(stream);
        stream_free(stream);
        return rc;
    }
    if (raw)
        target_ask(&stream->target, REQUEST_LOOK);
    *ret_stream = stream;
    return 0;
}

int stream_detach(struct stream *stream)
{
    int fd = stream->fd;
    stream->fd = -1;
    return fd;
}

void stream_close(struct stream *stream)
{
    target_ask(&stream->target, REQUEST_CLOSE);
}

size_t stream_tail(struct stream *stream, char *ret_buffer, size_t size, uint64_t *ret_at)
{
    pthread_mutex_lock(&stream->tail_lock);
    uint64_t bytes = stream_bytes(stream);
    uint64_t ours = bytes - stream->base;
    size_t room = stream->tail ? stream->tail_room : 0, n = ours < room ? (size_t)ours : room;
    if (n > size)
        n = size;
    if (n) {
        size_t at = (ours - n) % room, first = n < room - at ? n : room - at;
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
    label_free(stream->target.pump, stream->label);
    if (stream->saved)
        arena_give(stream->target.pump->arena, block_of(stream->saved));
    free(stream->tail);
    free(stream);
}
