/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture/engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "uffd/uffd.h"

static unsigned limit(unsigned value, unsigned low, unsigned high)
{
    return value < low ? low : value > high ? high : value;
}

uint32_t ls_engine_reserve(const struct ls_engine *e)
{
    /* relaxed: staging may grow or shrink at any time */
    return limit(atomic_load_explicit(&e->stage->usable, memory_order_relaxed) / 4,
                 e->fault_threads + 1, 64);
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
        if (o->uffd >= 0)
            close(o->uffd);
        return ls_fail(err, LS_INTERNAL, "memory", "out of memory");
    }
    e->pid = o->pid;
    e->uffd = o->uffd;
    e->still = o->still;
    e->stage = o->stage;
    e->progress = o->progress;
    e->prearm_bytes = o->prearm_bytes;
    e->fault_threads = limit(o->fault_threads, 1, LS_FAULT_THREADS_MAX);
    e->sweep_threads = limit(o->sweep_threads, 1, LS_SWEEP_THREADS_MAX);
    e->sweep_helpers = limit(o->sweep_helpers, 0, LS_SWEEP_THREADS_MAX - e->sweep_threads);
    e->pagemap.fd = -1;
    e->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    e->news = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
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
    free(e->faulted);
    e->claimed = e->saved = NULL;
    e->populated = NULL;
    e->huge = NULL;
    e->faulted = NULL;
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

static int take_layout(struct ls_engine *e, struct ls_layout *layout, struct ls_error *err)
{
    size_t words = layout->pages / 64;

    ls_layout_free(&e->layout);
    drop_bitmaps(e);
    e->layout = *layout;
    e->registered = false;
    memset(layout, 0, sizeof *layout);
    e->claimed = calloc(words, 8);
    e->saved = calloc(words, 8);
    e->populated = calloc(words, 8);
    e->huge = calloc(e->layout.chunks, 1);
    e->faulted = calloc(e->layout.chunks, 1);
    if (!e->claimed || !e->saved || !e->populated || !e->huge || !e->faulted)
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

int ls_engine_set_layout(struct ls_engine *e, struct ls_layout *layout, struct ls_error *err)
{
    bool watching = e->fault[0].running;
    int rc;

    if (watching && ls_engine_change_mode(e, LS_MODE_PARKED, err)) {
        ls_layout_free(layout);
        return -1;
    }
    rc = take_layout(e, layout, err);
    /* Released by the new one: who waits for a range that is in no layout is woken when all ends.
     */
    return rc || (watching && ls_engine_change_mode(e, LS_MODE_RELEASE, err)) ? -1 : 0;
}

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

static void stop(struct ls_engine *e, enum ls_stop how)
{
    uint64_t one = 1;

    /* release: all that was done before is seen by who stops */
    atomic_store_explicit(&e->stop, how, memory_order_release);
    if (write(e->kick, &one, sizeof one) < 0)
        errno = 0; /* they look every 100 ms anyway */
    ls_stage_wake_all(e->stage);
}

void ls_engine_release(struct ls_engine *e)
{
    /* First the guest, then our threads: none of theirs must wait for one of ours. Lifting all
     * protection takes up to 33 ms a GiB; who needs a page meanwhile gets it by a fault. */
    stop(e, LS_LETTING_GO);
    if (e->registered && e->uffd >= 0)
        for (uint32_t i = 0; i < e->layout.count; i++)
            unregister(e, &e->layout.block[i]);
    stop(e, LS_STOPPED);
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
