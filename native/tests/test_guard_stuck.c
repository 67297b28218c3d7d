/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A keeper that hangs in the kernel does not die of SIGKILL and keeps its descriptors: only the
 * guard can free the guest. Nor does a program that the guard runs. The hang is real: a write to a
 * frozen file system.
 */
#include "guard_stage.h"

#include <sys/mount.h>
#include <sys/stat.h>

#include "guard/run.h"

static pid_t thawer;
static int thawer_pipe = -1;
static char mount_point[128];

static int run(const char *fmt, ...)
{
    char command[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(command, sizeof command, fmt, ap);
    va_end(ap);
    return system(command);
}

/* Whatever becomes of this test: no frozen file system outlives it. */
static void start_thawer(void)
{
    int ends[2];

    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    thawer = fork();
    if (thawer == 0) {
        struct pollfd one = {.fd = ends[0], .events = POLLIN};

        close(ends[1]);
        setsid();
        poll(&one, 1, 30000);
        run("fsfreeze -u '%s' 2>/dev/null", mount_point);
        for (int i = 0; i < 50 && umount2(mount_point, 0) != 0; i++)
            ls_sleep_ms(20);
        umount2(mount_point, MNT_DETACH);
        _exit(0);
    }
    close(ends[0]);
    thawer_pipe = ends[1];
}

static int open_frozen(void **state)
{
    if (lab_open(state) != 0)
        return -1;
    snprintf(mount_point, sizeof mount_point, "%s/store", lab_folder);
    snprintf(hang_at, sizeof hang_at, "%s/file", mount_point);
    if (mkdir(mount_point, 0700) != 0 ||
        run("cd '%s' && truncate -s 8M image && mkfs.ext4 -q image && mount -o loop image store && "
            "touch store/file",
            lab_folder) != 0) {
        printf("SKIP test_guard_stuck: no ext4 can be mounted here\n");
        return lab_close(state) * 0;
    }
    start_thawer();
    return 0;
}

static int close_frozen(void **state)
{
    if (thawer_pipe < 0)
        return 0;
    close(thawer_pipe);
    waitpid(thawer, NULL, 0);
    return lab_close(state);
}

static void freeze(void)
{
    if (thawer_pipe < 0)
        skip();
    assert_int_equal(run("fsfreeze -f '%s'", mount_point), 0);
}

static int thaw(void **state)
{
    (void)state;
    if (thawer_pipe >= 0)
        run("fsfreeze -u '%s' 2>/dev/null", mount_point); /* it may be thawed already */
    return 0;
}

static int thaw_and_clear(void **state)
{
    if (thawer_pipe >= 0 && run("fsfreeze -u '%s'", mount_point) == 0)
        clear_stage();
    return thaw(state);
}

static void killed_with_one_thread_in_the_kernel(void **state)
{
    struct ls_watch keeper;

    (void)state;
    if (!threads_have_pidfds())
        skip();
    freeze();
    set_stage(OTHER_HANGS);
    look_up(&keeper);
    ls_sleep_ms(100);
    expect_blocked();
    kill(keeper_pid, SIGKILL);
    ls_sleep_ms(300);
    assert_int_equal(atomic_load(&stage->written), 0); /* its death is no help */
    assert_false(ls_peer_ended(&keeper.peer));
    assert_int_equal(ls_peer_state(&keeper.peer), 'Z');
    assert_in_range(watch(&keeper, 1000), 0, 300);
    release(&keeper);
    expect_free();
    assert_false(ls_peer_ended(&keeper.peer));
    ls_watch_close(&keeper);
}

static void alive_with_its_main_thread_in_the_kernel(void **state)
{
    struct ls_watch keeper;

    (void)state;
    freeze();
    set_stage(LEADER_HANGS);
    look_up(&keeper);
    ls_sleep_ms(100);
    expect_blocked();
    assert_int_equal(ls_peer_state(&keeper.peer), 'D');
    assert_in_range(watch(&keeper, 4000), 1500, 2800);
    release(&keeper);
    expect_free();
    assert_false(ls_peer_ended(&keeper.peer));
    ls_watch_close(&keeper);
}

static void programs_that_do_not_die_are_left_and_are_few(void **state)
{
    static struct ls_run_result result;
    char script[192];
    const char *const argv[] = {"/bin/sh", "-c", script, NULL};
    struct ls_strays strays = {0};
    struct ls_error err = {0};
    int64_t began;

    (void)state;
    freeze();
    snprintf(script, sizeof script, "echo x >'%s'", hang_at);
    began = ls_now_ms();
    for (int i = 0; i < LS_RUN_STRAYS_MAX; i++) {
        assert_int_equal(ls_run(argv, &strays, ls_now_ms() + 100, &result, &err), -1);
        assert_string_equal(err.reason, "timeout");
    }
    assert_in_range(ls_now_ms() - began, 100, LS_RUN_STRAYS_MAX * 1000);
    assert_int_equal(ls_run(argv, &strays, ls_now_ms() + 5000, &result, &err), -1);
    assert_string_equal(err.reason, "stuck");
    thaw(NULL);
    for (began = ls_now_ms(); ls_run(argv, &strays, ls_now_ms() + 5000, &result, &err) != 0;) {
        if (ls_now_ms() - began > 2000)
            fail_msg("%s", err.message);
        ls_sleep_ms(10);
    }
    assert_int_equal(result.status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(killed_with_one_thread_in_the_kernel, thaw_and_clear),
        cmocka_unit_test_teardown(alive_with_its_main_thread_in_the_kernel, thaw_and_clear),
        cmocka_unit_test_teardown(programs_that_do_not_die_are_left_and_are_few, thaw),
    };
    int fd = open_userfaultfd();

    if (fd < 0) {
        printf("SKIP test_guard_stuck: no userfaultfd here: %s\n", strerror(errno));
        return 0;
    }
    close(fd);
    return cmocka_run_group_tests(tests, open_frozen, close_frozen);
}
