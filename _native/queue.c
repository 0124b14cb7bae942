/* A sink whose bytes a thread of Python takes: batches change hands, none is copied.
 *
 * One batch is gathered by the pump, one waits, one is in the reader's hands. The reader
 * sleeps on a condition variable without time-out, so a quiet queue costs nothing. A batch
 * is given back when the next one is taken: after a crash what the reader was at comes once
 * more. */
#include "pump.h"

#include <errno.h>
#include <stdlib.h>

static int queue_flush(struct sink *sink)
{
    struct queue *queue = &sink->queue;
    pthread_mutex_lock(&queue->lock);
    queue->wanted = queue->waiting != NULL;
    bool wanted = queue->wanted;
    if (!wanted) {
        queue->waiting = sink->batch;
        pthread_cond_signal(&queue->filled);
    }
    pthread_mutex_unlock(&queue->lock);
    if (wanted)
        return -EAGAIN;
    sink->batch = NULL;
    sink->written = sink->appended;
    return 0;
}

static int queue_open(struct sink *sink)
{
    (void)sink;
    return 0;
}

static void queue_close(struct sink *sink)
{
    struct queue *queue = &sink->queue;
    pthread_mutex_lock(&queue->lock);
    queue->closed = true;
    queue->wanted = false;
    pthread_cond_signal(&queue->filled);
    pthread_mutex_unlock(&queue->lock);
}

static void queue_free(struct sink *sink)
{
    struct queue *queue = &sink->queue;
    arena_give(sink->target.pump->arena, queue->waiting);
    arena_give(sink->target.pump->arena, queue->held);
    pthread_cond_destroy(&queue->filled);
    pthread_mutex_destroy(&queue->lock);
}

static const struct sink_kind queue_kind = {
    .flush = queue_flush,
    .open = queue_open,
    .close = queue_close,
    .free = queue_free,
    .records = true,
};

int sink_queue_new(struct pump *pump, uint64_t id, const char *key, uint64_t max_held,
                   struct sink **ret_sink)
{
    struct sink *sink = calloc(1, sizeof *sink);
    if (!sink)
        return -ENOMEM;
    pthread_mutex_init(&sink->queue.lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&sink->queue.filled, &monotonic);
    pthread_condattr_destroy(&monotonic);
    sink->max_held = max_held;
    int rc = sink_init(sink, pump, id, key, &queue_kind);
    if (rc < 0) {
        queue_free(sink);
        free(sink);
        return rc;
    }
    *ret_sink = sink;
    return 0;
}

/* Under the queue's lock. */
static void wait_until_filled(struct queue *queue, int32_t timeout_ms)
{
    int64_t until = clock_ns() + timeout_ms * MILLISECOND;
    struct timespec when = {until / (1000 * MILLISECOND), until % (1000 * MILLISECOND)};
    int rc = 0;
    while (!queue->waiting && !queue->closed && rc == 0) {
        if (timeout_ms < 0)
            rc = pthread_cond_wait(&queue->filled, &queue->lock);
        else
            rc = pthread_cond_timedwait(&queue->filled, &queue->lock, &when);
    }
}

int64_t sink_queue_take(struct sink *sink, char **ret_data, int32_t timeout_ms)
{
    struct queue *queue = &sink->queue;
    pthread_mutex_lock(&queue->lock);
    struct block *spent = queue->held;
    queue->held = NULL;
    pthread_mutex_unlock(&queue->lock);
    if (spent)
        arena_release(sink->target.pump->arena, spent);
    pthread_mutex_lock(&queue->lock);
    wait_until_filled(queue, timeout_ms);
    int64_t length = queue->closed ? -EPIPE : 0;
    bool wanted = false;
    if (queue->waiting) {
        queue->held = queue->waiting;
        queue->waiting = NULL;
        length = (int64_t)block_holds(queue->held);
        *ret_data = queue->held->data + queue->held->begin;
        wanted = queue->wanted;
        queue->wanted = false;
    }
    pthread_mutex_unlock(&queue->lock);
    if (wanted)
        target_ask(&sink->target, REQUEST_LOOK);
    return length;
}

void sink_queue_did(struct sink *sink, const char *next)
{
    struct block *held = sink->queue.held; /* the reader's own */
    held->begin = (uint64_t)(next - held->data);
    block_keep(held);
}
