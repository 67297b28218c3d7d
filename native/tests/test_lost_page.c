/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The hunt for one lost page: hundreds of small captures, back to back, of a process that never
 * stops writing. Each image must be of exactly one counter value, and what the process had while it
 * stood still; or the capture was thrown away, where something is at work that may part a page from
 * its protection.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "lanes.h"
#include "support/ksm_on.h"
#include "support/rounds.h"

/* Sanitized builds take many times as long; with fault points it is the plain code once more. */
#if defined(__SANITIZE_THREAD__)
#define SHARE 10
#elif defined(__SANITIZE_ADDRESS__)
#define SHARE 4
#elif defined(LS_FAULTS)
#define SHARE 3
#else
#define SHARE 1
#endif

struct hunt {
    struct lab lab;
    struct run run;
    const char *what;
    bool merging; /* KSM is at work: RAM may lose its protection in the pause, too */
    unsigned right, torn, refused, unclean;
    uint64_t faults, began, first, last; /* counter of the first and of the last image */
};

static void hunt_open(struct hunt *h, const char *what, size_t more)
{
    memset(h, 0, sizeof *h);
    h->what = what;
    lanes.count = 3;
    lanes.kind[0] = lanes.kind[1] = LANE_STORES;
    lanes.kind[2] = LANE_PIPE;
    lab_add(&h->lab, 4 << 20, false, !more);
    lab_add(&h->lab, 1 << 20, false, false);
    lab_add(&h->lab, 1 << 20, true, false);
    if (more)
        lab_add(&h->lab, more, false, false);
    lanes_start(&h->lab);
    run_new(&h->run, &h->lab, 32 << 20);
    h->began = lab_us();
}

/* In the pause: protect and arm until arm finds nothing. Now and then something is written after
 * all in between, as device models do. False: RAM does not keep its protection although all stands
 * still, and there is no capture. */
static bool hunt_arm(struct hunt *h, bool disturbed)
{
    struct run *r = &h->run;
    uint64_t written = 1;
    bool armed = true;

    target_stop(&h->lab);
    for (unsigned tries = 0; written > 0; tries++) {
        struct ls_protect_result got;

        armed = tries < 100 && ls_engine_protect(r->engine, &got, &r->err) == 0;
        if (!armed && h->merging && (tries == 100 || strcmp(r->err.reason, "not-still") == 0))
            break;
        if (!armed)
            fail_msg("armed %u times: %s", tries, r->err.message);
        if (disturbed && tries < 2) {
            target_go(&h->lab);
            usleep(300);
            target_stop(&h->lab);
        }
        for (unsigned b = 0; b < h->lab.blocks; b++)
            lab_read(&h->lab, b, r->truth[b]);
        if (ls_engine_arm(r->engine, &written, &r->err))
            fail_msg("%s", r->err.message);
        h->unclean += written > 0;
    }
    target_go(&h->lab);
    return armed;
}

static void hunt_end(struct hunt *h, unsigned i)
{
    struct run *r = &h->run;
    int64_t judged;

    switch (wait_end(r)) {
    case 0:
        end(r);
        compare(r);
        judged = lanes_judge(r, &h->last);
        if (judged >= 0)
            fail_msg("capture %u of counter %lu: page %ld is of another instant", i, h->last,
                     judged);
        if (h->right++ == 0)
            h->first = h->last;
        break;
    case -1:
        end(r);
        if (r->err.cls != LS_TORN ||
            (strcmp(r->err.reason, "proof") != 0 && strcmp(r->err.reason, "discarded") != 0))
            fail_msg("capture %u: %s (%s)", i, r->err.message, r->err.reason);
        h->torn++;
        break;
    default:
        fail_msg("capture %u: %lu of %lu pages saved", i, atomic_load(&r->engine->saved_pages),
                 r->engine->total_pages);
    }
    h->faults += atomic_load_explicit(&progress.faults, memory_order_relaxed);
    ls_engine_free(r->engine);
    free(r->count);
}

/* Whether there is a capture. */
static bool hunt_begin(struct hunt *h, unsigned i)
{
    begin(&h->run, i % 5 == 4, 1 + i % 2);
    if (hunt_arm(h, i % 4 == 3))
        return true;
    h->refused++;
    end_free(&h->run);
    return false;
}

/* Capture number `i`, of a kind that depends on it. */
static void hunt_one(struct hunt *h, unsigned i)
{
    if (hunt_begin(h, i))
        hunt_end(h, i);
}

static void hunt_drop(struct hunt *h)
{
    run_free(&h->run);
    lanes_stop(&h->lab);
}

static void hunt_close(struct hunt *h)
{
    print_message("%s: %u right, %u thrown away, %u refused, in %.1f s; counter %lu to %lu, "
                  "%lu faults, armed once more %u times\n",
                  h->what, h->right, h->torn, h->refused, (double)(lab_us() - h->began) / 1e6,
                  h->first, h->last, h->faults, h->unclean);
    /* It was written while it was captured, or nothing has been shown. */
    assert_true(h->faults > 0 && h->right > 1 && h->last > h->first);
    hunt_drop(h);
}

static void undisturbed(void **state)
{
    unsigned n = rounds(300, 5000) / SHARE;
    struct hunt h;

    (void)state;
    hunt_open(&h, "undisturbed", 0);
    for (unsigned i = 0; i < n; i++)
        hunt_one(&h, i);
    assert_int_equal(h.torn, 0);
    hunt_close(&h);
}

/* Half of the captures run while the target discards pages. */
static void with_discards(void **state)
{
    unsigned n = rounds(100, 2000) / SHARE;
    struct hunt h;

    (void)state;
    lanes.discard = true;
    hunt_open(&h, "with discards", 0);
    for (unsigned i = 0; i < n || (h.torn == 0 && i < 20 * n); i++) {
        unsigned torn = h.torn;

        lanes_ask(i % 2);
        hunt_one(&h, i);
        if (i % 2 == 0 && h.torn > torn)
            fail_msg("capture %u: %s", i, h.run.err.message);
    }
    assert_true(atomic_load(&lanes_words->discarded) > 0 && h.torn > 0);
    hunt_close(&h);
}

/*
 * A capture during which ksmd finds pages that were written not long ago, and then all of them are
 * written: one that was merged after arm is not protected any more. A busy ksmd may let no arm come
 * to its end, so mostly it rests until then.
 */
static void hunt_merged(struct hunt *h, unsigned i)
{
    h->merging = i % 8 == 0;
    lanes_turn();
    lanes_pass(&h->lab, 1 + i / 2 % 3);
    ksm_rest(!h->merging);
    if (hunt_begin(h, i)) {
        ksm_rest(false);
        usleep(20000 * (1 + i / 2 % 4));
        lanes_turn();
        hunt_end(h, i);
    }
    h->merging = false;
    ksm_rest(false);
}

/* ksmd merges what it finds unchanged when it comes again, after the memory of all guests of this
 * machine. NULL, or why it has merged nothing of the target's in time. */
static const char *wait_merged(struct hunt *h)
{
    const char *why = ksm_at_work();

    for (uint64_t began = lab_us(); ksm_merged(h->lab.pid) == 0; why = ksm_at_work()) {
        if (lab_us() - began > 30000000 && why)
            return why;
        if (lab_us() - began > 30000000)
            fail_msg("ksmd came round ten times and merged nothing");
        usleep(10000);
    }
    return NULL;
}

/*
 * RAM larger than staging, and slow storage: pages stay protected long enough for ksmd. All through
 * every second capture KSM rests, as when a guest is captured, and none of these is thrown away.
 */
static void with_ksm(void **state)
{
    unsigned n = rounds(24, 1000) / SHARE;
    const char *why = ksm_on();
    struct hunt h;

    (void)state;
    if (!why) {
        lab_mergeable = true;
        lanes.alike = true;
        hunt_open(&h, "with KSM", 36 << 20);
        why = wait_merged(&h);
    }
    if (why) {
        print_message("SKIP with_ksm: %s\n", why);
        if (lab_mergeable)
            hunt_drop(&h);
        skip();
    }
    for (unsigned i = 0; i < n || h.right < 2; i++) {
        unsigned torn = h.torn;

        atomic_store(&h.run.delay_us, i % 2 ? 0 : 15000);
        if (i % 2 == 0) {
            hunt_merged(&h, i);
            continue;
        }
        ksm_rest(true);
        hunt_one(&h, i);
        ksm_rest(false);
        if (h.torn > torn)
            fail_msg("capture %u: %s", i, h.run.err.message);
    }
    hunt_close(&h);
}

static int ksm_teardown(void **state)
{
    (void)state;
    lab_mergeable = false;
    ksm_off();
    return 0;
}

static _Atomic uint32_t compacting;

static void *compact(void *arg)
{
    int fd = *(int *)arg;

    while (atomic_load_explicit(&compacting, memory_order_relaxed))
        if (pwrite(fd, "1", 1, 0) != 1)
            break;
    return NULL;
}

static uint64_t migrated(void)
{
    FILE *f = fopen("/proc/vmstat", "re");
    unsigned long long pages = 0;
    char line[128];

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "pgmigrate_success %llu", &pages) == 1)
            break;
    if (f)
        fclose(f);
    return pages;
}

/* The kernel moves pages from one place of memory to another all the time. */
static void with_compaction(void **state)
{
    int fd = open("/proc/sys/vm/compact_memory", O_WRONLY | O_CLOEXEC);
    unsigned n = rounds(60, 2000) / SHARE;
    uint64_t before = migrated();
    pthread_t thread;
    struct hunt h;

    (void)state;
    if (fd < 0) {
        print_message("SKIP with_compaction: cannot open /proc/sys/vm/compact_memory: %s\n",
                      strerror(errno));
        skip();
    }
    hunt_open(&h, "with compaction", 0);
    atomic_store(&compacting, 1);
    assert_int_equal(pthread_create(&thread, NULL, compact, &fd), 0);
    for (unsigned i = 0; i < n; i++)
        hunt_one(&h, i);
    atomic_store(&compacting, 0);
    pthread_join(thread, NULL);
    close(fd);
    print_message("%lu pages were moved on this machine\n", migrated() - before);
    assert_true(migrated() > before);
    hunt_close(&h);
}

#ifdef LS_FAULTS
/* That all this would find a lost page: 2 MiB are left unprotected, and copied a second later. */
static void a_lost_page_is_found(void **state)
{
    struct hunt h;

    (void)state;
    hunt_open(&h, "sabotaged", 0);
    setenv("LIVESNAP_SABOTAGE", "skip-granule", 1);
    begin(&h.run, false, 1);
    unsetenv("LIVESNAP_SABOTAGE");
    assert_true(hunt_arm(&h, false));
    assert_int_equal(wait_end(&h.run), 0);
    end(&h.run);
    assert_true(lanes_judge(&h.run, &h.last) >= 0);
    ls_engine_free(h.run.engine);
    free(h.run.count);
    hunt_drop(&h);
}
#endif

static int setup(void **state)
{
    uint64_t features;
    struct ls_error err;

    (void)state;
    if (ls_uffd_probe(&features, &err)) {
        print_message("SKIP lost_page: %s\n", err.message);
        exit(0);
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(undisturbed),
        cmocka_unit_test(with_discards),
        cmocka_unit_test_teardown(with_ksm, ksm_teardown),
        cmocka_unit_test(with_compaction),
#ifdef LS_FAULTS
        cmocka_unit_test(a_lost_page_is_found),
#endif
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
