/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The fault threads: they read the userfaultfd and never allocate, print or wait without limit. */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "capture/engine.h"
#include "common/clock.h"
#include "uffd/uffd.h"

#define IDLE_MS 100
#define BATCH 8
#define NEIGHBOURS 16u /* pages, 64 KiB */

static bool all_saved(struct ls_engine *e, const struct ls_block *b, uint64_t start, uint64_t end)
{
    uint64_t last = ls_block_page(b, end - 1);

    for (uint64_t p = ls_block_page(b, start); p <= last; p++) {
        uint64_t bit = 1ull << (p % 64);

        if ((e->populated[p / 64] & bit) &&
            /* acquire: pairs with the release after the copy */
            !(atomic_load_explicit(&e->saved[p / 64], memory_order_acquire) & bit))
            return false;
    }
    return true;
}

/* The target discards, unmaps or moves [start, end): harmless where all of it is saved. */
static void range_event(struct ls_engine *e, const char *what, uint64_t start, uint64_t end)
{
    struct ls_error err;

    for (uint32_t i = 0; i < e->layout.count; i++) {
        const struct ls_block *b = &e->layout.block[i];
        uint64_t from = start > b->host ? start : b->host;
        uint64_t to = end < b->host + b->length ? end : b->host + b->length;

        if (from >= to)
            continue;
        /* acquire: the mode's change comes after populated was filled */
        if (atomic_load_explicit(&e->mode, memory_order_acquire) != LS_MODE_COPY) {
            /* release: arm looks at it after its barrier */
            atomic_store_explicit(&e->removed, 1, memory_order_release);
            if (what[0] == 'd')
                continue;
        } else if (all_saved(e, b, from, to)) {
            continue;
        }
        ls_fail(&err, LS_TORN, "discarded",
                "the guest's process %s RAM of block '%s' at %#llx, %llu bytes, before it was "
                "saved; the snapshot is thrown away",
                what, b->id, (unsigned long long)from, (unsigned long long)(to - from));
        ls_engine_fail(e, &err);
    }
}

static void event(struct ls_engine *e, const struct uffd_msg *m)
{
    switch (m->event) {
    case UFFD_EVENT_REMOVE:
        range_event(e, "discarded", m->arg.remove.start, m->arg.remove.end);
        break;
    case UFFD_EVENT_UNMAP:
        range_event(e, "unmapped", m->arg.remove.start, m->arg.remove.end);
        break;
    case UFFD_EVENT_REMAP:
        range_event(e, "moved", m->arg.remap.from, m->arg.remap.from + m->arg.remap.len);
        break;
    default:
        break;
    }
}

/* Reads up to `max` messages; handles events at once. Returns how many faults are in `fault`. */
static unsigned read_faults(struct ls_engine *e, uint64_t *fault, unsigned max)
{
    struct uffd_msg msg[BATCH];
    unsigned n = 0;
    ssize_t got;

    if (max > BATCH)
        max = BATCH;
    got = read(e->uffd, msg, max * sizeof *msg);
    for (ssize_t i = 0; i < got / (ssize_t)sizeof *msg; i++) {
        if (msg[i].event == UFFD_EVENT_PAGEFAULT)
            fault[n++] = msg[i].arg.pagefault.address & ~(LS_SMALL - 1);
        else
            event(e, &msg[i]);
    }
    atomic_fetch_add_explicit(&e->progress->faults_pending, n, memory_order_relaxed);
    return n;
}

/*
 * Most of so many are stale: their pages were let go by other threads meanwhile, and who waited has
 * faulted again. Who still waits is woken, and faults again as well. Returns how many there is room
 * for now.
 */
static unsigned forget_stash(struct ls_fault_thread *t)
{
    for (unsigned i = 0; i < t->stashed; i++)
        (void)ls_uffd_wake(t->engine->uffd, t->stash[i], LS_SMALL);
    atomic_fetch_sub_explicit(&t->engine->progress->faults_pending, t->stashed,
                              memory_order_relaxed);
    t->stashed = 0;
    return LS_STASH;
}

void ls_fault_drain(struct ls_fault_thread *t)
{
    unsigned n;

    do {
        unsigned room = LS_STASH - t->stashed;

        if (room == 0)
            room = forget_stash(t);
        n = read_faults(t->engine, t->stash + t->stashed, room);
        t->stashed += n;
    } while (n == BATCH);
    sched_yield();
}

static bool stopped(const struct ls_engine *e)
{
    /* acquire: the main thread has finished with the userfaultfd */
    return atomic_load_explicit(&e->stop, memory_order_acquire) == LS_STOPPED;
}

/* Before arm, or after the end: nothing is kept, so let go of the whole chunk at once. Also for an
 * address that is in no block any more, as blocks may become shorter between prearm and protect. */
static void release_fault(struct ls_fault_thread *t, const struct ls_block *b, uint64_t address)
{
    struct ls_engine *e = t->engine;
    uint64_t from = address & ~(LS_HUGE - 1), to = from + LS_HUGE;

    if (!b) {
        from = address;
        to = address + LS_SMALL;
    } else {
        if (from < b->host)
            from = b->host;
        if (to > b->host + b->length)
            to = b->host + b->length;
    }
    while (from < to && !stopped(e)) {
        if (ls_uffd_protect(e->uffd, from, to - from, false, &from) == 0)
            break;
        if (ls_uffd_errno(errno) != LS_UFFD_AGAIN)
            break; /* the main thread sees it too */
        ls_fault_drain(t);
    }
    ls_engine_tick(e);
}

static int visit_protected(uint64_t start, uint64_t end, unsigned flags, void *arg)
{
    (void)start;
    (void)end;
    *(bool *)arg = flags & LS_PM_PROTECTED;
    return 0;
}

/*
 * A page without content has nothing to be copied and is not let go by that; but shared memory
 * stays protected where its content was discarded before arm. Or somebody else has claimed the
 * page. If it is not saved yet, who copies it wakes its waiters. If it is, they have been woken, or
 * will be in a moment; to be safe it is looked at. Never less than the guest's own page is
 * released: even a call that changes nothing splits a huge page.
 */
static void release_again(struct ls_engine *e, const struct ls_block *b, uint64_t address,
                          uint64_t page)
{
    bool is_protected = false;
    uint64_t from = address, to = address + LS_SMALL;

    /* acquire: pairs with the release after the copy */
    if (!(atomic_load_explicit(&e->saved[page / 64], memory_order_acquire) >> (page % 64) & 1) ||
        ls_pagemap_scan(&e->pagemap, from, to, visit_protected, &is_protected) || !is_protected)
        return;
    if (ls_chunk_is_huge(e, b, page / LS_CHUNK_PAGES)) {
        from &= ~(LS_HUGE - 1);
        to = from + LS_HUGE;
        if (from < b->host)
            from = b->host;
        if (to > b->host + b->length)
            to = b->host + b->length;
    }
    ls_uffd_protect(e->uffd, from, to - from, false, NULL);
}

/*
 * What is saved for a fault: a huge page as a whole, because less would split it. Of small pages
 * the neighbourhood at first, and the whole chunk with the second fault in it: who writes in order,
 * or often, comes back, and each fault costs as much as copying 128 KiB. When the sweep has filled
 * staging up to the reserve, each fault takes as little of that as it can.
 */
static void granule(struct ls_engine *e, const struct ls_block *b, uint64_t page,
                    struct ls_mask *want)
{
    uint64_t chunk = page / LS_CHUNK_PAGES;
    unsigned at = (unsigned)(page % LS_CHUNK_PAGES) & ~(NEIGHBOURS - 1);
    /* relaxed: a rule of thumb */
    bool short_of_room = atomic_load_explicit(&e->stage->free_count, memory_order_relaxed) <=
                         (int32_t)ls_engine_reserve(e);

    if (short_of_room && !ls_chunk_is_huge(e, b, chunk)) {
        memset(want, 0, sizeof *want);
        ls_mask_set(want, (unsigned)(page % LS_CHUNK_PAGES));
        return;
    }
    ls_chunk_pages(e, b, chunk, want);
    /* relaxed: a guess at what comes next */
    if (!ls_chunk_is_huge(e, b, chunk) &&
        !atomic_exchange_explicit(&e->faulted[chunk], 1, memory_order_relaxed)) {
        struct ls_mask near = {{0}};

        ls_mask_set_range(&near, at, at + NEIGHBOURS);
        for (unsigned i = 0; i < LS_CHUNK_WORDS; i++)
            want->word[i] &= near.word[i];
    }
}

static void save_fault(struct ls_fault_thread *t, const struct ls_block *b, uint64_t address)
{
    struct ls_engine *e = t->engine;
    struct ls_mask want;
    uint64_t page, chunk;

    page = ls_block_page(b, address);
    chunk = page / LS_CHUNK_PAGES;
    granule(e, b, page, &want);
    if (ls_save_pages(e, &t->stager, chunk, &want, t) >= 0)
        release_again(e, b, address, page);
    else if (ls_engine_stopping(e))
        release_fault(t, b, address);
}

static void handle(struct ls_fault_thread *t, uint32_t mode, uint64_t address)
{
    struct ls_engine *e = t->engine;
    const struct ls_block *b = ls_layout_find(&e->layout, address);
    uint64_t began = ls_now_ns();

    if (mode == LS_MODE_RELEASE || !b || ls_engine_stopping(e)) {
        release_fault(t, b, address);
    } else {
        save_fault(t, b, address);
        ls_histogram_add(&e->fault_time, ls_now_ns() - began);
        atomic_fetch_add_explicit(&e->progress->faults, 1, memory_order_relaxed);
    }
    atomic_fetch_sub_explicit(&e->progress->faults_pending, 1, memory_order_relaxed);
}

void *ls_fault_main(void *arg)
{
    struct ls_fault_thread *t = arg;
    struct ls_engine *e = t->engine;

    while (!stopped(e)) {
        struct pollfd p[2] = {{.fd = e->kick, .events = POLLIN}, {.fd = e->uffd, .events = POLLIN}};
        /* acquire: pairs with the release of who changes it */
        uint32_t mode = atomic_load_explicit(&e->mode, memory_order_acquire);
        uint64_t fault[BATCH];
        unsigned n;

        /* release: nothing of the mode before is going on in this thread any more */
        atomic_store_explicit(&t->ack, mode, memory_order_release);
        if (mode != LS_MODE_PARKED || ls_engine_stopping(e)) {
            while (t->stashed > 0)
                handle(t, mode, t->stash[--t->stashed]);
            n = read_faults(e, fault, BATCH);
            for (unsigned i = 0; i < n; i++)
                handle(t, mode, fault[i]);
            if (n > 0)
                continue;
        }
        poll(p, mode == LS_MODE_PARKED && !ls_engine_stopping(e) ? 1 : 2, IDLE_MS);
        ls_engine_tick(e);
        if (p[0].revents)
            sched_yield();
        if (p[1].revents & (POLLERR | POLLNVAL) && !(p[1].revents & POLLIN))
            poll(p, 1, IDLE_MS); /* not registered yet, or gone: the main thread notices */
    }
    return NULL;
}
