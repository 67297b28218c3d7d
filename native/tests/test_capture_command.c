/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `capture` as its owner sees it: requests, events, exit codes, and every way to die. The target
 * is a process of our own, attached to as a QEMU would be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "capture_owner.h"

static void whole(void **state)
{
    static const char *const codecs[] = {"none", "lz4", "zstd"};
    struct owner o;
    json_t *done;

    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        open_owner(&o, "compression", json_string(codecs[i]));
        attached(&o);
        protect(&o);
        arm(&o);
        expect_only(&o, "released");
        done = expect(&o, "done");
        if (i == 0) {
            char *text = json_dumps(done, 0);

            print_message("%s\n", text);
            free(text);
        }
        assert_int_equal(json_integer_value(json_object_get(done, "bytes")), 48 << 20);
        json_decref(done);
        assert_int_equal(exit_code(&o), LS_OK);
        target_goes_on(&o);
        compare(&o);
        close_owner(&o);
    }
}

static void owner_leaves_before_arm(void **state)
{
    struct owner o;

    (void)state;
    for (int protected = 0; protected < 2; protected ++) {
        open_owner(&o, NULL, NULL);
        attached(&o);
        if (protected)
            protect(&o);
        close(o.to);
        assert_int_equal(exit_code(&o), LS_ABORTED);
        target_goes_on(&o);
        no_image(&o);
        close_owner(&o);
    }
}

/* All three standard streams end after arm: it completes. */
static void owner_leaves_after_arm(void **state)
{
    struct owner o;

    (void)state;
    open_owner(&o, "bandwidth", json_integer(20 << 20));
    attached(&o);
    protect(&o);
    arm(&o);
    close(o.to);
    close(o.from);
    assert_int_equal(exit_code(&o), LS_OK);
    compare(&o);
    target_goes_on(&o);
    close_owner(&o);
}

static void abort_in_sweep(void **state)
{
    struct owner o;

    (void)state;
    open_owner(&o, "bandwidth", json_integer(1 << 20));
    attached(&o);
    protect(&o);
    arm(&o);
    usleep(30000);
    say(&o, json_pack("{s:s}", "request", "abort"));
    json_t *event;
    while ((event = hear(&o))) {
        if (strcmp(json_string_value(json_object_get(event, "event")), "aborted") == 0)
            break;
        json_decref(event);
    }
    assert_non_null(event);
    json_decref(event);
    assert_int_equal(exit_code(&o), LS_ABORTED);
    target_goes_on(&o);
    no_image(&o);
    close_owner(&o);
}

/* The keeper dies, and nothing is left of it. */
static void drop(struct owner *o)
{
    kill(o->helper, SIGKILL);
    assert_int_equal(exit_code(o), 256 + SIGKILL);
    target_goes_on(o);
    no_image(o);
    close_owner(o);
}

static void keeper_killed(void **state)
{
    struct owner o;

    (void)state;
    for (int i = 0; i < 3; i++) {
        open_owner(&o, "bandwidth", json_integer(1 << 20));
        attached(&o);
        protect(&o);
        arm(&o);
        usleep(i * 7000);
        drop(&o);
    }
}

static void writer_killed(void **state)
{
    struct owner o;
    json_t *event;

    (void)state;
    open_owner(&o, "bandwidth", json_integer(1 << 20));
    attached(&o);
    protect(&o);
    arm(&o);
    kill(o.writer, SIGKILL);
    while ((event = hear(&o))) {
        bool failed = strcmp(json_string_value(json_object_get(event, "event")), "error") == 0;

        if (failed)
            assert_string_equal(json_string_value(json_object_get(event, "class")), "storage");
        json_decref(event);
        if (failed)
            break;
    }
    assert_int_equal(exit_code(&o), LS_STORAGE);
    target_goes_on(&o);
    close_owner(&o);
}

static void bad_requests(void **state)
{
    struct owner o;

    (void)state;
    open_owner(&o, "compression", json_string("rar"));
    expect_refusal(&o, LS_USAGE, "compression");
    open_owner(&o, "id", json_string("no"));
    expect_refusal(&o, LS_USAGE, "request");
    open_owner(&o, "start_time", json_integer(1));
    expect_refusal(&o, LS_GONE, "gone");
    open_owner(&o, "image", json_string("/nonexistent/ram"));
    expect_refusal(&o, LS_STORAGE, "create");
    open_owner(&o, NULL, NULL);
    attached(&o);
    say(&o, json_pack("{s:s}", "request", "arm"));
    expect_refusal(&o, LS_USAGE, "request");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole),
        cmocka_unit_test(owner_leaves_before_arm),
        cmocka_unit_test(owner_leaves_after_arm),
        cmocka_unit_test(abort_in_sweep),
        cmocka_unit_test(keeper_killed),
        cmocka_unit_test(writer_killed),
        cmocka_unit_test(bad_requests),
    };

    return cmocka_run_group_tests(tests, owner_setup, NULL);
}
