/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The hunt for one lost page while the machine's KSM merges pages. It switches KSM for all captures
 * of the machine, so none that it knows nothing of may run beside it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "hunt.h"
#include "support/ksm_on.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(with_ksm, ksm_teardown),
    };

    return cmocka_run_group_tests(tests, run_setup, NULL);
}
