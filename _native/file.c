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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { POLLED_BYTES = 512 }; /* a pipe that polls writable takes PIPE_BUF, a terminal less */

static const int64_t rotation_pause = 5000 * MILLISECOND;
static const int64_t poll_pause = 10 * MILLISECOND;

/* ---- opening --------------------------------------------------------------------- */

static bool is_trusted(int directory)
{
    struct stat st;
    if (fstat(directory, &st) < 0)
        return false;
    return (st.st_uid == 0 || st.st_uid == geteuid()) && !(st.st_mode & (S_IWGRP | S_IWOTH));
}

static int open_directory(const struct file *file)
{
    int fd = open(file->directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static int open_name(const struct file *file, int directory)
{
    int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    int fd = openat(directory, file->name, flags | O_NOFOLLOW, file->options.mode);
    if (fd < 0 && errno == ELOOP && is_trusted(directory))
        fd = openat(directory, file->name, flags, file->options.mode);
    return fd < 0 ? -errno : fd;
}

static void unwatch(struct sink *sink)
{
    if (sink->file.watched)
        pump_unwatch(sink->target.pump, sink->file.fd);
    sink->file.watched = false;
}

static void file_close(struct sink *sink)
{
    unwatch(sink);
    if (sink->file.fd >= 0)
        close(sink->file.fd);
    sink->file.fd = -1;
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
    file_close(sink);
    file->fd = fd;
    file->rotates = S_ISREG(st.st_mode);
    file->size = (uint64_t)st.st_size;
    if (file->size == 0) {
        file->line_ends = true;
        if (sink_holds(sink) == 0)
            sink->open_line = NULL;
    }
    return 0;
}

static int file_open(struct sink *sink)
{
    if (!sink->file.path)
        return 0;
    int directory = open_directory(&sink->file);
    if (directory < 0)
        return directory;
    int fd = open_name(&sink->file, directory);
    close(directory);
    return fd < 0 ? fd : use(sink, fd);
}

/* ---- rotation -------------------------------------------------------------------- */

static int rename_backup(const struct file *file, int directory, uint32_t from, uint32_t to)
{
    char source[NAME_MAX + 1], target[NAME_MAX + 1];
    const char *name = file->name;
    if (from) {
        snprintf(source, sizeof source, "%s.%u", file->name, from);
        name = source;
    }
    if ((size_t)snprintf(target, sizeof target, "%s.%u", file->name, to) >= sizeof target)
        return -ENAMETOOLONG;
    return renameat(directory, name, directory, target) < 0 && errno != ENOENT ? -errno : 0;
}

/* Whether the name is still the file we write; else another program has rotated it. */
static bool is_ours(const struct file *file, int directory)
{
    struct stat named, opened;
    return fstatat(directory, file->name, &named, 0) == 0 &&
           fstat(file->fd, &opened) == 0 && named.st_ino == opened.st_ino && named.st_dev == opened.st_dev;
}

static int shift_backups(const struct file *file, int directory)
{
    for (uint32_t n = file->options.backup_count; n > 0; n--) {
        int rc = rename_backup(file, directory, n - 1, n);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int shift_and_reopen(struct sink *sink, int directory)
{
    struct file *file = &sink->file;
    int rc = is_ours(file, directory) ? shift_backups(file, directory) : 0;
    if (rc == 0) {
        int fd = open_name(file, directory);
        return fd < 0 ? fd : use(sink, fd);
    }
    file->rotate_after = sink->target.pump->now + rotation_pause;
    target_tell(&sink->target, PUMP_SINK_ROTATION_FAILED, -rc, false);
    return 0;
}

/* 0: a new file is open, or the old one goes on because renaming failed (told as an
 * event: no child should wait until somebody mends a directory); else -errno. A link is
 * renamed itself; the new file is a plain one. */
static int rotate(struct sink *sink)
{
    int directory = open_directory(&sink->file);
    if (directory < 0)
        return directory;
    int rc = shift_and_reopen(sink, directory);
    close(directory);
    return rc;
}

/* How many of the `length` bytes at `data` belong into the file as it is; 0: rotate. */
static size_t share(const struct sink *sink, const char *data, size_t length)
{
    const struct file *file = &sink->file;
    uint64_t most = file->options.max_bytes;
    if (!most || !file->options.backup_count || !file->rotates || file->size + length <= most ||
        file->rotate_after > sink->target.pump->now)
        return length;
    const char *newline = NULL;
    if (file->size < most)
        newline = memrchr(data, '\n', most - file->size);
    if (newline)
        return (size_t)(newline + 1 - data);
    if (file->size && file->line_ends)
        return 0;
    /* In the midst of a line, or one longer than a file may be: it stays whole. */
    newline = memchr(data, '\n', length);
    return newline ? (size_t)(newline + 1 - data) : length;
}

/* ---- writing --------------------------------------------------------------------- */

static ssize_t write_some(const struct file *file, const char *data, size_t length)
{
    if (file->how == HOW_SEND)
        return send(file->fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (file->how == HOW_POLLED) {
        struct pollfd room = {.fd = file->fd, .events = POLLOUT};
        if (poll(&room, 1, 0) == 0) {
            errno = EAGAIN;
            return -1;
        }
        if (length > POLLED_BYTES)
            length = POLLED_BYTES;
    }
    return write(file->fd, data, length);
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

static int file_flush(struct sink *sink)
{
    struct file *file = &sink->file;
    while (sink_holds(sink)) {
        const char *data = sink->slab.data + sink->begin;
        size_t length = share(sink, data, sink_holds(sink));
        if (length == 0) {
            int rc = rotate(sink);
            if (rc < 0)
                return rc;
            continue;
        }
        ssize_t n = write_some(file, data, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return cannot_write(sink, n < 0 ? errno : EIO);
        sink->begin += (size_t)n;
        sink->written += (size_t)n;
        file->size += (size_t)n;
        file->line_ends = data[n - 1] == '\n';
    }
    unwatch(sink);
    return 0;
}

/* ---- from outside ---------------------------------------------------------------- */

static struct file_options options_of(const struct file_spec *spec)
{
    return (struct file_options){
        .max_bytes = spec->max_bytes,
        .backup_count = spec->backup_count,
        .refresh_ms = spec->refresh_ms,
        .max_line = spec->max_line ? spec->max_line : READ_BYTES,
        .mode = spec->mode,
    };
}

static void file_set(struct sink *sink)
{
    pthread_mutex_lock(&sink->target.pump->lock);
    sink->file.options = sink->file.asked;
    pthread_mutex_unlock(&sink->target.pump->lock);
    sink->refresh_ms = sink->file.options.refresh_ms;
    sink->max_line = sink->file.options.max_line;
}

static void file_free(struct sink *sink)
{
    free(sink->file.path);
    free(sink->file.directory);
}

static const struct sink_kind file_kind = {
    .flush = file_flush,
    .open = file_open,
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
    file->options = options_of(spec);
    if (spec->flags & SINK_BORROWED_FD)
        file->options.max_bytes = 0;
    sink->refresh_ms = file->options.refresh_ms;
    sink->max_line = file->options.max_line;
    int rc = spec->flags & SINK_BORROWED_FD ? borrow(file, spec->fd) : name_file(file, spec->path);
    if (rc == 0)
        rc = sink_init(sink, pump, id, &file_kind);
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
