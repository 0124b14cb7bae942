/* Read a log that `child lines` wrote: is every line there, whole, in its writer's order?
 *
 *     verify FILE      prints "WHOLE TORN DISORDERED", counts of lines
 *
 * Out of order is a whole line that comes after a later one of the same process. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { MAX_PID = 1 << 22, LINE = 100 }; /* proc(5): pid_max is at most 2^22 */

static long next_number[MAX_PID];

static bool parse(const char *line, size_t length, long *ret_pid, long *ret_number) {
    int used = 0;
    if (length != LINE || sscanf(line, "%10ld %10ld %n", ret_pid, ret_number, &used) != 2)
        return false;
    size_t filler = strspn(line + used, "x");
    return used == 22 && filler == LINE - 1 - 22 && *ret_pid > 0 && *ret_pid < MAX_PID;
}

int main(int argc, char **argv) {
    FILE *file = argc == 2 ? fopen(argv[1], "r") : NULL;
    if (!file) {
        perror("verify");
        return 2;
    }
    char line[1 << 16];
    long whole = 0, torn = 0, disordered = 0, pid, number;
    while (fgets(line, sizeof line, file)) {
        if (!parse(line, strlen(line), &pid, &number)) {
            torn++;
            continue;
        }
        whole++;
        if (number < next_number[pid])
            disordered++;
        else
            next_number[pid] = number + 1;
    }
    printf("%ld %ld %ld\n", whole, torn, disordered);
    return 0;
}
