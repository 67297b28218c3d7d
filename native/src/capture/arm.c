/* SPDX-License-Identifier: GPL-3.0-or-later */
/* From RAM that is not protected to the instant: register, protect, ask the kernel, begin to copy.
 */
#include <errno.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "capture/engine.h"
#include "common/fault.h"
#include "uffd/uffd.h"

#define PROTECT_ROUNDS 64

int ls_engine_change_mode(struct ls_engine *e, enum ls_mode mode, struct ls_error *err)
{
    static const struct timespec pause = {.tv_nsec = 10000};
    uint64_t drained, one = 1;

    /* release: what was prepared for the mode comes before it */
    atomic_store_explicit(&e->mode, mode, memory_order_release);
    if (write(e->kick, &one, sizeof one) < 0)
        return ls_fail_errno(err, LS_INTERNAL, "eventfd", "cannot kick the fault threads");
    for (unsigned i = 0; i < e->fault_threads; i++)
        for (unsigned tries = 0;
             /* acquire: pairs with the thread's release */
             atomic_load_explicit(&e->fault[i].ack, memory_order_acquire) != mode; tries++) {
            if (tries > 200000) /* 2 s and more */
                return ls_fail(err, LS_INTERNAL, "threads", "a fault thread does not answer");
            nanosleep(&pause, NULL);
        }
    if (read(e->kick, &drained, sizeof drained) < 0 && errno != EAGAIN)
        return ls_fail_errno(err, LS_INTERNAL, "eventfd", "cannot read an eventfd");
    return 0;
}

static int start_thread(pthread_t *thread, bool *running, void *(*run)(void *), void *arg,
                        struct ls_error *err)
{
    sigset_t all, old;
    int rc;

    /* Signals are the main thread's. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(thread, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    errno = rc;
    if (rc)
        return ls_fail_errno(err, LS_INTERNAL, "thread", "cannot start a thread");
    *running = true;
    return 0;
}

static int register_all(struct ls_engine *e, struct ls_error *err)
{
    struct ls_progress *p = e->progress;
    uint32_t have;

    if (e->registered)
        return 0;
    /* relaxed: only this thread changes it. A later layout's ranges come behind an earlier one's.
     */
    have = atomic_load_explicit(&p->range_count, memory_order_relaxed);
    if (have + e->layout.count > LS_PROGRESS_MAX_RANGES)
        return ls_fail(err, LS_REFUSED, "ramblock", "the guest has too many RAM blocks");
    for (uint32_t i = 0; i < e->layout.count; i++) {
        p->ranges[have + i].start = e->layout.block[i].host;
        p->ranges[have + i].length = e->layout.block[i].length;
    }
    /* release: the guard reads the ranges after the count; set before the first registration */
    atomic_store_explicit(&p->range_count, have + e->layout.count, memory_order_release);
    atomic_store_explicit(&p->state, LS_PROGRESS_PROTECTING, memory_order_release);
    e->registered = true;
    for (uint32_t i = 0; i < e->layout.count; i++) {
        const struct ls_block *b = &e->layout.block[i];

        if (ls_uffd_register(e->uffd, b->host, b->length, err))
            return ls_context(err, "RAM block '%s'", b->id);
    }
    for (unsigned i = 0; i < e->fault_threads && !e->fault[i].running; i++) {
        e->fault[i].engine = e;
        if (start_thread(&e->fault[i].thread, &e->fault[i].running, ls_fault_main, &e->fault[i],
                         err))
            return -1;
    }
    return 0;
}

int ls_engine_prearm(struct ls_engine *e, bool *done, struct ls_protect_result *result,
                     struct ls_error *err)
{
    struct ls_scan_result scan;

    *done = false;
    if (ls_scan_all(e, false, &scan, err))
        return -1;
    result->pages = scan.populated;
    result->scans = 1;
    if (scan.small * LS_SMALL < e->prearm_bytes)
        return 0;
    if (register_all(e, err) || ls_protect_all(e, err))
        return -1;
    *done = e->protected_once = true;
    return 0;
}

int ls_engine_protect(struct ls_engine *e, struct ls_protect_result *result, struct ls_error *err)
{
    /* After pre-arm only what was written since is not protected, and one look has to do: arm's
     * looks again. */
    const bool until_none = !e->protected_once;
    struct ls_scan_result scan;

    if (register_all(e, err))
        return -1;
    if (LS_FAULT("capture.protect"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point capture.protect");
    if (!e->protected_once && ls_protect_all(e, err))
        return -1;
    e->protected_once = true;
    result->scans = 0;
    do {
        struct ls_error failed;

        if (result->scans++ >= PROTECT_ROUNDS)
            return ls_fail(err, LS_REFUSED, "not-still",
                           "RAM is written all the time although the guest is stopped");
        /* acq_rel: a discard before this scan is seen by this scan */
        atomic_exchange_explicit(&e->removed, 0, memory_order_acq_rel);
        if (ls_protect_written(e, &scan, err))
            return -1;
        if (ls_engine_failed(e, &failed)) {
            *err = failed;
            return -1;
        }
    } while (until_none && scan.unprotected > 0);
    result->pages = scan.populated;
    return 0;
}

static int start_sweep(struct ls_engine *e, struct ls_error *err)
{
    for (unsigned i = 0; i < e->sweep_threads + e->sweep_helpers; i++) {
        e->sweep[i].engine = e;
        e->sweep[i].helps = i >= e->sweep_threads;
        if (start_thread(&e->sweep[i].thread, &e->sweep[i].running, ls_sweep_main, &e->sweep[i],
                         err))
            return -1;
    }
    return 0;
}

int ls_engine_arm(struct ls_engine *e, uint64_t *written, struct ls_error *err)
{
    struct ls_scan_result scan;

    if (ls_engine_change_mode(e, LS_MODE_PARKED, err) || ls_scan_all(e, true, &scan, err))
        return -1;
    *written = scan.unprotected;
    /* acquire: pairs with the fault thread's release */
    if (*written == 0 && atomic_load_explicit(&e->removed, memory_order_acquire))
        *written = 1;
    if (*written > 0)
        return ls_engine_change_mode(e, LS_MODE_RELEASE, err);
    if (ls_engine_failed(e, err))
        return -1;
    if (LS_FAULT("capture.arm"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point capture.arm");
    if (ls_engine_change_mode(e, LS_MODE_COPY, err))
        return -1;
    atomic_store_explicit(&e->progress->state, LS_PROGRESS_COPYING, memory_order_release);
    return start_sweep(e, err);
}

int ls_engine_copy_still(struct ls_engine *e, struct ls_error *err)
{
    struct ls_scan_result ignored;

    if (ls_scan_all(e, true, &ignored, err))
        return -1;
    if (LS_FAULT("capture.arm"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point capture.arm");
    return start_sweep(e, err);
}

#ifdef LS_FAULTS
/* Whether something is not protected any more since `protect`. */
static bool released_any(struct ls_engine *e)
{
    struct ls_scan_result scan;
    struct ls_error ignored;

    return ls_scan_all(e, false, &scan, &ignored) == 0 && scan.unprotected > 0;
}

int ls_engine_arm_late(struct ls_engine *e, struct ls_error *err)
{
    static const struct timespec late = {.tv_nsec = 20000000};
    struct ls_scan_result scan;

    /* 20 ms after cont, which the first fault shows that is let go. */
    for (int i = 0; i < 200 && !released_any(e); i++)
        nanosleep(&late, NULL);
    nanosleep(&late, NULL);
    if (ls_engine_change_mode(e, LS_MODE_PARKED, err))
        return -1;
    do {
        if (ls_protect_all(e, err) || ls_scan_all(e, true, &scan, err))
            return -1;
    } while (scan.unprotected > 0);
    if (ls_engine_change_mode(e, LS_MODE_COPY, err))
        return -1;
    atomic_store_explicit(&e->progress->state, LS_PROGRESS_COPYING, memory_order_release);
    return start_sweep(e, err);
}
#endif
