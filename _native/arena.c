/* The memory of all bytes that were read and not yet written.
 *
 * One mapping, reserved once and touched as needed: private, or of a memfd, so that what
 * it holds outlives the process (arena_pending reads it). It is cut into units. A unit is
 * free, or cut into blocks of one power of two, or the beginning or middle of a run of
 * units that is one block. Its table and each block's head lie in the mapping too, which
 * is all that a reader needs; free lists and counts are this process's own.
 *
 * Memory follows what is pending: a unit without a live block goes back, and all but a
 * few of those that went back are given to the system. Batches change hands once per
 * write, so a few stay warm. */
#include "arena.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "native.h"

enum {
    N_CLASSES = 10, /* blocks of 256 bytes to half a unit */
    WARM_UNITS = 4,
    RUN = 0xfe,     /* in the table: the first unit of a block that has whole units ... */
    RUN_ON = 0xff,  /* ... and its others; 0: free; n: blocks of class n - 1 */
};

static const uint64_t magic = UINT64_C(0x31616e6572615f73);
static const size_t sizes[] = {(size_t)4 << 30, (size_t)1 << 30, (size_t)256 << 20};

/* At the beginning of the mapping. */
struct head {
    uint64_t magic;
    uint64_t n_units;
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
    size_t size;
    size_t lowest;              /* no unit below it is free */
    size_t n_warm;
    uint16_t *live;             /* of a unit that is cut: its blocks in use */
    bool *warm;                 /* free, but not given to the system */
    struct block *spare[N_CLASSES];
    size_t fresh[N_CLASSES];    /* the unit that is being cut, 0: none ... */
    size_t fresh_at[N_CLASSES]; /* ... and how far it is */
};

static size_t class_size(unsigned class)
{
    return (size_t)256 << class;
}

static char *unit_at(const struct arena *arena, size_t unit)
{
    return (char *)arena->head + unit * UNIT_BYTES;
}

static size_t unit_of(const struct arena *arena, const struct block *block)
{
    return (size_t)((const char *)block - (const char *)arena->head) / UNIT_BYTES;
}

static struct link *link_of(struct block *block)
{
    return (struct link *)block->data;
}

/* ---- units ----------------------------------------------------------------------- */

static size_t head_units(size_t n_units)
{
    return (sizeof(struct head) + n_units + UNIT_BYTES - 1) / UNIT_BYTES;
}

/* The first of `count` free ones in a row; 0: there are none. */
static size_t find_units(struct arena *arena, size_t count)
{
    const uint8_t *table = arena->head->table;
    size_t run = 0;
    while (arena->lowest < arena->head->n_units && table[arena->lowest])
        arena->lowest++;
    for (size_t unit = arena->lowest; unit < arena->head->n_units; unit++) {
        run = table[unit] ? 0 : run + 1;
        if (run == count)
            return unit + 1 - count;
    }
    return 0;
}

static void discard(struct arena *arena, size_t unit)
{
    madvise(unit_at(arena, unit), UNIT_BYTES, arena->memfd < 0 ? MADV_DONTNEED : MADV_REMOVE);
}

static size_t take_units(struct arena *arena, size_t count, uint8_t use)
{
    size_t first = find_units(arena, count);
    if (!first)
        return 0;
    /* A reader is to find no heads of an earlier use. */
    if (use == RUN)
        ((struct block *)unit_at(arena, first))->owner = 0;
    else if (arena->warm[first])
        discard(arena, first);
    for (size_t unit = first; unit < first + count; unit++) {
        arena->head->table[unit] = unit == first ? use : RUN_ON;
        arena->n_warm -= arena->warm[unit];
        arena->warm[unit] = false;
    }
    return first;
}

static void give_units(struct arena *arena, size_t first, size_t count)
{
    for (size_t unit = first; unit < first + count; unit++) {
        arena->head->table[unit] = 0;
        if (arena->n_warm < WARM_UNITS && count == 1) {
            arena->warm[unit] = true;
            arena->n_warm++;
        } else {
            discard(arena, unit);
        }
    }
    if (first < arena->lowest)
        arena->lowest = first;
}

/* ---- blocks of a class ----------------------------------------------------------- */

static void put_spare(struct arena *arena, unsigned class, struct block *block)
{
    *link_of(block) = (struct link){NULL, arena->spare[class]};
    if (arena->spare[class])
        link_of(arena->spare[class])->previous = block;
    arena->spare[class] = block;
}

static void drop_spare(struct arena *arena, unsigned class, struct block *block)
{
    struct link *link = link_of(block);
    if (link->previous)
        link_of(link->previous)->next = link->next;
    else
        arena->spare[class] = link->next;
    if (link->next)
        link_of(link->next)->previous = link->previous;
}

static struct block *cut(struct arena *arena, unsigned class)
{
    size_t *unit = &arena->fresh[class], *at = &arena->fresh_at[class];
    if (!*unit) {
        *unit = take_units(arena, 1, (uint8_t)(class + 1));
        *at = 0;
        if (!*unit)
            return NULL;
        arena->live[*unit] = 0;
    }
    struct block *block = (struct block *)(unit_at(arena, *unit) + *at);
    *at += class_size(class);
    if (*at == UNIT_BYTES)
        *unit = 0;
    return block;
}

static struct block *take_small(struct arena *arena, unsigned class)
{
    struct block *block = arena->spare[class];
    if (block)
        drop_spare(arena, class, block);
    else
        block = cut(arena, class);
    if (block)
        arena->live[unit_of(arena, block)]++;
    return block;
}

static void give_small(struct arena *arena, unsigned class, struct block *block)
{
    size_t unit = unit_of(arena, block), size = class_size(class);
    put_spare(arena, class, block);
    if (--arena->live[unit] || arena->fresh[class] == unit)
        return;
    for (size_t at = 0; at < UNIT_BYTES; at += size)
        drop_spare(arena, class, (struct block *)(unit_at(arena, unit) + at));
    give_units(arena, unit, 1);
}

/* ---- from outside ---------------------------------------------------------------- */

struct block *arena_take(struct arena *arena, uint64_t owner, uint32_t kind, size_t size)
{
    if (size > UINT32_MAX / 2)
        return NULL;
    size_t whole = size + sizeof(struct block);
    unsigned class = 0;
    while (class < N_CLASSES && class_size(class) < whole)
        class++;
    struct block *block;
    pthread_mutex_lock(&arena->lock);
    if (class < N_CLASSES) {
        block = take_small(arena, class);
        whole = class_size(class);
    } else {
        size_t count = (whole + UNIT_BYTES - 1) / UNIT_BYTES;
        size_t first = take_units(arena, count, RUN);
        block = first ? (struct block *)unit_at(arena, first) : NULL;
        whole = count * UNIT_BYTES;
    }
    if (block) {
        block->size = (uint32_t)(whole - sizeof(struct block));
        block->begin = block->end = 0;
        block->kind = kind;
        block->owner = owner;
    }
    pthread_mutex_unlock(&arena->lock);
    return block;
}

void arena_give(struct arena *arena, struct block *block)
{
    if (!block)
        return;
    pthread_mutex_lock(&arena->lock);
    size_t unit = unit_of(arena, block);
    uint8_t use = arena->head->table[unit];
    size_t count = (block->size + sizeof(struct block)) / UNIT_BYTES;
    block->owner = 0;
    if (use == RUN)
        give_units(arena, unit, count);
    else
        give_small(arena, (unsigned)use - 1, block);
    pthread_mutex_unlock(&arena->lock);
}

struct block *arena_grow(struct arena *arena, struct block *block, size_t size)
{
    size_t held = block_holds(block), wanted = 2 * (size_t)block->size, begin = block->begin % 8;
    size += 8;
    if (size <= block->size)
        return block;
    struct block *larger = arena_take(arena, block->owner, block->kind, size > wanted ? size : wanted);
    if (!larger)
        larger = arena_take(arena, block->owner, block->kind, size);
    if (!larger)
        return NULL;
    memcpy(larger->data + begin, block->data + block->begin, held);
    larger->begin = begin;
    larger->end = begin + held;
    arena_give(arena, block);
    return larger;
}

static int map_memory(struct arena *arena)
{
    void *memory = MAP_FAILED;
    int flags = MAP_NORESERVE | (arena->memfd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
    for (unsigned i = 0; memory == MAP_FAILED && i < sizeof sizes / sizeof *sizes; i++) {
        arena->size = sizes[i] <= SIZE_MAX / 8 ? sizes[i] : SIZE_MAX / 16;
        if (arena->memfd >= 0 && ftruncate(arena->memfd, (off_t)arena->size) < 0)
            return -errno;
        memory = mmap(NULL, arena->size, PROT_READ | PROT_WRITE, flags, arena->memfd, 0);
    }
    if (memory == MAP_FAILED)
        return -errno;
    arena->head = memory;
    return 0;
}

int arena_new(int memfd, struct arena **ret_arena)
{
    struct arena *arena = calloc(1, sizeof *arena);
    if (!arena)
        return -ENOMEM;
    arena->memfd = memfd;
    pthread_mutex_init(&arena->lock, NULL);
    int rc = map_memory(arena);
    size_t n_units = arena->size / UNIT_BYTES;
    arena->live = calloc(n_units, sizeof *arena->live);
    arena->warm = calloc(n_units, sizeof *arena->warm);
    if (rc == 0 && (!arena->live || !arena->warm))
        rc = -ENOMEM;
    if (rc < 0) {
        arena_free(arena);
        return rc;
    }
    size_t own = head_units(n_units);
    memset(arena->head->table, RUN_ON, own);
    arena->lowest = own;
    arena->head->n_units = n_units;
    arena->head->magic = magic;
    *ret_arena = arena;
    return 0;
}

void arena_free(struct arena *arena)
{
    if (!arena)
        return;
    if (arena->head)
        munmap(arena->head, arena->size);
    pthread_mutex_destroy(&arena->lock);
    free(arena->live);
    free(arena->warm);
    free(arena);
}

/* ---- reading one that was left --------------------------------------------------- */

struct reading {
    const char *memory;
    size_t size;
    struct pending *pending;
    size_t cap;
    int64_t n;
};

/* Note a block at `at`, if it is one; nothing in it is trusted. */
static void note(struct reading *reading, size_t at)
{
    const struct block *block = (const struct block *)(reading->memory + at);
    size_t data = at + sizeof *block;
    if (!block->owner || block->begin >= block->end || block->end > block->size ||
        block->size > reading->size - data)
        return;
    if ((size_t)reading->n < reading->cap)
        reading->pending[reading->n] = (struct pending){
            .owner = block->owner,
            .offset = data + block->begin,
            .length = block->end - block->begin,
            .kind = (int32_t)block->kind,
        };
    reading->n++;
}

static void note_unit(struct reading *reading, size_t unit, uint8_t use)
{
    size_t at = unit * UNIT_BYTES, end = at + UNIT_BYTES;
    size_t step = use == RUN ? UNIT_BYTES : class_size(use - 1u);
    for (; at < end; at += step)
        note(reading, at);
}

int64_t arena_pending(int32_t memfd, struct pending *ret_pending, size_t cap)
{
    struct stat st;
    if (fstat(memfd, &st) < 0)
        return -errno;
    size_t size = (size_t)st.st_size;
    if (!S_ISREG(st.st_mode) || size < UNIT_BYTES || size % UNIT_BYTES)
        return -EINVAL;
    void *memory = mmap(NULL, size, PROT_READ, MAP_SHARED, memfd, 0);
    if (memory == MAP_FAILED)
        return -errno;
    const struct head *head = memory;
    struct reading reading = {memory, size, ret_pending, cap, 0};
    if (head->magic != magic || head->n_units != size / UNIT_BYTES)
        reading.n = -EINVAL;
    else
        for (size_t unit = head_units(head->n_units); unit < head->n_units; unit++)
            if (head->table[unit] == RUN || (head->table[unit] && head->table[unit] <= N_CLASSES))
                note_unit(&reading, unit, head->table[unit]);
    munmap(memory, size);
    return reading.n;
}
