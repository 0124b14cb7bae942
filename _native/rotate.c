/* When a file is rotated, and what its backups are called.
 *
 * A file is rotated at the end of a line: before it would pass max_bytes, at a time of
 * day, at an age, or because it was asked for. Its backups are NAME.1 (the newest) to
 * NAME.N, or NAME.SUFFIX; each may have been compressed since, which shows in its name.
 * Numbered ones are shifted, as far as there is no gap. What is a matter of time, like
 * compressing, is left to others; they hold the lock of the names while they rename, and
 * then the rotation waits, not the pump. */
#include "pump.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SAME_SUFFIX = 10000 };

static const int64_t rotation_pause = 5000 * MILLISECOND;
static const int64_t lock_pause = 5 * MILLISECOND;
static const char *const endings[] = {"", ".gz", ".zst"};
enum { N_ENDINGS = sizeof endings / sizeof *endings };

/* ---- names ----------------------------------------------------------------------- */

struct name {
    char text[NAME_MAX + 1];
};

static int backup_name(struct name *ret_name, const struct file *file, uint32_t number, int ending)
{
    int n = number ? snprintf(ret_name->text, sizeof ret_name->text, "%s.%u%s", file->name, number, endings[ending])
                   : snprintf(ret_name->text, sizeof ret_name->text, "%s", file->name);
    return (size_t)n < sizeof ret_name->text ? 0 : -ENAMETOOLONG;
}

static bool exists(int directory, const struct name *name)
{
    struct stat st;
    return fstatat(directory, name->text, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

static int has_number(const struct file *file, int directory, uint32_t number)
{
    struct name name;
    for (int ending = 0; ending < N_ENDINGS; ending++) {
        int rc = backup_name(&name, file, number, ending);
        if (rc < 0)
            return rc;
        if (exists(directory, &name))
            return 1;
    }
    return 0;
}

static int drop_number(const struct file *file, int directory, uint32_t number)
{
    struct name name;
    for (int ending = 0; ending < N_ENDINGS; ending++) {
        backup_name(&name, file, number, ending);
        if (unlinkat(directory, name.text, 0) < 0 && errno != ENOENT)
            return -errno;
    }
    return 0;
}

/* `number` becomes `number + 1`; 0 is the file itself. */
static int shift_number(const struct file *file, int directory, uint32_t number)
{
    struct name from, to;
    for (int ending = 0; ending < (number ? N_ENDINGS : 1); ending++) {
        int rc = backup_name(&from, file, number, ending);
        if (rc == 0)
            rc = backup_name(&to, file, number + 1, ending);
        if (rc < 0)
            return rc;
        if (renameat(directory, from.text, directory, to.text) < 0 && errno != ENOENT)
            return -errno;
    }
    return 0;
}

static int shift_numbers(const struct file *file, int directory)
{
    uint32_t count = file->options.backup_count, gap = 1;
    int rc;
    while ((rc = has_number(file, directory, gap)) > 0 && gap < count)
        gap++;
    if (rc > 0)
        rc = drop_number(file, directory, gap);
    for (uint32_t number = gap; rc == 0 && number > 0; number--)
        rc = shift_number(file, directory, number - 1);
    return rc;
}

static int add_suffix(const struct file *file, int directory)
{
    struct name to;
    for (int tries = 0; tries < SAME_SUFFIX; tries++) {
        char again[16] = "";
        if (tries)
            snprintf(again, sizeof again, "-%d", tries);
        bool is_taken = false;
        for (int ending = N_ENDINGS - 1; ending >= 0; ending--) {
            if ((size_t)snprintf(to.text, sizeof to.text, "%s.%s%s%s", file->name,
                                 file->options.suffix, again, endings[ending]) >= sizeof to.text)
                return -ENAMETOOLONG;
            is_taken = is_taken || exists(directory, &to);
        }
        if (!is_taken)
            return renameat(directory, file->name, directory, to.text) < 0 ? -errno : 0;
    }
    return -EEXIST;
}

/* ---- rotating -------------------------------------------------------------------- */

static int rename_all(const struct file *file)
{
    int directory = file_directory(file);
    if (directory < 0)
        return directory;
    int rc = 0;
    if (file->options.flags & SINK_STAMPED && file->options.suffix[0])
        rc = add_suffix(file, directory);
    else if (file->options.backup_count)
        rc = shift_numbers(file, directory);
    close(directory);
    return rc;
}

int rotate_file(struct sink *sink)
{
    struct file *file = &sink->file;
    if (pthread_mutex_trylock(&file->names) != 0) {
        file->rotate_after = sink->target.pump->now + lock_pause;
        sink_schedule(sink, file->rotate_after);
        return 0;
    }
    bool ours = file_is_ours(file);
    int rc = ours ? rename_all(file) : 0;
    pthread_mutex_unlock(&file->names);
    if (rc < 0) {
        file->rotate_after = sink->target.pump->now + rotation_pause;
        target_tell(&sink->target, PUMP_SINK_ROTATION_FAILED, -rc, false);
        return 0;
    }
    file->rotate_now = false;
    file->options.rotate_at = 0; /* until the owner sets the next */
    if (ours)
        target_tell(&sink->target, PUMP_SINK_ROTATED, 0, false);
    return file_open(sink);
}

static bool may_rotate(const struct sink *sink)
{
    const struct file_options *o = &sink->file.options;
    return sink->file.path && sink->file.rotates && sink->file.rotate_after <= sink->target.pump->now &&
           (o->backup_count || o->flags & SINK_STAMPED || sink->file.rotate_now);
}

/* An empty file stays, as if it had been rotated. */
static bool is_nothing(struct sink *sink)
{
    struct file *file = &sink->file;
    if (file->size || (file->rotate_now && !file_is_ours(file)))
        return false;
    if (file->options.rotate_at)
        target_tell(&sink->target, PUMP_SINK_ROTATED, 0, false);
    file->options.rotate_at = 0;
    file->rotate_now = false;
    file->made = wall_seconds();
    return true;
}

bool rotate_is_due(struct sink *sink)
{
    struct file *file = &sink->file;
    const struct file_options *o = &file->options;
    if (!may_rotate(sink))
        return false;
    int64_t now = o->rotate_at || o->rotate_age ? wall_seconds() : 0;
    bool due = file->rotate_now || (o->rotate_at && now >= o->rotate_at) ||
               (o->rotate_age && now >= file->made + o->rotate_age);
    return due && !is_nothing(sink);
}

size_t rotate_share(struct sink *sink, const char *data, size_t length)
{
    const struct file *file = &sink->file;
    uint64_t most = file->options.max_bytes;
    if (!may_rotate(sink))
        return length;
    const char *newline = NULL;
    bool due = rotate_is_due(sink);
    if (!due && (!most || file->size + length <= most))
        return length;
    if (!due && file->size < most)
        newline = memrchr(data, '\n', most - file->size);
    if (newline)
        return (size_t)(newline + 1 - data);
    if (file->line_ends && (file->size || due))
        return 0;
    /* In the midst of a line, or one longer than a file may be: it stays whole. */
    newline = memchr(data, '\n', length);
    return newline ? (size_t)(newline + 1 - data) : length;
}
