/* SPDX-License-Identifier: GPL-3.0-or-later */
/* What the owner asks of the keeper while a capture runs. */
#include <stdlib.h>

#include "capture/keeper.h"
#include "common/clock.h"
#include "guard/log.h"

/* The owner sends this while the guest runs; only RAM in small pages is worth it. */
static int prearm(struct ls_keeper *k, struct ls_error *err)
{
    struct ls_protect_result got;
    struct timespec began;
    bool done;

    if (k->phase != LS_PHASE_ATTACHED || k->prearmed || k->start.still)
        return ls_fail(err, LS_USAGE, "request",
                       "'prearm' came twice, after 'protect', or for engine pause");
    clock_gettime(CLOCK_MONOTONIC, &began);
    if (ls_engine_set_layout(k->engine, &k->first, err) ||
        ls_engine_prearm(k->engine, &done, &got, err))
        return -1;
    k->prearmed = true;
    if (done)
        ls_log(LOG_INFO, "protected RAM in small pages while the guest runs, %.0f ms",
               ls_seconds_since(&began) * 1e3);
    ls_events_send(&k->out,
                   json_pack("{s:s, s:b, s:f, s:I}", "event", "prearmed", "done", done, "ms",
                             ls_seconds_since(&began) * 1e3, "pages", (json_int_t)got.pages),
                   true);
    return 0;
}

/* The layout that RAM is captured by. One that was protected before the pause is kept if nothing
 * has changed. */
static int use_layout(struct ls_keeper *k, struct ls_layout *layout, struct ls_error *err)
{
    if (k->prearmed && ls_layout_same(&k->engine->layout, layout)) {
        ls_layout_free(layout);
        return 0;
    }
    return ls_engine_set_layout(k->engine, layout, err);
}

static int read_map(struct ls_keeper *k, const char *ramblock, struct ls_error *err)
{
    struct ls_rammap map = {0};
    struct ls_layout layout = {0};
    int rc;

    if (ls_rammap_refresh(k->start.pid, ramblock, &k->map, &map, err))
        return -1;
    rc = ls_layout_make(&layout, &map, err);
    ls_rammap_free(&map);
    if (rc)
        return -1;
    layout.still = k->start.still;
    if (k->has_layout) {
        bool same = ls_layout_same(&k->engine->layout, &layout);

        ls_layout_free(&layout);
        return same ? 0
                    : ls_fail(err, LS_REFUSED, "ramblock",
                              "the guest's RAM blocks changed while it was stopped");
    }
    /* Only what is mapped: smaps would cost milliseconds of the pause. */
    if (ls_layout_check(&layout, k->start.pid, LS_MAPS, err) ||
        ls_keeper_describe(k, &layout, err)) {
        ls_layout_free(&layout);
        return -1;
    }
    if (use_layout(k, &layout, err))
        return -1;
    k->has_layout = true;
    ls_stage_give_order(k->stage, LS_ORDER_CREATE);
    return 0;
}

static int protect(struct ls_keeper *k, const struct ls_request *r, struct ls_error *err)
{
    struct ls_protect_result got = {0};
    struct timespec began;

    if (k->phase > LS_PHASE_PROTECTED)
        return ls_fail(err, LS_USAGE, "request", "'protect' came after 'arm'");
    clock_gettime(CLOCK_MONOTONIC, &began);
    if (read_map(k, r->ramblock, err) ||
        (!k->start.still && ls_engine_protect(k->engine, &got, err)))
        return -1;
    if (k->phase == LS_PHASE_ATTACHED)
        k->protected_at = began;
    k->phase = LS_PHASE_PROTECTED;
    ls_events_send(&k->out,
                   json_pack("{s:s, s:f, s:I, s:i}", "event", "protected", "ms",
                             ls_seconds_since(&began) * 1e3, "pages", (json_int_t)got.pages,
                             "scans", (int)got.scans),
                   true);
    return 0;
}

static void send_armed(struct ls_keeper *k, uint64_t written, const struct timespec *began)
{
    ls_events_send(&k->out,
                   json_pack("{s:s, s:b, s:I, s:f}", "event", "armed", "clean", written == 0,
                             "written_pages", (json_int_t)written, "ms",
                             ls_seconds_since(began) * 1e3),
                   true);
}

static int arm(struct ls_keeper *k, struct ls_error *err)
{
    struct ls_protect_result ignored;
    struct timespec began;
    uint64_t written = 0;

    if (k->phase != LS_PHASE_PROTECTED)
        return ls_fail(err, LS_USAGE, "request", "'arm' came %s",
                       k->phase == LS_PHASE_ATTACHED ? "before 'protect'" : "twice");
    clock_gettime(CLOCK_MONOTONIC, &began);
#ifdef LS_FAULTS
    if (k->engine->late_arm && !k->start.still) {
        k->phase = LS_PHASE_ARMED;
        clock_gettime(CLOCK_MONOTONIC, &k->armed_at);
        send_armed(k, 0, &began);
        return ls_engine_arm_late(k->engine, err);
    }
#endif
    if (k->start.still ? ls_engine_copy_still(k->engine, err)
                       : ls_engine_arm(k->engine, &written, err))
        return -1;
    if (written == 0) {
        k->phase = LS_PHASE_ARMED;
        clock_gettime(CLOCK_MONOTONIC, &k->armed_at);
        k->reported_at = k->armed_at;
    } else if (ls_engine_protect(k->engine, &ignored, err)) {
        return -1;
    }
    send_armed(k, written, &began);
    return 0;
}

static int handle_line(struct ls_keeper *k, const char *line, size_t length, struct ls_error *err)
{
    struct ls_request r;
    int rc;

    if (ls_request_parse(line, length, &r, err))
        return -1;
    switch (r.kind) {
    case LS_REQUEST_PREARM:
        rc = prearm(k, err);
        break;
    case LS_REQUEST_PROTECT:
        rc = protect(k, &r, err);
        break;
    case LS_REQUEST_ARM:
        rc = arm(k, err);
        break;
    case LS_REQUEST_ABORT:
        rc = ls_fail(err, LS_ABORTED, "request", "aborted on request");
        break;
    default:
        rc = ls_fail(err, LS_USAGE, "request", "'start' came twice");
    }
    ls_request_free(&r);
    return rc;
}

int ls_keeper_obey(struct ls_keeper *k, struct ls_error *err)
{
    size_t length;
    char *line;
    int rc = 0;

    if (ls_lines_fill(&k->in, err))
        return -1;
    while (rc == 0 && (line = ls_lines_next(&k->in, &length))) {
        rc = handle_line(k, line, length, err);
        free(line);
    }
    /* Who stands still is let go by the owner alone, or by its guard: then it is no instant. */
    if (rc == 0 && k->in.end && k->phase < (k->start.still ? LS_PHASE_RELEASED : LS_PHASE_ARMED))
        return ls_fail(err, LS_ABORTED, "owner", "the owner closed the requests before RAM was %s",
                       k->start.still ? "copied" : "armed");
    return rc;
}
