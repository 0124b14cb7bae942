/* A sink: the batch of bytes to be written, the state of the place they go to, and the
 * streams that wait for it. What the place is, file.c, journal.c and queue.c know.
 *
 * READY: bytes are gathered, and written when the batch is full, when they waited
 * refresh_ms, or when a stream ended. BUSY (the place takes no more now): gathered until
 * max_held. FAILED: nothing is read; the batch stays, and is tried again after a pause
 * that doubles. A stream that has bytes while its sink takes none is parked: out of
 * epoll, so that it costs nothing, and its writer waits in write(2). Nothing is lost.
 * A stream whose outlet has OUTLET_DROP is read on, and what finds no room is counted.
 *
 * Everything that may change the state happens in sink_turn, at the end of a turn, but
 * for a write of a full batch in the midst of it. */
#include "pump.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const int64_t backoff_first = 100 * MILLISECOND;
static const int64_t backoff_most = 5000 * MILLISECOND;
static const int64_t unpark_pause = 100 * MILLISECOND;
static const int64_t rest_most = 250 * MILLISECOND; /* a writer of much would wait */

/* What outlives the process of a sink: a new one, or what another process left. */
static int take_saved(struct sink *sink, struct pump *pump, uint64_t id, const char *key)
{
    if (left_sink(sink, key))
        return 0;
    size_t length = strlen(key ? key : ""), size = sizeof(struct saved_sink) + length + 1;
    struct block *block = arena_take(pump->arena, id, BLOCK_SINK, size);
    if (!block)
        return -ENOMEM;
    sink->saved = (struct saved_sink *)block->data;
    *sink->saved = (struct saved_sink){0};
    memcpy(sink->saved->key, key ? key : "", length + 1);
    block->end = size;
    block_keep(block);
    return 0;
}

int sink_init(struct sink *sink, struct pump *pump, uint64_t id, const char *key,
              const struct sink_kind *kind)
{
    sink->target.pump = pump;
    sink->kind = kind;
    sink->state = SINK_FAILED; /* until it is opened */
    sink->backoff = backoff_first;
    sink->deadline = sink->rest_until = sink->flush_at = NEVER;
    sink->max_held = sink->max_held ? sink->max_held : HELD_BYTES;
    sink->ended_last = &sink->ended;
    int rc = take_saved(sink, pump, id, key);
    if (rc < 0)
        return rc;
    rc = target_list(&sink->target, pump, TARGET_SINK, id);
    if (rc == 0)
        target_ask(&sink->target, REQUEST_LOOK);
    else if (!sink->batch)
        arena_give(pump->arena, block_of(sink->saved));
    return rc;
}

void sink_schedule(struct sink *sink, int64_t when)
{
    struct pump *pump = sink->target.pump;
    if (when == 0)
        sink->flush_at = 0;
    if (when < sink->deadline)
        sink->deadline = when;
    if (sink->deadline < pump->next_due)
        pump->next_due = sink->deadline;
    if (!sink->on_agenda) {
        sink->on_agenda = true;
        sink->next_due = pump->agenda;
        pump->agenda = sink;
    }
}

static void unschedule(struct sink *sink)
{
    if (!sink->on_agenda)
        return;
    struct sink **link = &sink->target.pump->agenda;
    while (*link != sink)
        link = &(*link)->next_due;
    *link = sink->next_due;
}

/* ---- the batch ------------------------------------------------------------------- */

bool sink_takes(const struct sink *sink, const struct outlet *outlet)
{
    bool waits = sink->state == SINK_FAILED && !(outlet->flags & OUTLET_DROP);
    return !waits && sink_holds(sink) < sink->max_held;
}

/* Where there is no room behind it, it moves to another block, and the old one stays as it
 * is until that holds all. */
char *sink_room(struct sink *sink, size_t size)
{
    struct arena *arena = sink->target.pump->arena;
    uint32_t kind = sink->kind->records ? PENDING_RECORDS : PENDING_BATCH;
    struct block *batch = sink->batch;
    if (!batch) {
        uint64_t owner = block_of(sink->saved)->owner;
        batch = arena_take(arena, owner, kind, size > BLOCK_UNIT ? size : BLOCK_UNIT);
    } else if (batch->size - batch->end < size) {
        size_t needed = block_holds(batch) + size;
        bool fits = needed + 8 <= batch->size;
        batch = fits ? arena_renew(arena, batch, batch->size - 8) : arena_grow(arena, batch, needed);
    }
    if (!batch)
        return NULL;
    sink->batch = batch;
    return batch->data + batch->end;
}

char *sink_align(const struct sink *sink, char *to)
{
    while (sink->kind->records && (to - sink->batch->data) % 8)
        to++;
    return to;
}

void sink_commit(struct sink *sink, const char *end)
{
    size_t length = (size_t)(end - sink->batch->data) - sink->batch->end;
    sink->batch->end += length;
    sink->appended += length;
}

void sink_save(struct sink *sink)
{
    struct arena *arena = sink->target.pump->arena;
    if (sink->batch)
        block_save(arena, sink->batch);
    arena_change(arena, &sink->saved->open_line, sink->open_line);
    arena_change(arena, &sink->saved->skip, sink->skip);
}

void sink_took(struct sink *sink, size_t size)
{
    struct arena *arena = sink->target.pump->arena;
    sink->batch->begin += size;
    sink->written += size;
    sink_save(sink);
    arena_change(arena, &sink->saved->writing, 0);
    arena_commit(arena);
}

static void release_batch(struct sink *sink)
{
    arena_give(sink->target.pump->arena, sink->batch);
    sink->batch = NULL;
    sink->skip = 0;
}

/* Forget the batch, written or not; returns its bytes. */
static size_t release_all(struct sink *sink)
{
    size_t held = sink_holds(sink);
    release_batch(sink);
    sink->written = sink->appended;
    return held;
}

/* ---- streams that wait ----------------------------------------------------------- */

void sink_park(struct sink *sink, struct stream *stream)
{
    if (stream->state == STREAM_WATCHED)
        pump_unwatch(sink->target.pump, stream->fd);
    stream->state = STREAM_PARKED;
    stream->next = sink->parked;
    sink->parked = stream;
}

static void unpark(struct sink *sink)
{
    struct stream *stream = sink->parked;
    sink->parked = NULL;
    while (stream) {
        struct stream *next = stream->next;
        if (sink_takes(sink, stream->outlet))
            stream_resume(stream);
        else
            sink_park(sink, stream);
        stream = next;
    }
    /* epoll_ctl had no memory for one: the sink itself will not tell again. */
    if (sink->parked && sink_takes(sink, sink->parked->outlet))
        sink_schedule(sink, sink->target.pump->now + unpark_pause);
}

int64_t sink_rest_time(const struct sink *sink)
{
    int64_t half = sink->refresh_ms * MILLISECOND / 2;
    return half < rest_most ? half : rest_most;
}

void sink_rest(struct sink *sink, struct stream *stream)
{
    struct pump *pump = sink->target.pump;
    if (pump_rewatch(pump, stream->fd, 0, &stream->target) < 0)
        return;
    stream->state = STREAM_RESTING;
    stream->next = sink->resting;
    sink->resting = stream;
    if (sink->rest_until == NEVER)
        sink->rest_until = pump->now + sink_rest_time(sink);
    sink_schedule(sink, sink->rest_until);
}

void sink_unrest(struct sink *sink, struct stream *stream)
{
    struct stream **link = &sink->resting;
    while (*link != stream)
        link = &(*link)->next;
    *link = stream->next;
    stream_wake(stream);
}

static void wake_resting(struct sink *sink)
{
    struct stream *stream = sink->resting;
    sink->resting = NULL;
    sink->rest_until = NEVER;
    while (stream) {
        struct stream *next = stream->next;
        stream_wake(stream);
        stream = next;
    }
}

void sink_stream_ended(struct sink *sink, struct stream *stream)
{
    stream->end_mark = sink->appended;
    stream->next = NULL;
    *sink->ended_last = stream;
    sink->ended_last = &stream->next;
    sink_schedule(sink, 0);
}

/* Tell of the ended streams whose last byte is written; their owner may free them. */
static void tell_ended(struct sink *sink)
{
    uint32_t told = 0;
    struct stream *stream;
    while ((stream = sink->ended) && stream->end_mark <= sink->written) {
        sink->ended = stream->next;
        target_tell(&stream->target, PUMP_STREAM_EOF, stream->error, true);
        told++;
    }
    if (!sink->ended)
        sink->ended_last = &sink->ended;
    if (!told)
        return;
    pthread_mutex_lock(&sink->target.pump->lock);
    sink->streams -= told;
    pthread_mutex_unlock(&sink->target.pump->lock);
    if (sink->closing)
        sink_schedule(sink, 0);
}

/* ---- state ----------------------------------------------------------------------- */

void sink_fail(struct sink *sink, int error)
{
    if (sink->state != SINK_FAILED)
        sink->backoff = backoff_first;
    if (sink->state != SINK_FAILED || sink->error != error)
        target_tell(&sink->target, PUMP_SINK_FAILED, error, false);
    sink->state = SINK_FAILED;
    sink->error = error;
    sink_schedule(sink, sink->target.pump->now + sink->backoff);
    sink->backoff = sink->backoff < backoff_most / 2 ? sink->backoff * 2 : backoff_most;
}

void sink_discard(struct sink *sink, int error)
{
    sink->state = SINK_DISCARDS;
    target_tell(&sink->target, PUMP_SINK_FAILED, error, false);
}

void sink_flush(struct sink *sink)
{
    sink->flush_at = NEVER;
    if (sink->state == SINK_FAILED)
        return;
    int rc = 0;
    if (sink_holds(sink) && sink->state != SINK_DISCARDS)
        rc = sink->kind->flush(sink);
    if (sink->state == SINK_DISCARDS)
        release_all(sink);
    else if (rc == 0 && sink->kind->rest)
        rc = sink->kind->rest(sink);
    if (rc == -EAGAIN) {
        sink->state = SINK_BUSY;
    } else if (rc < 0) {
        sink_fail(sink, -rc);
    } else {
        if (sink->state == SINK_BUSY)
            sink->state = SINK_READY;
        release_batch(sink);
    }
    tell_ended(sink);
}

void sink_gathered(struct sink *sink)
{
    if (sink->state == SINK_BUSY || sink->state == SINK_FAILED)
        return;
    if (sink_holds(sink) >= BATCH_BYTES || sink_holds(sink) >= sink->max_held)
        sink_flush(sink);
    else if (sink->flush_at == NEVER)
        sink->flush_at = sink->target.pump->now + sink->refresh_ms * MILLISECOND - sink_rest_time(sink);
    if (sink->flush_at != NEVER)
        sink_schedule(sink, sink->flush_at);
}

/* Open it afresh and write what is held; it has recovered when both go well, so a full
 * disk is not told of at every try. */
static void retry(struct sink *sink)
{
    int error = sink->error;
    int rc = sink->kind->open(sink);
    if (rc == 0 && sink_holds(sink))
        rc = sink->kind->flush(sink);
    if (rc < 0 && rc != -EAGAIN) {
        sink_fail(sink, -rc);
        tell_ended(sink);
        return;
    }
    if (sink->state == SINK_FAILED)
        sink->state = SINK_READY;
    sink->error = 0;
    sink_flush(sink); /* the rest, if the place was busy; and what follows a flush */
    if (error && (sink->state == SINK_READY || sink->state == SINK_BUSY))
        target_tell(&sink->target, PUMP_SINK_RECOVERED, error, false);
}

static bool is_finished(struct sink *sink)
{
    pthread_mutex_lock(&sink->target.pump->lock);
    uint32_t streams = sink->streams;
    pthread_mutex_unlock(&sink->target.pump->lock);
    return streams == 0 && sink_holds(sink) == 0;
}

static void finish(struct sink *sink)
{
    unschedule(sink);
    release_batch(sink);
    sink->kind->close(sink);
    arena_give(sink->target.pump->arena, block_of(sink->saved));
    target_tell(&sink->target, PUMP_SINK_CLOSED, 0, true);
}

/* Records of loss that are due; where there is no room yet, the owner hears all the same. */
static void write_notes(struct sink *sink)
{
    struct outlet *outlet = sink->noting;
    while (outlet) {
        struct outlet *next = outlet->next_noting;
        bool takes = sink->state != SINK_FAILED && sink_holds(sink) < sink->max_held;
        if (outlet->note_at > sink->target.pump->now) {
            sink_schedule(sink, outlet->note_at);
        } else if (takes) {
            outlet_note(outlet, false);
            sink_gathered(sink);
        } else {
            outlet->note_at = sink->target.pump->now + 1000 * MILLISECOND;
            target_tell(&outlet->target, PUMP_OUTLET_LOSS, 0, false);
            sink_schedule(sink, outlet->note_at);
        }
        outlet = next;
    }
}

void sink_turn(struct sink *sink)
{
    if (sink->state == SINK_FAILED)
        retry(sink);
    else if (sink->state == SINK_BUSY || sink->flush_at <= sink->target.pump->now)
        sink_flush(sink);
    else if (sink->flush_at != NEVER)
        sink_schedule(sink, sink->flush_at);
    if (sink->reopening) {
        sink->reopening = false;
        target_tell(&sink->target, PUMP_SINK_REOPENED, 0, false);
    }
    if (sink->noting)
        write_notes(sink);
    if (sink->rest_until <= sink->target.pump->now)
        wake_resting(sink);
    else if (sink->resting)
        sink_schedule(sink, sink->rest_until);
    if (sink->parked && sink_takes(sink, sink->parked->outlet))
        unpark(sink);
    if (sink->closing && is_finished(sink))
        finish(sink);
}

static void reopen(struct sink *sink)
{
    sink->reopening = true; /* sink_turn follows, and tries again what has failed */
    sink->insists = true;
    sink_flush(sink);
    if (sink->state == SINK_FAILED) {
        sink_schedule(sink, 0);
        return;
    }
    int rc = sink->kind->open(sink);
    if (rc < 0)
        sink_fail(sink, -rc);
}

void sink_serve(struct sink *sink, uint32_t requests)
{
    if (requests & REQUEST_SET)
        sink->kind->set(sink);
    if (requests & REQUEST_REOPEN)
        reopen(sink);
    if (requests & REQUEST_ROTATE)
        sink->file.rotate_now = true;
    if (requests & REQUEST_CLOSE)
        sink->closing = true;
    sink_schedule(sink, 0);
}

size_t sink_abandon(struct sink *sink)
{
    size_t lost = release_all(sink);
    tell_ended(sink);
    finish(sink);
    return lost;
}

/* ---- from outside ---------------------------------------------------------------- */

void sink_reopen(struct sink *sink)
{
    target_ask(&sink->target, REQUEST_REOPEN);
}

void sink_close(struct sink *sink)
{
    pthread_mutex_lock(&sink->target.pump->lock);
    sink->refuses = true;
    pthread_mutex_unlock(&sink->target.pump->lock);
    target_ask(&sink->target, REQUEST_CLOSE);
}

void sink_free(struct sink *sink)
{
    sink->kind->free(sink);
    free(sink);
}
