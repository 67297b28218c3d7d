/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `capture` as its owner sees it: requests, events, exit codes, and every way to die. The target
 * is a process of our own, attached to as a QEMU would be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "capture_owner.h"

#define KSM_RUN "/sys/kernel/mm/ksm/run"

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

static void refused(struct owner *o, int code, const char *reason)
{
    json_t *event = hear(o);

    assert_non_null(event);
    assert_string_equal(json_string_value(json_object_get(event, "event")), "error");
    assert_string_equal(json_string_value(json_object_get(event, "reason")), reason);
    print_message("%s\n", json_string_value(json_object_get(event, "message")));
    json_decref(event);
    assert_int_equal(exit_code(o), code);
    target_goes_on(o);
    close_owner(o);
}

static void bad_requests(void **state)
{
    struct owner o;

    (void)state;
    open_owner(&o, "compression", json_string("rar"));
    refused(&o, LS_USAGE, "compression");
    open_owner(&o, "id", json_string("no"));
    refused(&o, LS_USAGE, "request");
    open_owner(&o, "start_time", json_integer(1));
    refused(&o, LS_GONE, "gone");
    open_owner(&o, "image", json_string("/nonexistent/ram"));
    refused(&o, LS_STORAGE, "create");
    open_owner(&o, NULL, NULL);
    attached(&o);
    say(&o, json_pack("{s:s}", "request", "arm"));
    refused(&o, LS_USAGE, "request");
}

static char ksm_run(void)
{
    int fd = open(KSM_RUN, O_RDONLY | O_CLOEXEC);
    char c = '?';

    if (fd >= 0 && read(fd, &c, 1) != 1)
        c = '?';
    close(fd);
    return c;
}

static void set_ksm(char c)
{
    int fd = open(KSM_RUN, O_WRONLY | O_CLOEXEC);

    if (write(fd, &c, 1) != 1)
        fail_msg("cannot write " KSM_RUN);
    close(fd);
}

/* Each says whether it has seen what it is for. Captures of other tests, which know nothing of
 * these, may have paused KSM just then, or let it go on. */
static bool refused_for_ksm(void)
{
    struct owner o;
    json_t *event;
    bool is_error;

    set_ksm('1');
    open_owner(&o, "ksm", json_string("refuse"));
    event = hear(&o);
    assert_non_null(event);
    is_error = strcmp(json_string_value(json_object_get(event, "event")), "error") == 0;
    if (is_error) {
        assert_string_equal(json_string_value(json_object_get(event, "reason")), "ksm");
        assert_int_equal(exit_code(&o), LS_REFUSED);
        target_goes_on(&o);
        close_owner(&o);
    } else {
        drop(&o);
    }
    json_decref(event);
    return is_error;
}

static bool paused_meanwhile(void)
{
    struct owner o;
    bool back;

    set_ksm('1');
    open_owner(&o, NULL, NULL);
    attached(&o);
    if (ksm_run() != '0') {
        drop(&o);
        return false;
    }
    protect(&o);
    arm(&o);
    expect_only(&o, "done");
    assert_int_equal(exit_code(&o), LS_OK);
    for (int i = 0; i < 1000 && ksm_run() != '1'; i++)
        usleep(10000);
    back = ksm_run() == '1';
    set_ksm('0');
    compare(&o);
    close_owner(&o);
    return back;
}

static bool in_the_end(bool (*seen)(void))
{
    for (int i = 0; i < 20; i++)
        if (seen())
            return true;
    return false;
}

static void ksm(void **state)
{
    char before = ksm_run();
    bool refused_once, paused_once;

    (void)state;
    if (before != '0') {
        print_message("SKIP ksm: " KSM_RUN " is '%c'\n", before);
        skip();
    }
    lab_mergeable = true;
    refused_once = in_the_end(refused_for_ksm);
    paused_once = in_the_end(paused_meanwhile);
    lab_mergeable = false;
    set_ksm('0');
    assert_true(refused_once);
    assert_true(paused_once);
}

static int setup(void **state)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

    (void)state;
    if (fd < 0 || geteuid() != 0) {
        print_message("SKIP capture_command: needs root and userfaultfd\n");
        exit(0);
    }
    close(fd);
    signal(SIGPIPE, SIG_IGN);
    return 0;
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
        cmocka_unit_test(ksm),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
