/* A copy of what is read, for whoever looks on: a circle of whole records. When it is
 * full, bytes are missed and counted, and nothing waits. */
#include "pump.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { TAP_BYTES = 1 << 20 };

static uint64_t padded(uint64_t length)
{
    return (length + 7) / 8 * 8;
}

static void copy_in(struct tap *tap, const void *data, size_t length)
{
    size_t at = tap->end % TAP_BYTES, first = length < TAP_BYTES - at ? length : TAP_BYTES - at;
    memcpy(tap->data + at, data, first);
    memcpy(tap->data, (const char *)data + first, length - first);
    tap->end += padded(length);
}

static void copy_out(const struct tap *tap, uint64_t from, char *to, size_t length)
{
    size_t at = from % TAP_BYTES, first = length < TAP_BYTES - at ? length : TAP_BYTES - at;
    memcpy(to, tap->data + at, first);
    memcpy(to + first, tap->data, length - first);
}

void tap_copy(struct stream *stream, const char *data, size_t length, uint64_t at)
{
    struct tap *tap = &stream->target.pump->tap;
    struct tapped record = {
        .stream = stream->target.id,
        .at = at,
        .missed = stream->tap_missed,
        .length = (uint32_t)length,
    };
    pthread_mutex_lock(&tap->lock);
    if (!tap->data)
        tap->data = malloc(TAP_BYTES);
    bool fits = tap->data && tap->end - tap->begin + sizeof record + padded(length) <= TAP_BYTES;
    if (fits) {
        copy_in(tap, &record, sizeof record);
        copy_in(tap, data, length);
    }
    pthread_mutex_unlock(&tap->lock);
    stream->tap_missed = fits ? 0 : stream->tap_missed + length;
    if (fits)
        target_tell(&tap->target, PUMP_TAPPED, 0, false);
}

size_t pump_tap_take(struct pump *pump, char *ret_data, size_t size)
{
    struct tap *tap = &pump->tap;
    size_t taken = 0;
    pthread_mutex_lock(&tap->lock);
    while (tap->begin < tap->end) {
        struct tapped record;
        copy_out(tap, tap->begin, (char *)&record, sizeof record);
        size_t whole = sizeof record + padded(record.length);
        if (whole > size - taken)
            break;
        copy_out(tap, tap->begin, ret_data + taken, whole);
        tap->begin += whole;
        taken += whole;
    }
    bool more = tap->begin < tap->end;
    pthread_mutex_unlock(&tap->lock);
    if (more)
        target_tell(&tap->target, PUMP_TAPPED, 0, false);
    return taken;
}

int tap_init(struct tap *tap, struct pump *pump)
{
    tap->target = (struct target){.kind = TARGET_TAP, .pump = pump};
    return -pthread_mutex_init(&tap->lock, NULL);
}

void tap_free(struct tap *tap)
{
    pthread_mutex_destroy(&tap->lock);
    free(tap->data);
}
