/* Follow a log that `child paced` writes: how old is a line when it is in the file?
 *
 *     follow FILE COUNT QUIET_MS
 *
 * sleeps in poll(2) until inotify(7) tells of a write, and takes the time after it. Ends
 * after COUNT lines, or after that long without one. Prints "LINES P50 P99 MOST", ages in
 * nanoseconds. The file must be there. */
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 100, STAMP = 22, SECOND = 1000000000, ROOM = 1 << 20 };

static uint64_t *ages;
static size_t n_ages, n_wanted;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static int compare(const void *a, const void *b) {
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

/* Takes whole lines out of `bytes`; returns how many bytes are left of one that is not. */
static size_t take_lines(char *bytes, size_t filled) {
    uint64_t arrived = now();
    char *begin = bytes, *end;
    while ((end = memchr(begin, '\n', filled - (size_t)(begin - bytes)))) {
        if (end + 1 - begin == LINE && n_ages < n_wanted)
            ages[n_ages++] = arrived - strtoull(begin + STAMP, NULL, 10);
        begin = end + 1;
    }
    size_t rest = filled - (size_t)(begin - bytes);
    memmove(bytes, begin, rest);
    return rest;
}

int main(int argc, char **argv) {
    static char bytes[ROOM], events[4096];
    if (argc != 4)
        return 2;
    n_wanted = (size_t)atol(argv[2]);
    ages = calloc(n_wanted, sizeof *ages);
    int file = open(argv[1], O_RDONLY | O_CLOEXEC);
    struct pollfd watch = {.fd = inotify_init1(IN_CLOEXEC), .events = POLLIN};
    if (!ages || file < 0 || inotify_add_watch(watch.fd, argv[1], IN_MODIFY) < 0) {
        perror(argv[1]);
        return 2;
    }
    puts("ready");
    fflush(stdout);
    size_t held = 0;
    while (n_ages < n_wanted && poll(&watch, 1, atoi(argv[3])) > 0) {
        ssize_t n = read(watch.fd, events, sizeof events);
        while (n > 0 && (n = read(file, bytes + held, ROOM - held)) > 0)
            held = take_lines(bytes, held + (size_t)n);
    }
    if (n_ages == 0)
        return 1;
    qsort(ages, n_ages, sizeof *ages, compare);
    printf("%zu %llu %llu %llu\n", n_ages, (unsigned long long)ages[n_ages / 2],
           (unsigned long long)ages[n_ages * 99 / 100], (unsigned long long)ages[n_ages - 1]);
    return 0;
}
