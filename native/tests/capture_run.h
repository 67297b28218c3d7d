/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * One run of the engine against a target of capture_lab.h: images are kept in memory, and compared
 * page by page with what the target had while it stood still. Used by tests only; one includer a
 * program, after cmocka.h.
 */
#ifndef LS_TESTS_CAPTURE_RUN_H
#define LS_TESTS_CAPTURE_RUN_H

#include <poll.h>

#include "capture/engine.h"
#include "capture_lab.h"
#include "uffd/uffd.h"

/* What a hunt has of its rounds: with TSan each takes ten times as long. */
#ifdef __SANITIZE_THREAD__
#define HUNT_SHARE 5
#else
#define HUNT_SHARE 1
#endif

static struct ls_progress progress;

struct run {
    struct lab *lab;
    struct ls_stage *stage;
    struct ls_engine *engine;
    uint8_t *image[4];
    uint8_t *truth[4];
    pthread_t store;
    _Atomic uint32_t finish;
    _Atomic uint32_t delay_us; /* of the storage, a slot */
    uint8_t *count;            /* how often each page came */
    struct ls_error err;
};

/* Stands in for the writer process. */
static inline void *store_main(void *arg)
{
    struct run *r = arg;
    uint32_t slot;

    for (;;) {
        uint32_t seen = atomic_load(&r->stage->filled_news), finish = atomic_load(&r->finish);

        if (!ls_stage_fetch(r->stage, &slot)) {
            if (finish)
                return NULL;
            ls_stage_wait_filled(r->stage, seen, 50);
            continue;
        }
        if (atomic_load(&r->delay_us))
            usleep(atomic_load(&r->delay_us));
        for (uint32_t i = 0; i < r->stage->slot[slot].extents; i++) {
            struct ls_extent *x = &r->stage->slot[slot].extent[i];
            const struct ls_block *b = ls_layout_of_page(&r->engine->layout, x->page);
            uint64_t offset = (x->page - b->base - b->pad) * LAB_PAGE;

            memcpy(r->image[b - r->engine->layout.block] + offset,
                   (uint8_t *)ls_slot_data(r->stage, slot) + x->offset * LAB_PAGE,
                   x->count * LAB_PAGE);
            for (uint32_t p = 0; p < x->count; p++)
                r->count[x->page + p]++;
        }
        ls_stage_give(r->stage, slot);
    }
}

static inline void run_new(struct run *r, struct lab *l, size_t staging)
{
    memset(r, 0, sizeof *r);
    r->lab = l;
    r->stage = ls_stage_new(staging, staging, 1 << 20, NULL, NULL, &r->err);
    assert_non_null(r->stage);
    for (unsigned i = 0; i < l->blocks; i++) {
        r->image[i] = malloc(l->block[i].size);
        r->truth[i] = malloc(l->block[i].size);
    }
}

static inline void run_free(struct run *r)
{
    for (unsigned i = 0; i < 4; i++) {
        free(r->image[i]);
        free(r->truth[i]);
    }
    ls_stage_free(r->stage);
}

/* `still`: without a userfaultfd, as the target is going to stand still. */
static inline void begin_as(struct run *r, bool old_pagemap, unsigned sweepers, bool still)
{
    struct ls_rammap map = {.count = r->lab->blocks};
    struct ls_layout layout;
    struct ls_engine_options o = {
        .pid = r->lab->pid,
        .uffd = still ? -1 : lab_uffd(r->lab),
        .still = still,
        .fault_threads = 2,
        .sweep_threads = sweepers,
        .sweep_helpers = 1,
        .force_pagemap_file = old_pagemap,
        .stage = r->stage,
        .progress = &progress,
    };

    memset(&progress, 0, sizeof progress);
    if (!still) {
        assert_true(o.uffd >= 0);
        assert_int_equal(ls_uffd_handshake(o.uffd, &r->err), 0);
    }
    assert_int_equal(ls_engine_new(&r->engine, &o, &r->err), 0);
    map.blocks = calloc(map.count, sizeof *map.blocks);
    for (unsigned i = 0; i < map.count; i++) {
        snprintf(map.blocks[i].id, sizeof map.blocks[i].id, "block%u", i);
        map.blocks[i].host = (uintptr_t)r->lab->block[i].at;
        map.blocks[i].used = map.blocks[i].total = r->lab->block[i].size;
        map.blocks[i].page_size = r->lab->block[i].hugetlb ? 2 << 20 : LAB_PAGE;
    }
    assert_int_equal(ls_layout_make(&layout, &map, &r->err), 0);
    free(map.blocks);
    layout.still = still;
    if (ls_layout_check(&layout, r->lab->pid, LS_SMAPS, &r->err))
        fail_msg("%s", r->err.message);
    r->count = calloc(layout.pages, 1);
    assert_int_equal(ls_engine_set_layout(r->engine, &layout, &r->err), 0);
    for (unsigned i = 0; i < r->lab->blocks; i++)
        memset(r->image[i], 0x5a, r->lab->block[i].size);
    atomic_store(&r->finish, 0);
    pthread_create(&r->store, NULL, store_main, r);
}

static inline void begin(struct run *r, bool old_pagemap, unsigned sweepers)
{
    begin_as(r, old_pagemap, sweepers, false);
}

/* The target stands still: protects all of it, and makes this the instant. */
static inline void arm_still(struct run *r)
{
    struct ls_protect_result got;
    uint64_t written = 1;

    for (unsigned i = 0; i < r->lab->blocks; i++)
        lab_read(r->lab, i, r->truth[i]);
    if (ls_engine_protect(r->engine, &got, &r->err))
        fail_msg("%s", r->err.message);
    if (ls_engine_arm(r->engine, &written, &r->err))
        fail_msg("%s", r->err.message);
    assert_int_equal(written, 0);
}

/* Protected while the writers write: faults are let go until arm. */
static inline void prearm(struct run *r)
{
    struct ls_protect_result got;
    bool done = false;

    if (ls_engine_prearm(r->engine, &done, &got, &r->err))
        fail_msg("%s", r->err.message);
    assert_true(done);
    usleep(2000);
}

static inline void arm(struct run *r)
{
    lab_park(r->lab);
    arm_still(r);
    lab_go(r->lab);
}

/* 0 when all is saved, -1 when it failed, 1 when neither came in time. */
static inline int wait_end(struct run *r)
{
    for (int i = 0; i < 12000; i++) {
        struct pollfd p = {.fd = r->engine->news, .events = POLLIN};

        if (ls_engine_failed(r->engine, &r->err))
            return -1;
        if (ls_engine_complete(r->engine))
            return 0;
        poll(&p, 1, 10);
    }
    return 1;
}

static inline void end(struct run *r)
{
    ls_engine_release(r->engine);
    atomic_store(&r->finish, 1);
    ls_stage_wake_all(r->stage);
    pthread_join(r->store, NULL);
}

static inline void end_free(struct run *r)
{
    end(r);
    ls_engine_free(r->engine);
    free(r->count);
}

static inline void compare(struct run *r)
{
    const struct ls_layout *l = &r->engine->layout;

    assert_int_equal(atomic_load(&r->stage->to_come), 0);
    for (uint32_t b = 0; b < l->count; b++) {
        uint64_t first = l->block[b].base + l->block[b].pad;

        for (uint64_t p = 0; p < l->block[b].length / LAB_PAGE; p++) {
            bool zero = atomic_load(&r->stage->zero[(first + p) / 64]) >> ((first + p) % 64) & 1;

            if (r->count[first + p] + zero != 1)
                fail_msg("block %u page %lu came %u times, zero %d", b, p, r->count[first + p],
                         zero);
            if (zero)
                memset(r->image[b] + p * LAB_PAGE, 0, LAB_PAGE);
            if (memcmp(r->image[b] + p * LAB_PAGE, r->truth[b] + p * LAB_PAGE, LAB_PAGE) != 0)
                fail_msg("block %u page %lu is of another instant", b, p);
        }
    }
}

/* Setup of a group that captures in this process. */
static inline int run_setup(void **state)
{
    uint64_t features;
    struct ls_error err;

    (void)state;
    if (ls_uffd_probe(&features, &err)) {
        print_message("SKIP capture_run: %s\n", err.message);
        exit(0);
    }
    return 0;
}

#endif
