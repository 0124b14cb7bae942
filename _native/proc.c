/* A look at all processes: one read of /proc/PID/stat for each, a few microseconds. */
#include "native.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

enum stat_field { /* of /proc/PID/stat, counted from the state, proc(5)'s field 3 */
    STAT_PPID = 1,
    STAT_PGRP = 2,
    STAT_SESSION = 3,
    STAT_THREADS = 17,
    STAT_START = 19,
    STAT_FIELDS = 20,
};

/* The name may hold anything, so fields are counted from its last ')'. */
static bool parse_stat(const char *text, size_t size, struct proc_entry *ret_)
{
    const char *at = memrchr(text, ')', size), *end = text + size;
    uint64_t fields[STAT_FIELDS] = {0};
    if (!at || end - at < 4)
        return false;
    char state = at[2];
    at += 4;
    for (int i = 1; i < STAT_FIELDS; i++, at++) {
        bool negative = at < end && *at == '-';
        for (at += negative; at < end && *at >= '0' && *at <= '9'; at++)
            fields[i] = fields[i] * 10 + (uint64_t)(*at - '0');
        if (negative)
            fields[i] = -fields[i];
        if (at >= end)
            return false;
    }
    ret_->ppid = (int32_t)fields[STAT_PPID];
    ret_->pgrp = (int32_t)fields[STAT_PGRP];
    ret_->session = (int32_t)fields[STAT_SESSION];
    ret_->start = fields[STAT_START];
    /* A process whose first thread has ended while others run on looks like a zombie. */
    ret_->state = state == 'Z' && fields[STAT_THREADS] > 1 ? 'S' : state;
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
static int read_stat(int proc, const char *name, struct proc_entry *ret_)
{
    char path[32], text[1024];
    size_t length = strlen(name); /* at most 10: pid_of() has taken it */
    memcpy(path, name, length);
    memcpy(path + length, "/stat", sizeof "/stat");
    int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT || errno == ESRCH ? 0 : -errno;
    ssize_t size = read(fd, text, sizeof text);
    int error = size < 0 ? errno : 0;
    (void)close(fd);
    if (error)
        return error == ESRCH ? 0 : -error;
    return parse_stat(text, (size_t)size, ret_);
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
            struct proc_entry found = {.pid = pid_of(entry->d_name)};
            if (found.pid < 0)
                continue;
            int rc = n < cap ? read_stat(proc, entry->d_name, &found) : 1;
            if (rc < 0) {
                (void)close(proc);
                return rc;
            }
            if (rc && n < cap)
                ret_entries[n] = found;
            n += (size_t)rc;
        }
    }
    int rc = size < 0 ? -errno : (int)n;
    (void)close(proc);
    return rc;
}
