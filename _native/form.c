/* The forms of times, and of bytes inside JSON. */
#include "pump.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- times ----------------------------------------------------------------------- */

static const char digits[] = "0123456789abcdef";

/* As daemontools reckons: Unix time plus 10 s, without leap seconds (libtai, tai_unix). */
static const uint64_t tai_epoch = (UINT64_C(1) << 62) + 10;

static void put_hex(char *to, uint64_t value, int n)
{
    while (n--) {
        to[n] = digits[value & 15];
        value >>= 4;
    }
}

static void put_decimal(char *to, uint32_t value, int n)
{
    while (n--) {
        to[n] = (char)('0' + value % 10);
        value /= 10;
    }
}

int stamp_init(struct stamp *stamp, enum time_form form, const char *format)
{
    stamp->form = form;
    stamp->second = -1;
    stamp->format = strdup(format ? format : "");
    return stamp->format ? 0 : -ENOMEM;
}

/* +0100 to +01:00. */
static size_t put_offset(char *to, const struct tm *local)
{
    strftime(to, 6, "%z", local);
    memmove(to + 4, to + 3, 2);
    to[3] = ':';
    return 6;
}

static void renew(struct stamp *stamp, time_t second)
{
    struct tm local;
    stamp->second = second;
    switch (stamp->form) {
    case TIME_NONE:
        break;
    case TIME_STRFTIME:
        localtime_r(&second, &local);
        stamp->length = strftime(stamp->text, sizeof stamp->text, stamp->format, &local);
        break;
    case TIME_ISO:
        localtime_r(&second, &local);
        stamp->fraction = strftime(stamp->text, sizeof stamp->text, "%Y-%m-%dT%H:%M:%S.", &local);
        stamp->length = stamp->fraction + 6;
        stamp->length += put_offset(stamp->text + stamp->length, &local);
        break;
    case TIME_TAI64N:
        stamp->text[0] = '@';
        put_hex(stamp->text + 1, tai_epoch + (uint64_t)second, 16);
        stamp->fraction = 17;
        stamp->length = 25;
        break;
    }
}

void stamp_refresh(struct stamp *stamp)
{
    struct timespec now;
    if (stamp->form == TIME_NONE)
        return;
    clock_gettime(CLOCK_REALTIME, &now);
    if (now.tv_sec != stamp->second)
        renew(stamp, now.tv_sec);
    if (stamp->form == TIME_ISO)
        put_decimal(stamp->text + stamp->fraction, (uint32_t)now.tv_nsec / 1000, 6);
    else if (stamp->form == TIME_TAI64N)
        put_hex(stamp->text + stamp->fraction, (uint64_t)now.tv_nsec, 8);
}

/* ---- JSON ------------------------------------------------------------------------ */

static bool is_tail(unsigned char byte)
{
    return (byte & 0xc0) == 0x80;
}

/* Bytes of the UTF-8 character at `at`, of which `left` are there; 0: it is none (RFC 3629:
 * no overlong form, no surrogate, nothing above U+10FFFF). */
static size_t character(const unsigned char *at, size_t left)
{
    unsigned char first = at[0];
    if (first >= 0xc2 && first <= 0xdf)
        return left >= 2 && is_tail(at[1]) ? 2 : 0;
    if (first >= 0xe0 && first <= 0xef) {
        unsigned char low = first == 0xe0 ? 0xa0 : 0x80, high = first == 0xed ? 0x9f : 0xbf;
        return left >= 3 && at[1] >= low && at[1] <= high && is_tail(at[2]) ? 3 : 0;
    }
    if (first >= 0xf0 && first <= 0xf4) {
        unsigned char low = first == 0xf0 ? 0x90 : 0x80, high = first == 0xf4 ? 0x8f : 0xbf;
        return left >= 4 && at[1] >= low && at[1] <= high && is_tail(at[2]) && is_tail(at[3]) ? 4 : 0;
    }
    return 0;
}

static char *put_escaped(char *to, unsigned char byte)
{
    static const char shorts[] = "\bb\tt\nn\ff\rr\"\"\\\\";
    *to++ = '\\';
    for (const char *pair = shorts; *pair; pair += 2) {
        if ((unsigned char)*pair == byte) {
            *to++ = pair[1];
            return to;
        }
    }
    memcpy(to, "u00", 3);
    put_hex(to + 3, byte, 2);
    return to + 5;
}

char *put_json(char *to, const char *text, size_t length)
{
    const unsigned char *at = (const unsigned char *)text, *end = at + length;
    while (at < end) {
        if (*at >= 0x80) {
            size_t n = character(at, (size_t)(end - at));
            if (n == 0)
                return NULL;
            memcpy(to, at, n);
            to += n;
            at += n;
        } else if (*at < 0x20 || *at == '"' || *at == '\\' || *at == 0x7f) {
            to = put_escaped(to, *at++);
        } else {
            *to++ = (char)*at++;
        }
    }
    return to;
}

char *put_base64(char *to, const char *data, size_t length)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *at = (const unsigned char *)data;
    for (size_t i = 0; i < length; i += 3) {
        size_t left = length - i;
        uint32_t bits = (uint32_t)at[i] << 16;
        if (left > 1)
            bits |= (uint32_t)at[i + 1] << 8;
        if (left > 2)
            bits |= at[i + 2];
        *to++ = letters[bits >> 18];
        *to++ = letters[bits >> 12 & 63];
        *to++ = left > 1 ? letters[bits >> 6 & 63] : '=';
        *to++ = left > 2 ? letters[bits & 63] : '=';
    }
    return to;
}
