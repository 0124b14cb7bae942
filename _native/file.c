/* A sink that is a file: opened for appending, rotated by size at the ends of lines, and
 * opened again after any failure. Or a descriptor that the daemon lends, its own stdout.
 *
 * Whose directory. The daemon may be root and the directory another user's, who could
 * put a symbolic link there that leads to any file of the system. So the name itself is
 * opened with O_NOFOLLOW; if it is a link, it is followed when its directory can be
 * written by root and the daemon's user alone, for then one of them put it there
 * (/dev/stdout, a log kept elsewhere). The directories above are the configuration's
 * own choice. Opening is non-blocking: a FIFO without a reader is ENXIO, a failure like
 * others, and its bytes wait.
 *
 * A lent descriptor must not stop the pump when its other end is slow, and O_NONBLOCK
 * belongs to the open file that the daemon shares with its parent and the shell. So a
 * pipe or terminal is opened anew by /proc/self/fd, as an open file of our own; a socket
 * is sent to with MSG_DONTWAIT; a regular file doesn't wait, and must be shared, for its
 * offset is (the daemon's own log goes there too). Where opening anew is forbidden
 * (proc(5): the terminal of the user before su), we write what poll(2) says there is
 * room for. */
#include "pump.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { POLLED_BYTES = 512 }; /* a pipe that polls writable takes PIPE_BUF, a terminal less */

static const int64_t look_pause = 5 * MILLISECOND;
static const int64_t poll_pause = 10 * MILLISECOND;

/* ---- opening --------------------------------------------------------------------- */

static bool is_trusted(int directory)
{
    struct stat st;
    if (fstat(directory, &st) < 0)
        return false;
    return (st.st_uid == 0 || st.st_uid == geteuid()) && !(st.st_mode & (S_IWGRP | S_IWOTH));
}

int file_directory(const struct file *file)
{
    int fd = open(file->directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* A file whose owner or mode is to be set is nobody else's until it is. */
static mode_t first_mode(const struct file *file)
{
    const struct file_options *o = &file->options;
    return o->mode >= 0 || o->owner >= 0 || o->group >= 0 ? S_IRUSR | S_IWUSR : 0666;
}

static int open_name(const struct file *file, int directory)
{
    const int flags = O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    const mode_t mode = first_mode(file);
    for (int tries = 0; tries < 3; tries++) {
        int fd = openat(directory, file->name, flags | O_NOFOLLOW);
        if (fd < 0 && errno == ELOOP && is_trusted(directory))
            fd = openat(directory, file->name, flags | O_CREAT, mode);
        else if (fd < 0 && errno == ENOENT)
            fd = openat(directory, file->name, flags | O_NOFOLLOW | O_CREAT | O_EXCL, mode);
        if (fd >= 0)
            return fd;
        if (errno != EEXIST) /* somebody was quicker: look again */
            return -errno;
    }
    return -EEXIST;
}

static void unwatch(struct sink *sink)
{
    if (sink->file.watched)
        pump_unwatch(sink->target.pump, sink->file.fd);
    sink->file.watched = false;
}

static void change_fd(struct sink *sink, int fd)
{
    unwatch(sink);
    pthread_mutex_lock(&sink->target.pump->lock);
    int old = sink->file.fd;
    sink->file.fd = fd;
    pthread_mutex_unlock(&sink->target.pump->lock);
    if (old >= 0)
        close(old);
}

static void file_close(struct sink *sink)
{
    change_fd(sink, -1);
}

/* Not of a file with a second name, which somebody may have given to a file of ours. */
static void give_to_owner(struct sink *sink, const struct stat *st)
{
    const struct file_options *o = &sink->file.options;
    uid_t uid = o->owner >= 0 ? (uid_t)o->owner : st->st_uid;
    gid_t gid = o->group >= 0 ? (gid_t)o->group : st->st_gid;
    if (!S_ISREG(st->st_mode) || st->st_nlink != 1)
        return;
    int rc = 0;
    if (uid != st->st_uid || gid != st->st_gid)
        rc = fchown(sink->file.fd, uid, gid);
    mode_t now = st->st_mode & 07777, mode = now;
    if (o->mode >= 0)
        mode = (mode_t)o->mode;
    else if (st->st_size == 0 && first_mode(&sink->file) != 0666 && now == first_mode(&sink->file))
        mode = 0640; /* ours, just made */
    if (rc == 0 && mode != now)
        rc = fchmod(sink->file.fd, mode);
    if (rc < 0)
        target_tell(&sink->target, PUMP_SINK_OWNER_FAILED, errno, false);
}

static int64_t time_made(int fd, const struct stat *st)
{
    struct statx x;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &x) == 0 && x.stx_mask & STATX_BTIME)
        return x.stx_btime.tv_sec;
    return st->st_size ? st->st_mtime : wall_seconds();
}

static int use(struct sink *sink, int fd)
{
    struct file *file = &sink->file;
    struct stat st;
    if (fstat(fd, &st) < 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    change_fd(sink, fd);
    file->rotates = S_ISREG(st.st_mode);
    file->size = (uint64_t)st.st_size;
    file->device = st.st_dev;
    file->inode = st.st_ino;
    file->made = time_made(fd, &st);
    file->line_ends = file->line_ends && !sink->saved->cut;
    if (sink->saved->writing)
        file_settle(sink);
    if (file->size == 0) {
        file->line_ends = true;
        if (sink_holds(sink) == 0)
            sink->open_line = 0;
    }
    give_to_owner(sink, &st);
    return 0;
}

int file_open(struct sink *sink)
{
    int directory = file_directory(&sink->file);
    if (directory < 0)
        return directory;
    int fd = open_name(&sink->file, directory);
    close(directory);
    return fd < 0 ? fd : use(sink, fd);
}

bool file_is_ours(const struct file *file)
{
    struct stat st;
    return stat(file->path, &st) == 0 && st.st_ino == file->inode && st.st_dev == file->device;
}

/* ---- writing --------------------------------------------------------------------- */

static ssize_t send_bytes(struct sink *sink, const char *data, size_t length)
{
    struct iovec bytes = {(void *)data, length};
    const struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1};
    int rc = send_noted(sink, sink->file.fd, &message, 1, 0);
    if (rc < 0) {
        errno = -rc;
        return -1;
    }
    return (ssize_t)sent_length(sink, 0);
}

static ssize_t write_some(struct sink *sink, const char *data, size_t length)
{
    const struct file *file = &sink->file;
    if (file->how == HOW_SEND)
        return send_bytes(sink, data, length);
    if (file->how == HOW_POLLED) {
        struct pollfd room = {.fd = file->fd, .events = POLLOUT};
        if (poll(&room, 1, 0) == 0) {
            errno = EAGAIN;
            return -1;
        }
        if (length > POLLED_BYTES)
            length = POLLED_BYTES;
    }
    file_announce(sink, length);
    ssize_t n = write(file->fd, data, length);
    if (n <= 0)
        sink->saved->writing = 0;
    return n;
}

static int wait_for_room(struct sink *sink)
{
    struct file *file = &sink->file;
    if (!file->watched)
        file->watched = pump_watch(sink->target.pump, file->fd, EPOLLOUT, &sink->target) == 0;
    if (!file->watched) /* EPERM: it can't be polled */
        sink_schedule(sink, sink->target.pump->now + poll_pause);
    return -EAGAIN;
}

static int cannot_write(struct sink *sink, int error)
{
    if (error == EAGAIN)
        return wait_for_room(sink);
    /* EIO: a terminal that was hung up, tty_hangup. */
    bool over = error == EPIPE || error == ECONNRESET || error == EIO;
    unwatch(sink);
    if (sink->file.path || sink->file.rotates || !over)
        return -error;
    sink_discard(sink, error);
    return 0;
}

static void wrote(struct sink *sink, size_t n)
{
    struct file *file = &sink->file;
    file->size += n;
    file_took(sink, n);
    if (file->options.flags & SINK_SYNC && atomic_exchange(&file->clean, false))
        target_tell(&sink->target, PUMP_SINK_DIRTY, 0, false);
}

/* Whether the file was removed, or another has its name. The name is looked up at most once
 * in look_pause: what is written to a file that was moved meanwhile is in it, and not lost. */
static bool was_replaced(struct sink *sink)
{
    struct file *file = &sink->file;
    struct stat st;
    if (!file->path || !file->rotates)
        return false;
    if (sink->target.pump->now < file->look_after)
        return fstat(file->fd, &st) == 0 && st.st_nlink == 0;
    file->look_after = sink->target.pump->now + look_pause;
    return !file_is_ours(file);
}

static int file_flush(struct sink *sink)
{
    struct file *file = &sink->file;
    if (was_replaced(sink))
        file->rotate_now = true;
    while (sink_holds(sink)) {
        const char *data = sink->batch->data + sink->batch->begin;
        size_t length = rotate_share(sink, data, sink_holds(sink));
        if (length == 0) {
            int rc = rotate_file(sink);
            if (rc < 0)
                return rc;
            continue;
        }
        ssize_t n = write_some(sink, data, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return cannot_write(sink, n < 0 ? errno : EIO);
        wrote(sink, (size_t)n);
    }
    unwatch(sink);
    return 0;
}

/* The rest of a line that a full disk or the like has cut. */
static int finish_line(struct sink *sink)
{
    struct file *file = &sink->file;
    while (!file->line_ends && sink_holds(sink)) {
        const char *data = sink->batch->data + sink->batch->begin;
        const char *newline = memchr(data, '\n', sink_holds(sink));
        ssize_t n = write_some(sink, data, newline ? (size_t)(newline + 1 - data) : sink_holds(sink));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        wrote(sink, (size_t)n);
    }
    return 0;
}

/* After a failure, or on request: afresh, but not in the midst of a line that the old file
 * still takes or will take. */
static int file_open_again(struct sink *sink)
{
    struct file *file = &sink->file;
    bool insists = sink->insists;
    sink->insists = false;
    if (!file->path) {
        if (sink->saved->writing)
            file_settle(sink);
        return 0;
    }
    if (file->fd >= 0 && file->rotates && !file->line_ends && sink_holds(sink)) {
        int rc = finish_line(sink);
        if (rc == 0 && !file->line_ends)
            return 0;
        if ((rc == -ENOSPC || rc == -EDQUOT) && !insists)
            return rc;
    }
    return file_open(sink);
}

static int file_rest(struct sink *sink)
{
    return sink->file.line_ends && rotate_is_due(sink) ? rotate_file(sink) : 0;
}

/* ---- from outside ---------------------------------------------------------------- */

static struct file_options options_of(const struct file_spec *spec)
{
    struct file_options options = {
        .max_bytes = spec->max_bytes,
        .max_held = spec->max_held ? spec->max_held : HELD_BYTES,
        .rotate_at = spec->rotate_at,
        .owner = spec->owner,
        .group = spec->group,
        .mode = spec->mode,
        .flags = spec->flags,
        .backup_count = spec->backup_count,
        .rotate_age = spec->rotate_age,
        .refresh_ms = spec->refresh_ms,
    };
    if (spec->suffix)
        snprintf(options.suffix, sizeof options.suffix, "%s", spec->suffix);
    return options;
}

static void file_set(struct sink *sink)
{
    pthread_mutex_lock(&sink->target.pump->lock);
    sink->file.options = sink->file.asked;
    pthread_mutex_unlock(&sink->target.pump->lock);
    sink->refresh_ms = sink->file.options.refresh_ms;
    sink->max_held = sink->file.options.max_held;
}

static void file_free(struct sink *sink)
{
    pthread_mutex_destroy(&sink->file.names);
    free(sink->file.path);
    free(sink->file.directory);
}

static const struct sink_kind file_kind = {
    .flush = file_flush,
    .rest = file_rest,
    .open = file_open_again,
    .set = file_set,
    .close = file_close,
    .free = file_free,
};

static int borrow(struct file *file, int fd)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    file->rotates = S_ISREG(st.st_mode);
    if (S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode)) {
        char path[32];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        file->fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        if (file->fd >= 0)
            return 0;
        file->how = HOW_POLLED;
    } else if (S_ISSOCK(st.st_mode)) {
        file->how = HOW_SEND;
    }
    file->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return file->fd < 0 ? -errno : 0;
}

static int name_file(struct file *file, const char *path)
{
    if (!path || path[0] != '/' || path[strlen(path) - 1] == '/')
        return -EINVAL;
    file->path = strdup(path);
    file->directory = strdup(path);
    if (!file->path || !file->directory)
        return -ENOMEM;
    size_t last = (size_t)(strrchr(path, '/') - path);
    file->directory[last ? last : 1] = '\0';
    file->name = file->path + last + 1;
    return 0;
}

int sink_file_new(struct pump *pump, uint64_t id, const struct file_spec *spec, struct sink **ret_sink)
{
    struct sink *sink = calloc(1, sizeof *sink);
    if (!sink)
        return -ENOMEM;
    struct file *file = &sink->file;
    file->fd = -1;
    file->line_ends = true;
    file->clean = true;
    pthread_mutex_init(&file->names, NULL);
    file->options = options_of(spec);
    sink->refresh_ms = file->options.refresh_ms;
    sink->max_held = file->options.max_held;
    int rc = spec->flags & SINK_BORROWED_FD ? borrow(file, spec->fd) : name_file(file, spec->path);
    if (rc == 0)
        rc = sink_init(sink, pump, id, spec->key, &file_kind);
    if (rc < 0) {
        if (file->fd >= 0)
            close(file->fd);
        file_free(sink);
        free(sink);
        return rc;
    }
    *ret_sink = sink;
    return 0;
}

void sink_file_set(struct sink *sink, const struct file_spec *spec)
{
    pthread_mutex_lock(&sink->target.pump->lock);
    sink->file.asked = options_of(spec);
    pthread_mutex_unlock(&sink->target.pump->lock);
    target_ask(&sink->target, REQUEST_SET);
}

void sink_file_rotate(struct sink *sink)
{
    target_ask(&sink->target, REQUEST_ROTATE);
}

int sink_file_clean(struct sink *sink)
{
    struct file *file = &sink->file;
    /* First: what is written from now on is told of, what was before is in the sync. */
    atomic_store(&file->clean, true);
    pthread_mutex_lock(&sink->target.pump->lock);
    int fd = file->fd < 0 ? -EBADF : fcntl(file->fd, F_DUPFD_CLOEXEC, 3);
    if (fd == -1)
        fd = -errno;
    pthread_mutex_unlock(&sink->target.pump->lock);
    return fd;
}

void sink_file_lock(struct sink *sink)
{
    pthread_mutex_lock(&sink->file.names);
}

void sink_file_unlock(struct sink *sink)
{
    pthread_mutex_unlock(&sink->file.names);
}
