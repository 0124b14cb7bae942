/* What a caller asks of the pump, and what the pump tells its owner: two queues that are
 * linked through the targets themselves, so that neither needs memory nor fails. */
#include "pump.h"

#include <errno.h>
#include <unistd.h>

void eventfd_raise(int fd)
{
    uint64_t one = 1;
    /* EAGAIN: the counter is full, so whoever waits is woken already. */
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR)
        continue;
}

void eventfd_clear(int fd)
{
    uint64_t count;
    while (read(fd, &count, sizeof count) < 0 && errno == EINTR)
        continue;
}

int target_list(struct target *target, struct pump *pump, enum target_kind kind, uint64_t id)
{
    target->kind = kind;
    target->id = id;
    target->pump = pump;
    pthread_mutex_lock(&pump->lock);
    bool stopped = pump->stop_asked;
    if (!stopped) {
        target->next = pump->targets;
        if (target->next)
            target->next->previous = target;
        pump->targets = target;
    }
    pthread_mutex_unlock(&pump->lock);
    return stopped ? -ESHUTDOWN : 0;
}

/* Under the lock. */
bool target_enqueue(struct pump *pump, struct target *target, uint32_t requests)
{
    if (target->gone)
        return false;
    target->requests |= requests;
    if (target->asked)
        return false;
    target->asked = true;
    target->next_asked = NULL;
    *pump->asked_last = target;
    pump->asked_last = &target->next_asked;
    return true;
}

void target_ask(struct target *target, uint32_t requests)
{
    struct pump *pump = target->pump;
    pthread_mutex_lock(&pump->lock);
    bool fresh = target_enqueue(pump, target, requests);
    pthread_mutex_unlock(&pump->lock);
    if (fresh)
        eventfd_raise(pump->wake);
}

struct target *target_next(struct pump *pump, uint32_t *ret_requests)
{
    pthread_mutex_lock(&pump->lock);
    struct target *target = pump->asked;
    if (target) {
        pump->asked = target->next_asked;
        if (!pump->asked)
            pump->asked_last = &pump->asked;
        target->asked = false;
        *ret_requests = target->requests;
        target->requests = 0;
    }
    pthread_mutex_unlock(&pump->lock);
    return target;
}

/* Under the lock. */
static void unlink_target(struct pump *pump, struct target *target)
{
    if (target->previous)
        target->previous->next = target->next;
    else
        pump->targets = target->next;
    if (target->next)
        target->next->previous = target->previous;
}

void target_unlist(struct target *target)
{
    pthread_mutex_lock(&target->pump->lock);
    unlink_target(target->pump, target);
    pthread_mutex_unlock(&target->pump->lock);
}

/* Under the lock: the owner may free it as soon as its last event is taken. */
static void forget_target(struct pump *pump, struct target *target)
{
    target->gone = true;
    unlink_target(pump, target);
    if (!target->asked)
        return;
    struct target **link = &pump->asked;
    while (*link != target)
        link = &(*link)->next_asked;
    *link = target->next_asked;
    if (!*link)
        pump->asked_last = link;
}

void target_tell(struct target *target, enum pump_event_kind kind, int error, bool last)
{
    struct pump *pump = target->pump;
    pthread_mutex_lock(&pump->lock);
    if ((int)kind >= FIRST_NOTICE) {
        target->notices |= 1u << ((int)kind - FIRST_NOTICE);
    } else {
        target->event = (struct pump_event){.kind = (int32_t)kind, .error = error, .id = target->id};
        target->has_event = true;
    }
    bool fresh = !target->told;
    if (fresh) {
        target->told = true;
        target->next_told = NULL;
        *pump->told_last = target;
        pump->told_last = &target->next_told;
    }
    if (last)
        forget_target(pump, target);
    pthread_mutex_unlock(&pump->lock);
    if (fresh)
        eventfd_raise(pump->events);
}

/* The target's next event: its state, then notices; but the last event comes last. Under the
 * lock. */
static struct pump_event next_event(struct target *target)
{
    bool is_next = target->has_event && !target->gone;
    for (int i = 0; i < N_NOTICES && !is_next; i++) {
        if (target->notices & 1u << i) {
            target->notices &= ~(1u << i);
            return (struct pump_event){.kind = FIRST_NOTICE + i, .id = target->id};
        }
    }
    target->has_event = false;
    return target->event;
}

int pump_take(struct pump *pump, struct pump_event *ret_events, size_t cap)
{
    size_t n = 0;
    pthread_mutex_lock(&pump->lock);
    while (n < cap && pump->told) {
        struct target *target = pump->told;
        ret_events[n++] = next_event(target);
        if (!target->notices && !target->has_event) {
            pump->told = target->next_told;
            target->told = false;
        }
    }
    if (!pump->told) {
        pump->told_last = &pump->told;
        /* Under the lock: an event that is posted now raises it again. */
        eventfd_clear(pump->events);
    }
    pthread_mutex_unlock(&pump->lock);
    return (int)n;
}
