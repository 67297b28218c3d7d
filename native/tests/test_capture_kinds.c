/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Kinds of RAM other than plain anonymous memory: hugetlbfs, shared and private, and what happens
 * where shared memory has holes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <linux/falloc.h>

#include "capture_run.h"
#include "support/hugepages.h"
#include "support/rounds.h"

#define HUGE (2ul << 20)
#define PAGES 48u /* of the pool */
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#define MFD_HUGE_1GB (30u << 26)
#endif

/* What the target is to do besides; in memory that both see. 1: wanted, 2: done. */
static struct orders {
    _Atomic uint32_t discard, write;
    uint8_t *at;
} * orders;

/* Why a test cannot be, or NULL. */
static const char *no_userfaultfd, *no_pages;

/* Without a reservation, which would be the parent's and not the target's own. */
static int add_file(struct lab *l, size_t size, bool shared, unsigned flags)
{
    struct lab_block *b = &l->block[l->blocks++];
    int fd = memfd_create("lab", MFD_CLOEXEC | flags);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    b->at = mmap(NULL, size, PROT_READ | PROT_WRITE,
                 MAP_NORESERVE | (shared ? MAP_SHARED : MAP_PRIVATE), fd, 0);
    assert_ptr_not_equal(b->at, MAP_FAILED);
    b->size = size;
    b->shared = true; /* for the laboratory: only the first half is touched */
    b->hugetlb = flags & MFD_HUGETLB;
    return fd;
}

static int add_hugetlb(struct lab *l, size_t size, bool shared, unsigned page)
{
    return add_file(l, size, shared, MFD_HUGETLB | page);
}

static void skip_for(const char *test, const char *why)
{
    if (!why)
        return;
    print_message("SKIP %s: %s\n", test, why);
    skip();
}

/* What runs on the machine at hand only if it has both. */
static void need_pages(const char *test)
{
    skip_for(test, no_userfaultfd ? no_userfaultfd : no_pages);
}

/* Before PAGEMAP_SCAN private hugetlbfs has to be in memory as a whole. */
static void fill_and_write(struct lab *l)
{
    for (unsigned b = 0; !ls_pagemap_have_scan() && b < l->blocks; b++)
        for (size_t at = 0; l->block[b].hugetlb && at < l->block[b].size; at += HUGE)
            ((volatile uint8_t *)l->block[b].at)[at] = 0;
    lab_write_all(l);
}

static void hunt(bool old_pagemap, bool with_private, unsigned n)
{
    struct lab l = {0};
    uint64_t faults = 0;
    struct run r;
    long free_before;

    close(add_hugetlb(&l, 8 * HUGE, true, MFD_HUGE_2MB));
    lab_add(&l, 3 * LAB_PAGE, false, false);
    if (with_private)
        close(add_hugetlb(&l, 8 * HUGE, false, MFD_HUGE_2MB));
    lab_start_with(&l, fill_and_write);
    while (atomic_load(&l.words->rounds) < LAB_WRITERS)
        usleep(100);
    free_before = hugepages_free();
    run_new(&r, &l, 64 << 20);
    for (unsigned i = 0; i < n; i++) {
        uint64_t before = atomic_load(&l.words->rounds);

        begin(&r, old_pagemap, 1 + i % 2);
        assert_true(r.engine->layout.block[0].hugetlb && r.engine->layout.block[0].shared);
        arm(&r);
        if (wait_end(&r) != 0)
            fail_msg("round %u: %s", i, r.err.message);
        end(&r);
        compare(&r);
        faults += atomic_load(&progress.faults);
        ls_engine_free(r.engine);
        free(r.count);
        while (atomic_load(&l.words->rounds) == before)
            usleep(100); /* it goes on */
    }
    assert_int_equal(hugepages_free(), free_before); /* no hole was filled */
    assert_true(faults > 0);
    print_message("%u captures, faults a capture %lu\n", n, faults / n);
    run_free(&r);
    lab_stop(&l);
}

static void hunt_hugetlb(void **state)
{
    (void)state;
    need_pages(__func__);
    hunt(false, true, rounds(20, 600) / HUNT_SHARE);
}

static void hunt_hugetlb_old_pagemap(void **state)
{
    (void)state;
    need_pages(__func__);
    hunt(true, !ls_pagemap_have_scan(), rounds(10, 300) / HUNT_SHARE);
}

/* What a file holds and the target never touched belongs to its RAM; holes beside it stay holes,
 * also when the kernel writes into one before it is saved. */
static void hugetlb_only_in_the_file(void **state)
{
    struct ls_protect_result got;
    struct lab l = {0};
    uint64_t written;
    struct run r;
    long free_before;

    (void)state;
    need_pages(__func__);
    for (unsigned old = 0; old < 2; old++) {
        close(add_hugetlb(&l, 4 * HUGE, true, MFD_HUGE_2MB));
        memset(l.block[0].at + 2 * HUGE, 0x33, HUGE);
        lab_start(&l, false);
        run_new(&r, &l, 32 << 20);
        memset(r.truth[0], 0, 4 * HUGE);
        memset(r.truth[0] + 2 * HUGE, 0x33, HUGE);
        free_before = hugepages_free();
        begin(&r, old, 1);
        assert_int_equal(ls_engine_protect(r.engine, &got, &r.err), 0);
        assert_int_equal(ls_engine_arm(r.engine, &written, &r.err), 0);
        assert_int_equal(written, 0);
        lab_ask(&l, 'r'); /* into the first page, a hole */
        lab_answer(&l);
        assert_int_equal(wait_end(&r), 0);
        end(&r);
        compare(&r);
        assert_int_equal(hugepages_free(), free_before - 1);
        ls_engine_free(r.engine);
        free(r.count);
        run_free(&r);
        lab_stop(&l);
    }
}

static void fill_all(struct lab *l)
{
    for (unsigned b = 0; b < l->blocks; b++)
        memset(l->block[b].at, 0x44, l->block[b].size);
    atomic_store(&l->words->rounds, 1);
}

/* A hole punched into the file takes content, and neither sends an event nor lifts protection. */
static void punch(unsigned flags, bool shared, const char *reason)
{
    struct ls_protect_result got;
    struct lab l = {0};
    uint64_t written;
    struct run r;
    int fd = add_file(&l, 40 * HUGE, shared, flags);

    lab_start_with(&l, fill_all);
    while (!atomic_load(&l.words->rounds))
        usleep(100);
    run_new(&r, &l, 32 << 20);
    begin(&r, false, 1);
    atomic_store(&r.delay_us, 50000);
    assert_int_equal(ls_engine_protect(r.engine, &got, &r.err), 0);
    assert_int_equal(ls_engine_arm(r.engine, &written, &r.err), 0);
    assert_int_equal(written, 0);
    assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 38 * HUGE, 2 * HUGE),
                     0);
    assert_int_equal(wait_end(&r), -1);
    assert_int_equal(r.err.cls, LS_TORN);
    assert_string_equal(r.err.reason, reason);
    end_free(&r);
    run_free(&r);
    lab_stop(&l);
    close(fd);
}

static void shared_punched(void **state)
{
    (void)state;
    skip_for(__func__, no_userfaultfd);
    punch(0, true, "discarded");
}

static void hugetlb_punched(void **state)
{
    (void)state;
    need_pages(__func__);
    punch(MFD_HUGETLB | MFD_HUGE_2MB, true, "proof");
    punch(MFD_HUGETLB | MFD_HUGE_2MB, false, "proof");
}

static void refused(struct lab *l, size_t used, const char *why)
{
    struct ls_ramblock block = {
        .id = "block", .host = (uintptr_t)l->block[0].at, .page_size = HUGE};
    struct ls_rammap map = {.blocks = &block, .count = 1};
    struct ls_layout layout;
    struct ls_error err;

    block.used = block.total = used;
    assert_int_equal(ls_layout_make(&layout, &map, &err), 0);
    assert_int_equal(ls_layout_check(&layout, getpid(), LS_SMAPS, &err), -1);
    assert_int_equal(err.cls, LS_REFUSED);
    assert_string_equal(err.reason, "memory-kind");
    if (!strstr(err.message, why))
        fail_msg("'%s' does not say '%s'", err.message, why);
    ls_layout_free(&layout);
    munmap(l->block[0].at, l->block[0].size);
    l->blocks = 0;
}

static void hugetlb_refused(void **state)
{
    struct lab l = {0};
    int fd;

    (void)state;
    need_pages(__func__);
    close(add_hugetlb(&l, 2 * HUGE, true, MFD_HUGE_2MB));
    refused(&l, HUGE + LAB_PAGE, "multiple of 2 MiB");
    fd = add_hugetlb(&l, 2 * HUGE, false, MFD_HUGE_2MB);
    assert_int_equal(fallocate(fd, 0, 0, HUGE), 0);
    refused(&l, 2 * HUGE, "share=on");
    close(fd);
}

static void hugetlb_of_1_gib_refused(void **state)
{
    struct lab l = {0};
    int fd = memfd_create("probe", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_1GB);

    (void)state;
    skip_for(__func__, fd < 0 ? "the machine has no huge pages of 1 GiB" : NULL);
    close(fd);
    close(add_hugetlb(&l, 1ul << 30, true, MFD_HUGE_1GB));
    refused(&l, 1ul << 30, "not of 2 MiB");
}

static void *follow_orders(void *arg)
{
    (void)arg;
    while (!atomic_load(&orders->discard))
        usleep(100);
    if (madvise(orders->at, 4 * LAB_PAGE, MADV_REMOVE) != 0)
        _exit(4);
    atomic_store(&orders->discard, 2);
    while (!atomic_load(&orders->write))
        usleep(100);
    *(volatile uint8_t *)orders->at = 1;
    atomic_store(&orders->write, 2);
    return NULL;
}

static void fill_and_follow(struct lab *l)
{
    pthread_t t;

    fill_all(l);
    pthread_create(&t, NULL, follow_orders, NULL);
}

/* Shared memory that is discarded between protection and arm is a hole that is protected all the
 * same: who writes into it is let go at once, and not when everything else is saved. */
static void write_into_protected_hole(void **state)
{
    struct ls_protect_result got;
    struct lab l = {0};
    uint64_t written;
    struct run r;

    (void)state;
    skip_for(__func__, no_userfaultfd);
    lab_add(&l, 64 << 20, false, false);
    lab_add(&l, 64 * LAB_PAGE, true, false);
    memset(orders, 0, sizeof *orders);
    orders->at = l.block[1].at + 8 * LAB_PAGE;
    lab_start_with(&l, fill_and_follow);
    while (!atomic_load(&l.words->rounds))
        usleep(100);
    run_new(&r, &l, 32 << 20);
    memset(r.truth[0], 0x44, l.block[0].size);
    memset(r.truth[1], 0x44, l.block[1].size);
    memset(r.truth[1] + 8 * LAB_PAGE, 0, 4 * LAB_PAGE);
    begin(&r, false, 1);
    atomic_store(&r.delay_us, 200000);
    assert_int_equal(ls_engine_protect(r.engine, &got, &r.err), 0);
    atomic_store(&orders->discard, 1);
    while (atomic_load(&orders->discard) != 2)
        usleep(100);
    assert_int_equal(ls_engine_arm(r.engine, &written, &r.err), 0);
    assert_true(written > 0);
    assert_int_equal(ls_engine_protect(r.engine, &got, &r.err), 0);
    assert_int_equal(ls_engine_arm(r.engine, &written, &r.err), 0);
    assert_int_equal(written, 0);
    atomic_store(&orders->write, 1);
    while (atomic_load(&orders->write) != 2 && !ls_engine_complete(r.engine))
        usleep(1000);
    assert_int_equal(atomic_load(&orders->write), 2);
    assert_true(atomic_load(&r.engine->saved_pages) < r.engine->total_pages / 4 * 3);
    atomic_store(&r.delay_us, 0);
    assert_int_equal(wait_end(&r), 0);
    end(&r);
    compare(&r);
    ls_engine_free(r.engine);
    free(r.count);
    run_free(&r);
    lab_stop(&l);
}

static int setup(void **state)
{
    static struct ls_error err;
    uint64_t features;

    (void)state;
    if (ls_uffd_probe(&features, &err))
        no_userfaultfd = err.message;
    orders = mmap(NULL, sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    hugepages_take(PAGES, &no_pages);
    return orders == MAP_FAILED ? -1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    if (!no_pages)
        hugepages_give_back();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hunt_hugetlb),
        cmocka_unit_test(hunt_hugetlb_old_pagemap),
        cmocka_unit_test(hugetlb_only_in_the_file),
        cmocka_unit_test(shared_punched),
        cmocka_unit_test(hugetlb_punched),
        cmocka_unit_test(hugetlb_refused),
        cmocka_unit_test(hugetlb_of_1_gib_refused),
        cmocka_unit_test(write_into_protected_hole),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
