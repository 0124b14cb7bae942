/* Messages to a socket, of which the next process can tell whether they were sent, should
 * this one be killed: their headers lie in the arena, and the kernel writes into each how
 * much of it was sent, in the call itself, so that no signal comes between. */
#include "pump.h"

#include <errno.h>
#include <stdatomic.h>

#define UNSENT UINT32_MAX

static struct mmsghdr *headers(const struct sink *sink)
{
    return (struct mmsghdr *)sink->sent->data;
}

static int take_headers(struct sink *sink)
{
    if (sink->sent)
        return 0;
    uint64_t owner = block_of(sink->saved)->owner;
    size_t size = MESSAGES * sizeof(struct mmsghdr);
    struct block *block = arena_take(sink->target.pump->arena, owner, BLOCK_SENT, size);
    if (!block)
        return -ENOMEM;
    block->end = size;
    block_keep(block);
    sink->sent = block;
    return 0;
}

int send_noted(struct sink *sink, int fd, const struct msghdr *messages, int n, uint64_t note)
{
    int rc = take_headers(sink);
    if (rc < 0)
        return rc;
    struct mmsghdr *sent = headers(sink);
    for (int i = 0; i < n; i++)
        sent[i] = (struct mmsghdr){.msg_hdr = messages[i], .msg_len = UNSENT};
    sink->saved->size = note;
    sink->saved->inode = 0;
    atomic_signal_fence(memory_order_seq_cst);
    sink->saved->writing = (uint64_t)n;
    atomic_signal_fence(memory_order_seq_cst);
    rc = sendmmsg(fd, sent, (unsigned)n, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (rc < 0) {
        rc = -errno;
        sink->saved->writing = 0;
    }
    return rc;
}

bool was_sent(const struct sink *sink, unsigned n)
{
    return sink->sent && n < sink->saved->writing && n < MESSAGES && headers(sink)[n].msg_len != UNSENT;
}

size_t sent_length(const struct sink *sink, unsigned n)
{
    return headers(sink)[n].msg_len;
}
