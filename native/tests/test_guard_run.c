/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Programs that the guard runs: what they inherit, and how they are ended. */
#include "guard_lab.h"

#include <sys/syscall.h>

#include "guard/peer.h"
#include "guard/run.h"

static struct ls_run_result result;

static int run_shell(const char *script, int limit_ms, struct ls_error *err)
{
    const char *const argv[] = {"/bin/sh", "-c", script, NULL};
    struct ls_strays strays = {0};
    int outcome = ls_run(argv, &strays, ls_now_ms() + limit_ms, &result, err);

    for (size_t i = 0; i < LS_RUN_STRAYS_MAX; i++)
        assert_int_equal(strays.pid[i], 0); /* reaped */
    return outcome;
}

static void expect_success(const char *script)
{
    struct ls_error err = {0};

    if (run_shell(script, 5000, &err) != 0)
        fail_msg("%s", err.message);
    assert_true(WIFEXITED(result.status));
    assert_int_equal(WEXITSTATUS(result.status), 0);
}

/* The process whose number the program printed: a zombie of nobody's counts as ended. */
static void expect_ended(const char *number)
{
    struct ls_peer peer;
    struct ls_error err;
    pid_t pid = (pid_t)strtol(number, NULL, 10);

    assert_true(pid > 1);
    if (ls_peer_open(&peer, pid, 0, &err) != 0)
        return;
    assert_true(ls_peer_wait(&peer, ls_now_ms() + 1000));
    ls_peer_close(&peer);
}

static void outputs_and_exit_are_told_apart(void **state)
{
    struct ls_error err = {0};

    (void)state;
    assert_int_equal(run_shell("echo out; echo err >&2; exit 3", 5000, &err), 0);
    assert_string_equal(result.out.text, "out\n");
    assert_string_equal(result.err.text, "err\n");
    assert_int_equal(WEXITSTATUS(result.status), 3);
    assert_int_equal(run_shell("kill -9 $$", 5000, &err), 0);
    assert_true(WIFSIGNALED(result.status));
    expect_success("! read line && exec >&- 2>&- && sleep 0.1"); /* nothing to be read */
    assert_string_equal(result.out.text, "");
}

/* Also those that signal() refuses, as a program has them that glibc's posix_spawn(3) started. */
static void handle_all_signals(unsigned long handler)
{
    const struct {
        unsigned long handler, flags, restorer;
        uint64_t mask;
    } action = {.handler = handler};

    for (int i = SIGHUP; i < NSIG; i++)
        if (i != SIGCHLD)
            syscall(SYS_rt_sigaction, i, &action, NULL, sizeof action.mask);
}

static void nothing_of_the_guard_is_inherited(void **state)
{
    int leak[2];
    sigset_t set, before;
    char expected[4200];

    (void)state;
    assert_int_equal(pipe(leak), 0);
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, &before);
    handle_all_signals((unsigned long)SIG_IGN);
    setenv("LIVESNAP_SECRET", "1", 1);
    expect_success("ls -m /proc/$$/fd; readlink /proc/$$/fd/0; tr '\\0' '\\n' </proc/$$/environ");
    snprintf(expected, sizeof expected, "0, 1, 2\n/dev/null\nPATH=%s\nLC_ALL=C\n", getenv("PATH"));
    assert_string_equal(result.out.text, expected);
    /* Its own: a shell blocks all signals for a moment when it starts a program. */
    expect_success("exec sed -n 's/^Sig\\(Blk\\|Ign\\):[[:space:]]*0*$/\\1/p' /proc/self/status");
    assert_string_equal(result.out.text, "Blk\nIgn\n");
    expect_success("read pid _ _ _ group _ </proc/$$/stat; [ $pid = $group ]");
    unsetenv("LIVESNAP_SECRET");
    handle_all_signals((unsigned long)SIG_DFL);
    sigprocmask(SIG_SETMASK, &before, NULL);
    close(leak[0]);
    close(leak[1]);
}

static void its_whole_group_is_killed_at_the_limit(void **state)
{
    struct ls_error err = {0};
    int64_t began = ls_now_ms();

    (void)state;
    assert_int_equal(run_shell("trap '' TERM; sleep 60 & echo $!; wait", 300, &err), -1);
    assert_string_equal(err.reason, "timeout");
    assert_in_range(ls_now_ms() - began, 300, 2500);
    expect_ended(result.out.text);
    assert_int_equal(run_shell("kill -STOP $$", 100, &err), -1);
    assert_string_equal(err.reason, "timeout");
}

static void what_it_leaves_behind_is_not_waited_for(void **state)
{
    int64_t began = ls_now_ms();

    (void)state;
    expect_success("sleep 60 & echo $!");
    assert_in_range(ls_now_ms() - began, 0, 2000);
    expect_ended(result.out.text);
}

static void output_has_a_limit(void **state)
{
    struct ls_error err = {0};

    (void)state;
    expect_success("head -c 65536 /dev/zero; head -c 65536 /dev/zero >&2");
    assert_int_equal(result.out.size, LS_RUN_OUTPUT_MAX);
    assert_int_equal(result.err.size, LS_RUN_OUTPUT_MAX);
    assert_int_equal(run_shell("head -c 65537 /dev/zero", 5000, &err), -1);
    assert_string_equal(err.reason, "too-long");
    assert_int_equal(run_shell("yes >&2", 5000, &err), -1);
    assert_string_equal(err.reason, "too-long");
}

static void one_that_cannot_be_executed_says_so(void **state)
{
    const char *const argv[] = {"/nowhere/program", NULL};
    struct ls_strays strays = {0};
    struct ls_error err = {0};

    (void)state;
    assert_int_equal(ls_run(argv, &strays, ls_now_ms() + 1000, &result, &err), 0);
    assert_int_equal(WEXITSTATUS(result.status), 127);
    assert_string_equal(result.err.text,
                        "cannot execute '/nowhere/program': No such file or directory\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outputs_and_exit_are_told_apart),
        cmocka_unit_test(nothing_of_the_guard_is_inherited),
        cmocka_unit_test(its_whole_group_is_killed_at_the_limit),
        cmocka_unit_test(what_it_leaves_behind_is_not_waited_for),
        cmocka_unit_test(output_has_a_limit),
        cmocka_unit_test(one_that_cannot_be_executed_says_so),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
