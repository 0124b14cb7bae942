/* A process that writes lines as fast as its pipe takes them.
 *
 *     writer NAME LINES CHUNK
 *
 * writes LINES lines of 100 bytes, "NAME NUMBER ....\n", in writes of CHUNK bytes, or one
 * a line if CHUNK is 0; it begins when its standard input ends. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE = 100, ROOM = 1 << 16 };

static void put(const char *data, size_t length)
{
    while (length) {
        ssize_t n = write(1, data, length);
        if (n < 0)
            exit(1);
        data += n;
        length -= (size_t)n;
    }
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    long lines = atol(argv[2]);
    size_t chunk = (size_t)atol(argv[3]), filled = 0;
    static char buffer[ROOM + LINE];
    if (chunk > ROOM || read(0, buffer, 1) < 0)
        return 1;
    for (long i = 0; i < lines; i++) {
        char head[64], *line = buffer + filled;
        size_t length = (size_t)snprintf(head, sizeof head, "%.20s %08ld ", argv[1], i);
        memcpy(line, head, length);
        memset(line + length, '.', LINE - 1 - length);
        line[LINE - 1] = '\n';
        filled += LINE;
        while (filled >= (chunk ? chunk : LINE)) {
            size_t now = chunk ? chunk : LINE;
            put(buffer, now);
            memmove(buffer, buffer + now, filled -= now);
        }
    }
    put(buffer, filled);
    return 0;
}
