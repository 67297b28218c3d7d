/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "guard/undo.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/ksm.h"
#include "guard/log.h"

#define BACKOFF_FIRST_MS 20
#define BACKOFF_MAX_MS 1000
#define OWNER_SOCKETS 16

/*
 * The owner holds the QMP socket, which serves one client. If it hangs in the kernel it keeps the
 * socket beyond SIGKILL; so its connections are shut down as well, by copies of them.
 */
static void end_owner(struct ls_guard *guard)
{
    int sockets[OWNER_SOCKETS];
    struct ls_error err;
    size_t count;

    if (ls_peer_ended(&guard->owner))
        return;
    count = ls_reach_take_sockets(&guard->reach, &guard->owner, guard->qemu.pid, sockets,
                                  OWNER_SOCKETS);
    if (ls_peer_kill(&guard->owner, &err) != 0)
        ls_log(LOG_ERR, "%s", err.message);
    for (size_t i = 0; i < count; i++) {
        shutdown(sockets[i], SHUT_RDWR);
        close(sockets[i]);
    }
    if (ls_peer_wait(&guard->owner, ls_now_ms() + 200))
        ls_log(LOG_NOTICE, "killed the owner, process %d", (int)guard->owner.pid);
    else
        ls_log(LOG_WARNING, "the owner, process %d, does not end on SIGKILL%s",
               (int)guard->owner.pid,
               count > 0 ? "; its connections to the guest were shut down" : "");
}

void ls_undo_release(struct ls_guard *guard)
{
    struct ls_error err;

    if (!guard->has_keeper || guard->outcome.released)
        return;
    if (ls_watch_release(&guard->keeper, &err) == 0) {
        guard->outcome.released = true;
        /* Even where the keeper hangs in the kernel for good: it protects nothing any more. */
        if (ls_ksm_resume(guard->keeper.peer.pid, &err) != 0)
            ls_log(LOG_ERR, "%s", err.message);
        ls_log(LOG_NOTICE, "released the guest's RAM from keeper %d", (int)guard->keeper.peer.pid);
    } else {
        snprintf(guard->outcome.problem, sizeof guard->outcome.problem, "%s", err.message);
        ls_log(LOG_ERR, "cannot release the guest's RAM: %s", err.message);
    }
}

/* States in which QEMU is busy with something that ends by itself. */
static bool passes(const char *status)
{
    return strcmp(status, "save-vm") == 0 || strcmp(status, "finish-migrate") == 0 ||
           strcmp(status, "restore-vm") == 0;
}

/* A guest that was running and now is in one of these was stopped by the bracket. It is "prelaunch"
 * when it was reset meanwhile. */
static bool was_stopped(const char *status)
{
    return strcmp(status, "paused") == 0 || strcmp(status, "prelaunch") == 0;
}

/*
 * 0: nothing (more) is to be done. Other states of a guest that stands still, such as io-error or
 * guest-panicked, are not the bracket's work.
 */
static int resume(struct ls_guard *guard, struct ls_error *err)
{
    struct ls_outcome *outcome = &guard->outcome;
    LS_AUTO_TRY struct ls_try attempt = LS_TRY_NONE;

    if (ls_reach_open(&attempt, &guard->reach, err) != 0 ||
        ls_reach_status(&attempt, outcome->status, sizeof outcome->status, err) != 0)
        return -1;
    if (was_stopped(outcome->status)) {
        if (ls_reach_cont(&attempt, err) != 0 ||
            ls_reach_status(&attempt, outcome->status, sizeof outcome->status, err) != 0)
            return -1;
        if (was_stopped(outcome->status))
            return ls_fail(err, LS_INTERNAL, "paused", "the guest is '%s' after 'cont'",
                           outcome->status);
        outcome->resumed = true;
        ls_log(LOG_NOTICE, "resumed the guest; it is '%s'", outcome->status);
        return 0;
    }
    if (passes(outcome->status))
        return ls_fail(err, LS_INTERNAL, "status", "QEMU is in '%s'", outcome->status);
    return 0;
}

static int thaw(struct ls_guard *guard, struct ls_error *err)
{
    enum ls_thaw done;

    if (ls_reach_thaw(&guard->reach, &done, err) != 0)
        return -1;
    if (done == LS_THAW_DONE) {
        guard->outcome.thawed = true;
        ls_log(LOG_NOTICE, "thawed the guest's file systems");
    }
    return 0;
}

/* The guest does not run any more, so nobody in it can be waited for. */
static bool is_over(struct ls_guard *guard)
{
    static const char *const ends[] = {"shutdown", "guest-panicked", "internal-error",
                                       "postmigrate"};
    struct ls_outcome *outcome = &guard->outcome;
    LS_AUTO_TRY struct ls_try attempt = LS_TRY_NONE;
    struct ls_error err;

    if (ls_reach_open(&attempt, &guard->reach, &err) != 0 ||
        ls_reach_status(&attempt, outcome->status, sizeof outcome->status, &err) != 0)
        return false;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (strcmp(outcome->status, ends[i]) == 0)
            return true;
    return false;
}

/* Waits before the next try. False: SIGTERM came. */
static bool back_off(const struct ls_guard *guard, int ms)
{
    struct pollfd two[2] = {{.fd = guard->qemu.pidfd, .events = POLLIN},
                            {.fd = guard->signals, .events = POLLIN}};

    return poll(two, 2, ms) <= 0 || !(two[1].revents & POLLIN);
}

/* Notes and logs why a try failed; the same words again are not logged again. */
static void note(struct ls_guard *guard, const char *what, const struct ls_error *err)
{
    char text[sizeof guard->outcome.problem];

    snprintf(text, sizeof text, "cannot %s yet: %.400s", what, err->message);
    if (strcmp(text, guard->outcome.problem) == 0)
        return;
    memcpy(guard->outcome.problem, text, sizeof text);
    ls_log(LOG_WARNING, "%s; trying on", text);
    ls_report_write(guard);
}

void ls_undo(struct ls_guard *guard, const char *reason)
{
    bool running = !guard->was_running; /* nothing to resume */
    bool thawed = running || !guard->reach.freeze;
    bool released = !guard->has_keeper;
    int pause = BACKOFF_FIRST_MS;

    ls_outcome_begin(guard, reason);
    ls_log(LOG_WARNING, "%s before the bracket was over: undoing it", reason);
    end_owner(guard);
    ls_report_write(guard);
    for (;;) {
        struct ls_error err;

        if (ls_peer_ended(&guard->qemu)) {
            guard->outcome.gone = true;
            break;
        }
        if (!released) {
            ls_undo_release(guard);
            released = guard->outcome.released;
        }
        /* Not held up by RAM that could not be released: a guest that may block is better off than
         * one that stands still for certain. */
        if (!running) {
            running = resume(guard, &err) == 0;
            if (running)
                ls_report_write(guard);
            else
                note(guard, "resume the guest", &err);
        }
        if (running && !thawed) {
            thawed = thaw(guard, &err) == 0;
            if (!thawed) {
                note(guard, "thaw the guest", &err);
                thawed = is_over(guard);
            }
        }
        if (running && thawed && released)
            break;
        if (!back_off(guard, pause)) {
            ls_log(LOG_ERR, "told to end before the guest was as it had been found");
            ls_report_write(guard);
            return;
        }
        pause = pause * 2 < BACKOFF_MAX_MS ? pause * 2 : BACKOFF_MAX_MS;
    }
    guard->outcome.finished = true;
    guard->outcome.problem[0] = '\0';
    ls_log(LOG_NOTICE, guard->outcome.gone ? "QEMU has ended: nothing is left to undo"
                                           : "the guest is as it was found");
    ls_report_write(guard);
}
