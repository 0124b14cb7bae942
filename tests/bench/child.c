/* The supervised program of the benchmarks.
 *
 *     child FIFO GATE sleep              report, then sleep until killed
 *     child FIFO GATE fail               report, then exit with 1
 *     child FIFO GATE lines COUNT CHUNK  COUNT numbered lines of 100 bytes, in writes of CHUNK
 *     child FIFO GATE paced COUNT PAUSE  a line each PAUSE nanoseconds, with the time in it
 *     child FIFO GATE say                a line to each of stdout and stderr
 *
 * The last three report, wait until somebody writes to the FIFO `GATE`, do so, and sleep. The
 * report is the first act: one write of 16 bytes, which no other can tear (pipe(7), PIPE_BUF).
 * All comes by arguments, as some supervisors hand on no environment. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 100, NUMBER = 11, DIGITS = 10, ROOM = 1 << 16, SECOND = 1000000000 };

struct report {
    uint64_t time; /* CLOCK_MONOTONIC in nanoseconds */
    uint64_t pid;
};

static char line[LINE + 1];

static void die(const char *what) {
    perror(what);
    exit(2);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
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

static void set_line(long number, const char *more) {
    int n = snprintf(line, sizeof line, "%010d %010ld %s", (int)getpid(), number, more);
    memset(line + n, 'x', (size_t)(LINE - 1 - n));
    line[LINE - 1] = '\n';
}

/* So cheap that it is the reader that is measured. */
static void next_number(void) {
    char *digit = line + NUMBER + DIGITS - 1;
    while (*digit == '9')
        *digit-- = '0';
    ++*digit;
}

static void write_lines(long count, size_t chunk) {
    static char buffer[ROOM + LINE];
    size_t filled = 0;
    if (chunk < LINE || chunk > ROOM)
        exit(2);
    set_line(0, "");
    for (long i = 0; i < count; i++) {
        memcpy(buffer + filled, line, LINE);
        next_number();
        filled += LINE;
        if (filled >= chunk) {
            write_whole(STDOUT_FILENO, buffer, chunk);
            memmove(buffer, buffer + chunk, filled -= chunk);
        }
    }
    write_whole(STDOUT_FILENO, buffer, filled);
}

static void write_paced(long count, uint64_t pause) {
    /* Not in step with the others. */
    uint64_t due = now() + (uint64_t)getpid() * 7919 % 1000 * (pause / 1000);
    for (long i = 0; i < count; i++, due += pause) {
        struct timespec t = {(time_t)(due / SECOND), (long)(due % SECOND)};
        char stamp[32];
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
        snprintf(stamp, sizeof stamp, "%020llu ", (unsigned long long)now());
        set_line(i, stamp);
        write_whole(STDOUT_FILENO, line, LINE);
    }
}

static void say(void) {
    set_line(0, "");
    write_whole(STDOUT_FILENO, line, LINE);
    write_whole(STDERR_FILENO, line, LINE);
}

static void pass_gate(const char *gate) {
    int fd = open(gate, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        die(gate);
    close(fd);
}

int main(int argc, char **argv) {
    struct report report = {.time = now(), .pid = (uint64_t)getpid()};
    if (argc < 4)
        return 2;
    const char *mode = argv[3];
    int fifo = open(argv[1], O_WRONLY | O_CLOEXEC);
    if (fifo < 0)
        die(argv[1]);
    write_whole(fifo, (const char *)&report, sizeof report);
    close(fifo);

    if (strcmp(mode, "fail") == 0)
        return 1;
    if (strcmp(mode, "sleep") != 0)
        pass_gate(argv[2]);
    if (strcmp(mode, "lines") == 0 && argc == 6)
        write_lines(atol(argv[4]), (size_t)atol(argv[5]));
    else if (strcmp(mode, "paced") == 0 && argc == 6)
        write_paced(atol(argv[4]), (uint64_t)atoll(argv[5]));
    else if (strcmp(mode, "say") == 0)
        say();
    for (;;)
        pause();
}
