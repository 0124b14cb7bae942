/* Read a log that `child lines` wrote: is every line there, whole, in its writer's order?
 *
 *     verify STAMPED FILE...     prints "WHOLE TORN DISORDERED CUT"
 *
 * The files are the parts of one log, oldest first. Torn: what is not a line of the child;
 * STAMPED (1) allows for something before it. Out of order: a whole line after a later one of
 * the same process. Cut: files, but for the last, that do not end with a line. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PID = 1 << 22, LINE = 100, LONGEST_STAMP = 64 }; /* proc(5): pid_max <= 2^22 */

static long next_number[MAX_PID];
static long whole, torn, disordered, cut;

static bool parse(const char *line, size_t length, bool stamped, long *ret_pid,
                  long *ret_number) {
    size_t stamp = length - LINE;
    if (length < LINE || (stamped ? stamp == 0 || stamp > LONGEST_STAMP : stamp != 0))
        return false;
    line += stamp;
    int used = 0;
    if (sscanf(line, "%10ld %10ld %n", ret_pid, ret_number, &used) != 2)
        return false;
    size_t filler = strspn(line + used, "x");
    return used == 22 && filler == LINE - 1 - 22 && *ret_pid > 0 && *ret_pid < MAX_PID;
}

static void count_line(const char *line, size_t length, bool stamped) {
    long pid, number;
    if (!parse(line, length, stamped, &pid, &number)) {
        torn++;
        return;
    }
    whole++;
    if (number < next_number[pid])
        disordered++;
    else
        next_number[pid] = number + 1;
}

int main(int argc, char **argv) {
    static char line[1 << 16];
    size_t held = 0; /* of a line that the end of a file has cut */
    bool stamped = argc > 1 && atoi(argv[1]);
    for (int i = 2; i < argc; i++) {
        FILE *file = fopen(argv[i], "r");
        if (!file) {
            perror(argv[i]);
            return 2;
        }
        while (fgets(line + held, (int)(sizeof line - held), file)) {
            held += strlen(line + held);
            if (line[held - 1] != '\n' && held < sizeof line - 1)
                continue;
            count_line(line, held, stamped);
            held = 0;
        }
        cut += held > 0 && i < argc - 1;
        fclose(file);
    }
    if (held)
        count_line(line, held, stamped);
    printf("%ld %ld %ld %ld\n", whole, torn, disordered, cut);
    return 0;
}
