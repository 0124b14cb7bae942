/* A process that writes numbered lines, and notes elsewhere how many it has written.
 *
 *     writer DIRECTORY LABEL WID PAUSE HOW
 *
 * Lines are "LABEL.WID.PID NUMBER xx..x\n", with NUMBER % 90 times x; on average one in PAUSE
 * microseconds, in runs of 1 to 16. It ends when the first byte of DIRECTORY/go becomes 0. HOW:
 *     halves   some lines are written in two parts, and one in LONG has LONGER times as many x
 *     whole    each by one write(2), so whoever kills it cuts none
 *     crash    whole, and it dies after some hundred of them
 *     child    whole, and a child in a session of its own sleeps for ever
 * DIRECTORY/count/LABEL.WID.PID holds the number of whole lines, as 8 bytes; it is written after
 * the line is, so a killed process may have written one more. */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { FILLER = 90, LONG = 50, LONGER = 111, RUNS = 16, LIFE = 400 };

static void *map(const char *path, int flags, size_t length)
{
    int fd = open(path, flags | O_CLOEXEC, 0644);
    if (fd < 0 || (flags & O_CREAT && ftruncate(fd, (off_t)length) < 0))
        exit(3);
    void *found = mmap(NULL, length, flags & O_RDWR ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (found == MAP_FAILED)
        exit(4);
    close(fd);
    return found;
}

static void put(const char *data, size_t length)
{
    while (length) {
        ssize_t n = write(1, data, length);
        if (n < 0)
            exit(5);
        data += n;
        length -= (size_t)n;
    }
}

static void pause_for(long microseconds)
{
    struct timespec time = {microseconds / 1000000, microseconds % 1000000 * 1000};
    nanosleep(&time, NULL);
}

int main(int argc, char **argv)
{
    if (argc < 6)
        return 2;
    const char *label = argv[2], *wid = argv[3], *how = argv[5];
    long pause = atol(argv[4]);
    char path[512], name[128];
    snprintf(path, sizeof path, "%s/go", argv[1]);
    const volatile char *go = map(path, O_RDONLY, 1);
    if (strcmp(how, "child") == 0 && fork() == 0) {
        setsid();
        for (;;)
            sleep(1000);
    }
    snprintf(name, sizeof name, "%.20s.%.20s.%d", label, wid, (int)getpid());
    snprintf(path, sizeof path, "%s/count/%s", argv[1], name);
    volatile uint64_t *count = map(path, O_RDWR | O_CREAT | O_EXCL, sizeof *count);
    uint64_t most = strcmp(how, "crash") == 0 ? LIFE + (uint64_t)getpid() % LIFE : UINT64_MAX;
    bool halves = strcmp(how, "halves") == 0;
    for (uint64_t i = 1; *go && i <= most; i++) {
        static char line[256 + FILLER * LONGER];
        size_t filler = i % FILLER * (halves && i % LONG == 0 ? LONGER : 1);
        size_t length = (size_t)snprintf(line, 256, "%s %llu ", name, (unsigned long long)i);
        memset(line + length, 'x', filler);
        length += filler;
        line[length++] = '\n';
        size_t first = halves && i % 7 == 0 ? length / 2 : length;
        put(line, first);
        if (i % 49 == 0)
            pause_for(pause);
        put(line + first, length - first);
        *count = i;
        if (i % (1 + i / 32 % RUNS) == 0)
            pause_for(pause * (long)(1 + i / 32 % RUNS));
    }
    if (*go)
        abort();
    return 0;
}
