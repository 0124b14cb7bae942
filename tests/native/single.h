/* A pump without its thread: a test calls what the thread would, in the order it wants. */
#ifndef SYSUP_TESTS_SINGLE_H
#define SYSUP_TESTS_SINGLE_H
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "pump.h"

static inline struct pump *single_pump(void)
{
    struct pump *pump = calloc(1, sizeof *pump);
    CHECK(pump);
    pump->asked_last = &pump->asked;
    pump->told_last = &pump->told;
    pump->next_due = NEVER;
    pump->memfd = -1;
    pthread_mutex_init(&pump->lock, NULL);
    pthread_cond_init(&pump->end, NULL);
    pump->epoll = epoll_create1(EPOLL_CLOEXEC);
    pump->wake = eventfd(0, EFD_NONBLOCK);
    pump->events = eventfd(0, EFD_NONBLOCK);
    CHECK(tap_init(&pump->tap, pump) == 0);
    CHECK(arena_new(-1, &pump->arena) == 0);
    CHECK(pump_restore(pump) == 0);
    return pump;
}

/* Forget what is due and what was told, as the thread and the owner do. */
static inline void single_settle(struct pump *pump)
{
    struct pump_event events[16];
    while (pump_take(pump, events, 16))
        continue;
    pump->asked = NULL;
    pump->asked_last = &pump->asked;
}

struct input {
    const uint8_t *at, *end;
};

static inline unsigned take_byte(struct input *input)
{
    return input->at < input->end ? *input->at++ : 0;
}

/* The program that libFuzzer drives, driven by chance instead: a test of its own. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#ifndef LIBFUZZER
int main(void)
{
    enum { RUNS = 3000, LONGEST = 600 };
    static uint8_t data[LONGEST];
    uint64_t seed = 88172645463325252;
    for (int run = 0; run < RUNS; run++) {
        size_t size = 0;
        while (size < LONGEST) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            if (size > 8 && seed % 97 == 0)
                break;
            data[size++] = (uint8_t)(seed % 5 == 0 ? '\n' : seed >> 32);
        }
        LLVMFuzzerTestOneInput(data, size);
    }
    return 0;
}
#endif
#endif
