/* What stands around each line of a stream: a time, a prefix, a colour. */
#include "pump.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { STAMP_BYTES = 64 }; /* the longest time */

void style_free(struct style *style)
{
    if (!style)
        return;
    free(style->before);
    free(style->time_format);
    free(style->middle);
    free(style->after);
    free(style);
}

static char *copy(const char *text)
{
    return strdup(text ? text : "");
}

void style_refresh(struct style *style)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (now.tv_sec == style->second)
        return;
    style->second = now.tv_sec;
    char *to = style->prefix;
    memcpy(to, style->before, style->before_length);
    to += style->before_length;
    struct tm local;
    localtime_r(&now.tv_sec, &local);
    to += strftime(to, STAMP_BYTES, style->time_format, &local);
    memcpy(to, style->middle, style->middle_length);
    style->prefix_length = (size_t)(to - style->prefix) + style->middle_length;
}

int style_new(const struct line_style *spec, struct style **ret_style)
{
    size_t before = spec->before ? strlen(spec->before) : 0;
    size_t middle = spec->middle ? strlen(spec->middle) : 0;
    struct style *style = calloc(1, sizeof *style + before + STAMP_BYTES + middle);
    if (!style)
        return -ENOMEM;
    style->before = copy(spec->before);
    style->time_format = copy(spec->time_format);
    style->middle = copy(spec->middle);
    style->after = copy(spec->after);
    if (!style->before || !style->time_format || !style->middle || !style->after) {
        style_free(style);
        return -ENOMEM;
    }
    style->before_length = before;
    style->middle_length = middle;
    style->after_length = strlen(style->after);
    style->frame = before + STAMP_BYTES + middle + style->after_length + 1;
    *ret_style = style;
    return 0;
}
