/* What another process has left in the arena: put in order before the thread starts, and taken
 * up piece by piece, as the owner adds its streams and opens its sinks again.
 *
 * A stream is known by its id, a sink by its key. What several sinks of one key hold (one
 * that was closing, a queue's batches) becomes one batch. Labels are kept that a record
 * names. Each step leaves an arena that could be taken over itself. */
#include "pump.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- gathering ------------------------------------------------------------------- */

struct blocks {
    struct block **all;
    size_t n, room;
    bool failed;
};

static void gather(void *context, struct block *block)
{
    struct blocks *blocks = context;
    if (blocks->n == blocks->room) {
        size_t room = blocks->room ? 2 * blocks->room : 64;
        struct block **larger = realloc(blocks->all, room * sizeof(struct block *));
        if (!larger) {
            blocks->failed = true;
            return;
        }
        blocks->all = larger;
        blocks->room = room;
    }
    blocks->all[blocks->n++] = block;
}

static int by_serial(const void *a, const void *b)
{
    const struct block *first = *(struct block *const *)a, *second = *(struct block *const *)b;
    return first->serial < second->serial ? -1 : first->serial > second->serial;
}

/* Of structs that begin with an id. */
static int by_id(const void *a, const void *b)
{
    uint64_t first = *(const uint64_t *)a, second = *(const uint64_t *)b;
    return first < second ? -1 : first > second;
}

static void *find(const void *all, size_t n, size_t size, uint64_t id)
{
    return n ? bsearch(&id, all, n, size, by_id) : NULL;
}

static struct left_stream *find_stream(const struct left *left, uint64_t id)
{
    return find(left->streams, left->n_streams, sizeof *left->streams, id);
}

static struct left_sink *find_sink(const struct left *left, uint64_t id)
{
    return find(left->sinks, left->n_sinks, sizeof *left->sinks, id);
}

static const struct saved_sink *saved_sink(const struct left_sink *sink)
{
    return (const struct saved_sink *)sink->saved->data;
}

/* ---- batches --------------------------------------------------------------------- */

/* The rest of a record that is gone in part, as one of its own; returns the end. */
static char *put_rest(char *to, const struct block *batch, size_t skip)
{
    struct record record;
    const char *from = batch->data + batch->begin;
    memcpy(&record, from, sizeof record);
    size_t old = sizeof record + (record.length + 7ul) / 8 * 8, held = block_holds(batch);
    const char *data = from + sizeof record + skip;
    record.length -= (uint32_t)skip;
    memcpy(to, &record, sizeof record);
    memcpy(to + sizeof record, data, record.length);
    to += sizeof record + (record.length + 7ul) / 8 * 8;
    if (held <= old)
        return to;
    memcpy(to, from + old, held - old);
    return to + held - old;
}

/* `first`, and `second` behind it; NULL: no memory, they stay. */
static struct block *join(struct pump *pump, struct block *first, struct block *second, size_t skip)
{
    size_t size = block_holds(first) + 1 + block_holds(second) + 8;
    struct block *both = arena_take(pump->arena, first->owner, first->kind, size > BLOCK_UNIT ? size : BLOCK_UNIT);
    if (!both)
        return NULL;
    char *to = both->data;
    memcpy(to, first->data + first->begin, block_holds(first));
    to += block_holds(first);
    if (first->kind == PENDING_BATCH && to[-1] != '\n' && first->owner != second->owner)
        *to++ = '\n';
    if (skip) {
        to = put_rest(to, second, skip);
    } else {
        memcpy(to, second->data + second->begin, block_holds(second));
        to += block_holds(second);
    }
    both->end = (uint64_t)(to - both->data);
    both->serial = first->serial;
    block_save(pump->arena, both);
    arena_change(pump->arena, &first->saved, 0);
    arena_change(pump->arena, &second->saved, 0);
    arena_commit(pump->arena);
    arena_give(pump->arena, first);
    arena_give(pump->arena, second);
    return both;
}

/* A sink's older batch, and one that was taken later. */
static int add_batch(struct pump *pump, struct left_sink *sink, struct block *block)
{
    struct block *both = sink->batch ? join(pump, sink->batch, block, 0) : block;
    if (!both)
        return -ENOMEM;
    sink->batch = both;
    return 0;
}

static void swap(struct left_sink *a, struct left_sink *b)
{
    struct left_sink one = *a;
    *a = *b;
    *b = one;
}

static int compare_keys(const void *a, const void *b)
{
    const struct left_sink *first = a, *second = b;
    int order = strcmp(saved_sink(first)->key, saved_sink(second)->key);
    return order ? order : by_id(a, b);
}

/* What `second` holds goes on in `first`, unless its beginning may be written already:
 * that stays a beginning. */
static int merge(struct pump *pump, struct left_sink *first, struct left_sink *second)
{
    if (saved_sink(second)->writing && !saved_sink(first)->writing)
        swap(first, second);
    if (!first->batch || !second->batch || first->batch->kind != second->batch->kind) {
        if (first->batch && second->batch)
            return 0; /* of no use to each other */
        if (second->batch)
            swap(first, second);
    } else {
        struct saved_sink *saved = (struct saved_sink *)first->saved->data;
        arena_change(pump->arena, &saved->open_line, saved_sink(second)->open_line);
        first->batch = join(pump, first->batch, second->batch, saved_sink(second)->skip);
        if (!first->batch)
            return -ENOMEM;
    }
    arena_give(pump->arena, second->sent);
    arena_give(pump->arena, second->saved);
    *second = (struct left_sink){.id = second->id};
    return 0;
}

static int merge_all(struct pump *pump)
{
    struct left *left = &pump->left;
    if (left->n_sinks)
        qsort(left->sinks, left->n_sinks, sizeof *left->sinks, compare_keys);
    struct left_sink *first = left->sinks;
    for (size_t i = 1; i < left->n_sinks; i++) {
        struct left_sink *second = &left->sinks[i];
        if (saved_sink(second)->key[0] && strcmp(saved_sink(first)->key, saved_sink(second)->key) == 0) {
            int rc = merge(pump, first, second);
            if (rc < 0)
                return rc;
        } else {
            first = second;
        }
    }
    return 0;
}

/* ---- labels ---------------------------------------------------------------------- */

/* The owner of a label means nothing any more: here it says whether one is named. */
enum { NAMED = 1 };

static void name_labels(struct pump *pump, const struct block *batch)
{
    struct record record;
    for (uint64_t at = batch->begin; at + sizeof record <= batch->end; at += sizeof record + (record.length + 7ul) / 8 * 8) {
        memcpy(&record, batch->data + at, sizeof record);
        block_of(arena_at(pump->arena, record.label))->owner = NAMED;
    }
}

static void drop_labels(struct pump *pump, const struct blocks *blocks)
{
    for (size_t i = 0; i < blocks->n; i++)
        if (blocks->all[i]->kind == BLOCK_LABEL)
            blocks->all[i]->owner = 0;
    for (size_t i = 0; i < pump->left.n_sinks; i++)
        if (pump->left.sinks[i].batch && pump->left.sinks[i].batch->kind == PENDING_RECORDS)
            name_labels(pump, pump->left.sinks[i].batch);
    for (size_t i = 0; i < blocks->n; i++)
        if (blocks->all[i]->kind == BLOCK_LABEL && blocks->all[i]->owner != NAMED)
            arena_give(pump->arena, blocks->all[i]);
}

/* ---- in order -------------------------------------------------------------------- */

static int note_owners(struct left *left, const struct blocks *blocks)
{
    left->streams = calloc(blocks->n + 1, sizeof *left->streams);
    left->sinks = calloc(blocks->n + 1, sizeof *left->sinks);
    if (!left->streams || !left->sinks)
        return -ENOMEM;
    for (size_t i = 0; i < blocks->n; i++) {
        struct block *block = blocks->all[i];
        if (block->kind == BLOCK_STREAM)
            left->streams[left->n_streams++] = (struct left_stream){.id = block->owner, .saved = block};
        else if (block->kind == BLOCK_SINK)
            left->sinks[left->n_sinks++] = (struct left_sink){.id = block->owner, .saved = block};
    }
    qsort(left->streams, left->n_streams, sizeof *left->streams, by_id);
    qsort(left->sinks, left->n_sinks, sizeof *left->sinks, by_id);
    return 0;
}

static int note_block(struct pump *pump, struct block *block)
{
    struct left_stream *stream = find_stream(&pump->left, block->owner);
    struct left_sink *sink = find_sink(&pump->left, block->owner);
    switch (block->kind) {
    case PENDING_LINE:
        if (stream)
            stream->partial = block;
        return stream ? 0 : 1;
    case BLOCK_RAW:
        if (stream)
            stream->raw = block;
        return stream ? 0 : 1;
    case PENDING_BATCH:
    case PENDING_RECORDS:
        return sink ? add_batch(pump, sink, block) : 1;
    case BLOCK_SENT:
        if (sink)
            sink->sent = block;
        return sink ? 0 : 1;
    }
    return 0;
}

/* What a read has brought, and its process did not live to note, becomes a block. */
static int take_reading(struct pump *pump)
{
    struct arena *arena = pump->arena;
    const struct reading *reading = arena_reading(arena);
    size_t length = arena_found(arena);
    if (!reading->window)
        return 0;
    struct left_stream *stream = find_stream(&pump->left, reading->stream);
    struct block *around = arena_block(arena, reading->window);
    if (length && stream && !stream->raw) {
        struct block *raw = arena_take(arena, stream->id, BLOCK_RAW, length);
        if (!raw)
            return -ENOMEM;
        memcpy(raw->data, arena_at(arena, reading->window), length);
        raw->end = length;
        block_save(arena, raw);
        arena_change(arena, &((struct saved_stream *)stream->saved->data)->bytes, reading->before + length);
        stream->raw = raw;
    }
    arena_change(arena, &arena_reading(arena)->window, 0);
    arena_commit(arena);
    if (!around->saved)
        arena_release(arena, around);
    return 0;
}

static int put_in_order(struct pump *pump, struct blocks *blocks)
{
    if (blocks->failed)
        return -ENOMEM;
    if (blocks->n)
        qsort(blocks->all, blocks->n, sizeof(struct block *), by_serial);
    int rc = note_owners(&pump->left, blocks);
    for (size_t i = 0; rc >= 0 && i < blocks->n; i++) {
        rc = note_block(pump, blocks->all[i]);
        if (rc > 0)
            arena_give(pump->arena, blocks->all[i]);
    }
    if (rc >= 0)
        rc = take_reading(pump);
    if (rc == 0)
        rc = merge_all(pump);
    return rc;
}

int pump_restore(struct pump *pump)
{
    struct blocks blocks = {0};
    arena_each(pump->arena, gather, &blocks);
    int rc = put_in_order(pump, &blocks);
    if (rc == 0)
        drop_labels(pump, &blocks);
    free(blocks.all);
    if (rc < 0)
        return rc;
    pump->scratch = arena_take(pump->arena, 0, BLOCK_RAW, WORKED_BYTES);
    return pump->scratch ? 0 : -ENOMEM;
}

/* ---- taking up ------------------------------------------------------------------- */

bool left_stream(struct stream *stream)
{
    struct left_stream *left = find_stream(&stream->target.pump->left, stream->target.id);
    if (!left || !left->saved)
        return false;
    stream->saved = (struct saved_stream *)left->saved->data;
    stream->partial = left->partial;
    stream->raw = left->raw;
    stream->base = stream->saved->bytes;
    stream->bytes = stream->saved->bytes;
    stream->fate = (enum fate)stream->saved->fate;
    stream->dropped_lines = stream->saved->losses.dropped_lines;
    stream->dropped_bytes = stream->saved->losses.dropped_bytes;
    stream->suppressed_lines = stream->saved->losses.suppressed_lines;
    stream->suppressed_bytes = stream->saved->losses.suppressed_bytes;
    left->saved = left->partial = left->raw = NULL;
    return true;
}

void left_again(struct stream *stream)
{
    struct left_stream *left = find_stream(&stream->target.pump->left, stream->target.id);
    if (!left || left->saved || !stream->saved)
        return;
    *left = (struct left_stream){stream->target.id, block_of(stream->saved), stream->partial, stream->raw};
    stream->saved = NULL;
}

bool left_sink(struct sink *sink, const char *key)
{
    struct left *left = &sink->target.pump->left;
    uint32_t kind = sink->kind->records ? PENDING_RECORDS : PENDING_BATCH;
    for (size_t i = 0; key && key[0] && i < left->n_sinks; i++) {
        struct left_sink *one = &left->sinks[i];
        if (!one->saved || strcmp(saved_sink(one)->key, key) != 0 || (one->batch && one->batch->kind != kind))
            continue;
        sink->saved = (struct saved_sink *)one->saved->data;
        sink->batch = one->batch;
        sink->appended = sink_holds(sink);
        sink->open_line = sink->saved->open_line;
        sink->skip = one->batch ? sink->saved->skip : 0;
        sink->sent = one->sent;
        *one = (struct left_sink){.id = one->id};
        return true;
    }
    return false;
}

size_t pump_orphans(struct pump *pump, struct orphan *ret_orphans, size_t cap)
{
    const struct left *left = &pump->left;
    size_t n = 0;
    for (size_t i = 0; i < left->n_streams; i++) {
        const struct left_stream *one = &left->streams[i];
        uint64_t length = block_holds(one->partial) + block_holds(one->raw);
        if (one->saved && length && n++ < cap)
            ret_orphans[n - 1] = (struct orphan){one->id, length, NULL, PENDING_LINE};
    }
    for (size_t i = 0; i < left->n_sinks; i++) {
        const struct left_sink *one = &left->sinks[i];
        if (one->saved && block_holds(one->batch) && n++ < cap)
            ret_orphans[n - 1] = (struct orphan){one->id, block_holds(one->batch), saved_sink(one)->key,
                                                 (int32_t)one->batch->kind};
    }
    return n;
}

void left_free(struct pump *pump)
{
    free(pump->left.streams);
    free(pump->left.sinks);
}
