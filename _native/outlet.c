/* What is done to the lines of the streams of one kind: which are left out, which are too
 * many, in what form the others are written, and how it is told what is missing.
 *
 * A record of loss is a line of our own among the others. It is due a second after the
 * first line that was left out since the last record, when the sink takes bytes, and at
 * the latest at the end of a stream; so a flood costs one a second, and bytes in are
 * bytes out and bytes counted. */
#include "pump.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NOTE_BYTES = 512, STAMP_BYTES = 64 };

static const int64_t note_pause = 1000 * MILLISECOND;

static uint64_t total(const _Atomic uint64_t *count)
{
    return atomic_load_explicit(count, memory_order_relaxed);
}

static void add(_Atomic uint64_t *count, uint64_t n)
{
    atomic_fetch_add_explicit(count, n, memory_order_relaxed);
}

static char *put(char *to, const char *text, size_t length)
{
    memcpy(to, text, length);
    return to + length;
}

static char *put_text(char *to, const char *text)
{
    return put(to, text, strlen(text));
}

/* ---- which lines ----------------------------------------------------------------- */

static bool has_credit(struct rate *rate, int64_t now)
{
    if (rate->burst == 0)
        return true;
    rate->credit += (double)(now - rate->at) * rate->lines_per_ns;
    rate->at = now;
    if (rate->credit > rate->burst)
        rate->credit = rate->burst;
    if (rate->credit < 1)
        return false;
    rate->credit -= 1;
    return true;
}

enum fate outlet_judge(struct outlet *outlet, int64_t now, const char *text, size_t length)
{
    if (outlet->n_patterns && !patterns_select(outlet->patterns, outlet->n_patterns, text, length))
        return FATE_DESELECTED;
    return has_credit(&outlet->rate, now) ? FATE_KEPT : FATE_SUPPRESSED;
}

void outlet_lose(struct stream *stream, enum fate fate, size_t lines, size_t bytes)
{
    struct outlet *outlet = stream->outlet;
    if (fate == FATE_DROPPED) {
        add(&stream->dropped_lines, lines);
        add(&stream->dropped_bytes, bytes);
        add(&outlet->dropped_lines, lines);
        add(&outlet->dropped_bytes, bytes);
    } else if (fate == FATE_SUPPRESSED) {
        add(&stream->suppressed_lines, lines);
        add(&stream->suppressed_bytes, bytes);
        add(&outlet->suppressed_lines, lines);
        add(&outlet->suppressed_bytes, bytes);
    } else {
        return;
    }
    if (outlet->note_at != NEVER)
        return;
    struct sink *sink = outlet->sink;
    outlet->note_at = sink->target.pump->now + note_pause;
    outlet->next_noting = sink->noting;
    sink->noting = outlet;
    sink_schedule(sink, outlet->note_at);
}

/* ---- in what form ---------------------------------------------------------------- */

size_t outlet_room(const struct outlet *outlet, const struct label *label, size_t length)
{
    return outlet->frame + label->length + (outlet->format == FORMAT_JSON ? 6 * length : length);
}

static char *put_object(const struct outlet *outlet, const struct label *label, char *to,
                        const char *text, size_t length, bool whole)
{
    static const char name[] = ",\"message\":\"", coded[] = ",\"message_base64\":\"";
    to = put_text(to, "{\"time\":\"");
    to = put(to, outlet->stamp.text, outlet->stamp.length);
    *to++ = '"';
    to = put(to, label->data, label->length);
    if (!whole)
        to = put_text(to, ",\"partial\":true");
    char *end = put_json(put(to, name, sizeof name - 1), text, length);
    if (!end)
        end = put_base64(put(to, coded, sizeof coded - 1), text, length);
    return put_text(end, "\"}\n");
}

char *outlet_put(const struct outlet *outlet, const struct label *label, char *to, const char *text,
                 size_t length, unsigned piece)
{
    switch (outlet->format) {
    case FORMAT_JSON:
        return put_object(outlet, label, to, text, length, (piece & PIECE_WHOLE) == PIECE_WHOLE);
    case FORMAT_PREFIX:
        if (piece & (PIECE_FIRST | PIECE_RESUMED)) {
            to = put(to, outlet->before, outlet->before_length);
            to = put(to, outlet->stamp.text, outlet->stamp.length);
            to = put(to, label->data, label->length);
        }
        if (piece & PIECE_RESUMED)
            to = put_text(to, "... ");
        to = put(to, text, length);
        if (piece & PIECE_LAST)
            to = put(to, outlet->after, outlet->after_length);
        break;
    case FORMAT_RAW:
    case FORMAT_RECORD:
        to = put(to, text, length);
    }
    if (piece & PIECE_LAST)
        *to++ = '\n';
    return to;
}

/* ---- what is missing ------------------------------------------------------------- */

void outlet_losses(const struct outlet *outlet, struct losses *ret_losses)
{
    *ret_losses = (struct losses){
        total(&outlet->dropped_lines),
        total(&outlet->dropped_bytes),
        total(&outlet->suppressed_lines),
        total(&outlet->suppressed_bytes),
    };
}

static int describe(const struct outlet *outlet, const struct losses *now, char *ret_text)
{
    uint64_t dropped = now->dropped_bytes - outlet->noted.dropped_bytes;
    uint64_t suppressed = now->suppressed_bytes - outlet->noted.suppressed_bytes;
    int n = snprintf(ret_text, NOTE_BYTES, "sysup: %.200s:", outlet->name);
    if (dropped)
        n += snprintf(ret_text + n, (size_t)(NOTE_BYTES - n),
                      " dropped %" PRIu64 " lines (%" PRIu64 " bytes), as nothing could be written",
                      now->dropped_lines - outlet->noted.dropped_lines, dropped);
    if (suppressed)
        n += snprintf(ret_text + n, (size_t)(NOTE_BYTES - n),
                      "%s suppressed %" PRIu64 " lines (%" PRIu64 " bytes) above the rate",
                      dropped ? " and" : "",
                      now->suppressed_lines - outlet->noted.suppressed_lines, suppressed);
    return n;
}

static void forget_note(struct outlet *outlet)
{
    struct outlet **link = &outlet->sink->noting;
    while (*link != outlet)
        link = &(*link)->next_noting;
    *link = outlet->next_noting;
    outlet->note_at = NEVER;
}

void outlet_note(struct outlet *outlet, bool at_once)
{
    struct sink *sink = outlet->sink;
    struct losses now;
    char text[NOTE_BYTES];
    outlet_losses(outlet, &now);
    size_t length = (size_t)describe(outlet, &now, text);
    char *to = sink_room(sink, 1 + sizeof(struct record) + outlet_room(outlet, outlet->label, length) + 8);
    if (!to && !at_once) {
        sink_schedule(sink, sink->target.pump->now + note_pause);
        return;
    }
    forget_note(outlet);
    target_tell(&outlet->target, PUMP_OUTLET_LOSS, 0, false);
    if (!to)
        return;
    stamp_refresh(&outlet->stamp);
    if (sink->kind->records) {
        uint64_t label = arena_offset(sink->target.pump->arena, outlet->label);
        struct record record = {.label = label, .length = (uint32_t)length + 1};
        to = put(to, (const char *)&record, sizeof record);
    } else if (sink->open_line) {
        *to++ = '\n';
    }
    to = outlet_put(outlet, outlet->label, to, text, length, PIECE_WHOLE);
    sink->open_line = 0;
    sink_commit(sink, sink_align(sink, to));
    sink_save(sink);
    arena_commit(sink->target.pump->arena);
    outlet->noted = now;
}

/* ---- from outside ---------------------------------------------------------------- */

int label_new(const struct outlet *outlet, uint64_t owner, const char *text, struct label **ret_label)
{
    size_t length = text ? strlen(text) : 0, size = sizeof(struct label) + length;
    struct block *block = arena_take(outlet->target.pump->arena, owner, BLOCK_LABEL, size);
    if (!block)
        return -ENOMEM;
    struct label *label = (struct label *)block->data;
    *label = (struct label){.priority = outlet->priority, .flags = outlet->flags, .length = length};
    if (length)
        memcpy(label->data, text, length);
    block->end = size;
    block_keep(block);
    *ret_label = label;
    return 0;
}

void label_free(struct pump *pump, struct label *label)
{
    if (label)
        arena_give(pump->arena, block_of(label));
}

static void set_rate(struct rate *rate, const struct outlet_spec *spec)
{
    if (!spec->rate_lines)
        return;
    rate->lines_per_ns = (double)spec->rate_lines / (double)(spec->rate_ns ? spec->rate_ns : 1);
    rate->burst = rate->credit = spec->rate_burst ? (double)spec->rate_burst : 1;
    rate->at = clock_ns();
}

static int copy(char **ret_copy, const char *text)
{
    *ret_copy = strdup(text ? text : "");
    return *ret_copy ? 0 : -ENOMEM;
}

static int fill(struct outlet *outlet, const struct outlet_spec *spec)
{
    int rc = copy(&outlet->before, spec->before);
    if (rc == 0)
        rc = copy(&outlet->after, spec->after);
    if (rc == 0)
        rc = copy(&outlet->name, spec->name);
    if (rc == 0)
        rc = stamp_init(&outlet->stamp, (enum time_form)spec->time_form, spec->time_format);
    if (rc == 0)
        rc = patterns_new(spec->patterns, spec->n_patterns, &outlet->patterns);
    if (rc == 0)
        rc = label_new(outlet, outlet->target.id, spec->label, &outlet->label);
    if (rc < 0)
        return rc;
    outlet->before_length = strlen(outlet->before);
    outlet->after_length = strlen(outlet->after);
    outlet->frame = outlet->before_length + outlet->after_length + 2 * STAMP_BYTES;
    return 0;
}

int outlet_new(struct sink *sink, uint64_t id, const struct outlet_spec *spec,
               struct outlet **ret_outlet)
{
    if ((spec->format == FORMAT_RECORD) != sink->kind->records)
        return -EINVAL;
    struct outlet *outlet = calloc(1, sizeof *outlet);
    if (!outlet)
        return -ENOMEM;
    outlet->target = (struct target){.kind = TARGET_OUTLET, .id = id, .pump = sink->target.pump};
    outlet->sink = sink;
    outlet->format = (enum line_format)spec->format;
    outlet->flags = spec->flags;
    outlet->priority = spec->priority & 7;
    outlet->max_line = spec->max_line ? spec->max_line : READ_BYTES;
    outlet->n_patterns = spec->n_patterns;
    outlet->note_at = NEVER;
    set_rate(&outlet->rate, spec);
    outlet->works = spec->n_patterns || outlet->rate.burst > 0 || spec->format == FORMAT_PREFIX ||
                    spec->format == FORMAT_JSON ||
                    (spec->format == FORMAT_RECORD && outlet->max_line < READ_BYTES);
    int rc = fill(outlet, spec);
    if (rc < 0)
        outlet_free(outlet);
    else
        *ret_outlet = outlet;
    return rc;
}

void outlet_free(struct outlet *outlet)
{
    patterns_free(outlet->patterns, outlet->n_patterns);
    free(outlet->stamp.format);
    label_free(outlet->target.pump, outlet->label);
    free(outlet->before);
    free(outlet->after);
    free(outlet->name);
    free(outlet);
}
