/* The pump's thread: an epoll loop that sleeps until a pipe has bytes, a sink a deadline
 * or an owner a request.
 *
 * A turn is: read once from each pipe that has something (at most TURN_EVENTS of them;
 * epoll(7) hands a longer list out in rounds, so nobody starves), serve the requests,
 * then write what is due. Requests come after the pipes because serving one may end a
 * stream whose owner then frees it, and the turn's list of events could still name it. */
#include "pump.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    TURN_EVENTS = 256,
    TIMER_SLACK = 10000, /* ns; the kernel's default, 50 us, is as long as our pauses */
    STOP_GRACE_MS = 500, /* for the thread to end after its time was up */
#ifdef __SANITIZE_THREAD__
    PRECISE = 0, /* it would miss that a stream was added while we sleep in a bare call */
#else
    PRECISE = 1,
#endif
};

int64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 * MILLISECOND + t.tv_nsec;
}

int64_t wall_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME_COARSE, &t);
    return (int64_t)t.tv_sec;
}

/* ---- the loop -------------------------------------------------------------------- */

int pump_watch(struct pump *pump, int fd, uint32_t epoll_events, struct target *target)
{
    struct epoll_event event = {.events = epoll_events, .data.ptr = target};
    return epoll_ctl(pump->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

int pump_rewatch(struct pump *pump, int fd, uint32_t epoll_events, struct target *target)
{
    struct epoll_event event = {.events = epoll_events, .data.ptr = target};
    return epoll_ctl(pump->epoll, EPOLL_CTL_MOD, fd, &event) < 0 ? -errno : 0;
}

void pump_unwatch(struct pump *pump, int fd)
{
    /* Not left to close(2): while another process holds a copy of the descriptor, a
     * closed one would go on being reported, epoll(7). */
    epoll_ctl(pump->epoll, EPOLL_CTL_DEL, fd, NULL);
}

static void serve_requests(struct pump *pump)
{
    pthread_mutex_lock(&pump->lock);
    if (pump->stop_asked && !pump->stopping) {
        pump->stopping = true;
        for (struct target *target = pump->targets; target; target = target->next)
            target_enqueue(pump, target, REQUEST_CLOSE);
    }
    pthread_mutex_unlock(&pump->lock);
    struct target *target;
    uint32_t requests;
    while ((target = target_next(pump, &requests))) {
        if (target->kind == TARGET_STREAM)
            stream_serve((struct stream *)target, requests);
        else if (target->kind == TARGET_SINK)
            sink_serve((struct sink *)target, requests);
    }
}

static bool is_asked(const struct epoll_event *events, int n)
{
    for (int i = 0; i < n; i++)
        if (!events[i].data.ptr)
            return true;
    return false;
}

static void dispatch(struct pump *pump, const struct epoll_event *events, int n, bool asked)
{
    pump->turn_reads = 0;
    pump->turn_bytes = 0;
    pump->turn_fullest = 0;
    for (int i = 0; i < n; i++) {
        struct target *target = events[i].data.ptr;
        if (!target)
            continue;
        if (target->kind == TARGET_STREAM)
            stream_ready((struct stream *)target, events[i].events);
        else
            sink_schedule((struct sink *)target, 0);
    }
    if (asked)
        serve_requests(pump);
}

static void work_agenda(struct pump *pump)
{
    pump->next_due = NEVER;
    struct sink *sink = pump->agenda;
    pump->agenda = NULL;
    while (sink) {
        struct sink *next = sink->next_due;
        int64_t deadline = sink->deadline;
        sink->on_agenda = false;
        sink->deadline = NEVER;
        if (deadline > pump->now)
            sink_schedule(sink, deadline);
        else
            sink_turn(sink); /* may be its last */
        sink = next;
    }
}

/* Sleep until something happens or is due; epoll_pwait2 has nanoseconds, since 5.11. */
static int wait_for_events(struct pump *pump, struct epoll_event *events)
{
    int64_t due = pump->next_due;
    if (pump->stopping && pump->stop_at < due)
        due = pump->stop_at;
    if (due == NEVER)
        return epoll_wait(pump->epoll, events, TURN_EVENTS, -1);
    int64_t wait = due - clock_ns();
    if (wait < 0)
        wait = 0;
    if (wait > INT_MAX * MILLISECOND)
        wait = INT_MAX * MILLISECOND;
    if (PRECISE && wait % MILLISECOND && wait < 10 * MILLISECOND) {
        struct timespec t = {.tv_nsec = wait};
        long n = syscall(SYS_epoll_pwait2, pump->epoll, events, TURN_EVENTS, &t, NULL, 0);
        if (n >= 0 || errno != ENOSYS)
            return (int)n;
    }
    return epoll_wait(pump->epoll, events, TURN_EVENTS, (int)((wait + MILLISECOND - 1) / MILLISECOND));
}

/* Pooling of small writes. A child that writes line by line would wake the pump for each
 * line: a system call and two context switches a hundred bytes. So when reads bring
 * little, and the next came within a millisecond, the pump sleeps a moment and lets the
 * pipes fill. The pause follows what they bring: it grows to a millisecond while a pipe
 * stays below a quarter, and shrinks when one is nearly full (its writer may have
 * waited), until pooling ends, as it does when a millisecond passed without a byte. A
 * line that comes after silence is never held up. */
static void pool_writes(struct pump *pump, int64_t idle)
{
    enum { SMALL = 4096, LITTLE = FULLNESS / 4, FULL = FULLNESS / 4 * 3 };
    const int64_t shortest = MILLISECOND / 16;
    if (pump->turn_reads == 0)
        return;
    if (idle > MILLISECOND) {
        pump->pause = 0;
        return;
    }
    if (pump->pause == 0) {
        if (pump->turn_bytes >= (uint64_t)pump->turn_reads * SMALL)
            return;
        pump->pause = 2 * shortest;
    } else if (pump->turn_fullest >= FULL) {
        pump->pause /= 2;
    } else if (pump->turn_fullest < LITTLE) {
        pump->pause += pump->pause / 4;
    }
    if (pump->pause < shortest) {
        pump->pause = 0;
        return;
    }
    if (pump->pause > MILLISECOND)
        pump->pause = MILLISECOND;
    struct pollfd wake = {.fd = pump->wake, .events = POLLIN};
    struct timespec pause = {.tv_nsec = pump->pause};
    ppoll(&wake, 1, &pause, NULL);
}

static struct sink *first_sink(const struct pump *pump)
{
    struct target *target = pump->targets;
    while (target && target->kind != TARGET_SINK)
        target = target->next;
    return (struct sink *)target;
}

/* Its time is up: end what is left. Without the lock: nobody adds a target after
 * stop_asked, and only this thread takes one off the list. */
static void abandon_all(struct pump *pump)
{
    for (struct target *target = pump->targets; target; target = target->next)
        if (target->kind == TARGET_STREAM)
            pump->lost += stream_abandon((struct stream *)target);
    struct sink *sink;
    while ((sink = first_sink(pump)))
        pump->lost += sink_abandon(sink);
}

static bool is_parked(struct pump *pump)
{
    pthread_mutex_lock(&pump->lock);
    bool parked = pump->park_asked;
    pthread_mutex_unlock(&pump->lock);
    return parked;
}

static void *run(void *argument)
{
    struct pump *pump = argument;
    struct epoll_event events[TURN_EVENTS];
    pthread_setname_np(pthread_self(), "sysup-pump");
    prctl(PR_SET_TIMERSLACK, (unsigned long)TIMER_SLACK);
    pump->now = clock_ns();
    for (;;) {
        int64_t slept = clock_ns();
        int n = wait_for_events(pump, events);
        bool asked = is_asked(events, n);
        if (asked) {
            /* Look again once it is cleared: who asks later wakes us anew, and who asked
             * before finds all done that was there to do when he did. */
            eventfd_clear(pump->wake);
            n = epoll_wait(pump->epoll, events, TURN_EVENTS, 0);
        }
        pump->now = clock_ns();
        atomic_fetch_add_explicit(&pump->turns, 1, memory_order_relaxed);
        dispatch(pump, events, n, asked);
        work_agenda(pump);
        if (is_parked(pump))
            break;
        if (pump->stopping && (!pump->targets || pump->now >= pump->stop_at))
            break;
        pool_writes(pump, pump->now - slept);
    }
    if (!is_parked(pump))
        abandon_all(pump);
    pthread_mutex_lock(&pump->lock);
    pump->ended = true;
    pthread_cond_signal(&pump->end);
    pthread_mutex_unlock(&pump->lock);
    return NULL;
}

/* ---- from outside ---------------------------------------------------------------- */

static int start_thread(struct pump *pump)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&pump->thread, NULL, run, pump);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -rc;
}

static int open_descriptors(struct pump *pump, int memfd)
{
    if (memfd >= 0 && (pump->memfd = fcntl(memfd, F_DUPFD_CLOEXEC, 3)) < 0)
        return -errno;
    pump->epoll = epoll_create1(EPOLL_CLOEXEC);
    pump->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pump->events = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (pump->epoll < 0 || pump->wake < 0 || pump->events < 0)
        return -errno;
    return pump_watch(pump, pump->wake, EPOLLIN, NULL);
}

int pump_new(int32_t memfd, struct pump **ret_pump)
{
    struct pump *pump = calloc(1, sizeof *pump);
    if (!pump)
        return -ENOMEM;
    pump->asked_last = &pump->asked;
    pump->told_last = &pump->told;
    pump->next_due = NEVER;
    pthread_mutex_init(&pump->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&pump->end, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pump->epoll = pump->wake = pump->events = pump->memfd = -1;
    int rc = tap_init(&pump->tap, pump);
    if (rc == 0)
        rc = open_descriptors(pump, memfd);
    if (rc == 0)
        rc = arena_new(pump->memfd, &pump->arena);
    if (rc == 0)
        rc = pump_restore(pump);
    if (rc == 0)
        rc = start_thread(pump);
    if (rc < 0) {
        pump_free(pump);
        return rc;
    }
    *ret_pump = pump;
    return 0;
}

int pump_eventfd(const struct pump *pump)
{
    return pump->events;
}

uint64_t pump_heartbeat(const struct pump *pump)
{
    return atomic_load_explicit(&pump->turns, memory_order_relaxed);
}

void pump_ping(struct pump *pump)
{
    eventfd_raise(pump->wake);
}

/* Wait until the thread has ended; 0 or -ETIMEDOUT. */
static int end_thread(struct pump *pump, int64_t until)
{
    eventfd_raise(pump->wake);
    until += STOP_GRACE_MS * MILLISECOND;
    struct timespec when = {until / (1000 * MILLISECOND), until % (1000 * MILLISECOND)};
    pthread_mutex_lock(&pump->lock);
    int rc = 0;
    while (!pump->ended && rc == 0)
        rc = pthread_cond_timedwait(&pump->end, &pump->lock, &when);
    bool ended = pump->ended;
    pthread_mutex_unlock(&pump->lock);
    if (!ended)
        return -ETIMEDOUT;
    pthread_join(pump->thread, NULL);
    return 0;
}

int64_t pump_stop(struct pump *pump, int32_t timeout)
{
    int64_t until = clock_ns() + timeout * MILLISECOND;
    pthread_mutex_lock(&pump->lock);
    if (!pump->stop_asked)
        pump->stop_at = until;
    pump->stop_asked = true;
    pthread_mutex_unlock(&pump->lock);
    int rc = end_thread(pump, until);
    return rc < 0 ? rc : (int64_t)pump->lost;
}

int pump_park(struct pump *pump, int32_t timeout)
{
    pthread_mutex_lock(&pump->lock);
    pump->park_asked = true;
    pthread_mutex_unlock(&pump->lock);
    int rc = end_thread(pump, clock_ns() + timeout * MILLISECOND);
    if (rc < 0)
        return rc;
    arena_freeze(pump->arena);
    for (struct target *target = pump->targets; target; target = target->next)
        if (target->kind == TARGET_SINK)
            ((struct sink *)target)->kind->close((struct sink *)target);
    return 0;
}

void pump_free(struct pump *pump)
{
    left_free(pump);
    arena_free(pump->arena);
    tap_free(&pump->tap);
    int descriptors[] = {pump->epoll, pump->wake, pump->events, pump->memfd};
    for (int i = 0; i < 4; i++)
        if (descriptors[i] >= 0)
            close(descriptors[i]);
    pthread_cond_destroy(&pump->end);
    pthread_mutex_destroy(&pump->lock);
    free(pump);
}
