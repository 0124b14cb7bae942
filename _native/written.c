/* A write to a file that another process has died in: how much of it was done shows in the
 * file, whose size was noted before it. */
#include "pump.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Where in it the file has what comes next: how many of its first bytes. A write that is cut
 * off by SIGKILL ends at a page's end (generic_perform_write), and others may append too. */
static size_t bytes_at(const char *found, size_t n, uint64_t at, const struct block *batch, bool first)
{
    enum { PAGE = 4096 };
    const char *data = batch->data + batch->begin;
    size_t most = block_holds(batch) < n ? block_holds(batch) : n, same = 0;
    while (same < most && found[same] == data[same])
        same++;
    bool ends = same == block_holds(batch) || (at + same) % PAGE == 0 || (first && same == n);
    return ends ? same : 0;
}

/* How much of the batch was written from `size` on: there, or at the beginning of a later
 * line, where others write too. */
static size_t written_since(int fd, uint64_t size, struct block *batch, size_t length)
{
    size_t room = length + ((size_t)1 << 20), same = 0;
    char *found = malloc(room);
    ssize_t n = found ? pread(fd, found, room, (off_t)size) : -1;
    uint64_t end = batch->end;
    batch->end = batch->begin + length;
    for (const char *at = found; n > 0 && at && at < found + n && !same;) {
        size_t left = (size_t)(found + n - at);
        same = bytes_at(at, left, size + (size_t)(at - found), batch, at == found);
        at = memchr(at, '\n', left);
        at = at ? at + 1 : NULL;
    }
    batch->end = end;
    free(found);
    return same;
}

/* The file of that number among those of its directory, where it may have been renamed. */
static int find_inode(const struct file *file, const struct saved_sink *saved)
{
    int found = -1;
    DIR *directory = opendir(file->directory);
    const struct dirent *entry;
    struct stat st;
    while (directory && found < 0 && (entry = readdir(directory))) {
        if (entry->d_ino != saved->inode)
            continue;
        found = openat(dirfd(directory), entry->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (found >= 0 && (fstat(found, &st) < 0 || st.st_dev != saved->device || st.st_ino != saved->inode)) {
            close(found);
            found = -1;
        }
    }
    if (directory)
        closedir(directory);
    return found;
}

static int open_written(const struct file *file, const struct saved_sink *saved)
{
    char path[32];
    struct stat st;
    if (fstat(file->fd, &st) < 0 || st.st_dev != saved->device || st.st_ino != saved->inode)
        return file->path ? find_inode(file, saved) : -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", file->fd);
    return open(path, O_RDONLY | O_CLOEXEC);
}

void file_took(struct sink *sink, size_t n)
{
    bool cut = sink->batch->data[sink->batch->begin + n - 1] != '\n';
    sink->file.line_ends = !cut;
    arena_change(sink->target.pump->arena, &sink->saved->cut, cut);
    sink_took(sink, n);
}

static size_t found_in_file(const struct sink *sink)
{
    const struct saved_sink *saved = sink->saved;
    size_t length = saved->writing < sink_holds(sink) ? (size_t)saved->writing : sink_holds(sink);
    int fd = length ? open_written(&sink->file, saved) : -1;
    size_t written = fd >= 0 ? written_since(fd, saved->size, sink->batch, length) : 0;
    if (fd >= 0)
        close(fd);
    return written;
}

/* A process that dies in a write, or just after, does not say how much it wrote. */
void file_settle(struct sink *sink)
{
    size_t written = 0;
    if (sink->saved->inode)
        written = found_in_file(sink);
    else if (was_sent(sink, 0))
        written = sent_length(sink, 0);
    if (written && written <= sink_holds(sink))
        file_took(sink, written);
    sink->saved->writing = 0;
}

void file_announce(struct sink *sink, size_t length)
{
    struct saved_sink *saved = sink->saved;
    struct stat st;
    if (!sink->file.rotates || !arena_outlives(sink->target.pump->arena) || fstat(sink->file.fd, &st) < 0)
        return;
    saved->size = (uint64_t)st.st_size;
    saved->device = st.st_dev;
    saved->inode = st.st_ino;
    atomic_signal_fence(memory_order_seq_cst);
    saved->writing = length;
    atomic_signal_fence(memory_order_seq_cst);
}
