/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Ends a bracket whose owner is dead or hangs: the owner is killed, RAM released, the guest resumed
 * if it was running before, and thawed. Each step is tried until it holds or QEMU is gone.
 */
#ifndef LS_GUARD_UNDO_H
#define LS_GUARD_UNDO_H

#include "guard/reach.h"
#include "guard/watch.h"

/* What has been achieved, as written to the report. */
struct ls_outcome {
    const char *reason; /* owner died, deadline, keeper hung, terminated */
    char at[32];        /* when it began, RFC 3339 UTC */
    bool released;      /* the guest's RAM is under no protection any more */
    bool resumed;       /* the guard resumed the guest */
    bool thawed;        /* the guard thawed it */
    bool gone;          /* QEMU ended meanwhile */
    bool finished;      /* all that is to be done holds */
    char status[32];    /* query-status as last seen, or empty */
    char problem[512];  /* why the last try failed, or empty */
};

struct ls_guard {
    struct ls_reach reach;
    char *guest;
    char *id;
    char *report; /* file for the outcome */
    bool was_running;
    bool has_keeper;
    struct ls_peer qemu;
    struct ls_peer owner;
    struct ls_watch keeper;
    int signals; /* signalfd with SIGTERM, or -1 */
    struct ls_outcome outcome;
};

/* Sets the reason and the time, and begins the report. */
void ls_outcome_begin(struct ls_guard *guard, const char *reason);

/* Writes the report beside its name and renames it. A failure is logged. */
void ls_report_write(const struct ls_guard *guard);

/* Releases RAM (once) and notes it in the outcome. */
void ls_undo_release(struct ls_guard *guard);

/* All of it. Returns when everything holds, QEMU is gone, or SIGTERM came and each step had its
 * try. */
void ls_undo(struct ls_guard *guard, const char *reason);

#endif
