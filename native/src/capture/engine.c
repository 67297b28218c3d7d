/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture/engine.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "common/fault.h"
#include "uffd/uffd.h"

#define PROTECT_ROUNDS 64

static unsigned limit(unsigned value, unsigned low, unsigned high)
{
    return value < low ? low : value > high ? high : value;
}

void ls_engine_tell(struct ls_engine *e)
{
    uint64_t one = 1;

    while (write(e->news, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

void ls_engine_fail(struct ls_engine *e, const struct ls_error *err)
{
    uint32_t none = 0;

    if (atomic_compare_exchange_strong_explicit(&e->failed, &none, 1, memory_order_relaxed,
                                                memory_order_relaxed)) {
        e->error = *err;
        /* release: publishes the error */
        atomic_store_explicit(&e->failed, 2, memory_order_release);
    }
    ls_engine_tell(e);
}

bool ls_engine_failed(struct ls_engine *e, struct ls_error *err)
{
    /* acquire: pairs with the release above */
    if (atomic_load_explicit(&e->failed, memory_order_acquire) != 2)
        return false;
    *err = e->error;
    return true;
}

bool ls_engine_complete(const struct ls_engine *e)
{
    /* acquire: all copies come before the last count */
    return atomic_load_explicit(&e->saved_pages, memory_order_acquire) == e->total_pages;
}

int ls_engine_new(struct ls_engine **engine, const struct ls_engine_options *o,
                  struct ls_error *err)
{
    struct ls_engine *e = calloc(1, sizeof *e);

    if (!e) {
        close(o->uffd);
        return ls_fail(err, LS_INTERNAL, "memory", "out of memory");
    }
    e->pid = o->pid;
    e->uffd = o->uffd;
    e->stage = o->stage;
    e->progress = o->progress;
    e->fault_threads = limit(o->fault_threads, 1, LS_FAULT_THREADS_MAX);
    e->sweep_threads = limit(o->sweep_threads, 1, LS_SWEEP_THREADS_MAX);
    e->pagemap.fd = -1;
    e->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    e->news = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    e->reserve = limit(e->stage->usable / 8, e->fault_threads + 1, 64);
    atomic_init(&e->mode, LS_MODE_RELEASE);
    if (e->kick < 0 || e->news < 0) {
        ls_fail_errno(err, LS_INTERNAL, "eventfd", "cannot make an eventfd");
        ls_engine_free(e);
        return -1;
    }
    if (ls_pagemap_open(&e->pagemap, o->pid, o->force_pagemap_file, err)) {
        ls_engine_free(e);
        return -1;
    }
#ifdef LS_FAULTS
    const char *sabotage = getenv("LIVESNAP_SABOTAGE");
    e->late_arm = sabotage && strcmp(sabotage, "late-arm") == 0;
#endif
    *engine = e;
    return 0;
}

static void drop_bitmaps(struct ls_engine *e)
{
    free(e->claimed);
    free(e->saved);
    free(e->populated);
    free(e->huge);
    e->claimed = e->saved = NULL;
    e->populated = NULL;
    e->huge = NULL;
}

#ifdef LS_FAULTS
/* LIVESNAP_SABOTAGE=skip-granule: 2 MiB in the middle of the largest block. */
static void choose_sabotage(struct ls_engine *e)
{
    const char *sabotage = getenv("LIVESNAP_SABOTAGE");
    const struct ls_block *b = &e->layout.block[0];

    if (!sabotage || strcmp(sabotage, "skip-granule") != 0)
        return;
    for (uint32_t i = 1; i < e->layout.count; i++)
        if (e->layout.block[i].length > b->length)
            b = &e->layout.block[i];
    e->sabotage_start = (b->host + b->length / 2) & ~(LS_HUGE - 1);
    e->sabotage_end = e->sabotage_start + LS_HUGE;
}
#endif

int ls_engine_set_layout(struct ls_engine *e, struct ls_layout *layout, struct ls_error *err)
{
    size_t words = layout->pages / 64;

    ls_layout_free(&e->layout);
    drop_bitmaps(e);
    e->layout = *layout;
    memset(layout, 0, sizeof *layout);
    e->claimed = calloc(words, 8);
    e->saved = calloc(words, 8);
    e->populated = calloc(words, 8);
    e->huge = calloc(e->layout.chunks, 1);
    if (!e->claimed || !e->saved || !e->populated || !e->huge)
        return ls_fail(err, LS_INTERNAL, "memory", "out of memory");
    if (words > e->stage->zero_words)
        return ls_fail(err, LS_REFUSED, "ramblock",
                       "the guest's RAM has grown since the capture was begun");
    e->total_pages = e->layout.ram_bytes / LS_SMALL;
    /* relaxed: statistics */
    atomic_store_explicit(&e->progress->total_bytes, e->layout.ram_bytes, memory_order_relaxed);
#ifdef LS_FAULTS
    choose_sabotage(e);
#endif
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

    if (e->registered)
        return 0;
    if (e->layout.count > LS_PROGRESS_MAX_RANGES)
        return ls_fail(err, LS_REFUSED, "ramblock", "the guest has too many RAM blocks");
    for (uint32_t i = 0; i < e->layout.count; i++) {
        p->ranges[i].start = e->layout.block[i].host;
        p->ranges[i].length = e->layout.block[i].length;
    }
    /* release: the guard reads the ranges after the count; set before the first registration */
    atomic_store_explicit(&p->range_count, e->layout.count, memory_order_release);
    atomic_store_explicit(&p->state, LS_PROGRESS_PROTECTING, memory_order_release);
    e->registered = true;
    for (uint32_t i = 0; i < e->layout.count; i++) {
        const struct ls_block *b = &e->layout.block[i];

        if (ls_uffd_register(e->uffd, b->host, b->length, err))
            return ls_context(err, "RAM block '%s'", b->id);
    }
    for (unsigned i = 0; i < e->fault_threads; i++) {
        e->fault[i].engine = e;
        if (start_thread(&e->fault[i].thread, &e->fault[i].running, ls_fault_main, &e->fault[i],
                         err))
            return -1;
    }
    return 0;
}

int ls_engine_protect(struct ls_engine *e, struct ls_protect_result *result, struct ls_error *err)
{
    struct ls_scan_result scan;

    if (register_all(e, err))
        return -1;
    if (LS_FAULT("capture.protect"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point capture.protect");
    result->scans = 0;
    do {
        struct ls_error failed;

        if (result->scans++ >= PROTECT_ROUNDS)
            return ls_fail(err, LS_REFUSED, "not-still",
                           "RAM is written all the time although the guest is stopped");
        /* acq_rel: a discard before this scan is seen by this scan */
        atomic_exchange_explicit(&e->removed, 0, memory_order_acq_rel);
        if (ls_protect_all(e, err) || ls_scan_all(e, false, &scan, err))
            return -1;
        if (ls_engine_failed(e, &failed)) {
            *err = failed;
            return -1;
        }
    } while (scan.unprotected > 0);
    result->pages = scan.populated;
    return 0;
}

/* Changes the mode and waits until no fault thread follows the one before. */
static int change_mode(struct ls_engine *e, enum ls_mode mode, struct ls_error *err)
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

static int start_sweep(struct ls_engine *e, struct ls_error *err)
{
    for (unsigned i = 0; i < e->sweep_threads; i++) {
        e->sweep[i].engine = e;
        if (start_thread(&e->sweep[i].thread, &e->sweep[i].running, ls_sweep_main, &e->sweep[i],
                         err))
            return -1;
    }
    return 0;
}

int ls_engine_arm(struct ls_engine *e, uint64_t *written, struct ls_error *err)
{
    struct ls_scan_result scan;

    if (change_mode(e, LS_MODE_PARKED, err) || ls_scan_all(e, true, &scan, err))
        return -1;
    *written = scan.unprotected;
    /* acquire: pairs with the fault thread's release */
    if (*written == 0 && atomic_load_explicit(&e->removed, memory_order_acquire))
        *written = 1;
    if (*written > 0)
        return change_mode(e, LS_MODE_RELEASE, err);
    if (ls_engine_failed(e, err))
        return -1;
    if (LS_FAULT("capture.arm"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point capture.arm");
    if (change_mode(e, LS_MODE_COPY, err))
        return -1;
    atomic_store_explicit(&e->progress->state, LS_PROGRESS_COPYING, memory_order_release);
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
    if (change_mode(e, LS_MODE_PARKED, err))
        return -1;
    do {
        if (ls_protect_all(e, err) || ls_scan_all(e, true, &scan, err))
            return -1;
    } while (scan.unprotected > 0);
    if (change_mode(e, LS_MODE_COPY, err))
        return -1;
    atomic_store_explicit(&e->progress->state, LS_PROGRESS_COPYING, memory_order_release);
    return start_sweep(e, err);
}
#endif

/* With a beat in between: tens of GiB take seconds, in which no fault thread shows progress. */
static void unregister(struct ls_engine *e, const struct ls_block *b)
{
    const uint64_t step = 1ull << 30;

    for (uint64_t at = 0; at < b->length; at += step) {
        uint64_t n = b->length - at < step ? b->length - at : step;

        if (b->hugetlb)
            ls_uffd_protect(e->uffd, b->host + at, n, false, NULL);
        else
            ls_uffd_unregister(e->uffd, b->host + at, n);
        ls_engine_tick(e);
    }
    if (b->hugetlb)
        ls_uffd_unregister_whole(e->uffd, b->host, b->length);
}

void ls_engine_release(struct ls_engine *e)
{
    uint64_t one = 1;

    /* release: all that was done before is seen by who stops */
    atomic_store_explicit(&e->stop, 1, memory_order_release);
    if (write(e->kick, &one, sizeof one) < 0)
        errno = 0; /* they look every 100 ms anyway */
    ls_stage_wake_all(e->stage);
    /* First the guest, then our threads: none of theirs must wait for one of ours. */
    if (e->registered && e->uffd >= 0)
        for (uint32_t i = 0; i < e->layout.count; i++)
            unregister(e, &e->layout.block[i]);
    for (unsigned i = 0; i < LS_SWEEP_THREADS_MAX; i++)
        if (e->sweep[i].running) {
            pthread_join(e->sweep[i].thread, NULL);
            e->sweep[i].running = false;
        }
    for (unsigned i = 0; i < LS_FAULT_THREADS_MAX; i++)
        if (e->fault[i].running) {
            pthread_join(e->fault[i].thread, NULL);
            e->fault[i].running = false;
            ls_stager_flush(e, &e->fault[i].stager);
        }
    /* The last descriptor: whatever is protected or waits still is let go by the kernel. */
    if (e->uffd >= 0)
        close(e->uffd);
    e->uffd = -1;
    e->registered = false;
}

void ls_engine_free(struct ls_engine *e)
{
    if (!e)
        return;
    ls_engine_release(e);
    ls_pagemap_close(&e->pagemap);
    ls_layout_free(&e->layout);
    drop_bitmaps(e);
    if (e->kick >= 0)
        close(e->kick);
    if (e->news >= 0)
        close(e->news);
    free(e);
}
