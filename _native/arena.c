/* The memory of all bytes that were read and not yet written.
 *
 * One mapping, reserved once and touched as needed: private, or of a memfd, so that what
 * it holds outlives the process. It is cut into units. A unit is free, or cut into blocks
 * of one power of two, or the beginning or middle of a run of units that is one block. Its
 * table and each block's head lie in the mapping too, which is all that a reader needs;
 * free lists and counts are this process's own, and made again by who takes it over.
 *
 * Memory follows what is pending: a unit without a live block goes back, and all but a
 * few of those that went back are given to the system. Batches change hands once per
 * write, so a few stay warm.
 *
 * Death. A process may end between any two instructions, by SIGKILL, and the memory stays
 * as its stores left it, in the order of the program: the processor finishes those before
 * an interrupt and none after, so keeping the compiler from moving them is enough. A word
 * is written at once or not. What must change together, a batch that grows and the line
 * that it grows by, is first noted in the head, then done; what is found noted is done
 * again. Who takes the arena over believes `saved` of the blocks alone: what was in the
 * making counts for nothing, and its memory is free.
 *
 * Nor does a process that is killed say whether its last system call was done. So what the
 * call will do is noted before it, and it shows afterwards whether it did: of a read in
 * the arena (struct reading), of messages too, where the kernel counts them (send.c), of
 * a write in the file itself (written.c). Of a write to a pipe or terminal nothing shows. */
#include "arena_parts.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "native.h"

static const uint64_t magic = UINT64_C(0x32616e6572615f73);
static const size_t sizes[] = {(size_t)4 << 30, (size_t)1 << 30, (size_t)256 << 20};

/* ---- units ----------------------------------------------------------------------- */

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

void arena_discard(struct arena *arena, size_t unit, size_t count)
{
    madvise(unit_at(arena, unit), count * UNIT_BYTES, arena->memfd < 0 ? MADV_DONTNEED : MADV_REMOVE);
}

static size_t take_units(struct arena *arena, size_t count, uint8_t use)
{
    size_t first = find_units(arena, count);
    if (!first)
        return 0;
    /* A reader is to find no heads of an earlier use. */
    if (use == RUN)
        ((struct block *)unit_at(arena, first))->saved = 0;
    else if (arena->warm[first])
        arena_discard(arena, first, 1);
    in_order();
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
            arena_discard(arena, unit, 1);
        }
    }
    if (first < arena->lowest)
        arena->lowest = first;
}

/* ---- blocks of a class ----------------------------------------------------------- */

void arena_put_spare(struct arena *arena, unsigned class, struct block *block)
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
    arena_put_spare(arena, class, block);
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
        block->begin = block->end = block->saved = 0;
        block->kind = kind;
        block->owner = owner;
        block->serial = ++arena->head->serial;
    }
    pthread_mutex_unlock(&arena->lock);
    return block;
}

void arena_release(struct arena *arena, struct block *block)
{
    if (!block)
        return;
    pthread_mutex_lock(&arena->lock);
    size_t unit = unit_of(arena, block);
    uint8_t use = arena->head->table[unit];
    size_t count = (block->size + sizeof(struct block)) / UNIT_BYTES;
    block->saved = 0;
    in_order();
    if (use == RUN)
        give_units(arena, unit, count);
    else
        give_small(arena, (unsigned)use - 1, block);
    pthread_mutex_unlock(&arena->lock);
}

void arena_give(struct arena *arena, struct block *block)
{
    if (!arena->frozen)
        arena_release(arena, block);
}

struct block *arena_renew(struct arena *arena, struct block *block, size_t size)
{
    size_t held = block_holds(block), begin = block->begin % 8;
    uint64_t moved = block->begin - begin, first = block->saved >> 32, last = (uint32_t)block->saved;
    struct block *other = arena_take(arena, block->owner, block->kind, size + 8);
    if (!other)
        return NULL;
    memcpy(other->data + begin, block->data + block->begin, held);
    other->begin = begin;
    other->end = begin + held;
    other->serial = block->serial;
    if (block->saved) {
        arena_change(arena, &other->saved, (first - moved) << 32 | (last - moved));
        arena_change(arena, &block->saved, 0);
        arena_commit(arena);
    }
    arena_give(arena, block);
    return other;
}

struct block *arena_grow(struct arena *arena, struct block *block, size_t size)
{
    if (size + 8 <= block->size)
        return block;
    struct block *larger = size < 2 * (size_t)block->size ? arena_renew(arena, block, 2 * (size_t)block->size) : NULL;
    return larger ? larger : arena_renew(arena, block, size);
}

/* ---- changes that outlive a process ---------------------------------------------- */

struct block *arena_block(const struct arena *arena, uint64_t offset)
{
    size_t unit = offset / UNIT_BYTES;
    while (arena->head->table[unit] == RUN_ON)
        unit--;
    uint8_t use = arena->head->table[unit];
    size_t at = use == RUN ? 0 : offset % UNIT_BYTES / class_size(use - 1u) * class_size(use - 1u);
    return (struct block *)(unit_at(arena, unit) + at);
}

bool arena_outlives(const struct arena *arena)
{
    return arena->memfd >= 0;
}

void arena_freeze(struct arena *arena)
{
    arena->frozen = true;
}

uint64_t arena_offset(const struct arena *arena, const void *at)
{
    return (uint64_t)((const char *)at - (const char *)arena->head);
}

void *arena_at(const struct arena *arena, uint64_t offset)
{
    return (char *)arena->head + offset;
}

void arena_change(struct arena *arena, uint64_t *word, uint64_t value)
{
    if (*word != value)
        arena->head->changes[arena->n_changes++] = (struct change){arena_offset(arena, word), value};
}

static void apply(struct head *head)
{
    for (uint64_t i = 0; i < head->n_changes; i++)
        *(uint64_t *)((char *)head + head->changes[i].offset) = head->changes[i].value;
    in_order();
    head->n_changes = 0;
    in_order();
}

void arena_commit(struct arena *arena)
{
    in_order();
    arena->head->n_changes = arena->n_changes;
    in_order();
    apply(arena->head);
    arena->n_changes = 0;
}

static uint64_t layout(void)
{
    const size_t parts[] = {sizeof(struct head), sizeof(struct block), UNIT_BYTES, N_CLASSES};
    uint64_t sum = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        sum = (sum ^ parts[i]) * UINT64_C(1099511628211);
    return sum;
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

/* One that was begun and has no magic yet is as good as empty. */
static int map_again(struct arena *arena, size_t size)
{
    if (size < 2 * (size_t)UNIT_BYTES || size % UNIT_BYTES)
        return -EPROTO;
    arena->size = size;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, arena->memfd, 0);
    if (memory == MAP_FAILED)
        return -errno;
    arena->head = memory;
    const struct head *head = arena->head;
    if (head->magic && (head->magic != magic || head->layout != layout() ||
                        head->n_units != size / UNIT_BYTES || head->n_changes > CHANGES))
        return -EPROTO;
    for (uint64_t i = 0; i < head->n_changes; i++)
        if (head->changes[i].offset > size - sizeof(uint64_t) || head->changes[i].offset % sizeof(uint64_t))
            return -EPROTO;
    return 0;
}

static int map(struct arena *arena)
{
    struct stat st;
    if (arena->memfd >= 0 && fstat(arena->memfd, &st) < 0)
        return -errno;
    return arena->memfd >= 0 && st.st_size ? map_again(arena, (size_t)st.st_size) : map_memory(arena);
}

static void begin(struct head *head, size_t n_units)
{
    if (getrandom(head->pattern, PATTERN_BYTES, GRND_NONBLOCK) < 0)
        head->pattern[0] = (unsigned char)getpid();
    memset(head->table, RUN_ON, head_units(n_units));
    for (int i = 0; i < PATTERN_BYTES; i++)
        head->pattern[i] |= 0xf8;
    head->n_units = n_units;
    head->layout = layout();
    in_order();
    head->magic = magic;
}

int arena_new(int memfd, struct arena **ret_arena)
{
    struct arena *arena = calloc(1, sizeof *arena);
    if (!arena)
        return -ENOMEM;
    arena->memfd = memfd;
    pthread_mutex_init(&arena->lock, NULL);
    int rc = map(arena);
    size_t n_units = arena->size / UNIT_BYTES;
    arena->live = calloc(n_units, sizeof *arena->live);
    arena->warm = calloc(n_units, sizeof *arena->warm);
    if (rc == 0 && (!arena->live || !arena->warm))
        rc = -ENOMEM;
    if (rc < 0) {
        arena_free(arena);
        return rc;
    }
    arena->lowest = head_units(n_units);
    if (arena->head->magic) {
        apply(arena->head);
        arena_sweep(arena);
    } else {
        begin(arena->head, n_units);
    }
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
