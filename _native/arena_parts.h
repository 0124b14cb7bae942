/* What the parts of the arena share: arena.c, sweep.c, reading.c. */
#ifndef SYSUP_ARENA_PARTS_H
#define SYSUP_ARENA_PARTS_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arena.h"

enum {
    N_CLASSES = 10, /* blocks of 256 bytes to half a unit */
    WARM_UNITS = 4,
    RUN = 0xfe,     /* in the table: the first unit of a block that has whole units ... */
    RUN_ON = 0xff,  /* ... and its others; 0: free; n: blocks of class n - 1 */
};

/* At the beginning of the mapping. */
struct head {
    uint64_t magic;
    uint64_t layout;
    uint64_t n_units;
    uint64_t serial;
    unsigned char pattern[PATTERN_BYTES]; /* no text has these bytes: no UTF-8 has 0xf8 to 0xff */
    struct reading reading;
    uint64_t n_changes; /* to be done; 0 while they are being noted */
    struct change {
        uint64_t offset, value;
    } changes[CHANGES];
    uint8_t table[];
};

/* In the data of a free block of a class. */
struct link {
    struct block *previous, *next;
};

struct arena {
    pthread_mutex_t lock;
    struct head *head;
    int memfd;
    bool frozen;
    unsigned n_changes;         /* noted so far */
    size_t size;
    size_t lowest;              /* no unit below it is free */
    size_t n_warm;
    uint16_t *live;             /* of a unit that is cut: its blocks in use */
    bool *warm;                 /* free, but not given to the system */
    struct block *spare[N_CLASSES];
    size_t fresh[N_CLASSES];    /* the unit that is being cut, 0: none ... */
    size_t fresh_at[N_CLASSES]; /* ... and how far it is */
};

static inline size_t class_size(unsigned class)
{
    return (size_t)256 << class;
}

static inline char *unit_at(const struct arena *arena, size_t unit)
{
    return (char *)arena->head + unit * UNIT_BYTES;
}

static inline size_t unit_of(const struct arena *arena, const struct block *block)
{
    return (size_t)((const char *)block - (const char *)arena->head) / UNIT_BYTES;
}

static inline struct link *link_of(struct block *block)
{
    return (struct link *)block->data;
}

static inline size_t head_units(size_t n_units)
{
    return (sizeof(struct head) + n_units + UNIT_BYTES - 1) / UNIT_BYTES;
}

/* What is written before this is there when what is written after it is. */
static inline void in_order(void)
{
    atomic_signal_fence(memory_order_seq_cst);
}

/* arena.c */
void arena_discard(struct arena *arena, size_t unit, size_t count);
void arena_put_spare(struct arena *arena, unsigned class, struct block *block);

/* sweep.c */
/* Free what nothing is saved of. */
void arena_sweep(struct arena *arena);

#endif
