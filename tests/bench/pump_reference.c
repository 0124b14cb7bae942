/* The bare loop that the pump is measured against: epoll, read, find the last newline,
 * write. No rotation, no failures, no fairness, no limits.
 *
 *     pump_reference FILE PAUSE_US FD...
 *
 * reads the descriptors to their ends. PAUSE_US > 0 sleeps after each round, so that small
 * writes pool. Prints the time of its end (CLOCK_MONOTONIC) and its CPU seconds. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { READ = 1 << 16, ROOM = 1 << 18 };

struct source {
    int fd;
    size_t length; /* of the unfinished line */
    char *rest;
};

static char buffer[ROOM];

static void put(int out, const char *data, size_t length)
{
    while (length) {
        ssize_t n = write(out, data, length);
        if (n < 0)
            exit(1);
        data += n;
        length -= (size_t)n;
    }
}

/* Returns whether the source goes on. */
static int pass(struct source *source, int out)
{
    memcpy(buffer, source->rest, source->length);
    ssize_t n = read(source->fd, buffer + source->length, READ);
    size_t length = source->length + (n > 0 ? (size_t)n : 0);
    char *newline = n > 0 ? memrchr(buffer, '\n', length) : NULL;
    size_t whole = n <= 0 ? length : newline ? (size_t)(newline + 1 - buffer) : 0;
    put(out, buffer, whole);
    source->length = length - whole;
    memcpy(source->rest, buffer + whole, source->length);
    return n > 0;
}

static double seconds(struct timeval t)
{
    return (double)t.tv_sec + (double)t.tv_usec / 1e6;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    int out = open(argv[1], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    int epoll = epoll_create1(EPOLL_CLOEXEC), left = argc - 3;
    useconds_t pause = (useconds_t)atoi(argv[2]);
    for (int i = 3; i < argc; i++) {
        struct source *source = calloc(1, sizeof *source);
        source->fd = atoi(argv[i]);
        source->rest = malloc(ROOM);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = source};
        epoll_ctl(epoll, EPOLL_CTL_ADD, source->fd, &event);
    }
    while (left) {
        struct epoll_event events[256];
        int n = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < n; i++) {
            struct source *source = events[i].data.ptr;
            if (!pass(source, out)) {
                close(source->fd);
                left--;
            }
        }
        if (pause)
            usleep(pause);
    }
    struct timespec now;
    struct rusage usage;
    clock_gettime(CLOCK_MONOTONIC, &now);
    getrusage(RUSAGE_SELF, &usage);
    printf("%.6f %.6f\n", (double)now.tv_sec + (double)now.tv_nsec / 1e9,
           seconds(usage.ru_utime) + seconds(usage.ru_stime));
    return 0;
}
