/* What the parts of the pump share; native.h is what Python sees.
 *
 *   pump.c     the thread: one epoll loop, pauses
 *   target.c   requests in, events out
 *   stream.c   a pipe: when it is read, what is remembered of it, how it ends
 *   reading.c  one read
 *   lines.c    what it brings, cut into lines, put into the batch of its sink
 *   outlet.c   what is done to lines: left out, counted, stamped, put in a form
 *   select.c   patterns of lines
 *   form.c     times and JSON
 *   tap.c      a copy of what is read, for whoever looks on
 *   sink.c     a batch and the state of where it goes; who waits for it
 *   file.c     a destination: a file; or a borrowed descriptor
 *   rotate.c   its backups
 *   written.c  a write to it that was cut off
 *   journal.c  a destination: systemd's journal
 *   queue.c    a destination: a thread of Python
 *   send.c     messages to sockets
 *   arena.c    the memory of batches and unfinished lines
 *   sweep.c    what another process left in it ...
 *   restore.c  ... and who takes that up
 *
 * The life of a byte: read(2) puts it straight into its sink's batch, behind a gap as
 * long as the stream's unfinished line; if a newline came, the unfinished line fills the
 * gap and the batch grows up to that newline; what follows the newline becomes the
 * stream's unfinished line. So whole lines are all a batch ever holds, no line is copied
 * but the one that a read has cut, and a stream at rest owns no buffer. Where something
 * is to be done to each line, it is copied once, on its way into the batch.
 *
 * Threads. Everything here belongs to the pump's thread, but for fields that say "under
 * the lock", atomics, and the locks of queue, arena, tap and a file's names. No lock is
 * held during I/O, so a caller never waits for a disk (but for the renaming of backups,
 * which is what a file's lock is for). A caller reaches the pump by bits in a target's
 * `requests` and the wake eventfd; the pump reaches its owner by a target's one `event`,
 * its `notices` and the events eventfd. Both queues are linked through the targets
 * themselves: telling needs no memory and cannot fail. */
#ifndef SYSUP_PUMP_H
#define SYSUP_PUMP_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "sink.h"
#include "stream.h"
#include "target.h"

/* What another process left in the arena. */
struct left_stream {
    uint64_t id;
    struct block *saved; /* NULL: taken up */
    struct block *partial;
    struct block *raw;
};

struct left_sink {
    uint64_t id;
    struct block *saved; /* NULL: taken up */
    struct block *batch;
    struct block *sent;
};

struct left {
    struct left_stream *streams; /* by id */
    struct left_sink *sinks;     /* by id */
    size_t n_streams;
    size_t n_sinks;
};

struct pump {
    pthread_t thread;
    int epoll;
    int wake;   /* eventfd: requests wait */
    int events; /* eventfd: events wait */
    int memfd;  /* of the arena, or -1 */
    struct arena *arena;
    struct left left;
    struct tap tap;
    _Atomic uint64_t turns;
    pthread_mutex_t lock;
    struct target *asked, **asked_last;
    struct target *told, **told_last;
    struct target *targets;
    bool stop_asked;
    bool park_asked;
    int64_t stop_at;
    bool ended;
    pthread_cond_t end;
    /* the thread's own */
    bool stopping;
    uint64_t lost;         /* bytes that pump_stop left unwritten */
    int64_t now;           /* CLOCK_MONOTONIC, ns, at the turn's beginning */
    struct sink *agenda;
    int64_t next_due;      /* the earliest deadline on the agenda */
    struct block *scratch; /* WORKED_BYTES */
    /* what this turn read, for the pooling of small writes */
    uint32_t turn_reads;
    uint64_t turn_bytes;
    uint32_t turn_fullest; /* of its reads, in FULLNESS parts of what it might have been */
    int64_t pause;         /* 0: no pooling */
};

/* restore.c */
int pump_restore(struct pump *pump);
/* What is left of a stream, and of a sink, becomes this one's; false: nothing is. */
bool left_stream(struct stream *stream);
bool left_sink(struct sink *sink, const char *key);
void left_again(struct stream *stream); /* it could not be added */
void left_free(struct pump *pump);

#endif
