/* SPDX-License-Identifier: GPL-3.0-or-later */
/* KSM is paused once, however many captures need it, and put back by whoever comes last. */
#include "guard_lab.h"

#include <fcntl.h>

#include "common/ksm.h"

static char run_path[128];

static void set_run(const char *text)
{
    int fd = open(run_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static void expect_run(const char *expected)
{
    char text[8] = "";
    int fd = open(run_path, O_RDONLY | O_CLOEXEC);

    assert_true(read(fd, text, sizeof text - 1) > 0);
    close(fd);
    assert_memory_equal(text, expected, 1);
}

static void pause_for(pid_t pid, bool expected)
{
    struct ls_error err;
    bool paused;

    assert_int_equal(ls_ksm_pause(pid, &paused, &err), 0);
    assert_int_equal(paused, expected);
}

static pid_t idle_child(void)
{
    pid_t pid = lab_fork();

    if (pid == 0)
        for (;;)
            pause();
    return pid;
}

static void the_last_of_two_puts_it_back(void **state)
{
    pid_t one = idle_child(), two = idle_child();
    struct ls_error err;

    (void)state;
    set_run("1\n");
    pause_for(one, true);
    expect_run("0");
    pause_for(two, true);
    assert_int_equal(ls_ksm_resume(one, &err), 0);
    expect_run("0");
    assert_int_equal(ls_ksm_resume(two, &err), 0);
    expect_run("1");
    assert_int_equal(access(lab_path("state/ksm"), F_OK), -1);
    lab_end(one);
    lab_end(two);
}

static void the_dead_hold_nothing(void **state)
{
    pid_t one = idle_child();
    struct ls_error err;

    (void)state;
    set_run("1\n");
    pause_for(one, true);
    assert_int_equal(ls_ksm_tidy(&err), 0);
    expect_run("0");
    kill(one, SIGKILL);
    siginfo_t info;
    waitid(P_PID, (id_t)one, &info, WEXITED | WNOWAIT); /* still a zombie */
    assert_int_equal(ls_ksm_tidy(&err), 0);
    expect_run("1");
    lab_end(one);
}

static void death_between_pause_and_tidy_is_not_forgotten(void **state)
{
    pid_t one = idle_child(), two = idle_child();
    struct ls_error err;

    (void)state;
    set_run("1\n");
    pause_for(one, true);
    lab_end(one);
    pause_for(two, true); /* KSM is off, and that is not how it was */
    assert_int_equal(ls_ksm_resume(two, &err), 0);
    expect_run("1");
    lab_end(two);
}

static void many_at_once_leave_it_as_it_was(void **state)
{
    pid_t children[12];
    struct ls_error err;

    (void)state;
    set_run("1\n");
    for (int i = 0; i < 12; i++) {
        children[i] = lab_fork();
        if (children[i] == 0) {
            for (int round = 0; round < 50; round++) {
                bool paused;

                if (ls_ksm_pause(getpid(), &paused, &err) != 0 || !paused ||
                    ls_ksm_resume(getpid(), &err) != 0)
                    _exit(1);
            }
            _exit(0);
        }
    }
    for (int i = 0; i < 12; i++)
        assert_int_equal(lab_wait(children[i], 20000), 0);
    expect_run("1");
    assert_int_equal(access(lab_path("state/ksm"), F_OK), -1);
}

static void what_others_set_is_left(void **state)
{
    struct ls_error err;

    (void)state;
    set_run("0\n");
    pause_for(getpid(), false);
    assert_int_equal(ls_ksm_resume(getpid(), &err), 0);
    expect_run("0");
    set_run("1\n");
    pause_for(getpid(), true);
    set_run("2\n");
    assert_int_equal(ls_ksm_resume(getpid(), &err), 0);
    expect_run("2");
    unlink(run_path);
    pause_for(getpid(), false); /* a kernel without KSM */
    assert_int_equal(ls_ksm_resume(getpid(), &err), 0);
}

static int open_places(void **state)
{
    static char folder[128];

    if (lab_open(state) != 0)
        return -1;
    snprintf(folder, sizeof folder, "%s/state/ksm", lab_folder);
    snprintf(run_path, sizeof run_path, "%s/run", lab_folder);
    ls_ksm_places(folder, run_path);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_last_of_two_puts_it_back),
        cmocka_unit_test(the_dead_hold_nothing),
        cmocka_unit_test(death_between_pause_and_tidy_is_not_forgotten),
        cmocka_unit_test(many_at_once_leave_it_as_it_was),
        cmocka_unit_test(what_others_set_is_left),
    };

    return cmocka_run_group_tests(tests, open_places, lab_close);
}
