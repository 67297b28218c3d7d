/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The hunt for one lost page: hundreds of small captures, back to back, of a process that never
 * stops writing. Each image must be of exactly one counter value, and what the process had while it
 * stood still; or the capture was thrown away, where something is at work that may part a page from
 * its protection.
 * Used by tests only; one includer a program, after cmocka.h.
 */
#ifndef LS_TESTS_HUNT_H
#define LS_TESTS_HUNT_H

#include "lanes.h"
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

static inline void hunt_open(struct hunt *h, const char *what, size_t more)
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
static inline bool hunt_arm(struct hunt *h, bool disturbed)
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

static inline void hunt_end(struct hunt *h, unsigned i)
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
static inline bool hunt_begin(struct hunt *h, unsigned i)
{
    begin(&h->run, i % 5 == 4, 1 + i % 2);
    if (hunt_arm(h, i % 4 == 3))
        return true;
    h->refused++;
    end_free(&h->run);
    return false;
}

/* Capture number `i`, of a kind that depends on it. */
static inline void hunt_one(struct hunt *h, unsigned i)
{
    if (hunt_begin(h, i))
        hunt_end(h, i);
}

static inline void hunt_drop(struct hunt *h)
{
    run_free(&h->run);
    lanes_stop(&h->lab);
}

static inline void hunt_close(struct hunt *h)
{
    print_message("%s: %u right, %u thrown away, %u refused, in %.1f s; counter %lu to %lu, "
                  "%lu faults, armed once more %u times\n",
                  h->what, h->right, h->torn, h->refused, (double)(lab_us() - h->began) / 1e6,
                  h->first, h->last, h->faults, h->unclean);
    /* It was written while it was captured, or nothing has been shown. */
    assert_true(h->faults > 0 && h->right > 1 && h->last > h->first);
    hunt_drop(h);
}

#endif
