/* A look at all processes: one read of /proc/PID/stat for each, a few microseconds. */
#include "native.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum stat_field { /* of /proc/PID/stat, counted from the state, proc(5)'s field 3 */
    STAT_PPID = 1,
    STAT_PGRP = 2,
    STAT_SESSION = 3,
    STAT_USER_TIME = 11,
    STAT_SYSTEM_TIME = 12,
    STAT_NICE = 16,
    STAT_THREADS = 17,
    STAT_START = 19,
    STAT_VIRTUAL = 20,
    STAT_RESIDENT = 21,
    STAT_FIELDS = 22,
};

struct stat_line {
    char text[1024];
    size_t size;
    char state;
    uint64_t fields[STAT_FIELDS];
};

/* The name may hold anything, so fields are counted from its last ')'. */
static bool parse_stat(struct stat_line *line)
{
    const char *at = memrchr(line->text, ')', line->size), *end = line->text + line->size;
    if (!at || end - at < 4)
        return false;
    line->state = at[2];
    at += 4;
    for (int i = 1; i < STAT_FIELDS; i++, at++) {
        bool negative = at < end && *at == '-';
        uint64_t field = 0;
        for (at += negative; at < end && *at >= '0' && *at <= '9'; at++)
            field = field * 10 + (uint64_t)(*at - '0');
        line->fields[i] = negative ? -field : field;
        if (at >= end)
            return false;
    }
    return true;
}

/* The pid that a name in /proc is, or -1. */
static int32_t pid_of(const char *name)
{
    int32_t pid = 0;
    for (const char *c = name; *c; c++) {
        if (*c < '0' || *c > '9' || pid > INT32_MAX / 10 - 1)
            return -1;
        pid = pid * 10 + (*c - '0');
    }
    return *name ? pid : -1;
}

/* 1: read; 0: it has gone meanwhile; -errno. */
static int read_stat(int proc, const char *name, struct stat_line *ret_)
{
    char path[32];
    size_t length = strlen(name); /* at most 10: pid_of() has taken it */
    memcpy(path, name, length);
    memcpy(path + length, "/stat", sizeof "/stat");
    int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT || errno == ESRCH ? 0 : -errno;
    ssize_t size = read(fd, ret_->text, sizeof ret_->text);
    int error = size < 0 ? errno : 0;
    (void)close(fd);
    if (error)
        return error == ESRCH ? 0 : -error;
    ret_->size = (size_t)size;
    return parse_stat(ret_);
}

static void describe(const struct stat_line *line, struct proc_entry *ret_)
{
    const uint64_t *fields = line->fields;
    ret_->ppid = (int32_t)fields[STAT_PPID];
    ret_->pgrp = (int32_t)fields[STAT_PGRP];
    ret_->session = (int32_t)fields[STAT_SESSION];
    ret_->start = fields[STAT_START];
    /* A process whose first thread has ended while others run on looks like a zombie. */
    ret_->state = line->state == 'Z' && fields[STAT_THREADS] > 1 ? 'S' : line->state;
}

int proc_scan(struct proc_entry *ret_entries, size_t cap)
{
    _Alignas(struct dirent64) char buffer[16384];
    size_t n = 0;
    ssize_t size;
    int proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (proc < 0)
        return -errno;
    while ((size = getdents64(proc, buffer, sizeof buffer)) > 0) {
        const struct dirent64 *entry;
        for (ssize_t at = 0; at < size; at += entry->d_reclen) {
            entry = (const struct dirent64 *)(const void *)(buffer + at);
            struct stat_line line;
            int32_t pid = pid_of(entry->d_name);
            if (pid < 0)
                continue;
            int rc = n < cap ? read_stat(proc, entry->d_name, &line) : 1;
            if (rc < 0) {
                (void)close(proc);
                return rc;
            }
            if (rc && n < cap) {
                ret_entries[n].pid = pid;
                describe(&line, &ret_entries[n]);
            }
            n += (size_t)rc;
        }
    }
    int rc = size < 0 ? -errno : (int)n;
    (void)close(proc);
    return rc;
}

static void measure(const struct stat_line *line, int32_t pid, struct proc_figures *ret_)
{
    const uint64_t *fields = line->fields;
    const char *name = memchr(line->text, '(', line->size);
    const char *end = memrchr(line->text, ')', line->size);
    struct timespec now;
    (void)clock_gettime(CLOCK_BOOTTIME, &now);
    *ret_ = (struct proc_figures){
        .pid = pid,
        .ppid = (int32_t)fields[STAT_PPID],
        .nice = (int32_t)fields[STAT_NICE],
        .start = fields[STAT_START],
        .cpu = fields[STAT_USER_TIME] + fields[STAT_SYSTEM_TIME],
        .virtual_size = fields[STAT_VIRTUAL],
        .resident = fields[STAT_RESIDENT],
        .read_at = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec,
    };
    if (name && name < end) {
        size_t length = (size_t)(end - name) - 1;
        memcpy(ret_->name, name + 1, length < sizeof ret_->name ? length : sizeof ret_->name);
    }
}

int proc_read(const int32_t *pids, size_t n, struct proc_figures *ret_figures)
{
    int rc = 0;
    int proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (proc < 0)
        return -errno;
    for (size_t i = 0; i < n && rc >= 0; i++) {
        struct stat_line line;
        char name[16];
        (void)snprintf(name, sizeof name, "%d", pids[i]);
        ret_figures[i] = (struct proc_figures){0};
        rc = read_stat(proc, name, &line);
        if (rc > 0)
            measure(&line, pids[i], &ret_figures[i]);
    }
    (void)close(proc);
    return rc < 0 ? rc : 0;
}
