/* The arena against a model: blocks keep their bytes, are aligned and apart, memory comes
 * back, and whoever has the memfd sees what is pending. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arena.h"
#include "check.h"
#include "native.h"

enum { SLOTS = 400, STEPS = 60000 };

struct slot {
    struct block *block;
    unsigned char fill;
};

static unsigned draw(unsigned *seed, unsigned below)
{
    *seed = *seed * 1103515245 + 12345;
    return (*seed >> 8) % below;
}

static size_t draw_size(unsigned *seed)
{
    unsigned kind = draw(seed, 10);
    return kind < 6 ? 1 + draw(seed, 600) : kind < 9 ? 1 + draw(seed, 70000) : 1 + draw(seed, 900000);
}

static void fill(struct slot *slot, size_t length, unsigned char byte)
{
    slot->fill = byte;
    slot->block->begin = 0;
    slot->block->end = length;
    memset(slot->block->data, byte, length);
    slot->block->saved = block_range(slot->block);
}

static void check(const struct slot *slot)
{
    const struct block *block = slot->block;
    for (uint64_t at = block->begin; at < block->end; at += 97)
        CHECK((unsigned char)block->data[at] == slot->fill);
    CHECK(block->end == block->begin || (unsigned char)block->data[block->end - 1] == slot->fill);
}

static int64_t resident(int memfd)
{
    struct stat st;
    CHECK(fstat(memfd, &st) == 0);
    return (int64_t)st.st_blocks * 512;
}

static void step(struct arena *arena, struct slot *slot, unsigned *seed)
{
    size_t size = draw_size(seed);
    if (!slot->block) {
        slot->block = arena_take(arena, 1 + draw(seed, 1000), PENDING_LINE, size);
        CHECK(slot->block && slot->block->size >= size && (uintptr_t)slot->block % 32 == 0);
        fill(slot, size, (unsigned char)draw(seed, 256));
    } else if (draw(seed, 3)) {
        check(slot);
        slot->block->begin += draw(seed, (unsigned)block_holds(slot->block) + 1);
        slot->block->saved = block_range(slot->block);
        size_t held = block_holds(slot->block);
        uint64_t within = slot->block->begin % 8;
        struct block *larger = arena_grow(arena, slot->block, held + size);
        CHECK(larger && block_holds(larger) == held);
        CHECK(larger == slot->block || larger->begin == within);
        CHECK(larger->size - larger->end >= size || larger->size - held >= size);
        slot->block = larger;
        check(slot);
    } else {
        check(slot);
        arena_give(arena, slot->block);
        slot->block = NULL;
    }
}

struct found {
    struct block *blocks[SLOTS];
    size_t n;
};

static void note(void *context, struct block *block)
{
    struct found *found = context;
    CHECK(found->n < SLOTS);
    found->blocks[found->n++] = block;
}

static size_t count_saved(struct arena *arena)
{
    static struct found found;
    found.n = 0;
    arena_each(arena, note, &found);
    return found.n;
}

/* Map it anew, as another process does, and find the blocks where they were. */
static struct arena *take_over(struct arena *arena, int memfd, struct slot *slots)
{
    struct arena *heir;
    CHECK(arena_new(memfd, &heir) == 0);
    size_t saved = 0;
    for (int i = 0; i < SLOTS; i++) {
        if (!slots[i].block)
            continue;
        if (block_holds(slots[i].block) == 0) { /* it has no right to memory any more */
            slots[i].block = NULL;
            continue;
        }
        saved++;
        slots[i].block = arena_at(heir, arena_offset(arena, slots[i].block));
        check(&slots[i]);
    }
    CHECK(count_saved(heir) == saved);
    arena_free(arena);
    return heir;
}

static void test_model(int memfd)
{
    static struct slot slots[SLOTS];
    struct arena *arena;
    unsigned seed = 7;
    CHECK(arena_new(memfd, &arena) == 0);
    for (int i = 0; i < STEPS; i++) {
        step(arena, &slots[draw(&seed, SLOTS)], &seed);
        if (memfd >= 0 && i % (STEPS / 20) == 0)
            arena = take_over(arena, memfd, slots);
    }
    for (int i = 0; i < SLOTS; i++) {
        if (slots[i].block) {
            check(&slots[i]);
            arena_give(arena, slots[i].block);
            slots[i].block = NULL;
        }
    }
    if (memfd >= 0) { /* all but a few units went back to the system */
        CHECK(count_saved(arena) == 0);
        CHECK(resident(memfd) < 20 * UNIT_BYTES);
    }
    arena_free(arena);
}

/* It outlives the process that wrote it: what was saved. */
static void test_another_process(void)
{
    int memfd = memfd_create("arena", MFD_CLOEXEC);
    struct arena *arena;
    pid_t pid = fork();
    CHECK(memfd >= 0 && pid >= 0);
    if (pid == 0) {
        CHECK(arena_new(memfd, &arena) == 0);
        struct block *line = arena_take(arena, 5, PENDING_LINE, 3);
        memcpy(line->data, "abc", 3);
        line->end = 3;
        block_save(arena, line);
        struct block *batch = arena_take(arena, 6, PENDING_BATCH, 1000000);
        memset(batch->data, 'x', 900000);
        batch->end = 900000;
        batch->begin = 1;
        block_save(arena, batch);
        arena_commit(arena);
        line->end = 2;
        block_save(arena, line); /* and no commit */
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    static struct found found;
    CHECK(arena_new(memfd, &arena) == 0);
    arena_each(arena, note, &found);
    CHECK(found.n == 2);
    CHECK(found.blocks[0]->owner == 5 && found.blocks[0]->kind == PENDING_LINE);
    CHECK(block_holds(found.blocks[0]) == 3 && memcmp(found.blocks[0]->data, "abc", 3) == 0);
    CHECK(found.blocks[1]->owner == 6 && found.blocks[1]->kind == PENDING_BATCH);
    CHECK(found.blocks[1]->begin == 1 && found.blocks[1]->end == 900000);
    arena_free(arena);
    close(memfd);
}

static void test_no_arena(void)
{
    struct arena *arena;
    int memfd = memfd_create("other", MFD_CLOEXEC);
    CHECK(memfd >= 0 && write(memfd, "something", 9) == 9);
    CHECK(arena_new(memfd, &arena) == -EPROTO);
    CHECK(ftruncate(memfd, 8 * UNIT_BYTES) == 0);
    CHECK(arena_new(memfd, &arena) == -EPROTO);
    close(memfd);
}

/* What a process that takes the arena over finds of the read that was under way. */
static size_t found_by_heir(int memfd)
{
    struct arena *heir;
    CHECK(arena_new(memfd, &heir) == 0);
    size_t found = arena_found(heir);
    arena_free(heir);
    return found;
}

/* Whatever the bytes are, where a read brings all or the kernel says how many; text, where
 * nobody says it. */
static void test_reading(void)
{
    enum { LENGTH = 5000, FEW = 7 };
    int memfd = memfd_create("arena", MFD_CLOEXEC), ends[2];
    struct arena *arena;
    char pattern[LENGTH];
    CHECK(memfd >= 0 && pipe2(ends, O_CLOEXEC) == 0 && arena_new(memfd, &arena) == 0);
    struct block *block = arena_take(arena, 5, PENDING_LINE, LENGTH);
    block->end = 1;
    block_keep(block); /* or the heir frees it where no read is under way */
    struct reading blind = {.stream = 9, .length = LENGTH, .filled = LENGTH};
    arena_expect(arena, &blind, block->data);
    memcpy(pattern, block->data, LENGTH);
    CHECK(found_by_heir(memfd) == 0);
    memset(block->data, 'x', FEW);
    CHECK(found_by_heir(memfd) == FEW);
    arena_got(arena, FEW + 1); /* it said so */
    CHECK(found_by_heir(memfd) == FEW + 1);
    arena_got(arena, 0);
    CHECK(found_by_heir(memfd) == 0);

    struct reading all = {.stream = 9, .length = LENGTH, .filled = PATTERN_BYTES};
    arena_expect(arena, &all, block->data);
    memcpy(block->data, pattern, LENGTH - PATTERN_BYTES);
    CHECK(found_by_heir(memfd) == 0);
    memcpy(block->data + LENGTH - PATTERN_BYTES, pattern + LENGTH - PATTERN_BYTES, PATTERN_BYTES - 1);
    block->data[LENGTH - 1] = 'x';
    CHECK(found_by_heir(memfd) == LENGTH);
    arena_got(arena, 0);

    struct reading moved = {.stream = 9, .length = LENGTH};
    arena_expect(arena, &moved, block->data);
    CHECK(found_by_heir(memfd) == 0);
    CHECK(write(ends[1], pattern, FEW) == FEW);
    CHECK(splice(ends[0], NULL, memfd, &arena_reading(arena)->end, LENGTH, SPLICE_F_NONBLOCK) == FEW);
    CHECK(memcmp(block->data, pattern, FEW) == 0 && found_by_heir(memfd) == FEW);
    arena_free(arena);
    close(ends[0]);
    close(ends[1]);
    close(memfd);
}

int main(void)
{
    test_model(-1);
    int memfd = memfd_create("arena", MFD_CLOEXEC);
    test_model(memfd);
    close(memfd);
    test_another_process();
    test_no_arena();
    test_reading();
    return 0;
}
