/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The engine against a process that never stops writing: every image is compared, byte by byte,
 * with what the process had while it was parked. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "capture_run.h"
#include "support/rounds.h"

/* Bytes of a block that are in huge pages. */
static size_t huge_bytes(struct lab *l, unsigned b)
{
    unsigned long start, end, kib;
    char path[64], line[512];
    bool inside = false;
    size_t sum = 0;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%d/smaps", l->pid);
    f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            inside = start < (uintptr_t)l->block[b].at + l->block[b].size &&
                     end > (uintptr_t)l->block[b].at;
        else if (inside && sscanf(line, "AnonHugePages: %lu kB", &kib) == 1)
            sum += kib << 10;
    }
    fclose(f);
    return sum;
}

static void hunt(bool old_pagemap, bool huge, size_t staging, unsigned n)
{
    struct lab l = {0};
    struct run r;
    uint64_t faults = 0, began = lab_us();
    size_t huge_before = 0;

    /* So many huge pages that one which somebody else takes apart is less than a twentieth. */
    lab_add(&l, huge ? 48 << 20 : 12 << 20, false, huge);
    lab_add(&l, 8 << 20, true, false);
    lab_add(&l, 3 * LAB_PAGE, false, false);
    lab_start(&l, true);
    run_new(&r, &l, staging);
    for (unsigned i = 0; i < n; i++) {
        uint64_t before = atomic_load(&l.words->rounds);

        if (i == 1)
            huge_before = huge_bytes(&l, 0);
        begin(&r, old_pagemap, 1 + i % 2);
        if (i % 3 == 1)
            prearm(&r);
        arm(&r);
        switch (wait_end(&r)) {
        case -1:
            fail_msg("round %u: %s", i, r.err.message);
            break;
        case 1:
            fail_msg("round %u: %lu of %lu pages saved", i, atomic_load(&r.engine->saved_pages),
                     r.engine->total_pages);
            break;
        default:
            break;
        }
        end(&r);
        compare(&r);
        faults += atomic_load(&progress.faults);
        if (i == n - 1)
            print_message("faults a capture %lu, p50 %.0f us, p99 %.0f us\n", faults / n,
                          ls_histogram_us(&r.engine->fault_time, 0.5),
                          ls_histogram_us(&r.engine->fault_time, 0.99));
        ls_engine_free(r.engine);
        free(r.count);
        while (atomic_load(&l.words->rounds) == before)
            usleep(100); /* it goes on */
    }
    if (huge && n > 1) {
        print_message("huge pages before and after: %zu %zu\n", huge_before, huge_bytes(&l, 0));
        assert_true(huge_bytes(&l, 0) >= huge_before / 100 * 95);
    }
    print_message("%u captures in %.2f s, longest write %lu us\n", n,
                  (double)(lab_us() - began) / 1e6, atomic_load(&l.words->longest_us));
    run_free(&r);
    lab_stop(&l);
}

static void hunt_small_pages(void **state)
{
    (void)state;
    hunt(false, false, 64 << 20, rounds(30, 600) / HUNT_SHARE);
}

static void hunt_huge_pages(void **state)
{
    (void)state;
    hunt(false, true, 64 << 20, rounds(30, 600) / HUNT_SHARE);
}

static void hunt_old_pagemap(void **state)
{
    (void)state;
    hunt(true, true, 64 << 20, rounds(15, 300) / HUNT_SHARE);
}

/* Of small targets: a sweep waits for slow storage, and is not over before what is to happen to it,
 * however late that comes on a busy machine. */
enum { LITTLE_STAGING = 4 << 20 };

static void make_small(struct lab *l)
{
    lab_add(l, 24 << 20, false, false);
    lab_start(l, true);
    while (atomic_load(&l->words->rounds) < 2)
        usleep(100);
}

/* Staging is far smaller than RAM and the storage slow: guest and sweep wait, nothing is lost. */
static void small_staging(void **state)
{
    struct lab l = {0};
    struct run r;

    (void)state;
    lab_add(&l, 96 << 20, false, true);
    lab_start(&l, true);
    while (atomic_load(&l.words->rounds) < 2)
        usleep(100);
    run_new(&r, &l, 32 << 20);
    begin(&r, false, 2);
    atomic_store(&r.delay_us, 10000);
    arm(&r);
    assert_int_equal(wait_end(&r), 0);
    end(&r);
    compare(&r);
    print_message("%lu faults, p50 %.0f us, p99 %.0f us, max %.0f us\n",
                  atomic_load(&progress.faults), ls_histogram_us(&r.engine->fault_time, 0.5),
                  ls_histogram_us(&r.engine->fault_time, 0.99),
                  ls_histogram_us(&r.engine->fault_time, 1));
    ls_engine_free(r.engine);
    free(r.count);
    run_free(&r);
    lab_stop(&l);
}

/* RAM discarded before it is saved ends the snapshot, with that reason. */
static void discard(void **state)
{
    struct lab l = {0};
    struct run r;

    (void)state;
    /* Nobody writes: what a writer had touched would be saved already, and nothing lost with it.
     * Nor is it empty: what is zero waits for no storage, and the sweep would be past it. */
    lab_add(&l, 24 << 20, false, false);
    memset(l.block[0].at, 0xa5, l.block[0].size);
    lab_start(&l, false);
    l.no_writers = true;
    run_new(&r, &l, LITTLE_STAGING);
    begin(&r, false, 1);
    atomic_store(&r.delay_us, 200000);
    arm(&r);
    lab_ask(&l, 'd');
    assert_int_equal(wait_end(&r), -1);
    assert_int_equal(r.err.cls, LS_TORN);
    assert_string_equal(r.err.reason, "discarded");
    end_free(&r);
    lab_answer(&l);
    run_free(&r);
    lab_stop(&l);
}

/* RAM discarded between protect and arm: arm says that it is not clean, then it is. */
static void discard_before_arm(void **state)
{
    struct ls_protect_result got;
    struct lab l = {0};
    struct run r;
    uint64_t written = 0;

    (void)state;
    make_small(&l);
    run_new(&r, &l, 32 << 20);
    begin(&r, false, 1);
    lab_park(&l);
    assert_int_equal(ls_engine_protect(r.engine, &got, &r.err), 0);
    lab_ask(&l, 'd');
    lab_answer(&l);
    assert_int_equal(ls_engine_arm(r.engine, &written, &r.err), 0);
    assert_true(written > 0);
    assert_int_equal(ls_engine_protect(r.engine, &got, &r.err), 0);
    lab_go(&l);
    usleep(20000); /* writers go on: what they touch is not protected any more */
    lab_park(&l);
    assert_int_equal(ls_engine_arm(r.engine, &written, &r.err), 0);
    assert_true(written > 100);
    arm(&r);
    assert_int_equal(wait_end(&r), 0);
    end(&r);
    compare(&r);
    ls_engine_free(r.engine);
    free(r.count);
    run_free(&r);
    lab_stop(&l);
}

/* A write by the kernel, for a system call of the target, is caught like any other. */
static void write_by_kernel(void **state)
{
    struct lab l = {0};
    struct run r;

    (void)state;
    lab_add(&l, 24 << 20, false, false);
    lab_start(&l, false);
    l.no_writers = true;
    run_new(&r, &l, 64 << 20);
    for (int i = 0; i < 5; i++) {
        struct ls_protect_result got;
        uint64_t written, faults;

        lab_ask(&l, 'r');
        lab_answer(&l);
        begin(&r, false, 1);
        lab_read(&l, 0, r.truth[0]);
        assert_int_equal(ls_engine_protect(r.engine, &got, &r.err), 0);
        lab_ask(&l, 'r'); /* before arm: let go unsaved, and seen by arm */
        lab_answer(&l);
        assert_int_equal(ls_engine_arm(r.engine, &written, &r.err), 0);
        assert_true(written >= 8); /* the whole chunk is let go, its zero pages too */
        assert_int_equal(ls_engine_protect(r.engine, &got, &r.err), 0);
        assert_int_equal(ls_engine_arm(r.engine, &written, &r.err), 0);
        assert_int_equal(written, 0);
        lab_ask(&l, 'r');
        lab_answer(&l);
        faults = atomic_load(&progress.faults);
        assert_int_equal(wait_end(&r), 0);
        end(&r);
        compare(&r);
        print_message("%lu faults by read(2)\n", faults);
        ls_engine_free(r.engine);
        free(r.count);
    }
    run_free(&r);
    lab_stop(&l);
}

/* Abort at any moment: the target is free at once, however slow the storage. */
static void abort_any_time(void **state)
{
    struct lab l = {0};
    struct run r;

    (void)state;
    make_small(&l);
    run_new(&r, &l, 32 << 20);
    for (unsigned i = 0; i < rounds(20, 400); i++) {
        uint64_t began, went;

        begin(&r, i % 2, 2);
        atomic_store(&r.delay_us, 100000);
        if (i % 5 != 0)
            arm(&r);
        usleep(i * 1777 % 20000);
        began = lab_us();
        ls_engine_release(r.engine);
        began = lab_us() - began;
        if (began > 1000000) /* a busy machine's second; milliseconds on an idle one */
            fail_msg("release took %lu us", began);
        went = atomic_load(&l.words->rounds);
        while (atomic_load(&l.words->rounds) < went + 2)
            usleep(100);
        atomic_store(&r.delay_us, 0);
        end_free(&r);
        assert_int_equal(atomic_load(&r.stage->free_count), r.stage->usable); /* no slot is lost */
    }
    run_free(&r);
    lab_stop(&l);
}

/* The target dies: the capture fails, and nothing hangs. */
static void target_dies(void **state)
{
    struct lab l = {0};
    struct run r;

    (void)state;
    make_small(&l);
    run_new(&r, &l, LITTLE_STAGING);
    begin(&r, false, 1);
    atomic_store(&r.delay_us, 20000);
    arm(&r);
    kill(l.pid, SIGKILL);
    assert_int_equal(wait_end(&r), -1);
    end_free(&r);
    run_free(&r);
    lab_stop(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hunt_small_pages), cmocka_unit_test(hunt_huge_pages),
        cmocka_unit_test(hunt_old_pagemap), cmocka_unit_test(small_staging),
        cmocka_unit_test(discard),          cmocka_unit_test(discard_before_arm),
        cmocka_unit_test(write_by_kernel),  cmocka_unit_test(abort_any_time),
        cmocka_unit_test(target_dies),
    };

    return cmocka_run_group_tests(tests, run_setup, NULL);
}
