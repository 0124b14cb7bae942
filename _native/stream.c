/* One pipe: read, cut into lines, put into the batch of its sink.
 *
 * Lines. A batch gets whole lines only, so those of several streams never mix in it. The
 * exceptions end in the midst of a line, and leave the stream's mark in sink->open_line:
 * a line that grew to max_line, the unfinished line at the end of a raw stream, and any
 * bytes when there is no memory to hold them back. If another stream is next, a newline
 * comes first. A styled stream has its last line finished for it. */
#include "pump.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { PARTIAL_BYTES = 256 }; /* of an unfinished line, at first; kept between lines */

/* ---- the tail and the unfinished line ------------------------------------------- */

/* The newest bytes go round in a circle; its memory comes with the first byte. */
static void remember(struct stream *stream, const char *data, size_t length)
{
    uint64_t before = atomic_load_explicit(&stream->bytes, memory_order_relaxed);
    if (stream->tail_size) {
        size_t size = stream->tail_size, skip = length > size ? length - size : 0;
        size_t at = (before + skip) % size, n = length - skip;
        size_t first = n < size - at ? n : size - at;
        pthread_mutex_lock(&stream->tail_lock);
        if (!stream->tail)
            stream->tail = malloc(size);
        if (stream->tail) {
            memcpy(stream->tail + at, data + skip, first);
            memcpy(stream->tail, data + skip + first, n - first);
        } else {
            stream->tail_size = 0;
        }
        atomic_store_explicit(&stream->bytes, before + length, memory_order_relaxed);
        pthread_mutex_unlock(&stream->tail_lock);
    } else {
        atomic_store_explicit(&stream->bytes, before + length, memory_order_relaxed);
    }
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
    if (size <= stream->partial_size)
        return true;
    size_t wanted = stream->partial_size ? stream->partial_size : PARTIAL_BYTES;
    while (wanted < size)
        wanted *= 2;
    char *bigger = realloc(stream->partial, wanted);
    if (!bigger)
        return false;
    stream->partial = bigger;
    stream->partial_size = wanted;
    return true;
}

static void partial_add(struct stream *stream, const char *data, size_t length)
{
    if (length)
        memcpy(stream->partial + stream->partial_length, data, length);
    stream->partial_length += length;
}

/* Memory follows what is held: a stream between lines keeps no more than a short one. */
static void partial_settle(struct stream *stream)
{
    bool empty = stream->partial_length == 0;
    if (stream->partial_size <= (empty ? PARTIAL_BYTES : 16 * PARTIAL_BYTES))
        return;
    if (empty) {
        free(stream->partial);
        stream->partial = NULL;
        stream->partial_size = 0;
    } else if (stream->partial_length <= PARTIAL_BYTES) {
        char *smaller = realloc(stream->partial, PARTIAL_BYTES);
        if (smaller) {
            stream->partial = smaller;
            stream->partial_size = PARTIAL_BYTES;
        }
    }
}

/* ---- raw lines ------------------------------------------------------------------- */

static bool interrupts(const struct stream *stream)
{
    const struct sink *sink = stream->sink;
    return sink->open_line && sink->open_line != stream && !sink->kind->header;
}

/* Bytes that come before those of a read. */
static size_t gap_length(const struct stream *stream)
{
    return stream->sink->kind->header + interrupts(stream) + stream->partial_length;
}

/* Fill the gap at `base`, which `length` bytes follow. */
static void fill_gap(struct stream *stream, char *base, size_t length)
{
    struct sink *sink = stream->sink;
    bool interrupt = interrupts(stream);
    if (sink->kind->header) {
        struct queue_record record = {
            .stream = stream->target.id,
            .pid = stream->pid,
            .length = (uint32_t)(stream->partial_length + length),
        };
        memcpy(base, &record, sizeof record);
        base += sizeof record;
    }
    if (interrupt)
        *base++ = '\n';
    if (stream->partial_length)
        memcpy(base, stream->partial, stream->partial_length);
    stream->partial_length = 0;
}

/* The run of lines from `base` to `end` is complete: it is the batch's. */
static void seal(struct stream *stream, const char *base, char *end)
{
    if (stream->sink->kind->header)
        while ((end - base) % 8)
            *end++ = 0;
    sink_commit(stream->sink, end);
}

/* Returns what read(2) does, or -errno; -ENOMEM has read nothing. */
static ssize_t read_raw(struct stream *stream, size_t limit)
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
    size_t rest = length - whole, held = rest + (whole ? 0 : stream->partial_length);
    bool piece = held >= sink->max_line || !partial_room(stream, held);
    if (piece) {
        whole = length;
        rest = 0;
    }
    if (whole)
        fill_gap(stream, base, whole);
    partial_add(stream, fresh + whole, rest);
    if (whole) {
        seal(stream, base, fresh + whole);
        sink->open_line = piece ? stream : NULL;
        partial_settle(stream);
    }
    return n;
}

/* ---- styled lines ---------------------------------------------------------------- */

static char *put_text(char *to, const char *text, size_t length)
{
    memcpy(to, text, length);
    return to + length;
}

/* Append to `to` the unfinished line and `length` more bytes, in the stream's style;
 * `ends`: a newline too. */
static char *put_line(struct stream *stream, char *to, const char *text, size_t length, bool ends)
{
    struct sink *sink = stream->sink;
    const struct style *style = stream->style;
    if (sink->open_line != stream) {
        if (sink->open_line)
            *to++ = '\n';
        to = put_text(to, style->prefix, style->prefix_length);
    }
    if (stream->partial_length)
        to = put_text(to, stream->partial, stream->partial_length);
    stream->partial_length = 0;
    to = put_text(to, text, length);
    to = put_text(to, style->after, style->after_length);
    if (ends)
        *to++ = '\n';
    sink->open_line = ends ? NULL : stream;
    return to;
}

static ssize_t read_styled(struct stream *stream, size_t limit)
{
    struct sink *sink = stream->sink;
    size_t frame = stream->style->frame;
    if (limit > STYLED_BYTES)
        limit = STYLED_BYTES;
    /* For the worst: newlines alone. Mapped, not touched. */
    char *to = sink_room(sink, 1 + stream->partial_length + limit + (limit + 1) * frame);
    if (!to)
        return -ENOMEM;
    char *from = stream->target.pump->scratch;
    ssize_t n = read(stream->fd, from, limit);
    if (n <= 0)
        return n < 0 ? -errno : 0;
    remember(stream, from, (size_t)n);
    account(stream->target.pump, (size_t)n, limit);
    style_refresh(stream->style);
    const char *end = from + n, *newline;
    while ((newline = memchr(from, '\n', (size_t)(end - from)))) {
        to = put_line(stream, to, from, (size_t)(newline - from), true);
        from += newline + 1 - from;
    }
    size_t rest = (size_t)(end - from), held = stream->partial_length + rest;
    if (held >= sink->max_line || !partial_room(stream, held))
        to = put_line(stream, to, from, rest, false);
    else
        partial_add(stream, from, rest);
    sink_commit(sink, to);
    partial_settle(stream);
    return n;
}

/* ---- the end --------------------------------------------------------------------- */

/* The line that the end of the stream leaves unfinished. */
static int put_last_line(struct stream *stream)
{
    struct sink *sink = stream->sink;
    if (stream->partial_length) {
        size_t gap = gap_length(stream), frame = stream->style ? stream->style->frame : 0;
        char *base = sink_room(sink, gap + 8 + frame);
        if (!base)
            return -ENOMEM;
        if (stream->style) {
            style_refresh(stream->style);
            sink_commit(sink, put_line(stream, base, "", 0, true));
        } else {
            fill_gap(stream, base, 0);
            seal(stream, base, base + gap);
            sink->open_line = stream;
        }
    }
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
    if (stream->state == STREAM_WATCHED)
        pump_unwatch(stream->target.pump, stream->fd);
    close(stream->fd);
    stream->fd = -1;
    free(stream->partial);
    stream->partial = NULL;
    stream->partial_size = 0;
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
        lost += stream->partial_length;
        stream->partial_length = 0;
    }
    end_stream(stream, ETIMEDOUT);
    return lost;
}

/* ---- reading --------------------------------------------------------------------- */

/* One read. Returns the bytes, or 0 when there is no more to do now. */
static size_t read_once(struct stream *stream, size_t limit)
{
    struct sink *sink = stream->sink;
    if (!sink_takes(sink)) {
        sink_park(sink, stream);
        return 0;
    }
    ssize_t n = stream->style ? read_styled(stream, limit) : read_raw(stream, limit);
    if (n > 0) {
        sink_gathered(sink);
        return (size_t)n;
    }
    if (n == -ENOMEM) {
        sink_fail(sink, ENOMEM);
        sink_park(sink, stream);
    } else if (n == 0 || (n != -EAGAIN && n != -EINTR)) {
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

void stream_ready(struct stream *stream)
{
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

int pump_add(struct pump *pump, int32_t fd, uint64_t id, int32_t pid, struct sink *sink,
             const struct line_style *spec, uint32_t tail, struct stream **ret_stream)
{
    if (spec && sink->kind->header)
        return -EINVAL;
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return -ENOMEM;
    stream->sink = sink;
    stream->fd = fd;
    stream->pid = pid;
    stream->tail_size = tail;
    pthread_mutex_init(&stream->tail_lock, NULL);
    int rc = spec ? style_new(spec, &stream->style) : 0;
    if (rc == 0)
        rc = watch(stream, pump, id);
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

size_t stream_tail(struct stream *stream, char *ret_buffer, size_t size)
{
    pthread_mutex_lock(&stream->tail_lock);
    uint64_t bytes = stream->tail ? stream_bytes(stream) : 0;
    size_t circle = stream->tail_size, n = bytes < circle ? (size_t)bytes : circle;
    if (n > size)
        n = size;
    if (n) {
        size_t at = (bytes - n) % circle, first = n < circle - at ? n : circle - at;
        memcpy(ret_buffer, stream->tail + at, first);
        memcpy(ret_buffer + first, stream->tail, n - first);
    }
    pthread_mutex_unlock(&stream->tail_lock);
    return n;
}

uint64_t stream_bytes(const struct stream *stream)
{
    return atomic_load_explicit(&stream->bytes, memory_order_relaxed);
}

void stream_free(struct stream *stream)
{
    pthread_mutex_destroy(&stream->tail_lock);
    style_free(stream->style);
    free(stream->partial);
    free(stream->tail);
    free(stream);
}
