/* The memory of all bytes that were read and not yet written; arena.c has the theory. */
#ifndef SYSUP_ARENA_H
#define SYSUP_ARENA_H
#include <stddef.h>
#include <stdint.h>

struct arena;

/* A piece of it. `begin` and `end` say what of `data` is pending. */
struct block {
    uint64_t owner; /* id of the stream or sink; 0: free */
    uint32_t kind;  /* enum pending_kind */
    uint32_t size;  /* of data */
    uint64_t begin;
    uint64_t end;
    char data[];
};

enum {
    UNIT_BYTES = 1 << 18,
    BLOCK_LEAST = 256 - sizeof(struct block),
    BLOCK_UNIT = UNIT_BYTES - sizeof(struct block), /* a block that fills a unit */
};

/* `memfd` -1: memory of this process alone. */
int arena_new(int memfd, struct arena **ret_arena);
void arena_free(struct arena *arena);
/* A block of at least `size` bytes; NULL: no memory. Any thread, as all of these. */
struct block *arena_take(struct arena *arena, uint64_t owner, uint32_t kind, size_t size);
void arena_give(struct arena *arena, struct block *block); /* NULL: nothing */
/* The block, or another with its content and room for `size` bytes of it; NULL: no memory,
 * it stays. What is before `begin` is dropped, and where `begin` is within 8 bytes kept. */
struct block *arena_grow(struct arena *arena, struct block *block, size_t size);

static inline size_t block_holds(const struct block *block)
{
    return block ? (size_t)(block->end - block->begin) : 0;
}

#endif
