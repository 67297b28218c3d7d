/* SPDX-License-Identifier: GPL-3.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "guard/log.h"
#include "guard/qmp.h"
#include "guard/undo.h"

void ls_outcome_begin(struct ls_guard *guard, const char *reason)
{
    time_t now = time(NULL);
    struct tm utc;

    guard->outcome.reason = reason;
    gmtime_r(&now, &utc);
    strftime(guard->outcome.at, sizeof guard->outcome.at, "%Y-%m-%dT%H:%M:%SZ", &utc);
}

static json_t *describe(const struct ls_guard *guard)
{
    const struct ls_outcome *outcome = &guard->outcome;
    struct ls_peer self = LS_PEER_NONE;
    struct ls_error ignored;
    json_t *report;

    (void)ls_peer_open(&self, getpid(), 0, &ignored);
    report = json_pack(
        "{ss ss sI sI si sI ss ss sb sb sb sb sb ss ss}", "guest", guard->guest, "id", guard->id,
        "pid", (json_int_t)guard->qemu.pid, "start_time", (json_int_t)guard->qemu.start_time,
        "guard", (int)getpid(), "guard_start_time", (json_int_t)self.start_time, "reason",
        outcome->reason, "at", outcome->at, "released", outcome->released, "resumed",
        outcome->resumed, "thawed", outcome->thawed, "gone", outcome->gone, "finished",
        outcome->finished, "status", outcome->status, "problem", outcome->problem);
    ls_peer_close(&self);
    return report;
}

static int write_beside(const char *name, const char *text, struct ls_error *err)
{
    LS_AUTO_CLOSE int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        return ls_fail_errno(err, LS_INTERNAL, "report", "cannot make '%s'", name);
    if (ls_write_full(fd, text, strlen(text), err) != 0)
        return ls_context(err, "'%s'", name);
    return 0;
}

void ls_report_write(const struct ls_guard *guard)
{
    LS_AUTO_JSON json_t *report = describe(guard);
    LS_AUTO_FREE char *text = report ? json_dumps(report, JSON_COMPACT) : NULL;
    LS_AUTO_FREE char *beside = NULL;
    struct ls_error err;

    if (!text || asprintf(&beside, "%s.new", guard->report) < 0) {
        beside = NULL;
        ls_log(LOG_ERR, "no memory for the report");
        return;
    }
    if (write_beside(beside, text, &err) != 0)
        ls_log(LOG_ERR, "%s", err.message);
    else if (rename(beside, guard->report) != 0)
        ls_log(LOG_ERR, "cannot rename '%s': %s", beside, strerror(errno));
}
