/* What a request to the pump or an event of it is about; pump.h has the theory. */
#ifndef SYSUP_TARGET_H
#define SYSUP_TARGET_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"
#include "native.h"

enum {
    READ_BYTES = 1 << 16,   /* of one read: all that a pipe holds, pipe(7) */
    WORKED_BYTES = 1 << 15, /* of one read whose lines are looked at one by one */
    BATCH_BYTES = 1 << 16,  /* a sink that holds this much is written at once */
    HELD_BYTES = 1 << 17,   /* one that cannot be written holds so much, by default */
    FULLNESS = 16,
};

#define NEVER INT64_MAX
#define MILLISECOND INT64_C(1000000)

enum target_kind { TARGET_STREAM, TARGET_SINK, TARGET_OUTLET, TARGET_TAP };

enum request {
    REQUEST_CLOSE = 1,
    REQUEST_REOPEN = 2,
    REQUEST_SET = 4,  /* a sink has new options */
    REQUEST_LOOK = 8, /* a sink may have something to do */
    REQUEST_ROTATE = 16,
};

/* Events that come beside the newest state; a bit each in a target's `notices`. */
enum { FIRST_NOTICE = PUMP_SINK_ROTATED, N_NOTICES = PUMP_TAPPED + 1 - FIRST_NOTICE };

/* What a request or an event is about: the head of every stream and sink. */
struct target {
    enum target_kind kind;
    uint64_t id;
    struct pump *pump;
    /* under the lock */
    uint32_t requests;
    bool asked;    /* in the pump's queue of requests */
    bool told;     /* in the queue of events */
    bool gone;     /* its last event was posted; requests are ignored */
    bool has_event;
    uint32_t notices;
    struct target *next_asked;
    struct target *next_told;
    struct pump_event event;
    struct target *previous, *next; /* in the list of all targets that aren't gone */
};

/* pump.c */
int64_t clock_ns(void);
int64_t wall_seconds(void);
int pump_watch(struct pump *pump, int fd, uint32_t epoll_events, struct target *target);
/* Watch it for other events; 0: only for a hang-up, which is always told (epoll_ctl(2)). */
int pump_rewatch(struct pump *pump, int fd, uint32_t epoll_events, struct target *target);
void pump_unwatch(struct pump *pump, int fd);

/* target.c */
void eventfd_raise(int fd);
void eventfd_clear(int fd);
/* Among those that pump_stop ends; -ESHUTDOWN after it. */
int target_list(struct target *target, struct pump *pump, enum target_kind kind, uint64_t id);
void target_unlist(struct target *target);
void target_ask(struct target *target, uint32_t requests);
/* Tell the owner; after a `last` event the target is no longer the pump's. */
void target_tell(struct target *target, enum pump_event_kind kind, int error, bool last);
/* Under the lock; true: the pump is to be woken. */
bool target_enqueue(struct pump *pump, struct target *target, uint32_t requests);
/* The next that asks for something, or NULL. */
struct target *target_next(struct pump *pump, uint32_t *ret_requests);

#endif
