/* The supervised program of the benchmarks.
 *
 *     child FIFO sleep            report, then sleep until killed
 *     child FIFO fail             report, then exit with 1
 *     child FIFO lines COUNT GATE report, wait for a writer of the FIFO `GATE`, write
 *                                 COUNT numbered lines of 100 bytes, one write each; sleep
 *
 * The report is its first act: one write of 16 bytes, which no other can tear (pipe(7),
 * PIPE_BUF). All comes by arguments, as some supervisors hand on no environment. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct report {
    uint64_t time; /* CLOCK_MONOTONIC in nanoseconds */
    uint64_t pid;
};

static void die(const char *what) {
    perror(what);
    exit(2);
}

static void write_whole(int fd, const char *bytes, size_t size) {
    while (size > 0) {
        ssize_t n = write(fd, bytes, size);
        if (n < 0)
            die("write");
        bytes += n;
        size -= (size_t)n;
    }
}

static void write_lines(long count) {
    char line[101];
    for (long i = 0; i < count; i++) {
        int n = snprintf(line, sizeof line, "%010d %010ld ", (int)getpid(), i);
        memset(line + n, 'x', 99 - (size_t)n);
        line[99] = '\n';
        write_whole(STDOUT_FILENO, line, 100);
    }
}

int main(int argc, char **argv) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (argc < 3)
        return 2;
    struct report report = {
        .time = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec,
        .pid = (uint64_t)getpid(),
    };
    int fifo = open(argv[1], O_WRONLY | O_CLOEXEC);
    if (fifo < 0)
        die(argv[1]);
    write_whole(fifo, (const char *)&report, sizeof report);
    close(fifo);

    if (strcmp(argv[2], "fail") == 0)
        return 1;
    if (strcmp(argv[2], "lines") == 0 && argc == 5) {
        if (open(argv[4], O_RDONLY | O_CLOEXEC) < 0)
            die(argv[4]);
        write_lines(atol(argv[3]));
    }
    for (;;)
        pause();
}
