/* Which lines are taken, by patterns as multilog(8) has them.
 *
 * Each pattern either selects or deselects the lines that it fits; they are tried in turn
 * and the last that fits decides. A line is selected to begin with, unless the first
 * pattern selects: that would say nothing otherwise. In a pattern, a star fits any text
 * that does not hold the character after the star; any other character fits itself; a
 * pattern fits a whole line. So a match takes one walk through the line, whatever the
 * pattern: no line can make it slow. */
#include "pump.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool fits(const char *pattern, const char *line, size_t length)
{
    const char *end = line + length;
    for (; *pattern; pattern++) {
        if (*pattern != '*') {
            if (line == end || *line != *pattern)
                return false;
            line++;
        } else if (pattern[1] == '\0') {
            return true;
        } else {
            line = memchr(line, pattern[1], (size_t)(end - line));
            if (!line)
                return false;
        }
    }
    return line == end;
}

bool patterns_select(const struct pattern *patterns, uint32_t n, const char *line, size_t length)
{
    bool selected = n == 0 || !patterns[0].selects;
    for (uint32_t i = 0; i < n; i++)
        if (patterns[i].selects != selected && fits(patterns[i].text, line, length))
            selected = patterns[i].selects;
    return selected;
}

int patterns_new(const char *const *texts, uint32_t n, struct pattern **ret_patterns)
{
    struct pattern *patterns = calloc(n ? n : 1, sizeof *patterns);
    if (!patterns)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++) {
        patterns[i].selects = texts[i][0] == '+';
        patterns[i].text = strdup(texts[i] + 1);
        if (!patterns[i].text) {
            patterns_free(patterns, n);
            return -ENOMEM;
        }
    }
    *ret_patterns = patterns;
    return 0;
}

void patterns_free(struct pattern *patterns, uint32_t n)
{
    for (uint32_t i = 0; patterns && i < n; i++)
        free(patterns[i].text);
    free(patterns);
}
