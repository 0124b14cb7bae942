/* One read, of which the next process can tell how many bytes it brought, should this one be
 * killed: see struct reading. A pipe that has many bytes gives them all to one read; where
 * it has few, or its writer has made them packets (pipe(2), O_DIRECT), they are moved.
 * What is no pipe, like a terminal, or can't be moved, is read blindly. */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "arena_parts.h"
#include "pump.h"

enum {
    BLIND_BYTES = 4096, /* of one read of what does not say how much it has */
    PAGE_BYTES = 4096,
};

/* ---- in the arena ---------------------------------------------------------------- */

struct reading *arena_reading(struct arena *arena)
{
    return &arena->head->reading;
}

static bool is_pattern(const struct head *head, const char *window, uint64_t at)
{
    return (unsigned char)window[at] == head->pattern[at % PATTERN_BYTES];
}

void arena_expect(struct arena *arena, const struct reading *reading, char *window)
{
    struct head *head = arena->head;
    uint64_t unfilled = reading->length - reading->filled;
    for (uint64_t at = unfilled; at < reading->length; at++)
        window[at] = (char)head->pattern[at % PATTERN_BYTES];
    /* Where a page is missing, a read of a process that is to die may bring less. */
    for (uint64_t at = 0; reading->filled && at < unfilled; at += PAGE_BYTES)
        *(volatile char *)&window[at] = 0;
    head->reading = *reading;
    if (!reading->filled)
        head->reading.end = (int64_t)arena_offset(arena, window);
    in_order();
    head->reading.window = arena_offset(arena, window);
    in_order();
}

void arena_got(struct arena *arena, size_t length)
{
    struct reading *reading = &arena->head->reading;
    in_order();
    if (length)
        reading->end = (int64_t)(reading->window + length);
    else
        reading->window = 0;
    in_order();
}

size_t arena_found(const struct arena *arena)
{
    const struct head *head = arena->head;
    const struct reading *reading = &head->reading;
    if (!reading->window || reading->window > arena->size || reading->length > arena->size - reading->window ||
        reading->filled > reading->length)
        return 0;
    uint64_t came = (uint64_t)reading->end - reading->window;
    if (reading->end)
        return came <= reading->length ? came : 0;
    const char *window = arena_at(arena, reading->window);
    uint64_t found = reading->length, least = reading->length - reading->filled;
    while (found > least && is_pattern(head, window, found - 1))
        found--;
    return least == 0 ? found : found > least ? reading->length : 0;
}

/* ---- of a stream ----------------------------------------------------------------- */

/* Moved into the arena's file, which costs twice as much as a read; the kernel notes where
 * it ends. */
static ssize_t move_into(struct stream *stream, struct reading *reading, char *window)
{
    struct pump *pump = stream->target.pump;
    arena_expect(pump->arena, reading, window);
    int64_t *end = &arena_reading(pump->arena)->end;
    ssize_t n = splice(stream->fd, NULL, pump->memfd, end, reading->length, SPLICE_F_NONBLOCK);
    return n < 0 ? -errno : n;
}

static ssize_t read_filled(struct stream *stream, struct reading *reading, char *window)
{
    arena_expect(stream->target.pump->arena, reading, window);
    ssize_t n = read(stream->fd, window, reading->length);
    return n < 0 ? -errno : n;
}

ssize_t stream_read(struct stream *stream, char *window, size_t limit)
{
    struct arena *arena = stream->target.pump->arena;
    if (!arena_outlives(arena)) {
        ssize_t got = read(stream->fd, window, limit);
        return got < 0 ? -errno : got;
    }
    struct reading reading = {.stream = stream->target.id, .before = stream_bytes(stream), .length = limit};
    int unread = 0;
    ssize_t n = -ENOTSUP;
    if (stream->is_pipe && ioctl(stream->fd, FIONREAD, &unread) < 0)
        unread = 0;
    size_t told = (size_t)unread < limit ? (size_t)unread : limit;
    if (told > PATTERN_BYTES && !stream->packets) {
        reading.length = told;
        reading.filled = PATTERN_BYTES;
        n = read_filled(stream, &reading, window);
        stream->packets = n >= 0 && (size_t)n < reading.length;
    } else if (stream->is_pipe) {
        n = move_into(stream, &reading, window);
    }
    if (n < 0 && n != -EAGAIN && n != -EINTR) {
        reading.filled = reading.length = limit < BLIND_BYTES ? limit : BLIND_BYTES;
        n = read_filled(stream, &reading, window);
    }
    arena_got(arena, n < 0 ? 0 : (size_t)n);
    return n;
}
