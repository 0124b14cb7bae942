/* A sink whose bytes a thread of Python takes: batches change hands, none is copied.
 *
 * One batch is gathered by the pump, one waits, one is in the reader's hands; a memory
 * that was read goes back to be filled again. The reader sleeps on a condition variable
 * without time-out, so a quiet queue costs nothing. */
#include "pump.h"

#include <errno.h>
#include <stdlib.h>

static int queue_flush(struct sink *sink)
{
    struct queue *queue = &sink->queue;
    pthread_mutex_lock(&queue->lock);
    queue->wanted = queue->waiting.data != NULL;
    if (!queue->wanted) {
        queue->waiting = sink->slab;
        queue->waiting_length = sink->end;
        sink->slab = queue->spent;
        queue->spent = (struct slab){NULL, 0};
        pthread_cond_signal(&queue->filled);
    }
    bool wanted = queue->wanted;
    pthread_mutex_unlock(&queue->lock);
    if (wanted)
        return -EAGAIN;
    sink->begin = sink->end = 0;
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
    slab_unmap(queue->waiting);
    slab_unmap(queue->held);
    slab_unmap(queue->spent);
    pthread_cond_destroy(&queue->filled);
    pthread_mutex_destroy(&queue->lock);
}

static const struct sink_kind queue_kind = {
    .flush = queue_flush,
    .open = queue_open,
    .close = queue_close,
    .free = queue_free,
    .header = sizeof(struct queue_record),
};

int sink_queue_new(struct pump *pump, uint64_t id, uint32_t max_line, struct sink **ret_sink)
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
    sink->max_line = max_line;
    int rc = sink_init(sink, pump, id, &queue_kind);
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
    while (!queue->waiting.data && !queue->closed && rc == 0) {
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
    struct slab surplus = queue->spent;
    queue->spent = queue->held;
    queue->held = (struct slab){NULL, 0};
    wait_until_filled(queue, timeout_ms);
    int64_t length = queue->closed ? -EPIPE : 0;
    bool wanted = false;
    if (queue->waiting.data) {
        queue->held = queue->waiting;
        queue->waiting = (struct slab){NULL, 0};
        length = (int64_t)queue->waiting_length;
        *ret_data = queue->held.data;
        wanted = queue->wanted;
        queue->wanted = false;
    }
    pthread_mutex_unlock(&queue->lock);
    slab_unmap(surplus);
    if (wanted)
        target_ask(&sink->target, REQUEST_LOOK);
    return length;
}
