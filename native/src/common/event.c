/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "common/event.h"

#include <jansson.h>

#include "common/clock.h"

const char *ls_class_name(enum ls_class cls)
{
    static const char *const names[] = {"ok",   "usage",   "refused", "aborted",
                                        "gone", "storage", "torn",    "internal"};

    return (unsigned)cls < sizeof names / sizeof *names ? names[cls] : "internal";
}

int ls_event_error(FILE *out, const struct ls_error *err)
{
    json_t *event =
        json_pack("{s:s, s:s, s:s, s:s, s:i}", "event", "error", "class", ls_class_name(err->cls),
                  "reason", err->reason, "message", err->message, "errno", err->sys);

    /* A message that quotes bytes which are no UTF-8 cannot be packed. */
    if (!event)
        event = json_pack("{s:s, s:s, s:s, s:s, s:i}", "event", "error", "class",
                          ls_class_name(err->cls), "reason", err->reason, "message",
                          "the message quotes a name that is not UTF-8", "errno", err->sys);
    if (event)
        json_dumpf(event, out, JSON_COMPACT);
    fputc('\n', out);
    fflush(out);
    json_decref(event);
    return err->cls == LS_OK ? LS_INTERNAL : (int)err->cls;
}

void ls_meter_start(struct ls_meter *m, FILE *out)
{
    *m = (struct ls_meter){.out = out, .started = ls_seconds()};
    m->last = m->started;
}

void ls_meter_progress(uint64_t done, uint64_t total, void *opaque)
{
    struct ls_meter *m = opaque;
    double now, spent;

    if (!m->out || total == 0 || done == 0)
        return;
    now = ls_seconds();
    if (now - m->last < 0.25)
        return;
    m->last = now;
    spent = now - m->started;
    fprintf(m->out,
            "{\"event\":\"progress\",\"done_bytes\":%llu,\"total_bytes\":%llu,\"percent\":%.1f,"
            "\"eta_s\":%.1f}\n",
            (unsigned long long)done, (unsigned long long)total,
            100.0 * (double)done / (double)total, spent * (double)(total - done) / (double)done);
    fflush(m->out);
}
