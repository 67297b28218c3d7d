/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * `capture` on a machine whose KSM merges pages: refused, or KSM is paused meanwhile. It switches
 * KSM for all captures of the machine, so none that it knows nothing of may run beside it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "capture_owner.h"
#include "common/ksm.h"
#include "support/ksm_on.h"

static void refused(void)
{
    struct owner o;

    open_owner(&o, "ksm", json_string("refuse"));
    expect_refusal(&o, LS_REFUSED, "ksm");
    assert_true(ls_ksm_runs());
}

static void paused_meanwhile(void)
{
    struct owner o;

    open_owner(&o, NULL, NULL);
    attached(&o);
    assert_false(ls_ksm_runs());
    protect(&o);
    arm(&o);
    expect_only(&o, "done");
    assert_int_equal(exit_code(&o), LS_OK);
    for (int i = 0; i < 1000 && !ls_ksm_runs(); i++)
        usleep(10000);
    assert_true(ls_ksm_runs());
    compare(&o);
    close_owner(&o);
}

static void ksm(void **state)
{
    const char *why = ksm_on();

    (void)state;
    if (why) {
        print_message("SKIP ksm: %s\n", why);
        skip();
    }
    lab_mergeable = true;
    refused();
    paused_meanwhile();
}

static int give_back(void **state)
{
    (void)state;
    ksm_off();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(ksm, give_back),
    };

    return cmocka_run_group_tests(tests, owner_setup, NULL);
}
