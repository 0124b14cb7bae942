/* Messages to a socket, of which the next process can tell whether they were sent, should
 * this one be killed: their headers lie in the arena, and the kernel writes into each how
 * much of it was sent, in the call itself, so that no signal comes between.
 *
 * And the journal's queue, when it is full. Waking up for each datagram that is taken would
 * cost more than the datagram; so where the queue is long enough to live on for a while,
 * we pause: such that about half of it is left when we come back. */
#include "pump.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include <linux/sockios.h>

#define UNSENT UINT32_MAX

static const int64_t pause_least = MILLISECOND;
static const int64_t pause_most = 8 * MILLISECOND;
static const int64_t retry_pause = 10 * MILLISECOND;

/* ---- messages -------------------------------------------------------------------- */

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

/* ---- a full queue ---------------------------------------------------------------- */

static int unread_bytes(const struct sink *sink)
{
    int n = 0;
    ioctl(sink->journal.fd, SIOCOUTQ, &n);
    return n;
}

void send_ends(struct sink *sink)
{
    if (sink->journal.watched)
        pump_unwatch(sink->target.pump, sink->journal.fd);
    sink->journal.watched = false;
}

void send_begins(struct sink *sink)
{
    struct journal *journal = &sink->journal;
    if (!journal->pause)
        journal->pause = pause_least;
    if (!journal->unread)
        return;
    int left = unread_bytes(sink);
    if (left < journal->unread / 4)
        journal->pause /= 2;
    else if (left > journal->unread / 2 && journal->pause < pause_most)
        journal->pause += journal->pause / 2;
    if (journal->pause < pause_least / 8)
        journal->pause = pause_least / 8;
    journal->unread = 0;
}

static int wait_for_room(struct sink *sink)
{
    struct journal *journal = &sink->journal;
    journal->unread = unread_bytes(sink);
    if (journal->pause >= pause_least) {
        send_ends(sink);
        sink_schedule(sink, clock_ns() + journal->pause);
    } else if (!journal->watched) {
        journal->watched = pump_watch(sink->target.pump, journal->fd, EPOLLOUT, &sink->target) == 0;
        if (!journal->watched)
            sink_schedule(sink, clock_ns() + retry_pause);
    }
    return -EAGAIN;
}

int send_failed(struct sink *sink, int error)
{
    if (error == EAGAIN)
        return wait_for_room(sink);
    send_ends(sink);
    if (error == ENOBUFS) {
        sink_schedule(sink, clock_ns() + retry_pause);
        return -EAGAIN;
    }
    return -error;
}
