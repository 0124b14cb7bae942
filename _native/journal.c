/* A sink that is systemd's journal.
 *
 * Entries (systemd's "Native Journal Protocol"): a datagram a line, its fields one after
 * the other: the label of the stream, a priority, the line. None is copied together: each
 * is a vector into the batch, and many go by one sendmmsg(2). What doesn't fit into a
 * datagram goes as a sealed memfd.
 *
 * Lines (the protocol behind sd_journal_stream_fd(3)): a stream socket with a header that
 * names the source; the process that a line is of is told by credentials, unix(7), which
 * takes privilege.
 *
 * journald reads both in its own time. It may be slower than we are, be stopped or start
 * anew; its sockets belong to systemd and stay. So a send never waits: when the queue is
 * full the sink is BUSY. */
#include "pump.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    ENTRIES = MESSAGES,
    PARTS = 4,     /* label, priority, line, newline */
    RUNS = 64,     /* of one sendmsg of lines ... */
    RUN_BYTES = 1 << 15, /* ... and their bytes */
    ENTRIES_BUFFER = 8 << 20,
    LINES_BUFFER = 1 << 20,
    LARGE_BYTES = 1 << 16,
};

#define PRIORITY(n) "PRIORITY=" #n "\nMESSAGE="
#define PARTIAL(n) "PRIORITY=" #n "\nSYSUP_PARTIAL=1\nMESSAGE="
static const char *const priorities[2][8] = {
    {PRIORITY(0), PRIORITY(1), PRIORITY(2), PRIORITY(3), PRIORITY(4), PRIORITY(5), PRIORITY(6), PRIORITY(7)},
    {PARTIAL(0), PARTIAL(1), PARTIAL(2), PARTIAL(3), PARTIAL(4), PARTIAL(5), PARTIAL(6), PARTIAL(7)},
};

/* ---- reading the batch ----------------------------------------------------------- */

/* A place in the batch: a record, and how much of it is behind us. */
struct cursor {
    size_t at;            /* of the record's first byte that is not read yet */
    size_t end;           /* of the record */
    struct record record; /* as it was when the cursor came to it */
};

static size_t next_record(size_t end)
{
    return (end + 7) / 8 * 8;
}

/* False: there is none. */
static bool enter_record(const struct sink *sink, struct cursor *cursor, size_t at)
{
    if (at >= sink->batch->end)
        return false;
    memcpy(&cursor->record, sink->batch->data + at, sizeof cursor->record);
    cursor->at = at + sizeof cursor->record;
    cursor->end = cursor->at + cursor->record.length;
    return true;
}

static bool enter_first(const struct sink *sink, struct cursor *cursor)
{
    bool found = enter_record(sink, cursor, sink->batch->begin);
    cursor->at += sink->skip;
    return found;
}

/* The batch begins where the cursor is: at a record, of which some bytes may be gone. */
static void begin_at(struct sink *sink, const struct cursor *cursor)
{
    struct block *batch = sink->batch;
    size_t begin = next_record(cursor->end);
    sink->skip = 0;
    if (cursor->at < cursor->end) {
        size_t first = cursor->end - cursor->record.length;
        begin = first - sizeof cursor->record;
        sink->skip = cursor->at - first;
    }
    if (begin > batch->end)
        begin = batch->end;
    sink_took(sink, begin - batch->begin);
}

/* ---- entries --------------------------------------------------------------------- */

struct entry {
    struct iovec parts[PARTS];
    int n_parts;
    struct cursor after;
};

/* "<N>", which is taken off; else the label's. */
static int priority_of(const struct label *label, const char **line, size_t *length)
{
    const char *text = *line;
    if (!(label->flags & OUTLET_LEVEL_PREFIX) || *length < 3 || text[0] != '<' || text[2] != '>' ||
        text[1] < '0' || text[1] > '7')
        return label->priority;
    *line += 3;
    *length -= 3;
    return text[1] - '0';
}

static struct iovec part(const void *data, size_t length)
{
    return (struct iovec){(void *)data, length};
}

/* The next line. */
static void read_entry(const struct sink *sink, struct cursor *cursor, struct entry *entry)
{
    const struct label *label = arena_at(sink->target.pump->arena, cursor->record.label);
    const char *line = sink->batch->data + cursor->at;
    size_t left = cursor->end - cursor->at;
    const char *newline = memchr(line, '\n', left);
    size_t length = newline ? (size_t)(newline - line) : left;
    bool partial = !newline && cursor->record.flags & RECORD_PARTIAL;
    cursor->at += length + (newline != NULL);
    int priority = priority_of(label, &line, &length);
    const char *head = priorities[partial][priority];
    entry->parts[0] = part(label->data, label->length);
    entry->parts[1] = part(head, strlen(head));
    entry->parts[2] = part(line, length + (newline != NULL));
    entry->parts[3] = part("\n", 1);
    entry->n_parts = newline ? 3 : 4;
    entry->after = *cursor;
}

static int read_entries(const struct sink *sink, struct entry *entries)
{
    struct cursor cursor = {0};
    int n = 0;
    bool more = enter_first(sink, &cursor);
    while (more && n < ENTRIES) {
        if (cursor.at < cursor.end)
            read_entry(sink, &cursor, &entries[n++]);
        else
            more = enter_record(sink, &cursor, next_record(cursor.end));
    }
    return n;
}

static size_t entry_bytes(const struct entry *entry)
{
    size_t whole = 0;
    for (int i = 0; i < entry->n_parts; i++)
        whole += entry->parts[i].iov_len;
    return whole;
}

static int fill_memfd(int memfd, const struct entry *entry)
{
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
    size_t whole = entry_bytes(entry);
    ssize_t n = writev(memfd, entry->parts, entry->n_parts);
    if (n < 0 || (size_t)n != whole || fcntl(memfd, F_ADD_SEALS, seals) < 0)
        return n < 0 ? -errno : -ENOSPC;
    return 0;
}

static int send_memfd(struct sink *sink, int memfd)
{
    union {
        char room[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct msghdr message = {.msg_control = control.room, .msg_controllen = sizeof control.room};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &memfd, sizeof memfd);
    int sent = send_noted(sink, sink->journal.fd, &message, 1, sink->journal.owes_newline);
    return sent < 0 ? sent : 0;
}

/* An entry too large for a datagram. */
static int send_large(struct sink *sink, const struct entry *entry)
{
    int memfd = memfd_create("sysup-entry", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memfd < 0)
        return -errno;
    int rc = fill_memfd(memfd, entry);
    if (rc == 0)
        rc = send_memfd(sink, memfd);
    close(memfd);
    return rc;
}

/* How many of them are sent, at least one; or -errno. */
static int send_entries(struct sink *sink, struct entry *entries, int n)
{
    struct msghdr messages[ENTRIES];
    for (int i = 0; i < n; i++)
        messages[i] = (struct msghdr){.msg_iov = entries[i].parts, .msg_iovlen = (size_t)entries[i].n_parts};
    int sent = send_noted(sink, sink->journal.fd, messages, n, false);
    if (sent >= 0)
        return sent;
    if (sent != -EMSGSIZE && (sent != -ENOBUFS || entry_bytes(entries) < LARGE_BYTES))
        return sent;
    int rc = send_large(sink, &entries[0]);
    return rc < 0 ? rc : 1;
}

static int flush_entries(struct sink *sink)
{
    struct entry entries[ENTRIES];
    send_begins(sink);
    while (sink_holds(sink)) {
        int n = read_entries(sink, entries);
        if (n == 0) { /* empty records alone */
            sink_took(sink, sink_holds(sink));
            break;
        }
        int sent = send_entries(sink, entries, n);
        if (sent == -EINTR)
            continue;
        if (sent < 0)
            return send_failed(sink, -sent);
        begin_at(sink, &entries[sent - 1].after);
    }
    send_ends(sink);
    return 0;
}

/* ---- lines ----------------------------------------------------------------------- */

/* Runs of lines of one process, as many whole ones as the kernel takes all or none of: the
 * bytes of one buffer (af_unix.c, UNIX_SKB_FRAGS_SZ). A line in two parts would be torn if
 * its process was gone before the second, for whose credentials there is nobody then. */
struct runs {
    struct iovec parts[RUNS];
    int n;
    int32_t pid;
};

static void read_runs(const struct sink *sink, struct runs *runs)
{
    struct cursor cursor = {0};
    runs->n = 0;
    if (sink->journal.owes_newline)
        runs->parts[runs->n++] = part("\n", 1);
    bool more = enter_first(sink, &cursor);
    runs->pid = more ? cursor.record.pid : 0;
    size_t room = RUN_BYTES - (size_t)runs->n - 1;
    while (more && cursor.record.pid == runs->pid && runs->n + 2 <= RUNS) {
        const char *data = sink->batch->data + cursor.at;
        size_t length = cursor.end - cursor.at;
        if (length > room) {
            const char *newline = memrchr(data, '\n', room);
            if (newline)
                runs->parts[runs->n++] = part(data, (size_t)(newline + 1 - data));
            else if (runs->n == 0)
                runs->parts[runs->n++] = part(data, room);
            return;
        }
        if (length) {
            runs->parts[runs->n++] = part(data, length);
            if (data[length - 1] != '\n')
                runs->parts[runs->n++] = part("\n", 1);
            room -= length;
        }
        more = enter_record(sink, &cursor, next_record(cursor.end));
    }
}

/* `n` bytes of the runs were sent. */
static void took_runs(struct sink *sink, size_t n)
{
    struct journal *journal = &sink->journal;
    struct cursor cursor = {0};
    if (journal->owes_newline && n) {
        journal->owes_newline = false;
        n--;
    }
    if (!enter_first(sink, &cursor))
        return;
    for (bool more = true; more && n;) {
        size_t length = cursor.end - cursor.at;
        if (n < length) {
            cursor.at += n;
            break;
        }
        n -= length;
        cursor.at = cursor.end;
        if (length && sink->batch->data[cursor.end - 1] != '\n') {
            journal->owes_newline = n == 0;
            n -= n > 0;
        }
        if (n)
            more = enter_record(sink, &cursor, next_record(cursor.end));
    }
    begin_at(sink, &cursor);
}

/* Returns the bytes that were sent, or -errno. */
static ssize_t send_runs(struct sink *sink, struct runs *runs, bool credentials)
{
    union {
        char room[CMSG_SPACE(sizeof(struct ucred))];
        struct cmsghdr align;
    } control = {0};
    struct msghdr message = {.msg_iov = runs->parts, .msg_iovlen = (size_t)runs->n};
    if (credentials && runs->pid > 0) {
        struct ucred ucred = {.pid = runs->pid, .uid = geteuid(), .gid = getegid()};
        message.msg_control = control.room;
        message.msg_controllen = sizeof control.room;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_CREDENTIALS;
        head->cmsg_len = CMSG_LEN(sizeof ucred);
        memcpy(CMSG_DATA(head), &ucred, sizeof ucred);
    }
    int sent = send_noted(sink, sink->journal.fd, &message, 1, sink->journal.owes_newline);
    return sent < 0 ? sent : (ssize_t)sent_length(sink, 0);
}

static int flush_lines(struct sink *sink)
{
    struct runs runs;
    send_begins(sink);
    while (sink_holds(sink) || sink->journal.owes_newline) {
        if (!sink_holds(sink))
            return 0; /* the newline goes before the next line, or at the end */
        read_runs(sink, &runs);
        if (runs.n == 0) {
            sink_took(sink, sink_holds(sink));
            break;
        }
        ssize_t n = send_runs(sink, &runs, sink->journal.credentials);
        if (n == -ESRCH || n == -EPERM) /* it is gone; or we may not */
            n = send_runs(sink, &runs, false);
        if (n == -EINTR)
            continue;
        if (n < 0)
            return send_failed(sink, (int)-n);
        took_runs(sink, (size_t)n);
    }
    send_ends(sink);
    return 0;
}

static int journal_flush(struct sink *sink)
{
    return sink->journal.header ? flush_lines(sink) : flush_entries(sink);
}

/* ---- opening --------------------------------------------------------------------- */

static void enlarge_buffer(int fd, int size)
{
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) < 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
}

static int connect_to(const char *path, int fd, bool lines, const char *header)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, path, strlen(path) + 1);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return -errno;
    if (!lines)
        return 0;
    size_t length = strlen(header);
    ssize_t n = send(fd, header, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    return n < 0 ? -errno : (size_t)n < length ? -EAGAIN : 0;
}

static void journal_close(struct sink *sink)
{
    send_ends(sink);
    if (sink->journal.fd >= 0)
        close(sink->journal.fd);
    sink->journal.fd = -1;
}

/* Another process has died in a send, perhaps: take what it says was sent. */
static void settle(struct sink *sink)
{
    struct entry entries[ENTRIES];
    if (sink->journal.header) {
        sink->journal.owes_newline = sink->saved->size;
        if (was_sent(sink, 0))
            took_runs(sink, sent_length(sink, 0));
    } else {
        int n = read_entries(sink, entries), taken = 0;
        while (taken < n && was_sent(sink, (unsigned)taken))
            taken++;
        if (taken)
            begin_at(sink, &entries[taken - 1].after);
    }
    sink->saved->writing = 0;
}

static int journal_open(struct sink *sink)
{
    struct journal *journal = &sink->journal;
    if (sink->saved->writing && sink->batch)
        settle(sink);
    bool lines = journal->header != NULL;
    int type = (lines ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC | SOCK_NONBLOCK;
    int fd = socket(AF_UNIX, type, 0);
    if (fd < 0)
        return -errno;
    int rc = connect_to(journal->path, fd, lines, journal->header);
    if (rc < 0) {
        close(fd);
        return rc == -EAGAIN ? -EBUSY : rc;
    }
    enlarge_buffer(fd, lines ? LINES_BUFFER : ENTRIES_BUFFER);
    journal_close(sink);
    journal->fd = fd;
    journal->owes_newline = false;
    journal->unread = 0;
    return 0;
}

static void journal_free(struct sink *sink)
{
    arena_give(sink->target.pump->arena, sink->sent);
    free(sink->journal.path);
    free(sink->journal.header);
}

static const struct sink_kind journal_kind = {
    .flush = journal_flush,
    .open = journal_open,
    .close = journal_close,
    .free = journal_free,
    .records = true,
};

int sink_journal_new(struct pump *pump, uint64_t id, const struct journal_spec *spec,
                     struct sink **ret_sink)
{
    struct sockaddr_un address;
    if (!spec->path || strlen(spec->path) >= sizeof address.sun_path)
        return -EINVAL;
    struct sink *sink = calloc(1, sizeof *sink);
    if (!sink)
        return -ENOMEM;
    struct journal *journal = &sink->journal;
    journal->fd = -1;
    journal->credentials = spec->credentials;
    journal->path = strdup(spec->path);
    journal->header = spec->header ? strdup(spec->header) : NULL;
    sink->refresh_ms = spec->refresh_ms;
    sink->max_held = spec->max_held;
    sink->target.pump = pump;
    int rc = journal->path && (journal->header || !spec->header) ? 0 : -ENOMEM;
    if (rc == 0)
        rc = sink_init(sink, pump, id, spec->key, &journal_kind);
    if (rc < 0) {
        journal_free(sink);
        free(sink);
        return rc;
    }
    *ret_sink = sink;
    return 0;
}
