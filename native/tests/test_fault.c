/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Fault points: each action does what its name says, at the n-th pass only. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/fault.h"

static bool point(void)
{
    return LS_FAULT("test.point");
}

#ifdef LS_FAULTS

static void error_at_second_pass(void **state)
{
    (void)state;
    ls_fault_choose("test.point:error:2");
    assert_false(point());
    assert_true(point());
    assert_false(point());
    ls_fault_choose("test.other:error");
    assert_false(point());
    ls_fault_choose(NULL);
    assert_false(point());
}

static void kill_counts_over_children(void **state)
{
    int status;

    (void)state;
    ls_fault_choose("test.point:kill");
    for (int i = 0; i < 2; i++) {
        pid_t pid = fork();

        if (pid == 0) {
            point();
            _exit(7);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (i == 0)
            assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        else
            assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    }
    ls_fault_choose(NULL);
}

static void find(const char *name, void *opaque)
{
    *(int *)opaque += strcmp(name, "test.point") == 0;
}

static void list_has_each_once(void **state)
{
    int seen = 0;

    (void)state;
    ls_fault_list(find, &seen);
    assert_int_equal(seen, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_at_second_pass),
        cmocka_unit_test(kill_counts_over_children),
        cmocka_unit_test(list_has_each_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

static void never_fires(void **state)
{
    (void)state;
    setenv("LIVESNAP_FAULT", "test.point:error", 1);
    assert_false(point());
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(never_fires)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
