/* The memory of all bytes that were read and not yet written; arena.c has the theory. */
#ifndef SYSUP_ARENA_H
#define SYSUP_ARENA_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct arena;

/* A piece of it. `begin` and `end` say what of `data` is in use. What outlives the process
 * is what `saved` says of it: nothing, where that is 0. */
struct block {
    uint64_t owner; /* id of the stream or sink */
    uint32_t kind;  /* enum pending_kind or block_kind */
    uint32_t size;  /* of data */
    uint64_t begin;
    uint64_t end;
    uint64_t saved;  /* see block_range */
    uint64_t serial; /* of the taking: older ones have lower numbers */
    char data[];
};

enum {
    UNIT_BYTES = 1 << 18,
    BLOCK_LEAST = 256 - sizeof(struct block),
    BLOCK_UNIT = UNIT_BYTES - sizeof(struct block), /* a block that fills a unit */
};

/* Beside those of enum pending_kind. */
enum block_kind {
    BLOCK_RAW = 16,  /* what a read brought a stream whose lines are looked at one by one */
    BLOCK_STREAM,    /* struct saved_stream */
    BLOCK_SINK,      /* struct saved_sink */
    BLOCK_LABEL,     /* struct label */
    BLOCK_SENT,      /* what sendmmsg(2) says of it */
};

/* The read that is under way: a process that dies of SIGKILL does not say whether it was.
 * It shows in one of three ways. The kernel notes where it ends, as splice(2) does. Or a
 * pattern is put into the window, to be found or not: at its end, where a read brings all
 * or nothing; or in all of it, and then the bytes of the pattern that are left at its end
 * did not come. */
struct reading {
    uint64_t window; /* offset of the bytes it fills; 0: no read is under way */
    uint64_t stream;
    uint64_t before; /* bytes that the stream had brought */
    uint64_t length;
    uint64_t filled; /* of the window's bytes, the last: PATTERN_BYTES, or all; 0: see `end` */
    int64_t end;     /* offset of where it ended; 0: nobody has said so yet */
};

enum { PATTERN_BYTES = 16 };

/* `memfd` -1: memory of this process alone. An empty one is made an arena; what another
 * process left in one is taken over; -EPROTO: it is none, or of another version. */
int arena_new(int memfd, struct arena **ret_arena);
void arena_free(struct arena *arena);
bool arena_outlives(const struct arena *arena);
/* From now on nothing that is saved is given back, but by arena_release. */
void arena_freeze(struct arena *arena);
/* A block of at least `size` bytes, nothing of it saved; NULL: no memory. Any thread. */
struct block *arena_take(struct arena *arena, uint64_t owner, uint32_t kind, size_t size);
void arena_give(struct arena *arena, struct block *block); /* NULL: nothing; any thread */
void arena_release(struct arena *arena, struct block *block);
/* The block, or another with its content (and as much of it saved) and room for `size`
 * bytes of it; NULL: no memory, it stays. What is before `begin` is dropped, and where
 * `begin` is within 8 bytes kept. */
struct block *arena_grow(struct arena *arena, struct block *block, size_t size);
/* The same, always another. */
struct block *arena_renew(struct arena *arena, struct block *block, size_t size);

/* Changes of words in the arena that a process's death leaves all done or all undone: note
 * them, at most CHANGES, then commit. The pump's thread alone. */
enum { CHANGES = 24 };
void arena_change(struct arena *arena, uint64_t *word, uint64_t value);
void arena_commit(struct arena *arena);

/* Of the pump's thread too. */
struct reading *arena_reading(struct arena *arena);
/* Open it, after filling the window. */
void arena_expect(struct arena *arena, const struct reading *reading, char *window);
/* It brought so much: with nothing it is closed. */
void arena_got(struct arena *arena, size_t length);
/* Of a read that a process has died in: the bytes that came. */
size_t arena_found(const struct arena *arena);

uint64_t arena_offset(const struct arena *arena, const void *at);
void *arena_at(const struct arena *arena, uint64_t offset);
/* The block that these bytes belong to. */
struct block *arena_block(const struct arena *arena, uint64_t offset);
/* Every block of which something is saved; begin and end are set by that. */
typedef void arena_visit(void *context, struct block *block);
void arena_each(struct arena *arena, arena_visit *visit, void *context);

static inline size_t block_holds(const struct block *block)
{
    return block ? (size_t)(block->end - block->begin) : 0;
}

static inline struct block *block_of(const void *data)
{
    return (struct block *)((char *)data - offsetof(struct block, data));
}

/* The value of `saved` for all that is in use now. */
static inline uint64_t block_range(const struct block *block)
{
    return block->begin < block->end ? block->begin << 32 | block->end : 0;
}

/* At once, where nothing else changes with it. */
static inline void block_keep(struct block *block)
{
    atomic_signal_fence(memory_order_seq_cst);
    block->saved = block_range(block);
    atomic_signal_fence(memory_order_seq_cst);
}

static inline void block_save(struct arena *arena, struct block *block)
{
    arena_change(arena, &block->saved, block_range(block));
}

#endif
