/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `capture` with engine pause, as its owner sees it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "capture_owner.h"

/* The target stands still until all is copied, and has no userfaultfd at all. */
static void whole_while_it_stands_still(void **state)
{
    struct owner o;
    json_t *done;

    (void)state;
    open_owner(&o, "engine", json_string("pause"));
    attached(&o);
    protect(&o);
    say(&o, json_pack("{s:s}", "request", "arm"));
    expect_only(&o, "armed");
    expect_only(&o, "released");
    lab_go(&o.lab);
    done = expect(&o, "done");
    assert_int_equal(json_integer_value(json_object_get(done, "bytes")), 48 << 20);
    assert_int_equal(json_integer_value(json_object_get(done, "faults")), 0);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(done, "proof"), "chunks")),
                     0);
    json_decref(done);
    assert_int_equal(exit_code(&o), LS_OK);
    target_goes_on(&o);
    compare(&o);
    close_owner(&o);
}

/* Nobody else knows when the target goes on: what is copied after that is of no instant. */
static void owner_leaves_while_it_stands_still(void **state)
{
    struct owner o;

    (void)state;
    open_owner_with(&o, json_pack("{s:s, s:i}", "engine", "pause", "bandwidth", 1 << 20));
    attached(&o);
    protect(&o);
    say(&o, json_pack("{s:s}", "request", "arm"));
    expect_only(&o, "armed");
    close(o.to);
    assert_int_equal(exit_code(&o), LS_ABORTED);
    target_goes_on(&o);
    no_image(&o);
    close_owner(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_while_it_stands_still),
        cmocka_unit_test(owner_leaves_while_it_stands_still),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
