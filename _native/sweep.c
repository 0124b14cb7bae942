/* An arena that another process left: what is saved in it stays, the rest is free. */
#include "arena_parts.h"

static bool is_saved(const struct block *block)
{
    return block->saved != 0;
}

/* Nothing in it is trusted: a block of `size` bytes, of which something is saved. */
static bool is_sound(const struct block *block, size_t size)
{
    uint64_t first = block->saved >> 32, last = (uint32_t)block->saved;
    return is_saved(block) && block->size == size - sizeof *block && first < last && last <= block->size;
}

static size_t run_length(const struct block *block)
{
    return (block->size + sizeof *block) / UNIT_BYTES;
}

/* The bytes of the block at the beginning of a run; 0: it isn't one. */
static size_t run_bytes(const struct head *head, size_t unit, const struct block *block)
{
    size_t count = run_length(block);
    if (count == 0 || count > head->n_units - unit)
        return 0;
    for (size_t next = unit + 1; next < unit + count; next++)
        if (head->table[next] != RUN_ON)
            return 0;
    return count * UNIT_BYTES;
}

/* Whether the block is to be kept: for what is saved of it, or for a read into it. */
static bool is_live(struct arena *arena, const struct block *block, size_t size)
{
    uint64_t window = arena->head->reading.window, at = arena_offset(arena, block);
    if (is_sound(block, size))
        return true;
    return window && window >= at && window < at + size && block->size == size - sizeof *block;
}

static size_t sweep_class(struct arena *arena, size_t unit, unsigned class)
{
    size_t size = class_size(class);
    arena->live[unit] = 0;
    for (size_t at = 0; at < UNIT_BYTES; at += size) {
        struct block *block = (struct block *)(unit_at(arena, unit) + at);
        arena->live[unit] += is_live(arena, block, size);
    }
    for (size_t at = 0; arena->live[unit] && at < UNIT_BYTES; at += size) {
        struct block *block = (struct block *)(unit_at(arena, unit) + at);
        if (!is_live(arena, block, size)) {
            block->saved = 0;
            arena_put_spare(arena, class, block);
        }
    }
    return arena->live[unit] ? 1 : 0;
}

/* The units from `unit` on that stay, 0: it is free. */
static size_t sweep_unit(struct arena *arena, size_t unit)
{
    uint8_t use = arena->head->table[unit];
    if (use && use <= N_CLASSES)
        return sweep_class(arena, unit, use - 1u);
    const struct block *block = (const struct block *)unit_at(arena, unit);
    size_t bytes = use == RUN ? run_bytes(arena->head, unit, block) : 0;
    return bytes && is_live(arena, block, bytes) ? bytes / UNIT_BYTES : 0;
}

/* Free what nothing is saved of. */
void arena_sweep(struct arena *arena)
{
    size_t n_units = arena->head->n_units, unit = head_units(n_units), freed = 0;
    while (unit < n_units) {
        size_t kept = sweep_unit(arena, unit);
        if (kept == 0) {
            arena->head->table[unit++] = 0;
            freed++;
            continue;
        }
        if (freed)
            arena_discard(arena, unit - freed, freed);
        freed = 0;
        unit += kept;
    }
    if (freed)
        arena_discard(arena, unit - freed, freed);
}

static bool is_used(uint8_t use)
{
    return use == RUN || (use && use <= N_CLASSES);
}

void arena_each(struct arena *arena, arena_visit *visit, void *context)
{
    for (size_t unit = head_units(arena->head->n_units); unit < arena->head->n_units; unit++) {
        uint8_t use = arena->head->table[unit];
        size_t step = use == RUN ? UNIT_BYTES : is_used(use) ? class_size(use - 1u) : UNIT_BYTES;
        for (size_t at = 0; is_used(arena->head->table[unit]) && at < UNIT_BYTES; at += step) {
            struct block *block = (struct block *)(unit_at(arena, unit) + at);
            if (!is_saved(block))
                continue;
            block->begin = block->saved >> 32;
            block->end = (uint32_t)block->saved;
            visit(context, block);
        }
    }
}
