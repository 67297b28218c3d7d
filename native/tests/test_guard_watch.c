/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A guest whose keeper hangs: real write protection, held by a process that is stopped, that became
 * a zombie with a thread left, that lives, that was killed.
 */
#include "guard_stage.h"

static void one_that_is_stopped(void **state)
{
    struct ls_watch keeper;
    struct ls_peer peer;
    struct ls_error err;
    int witness, took;

    (void)state;
    set_stage(BEATS);
    look_up(&keeper);
    /* A third holder: so it is the release that frees the guest, not the keeper's death. */
    assert_int_equal(ls_peer_open(&peer, keeper_pid, 0, &err), 0);
    witness = ls_peer_take(&peer, atomic_load(&stage->uffd), &err);
    assert_true(witness >= 0);
    expect_blocked();
    assert_int_equal(watch(&keeper, 500), -1); /* it beats: waiting alone is no reason */
    kill(keeper_pid, SIGSTOP);
    took = watch(&keeper, 4000);
    assert_in_range(took, LS_WATCH_STALL_MS - LS_WATCH_LOOK_MS, 2800);
    release(&keeper);
    expect_free();
    assert_int_equal(lab_wait(keeper_pid, 1000), -1);
    close(witness);
    ls_peer_close(&peer);
    ls_watch_close(&keeper);
    clear_stage();
}

static void one_that_is_a_zombie_with_a_thread_left(void **state)
{
    struct ls_watch keeper;

    (void)state;
    if (!threads_have_pidfds())
        skip();
    set_stage(LEADER_ENDS);
    look_up(&keeper);
    expect_blocked();
    ls_sleep_ms(200);
    if (ls_peer_state(&keeper.peer) != 'Z')
        fail_msg("the main thread is in '%c'", ls_peer_state(&keeper.peer));
    assert_false(ls_peer_ended(&keeper.peer));
    assert_in_range(watch(&keeper, 1000), 0, 300);
    release(&keeper);
    expect_free();
    ls_watch_close(&keeper);
    clear_stage();
}

static void an_event_that_nobody_reads(void **state)
{
    struct ls_watch keeper;
    struct ls_peer peer;
    struct ls_error err;
    int witness;

    (void)state;
    set_stage(BEATS);
    look_up(&keeper);
    assert_int_equal(ls_peer_open(&peer, keeper_pid, 0, &err), 0);
    witness = ls_peer_take(&peer, atomic_load(&stage->uffd), &err);
    assert_true(witness >= 0);
    /* Lets the guest write all, so that it waits in its madvise. */
    {
        struct uffdio_writeprotect off = {
            .range = {stage->progress.ranges[0].start, stage->progress.ranges[0].length}};

        assert_int_equal(ioctl(witness, UFFDIO_WRITEPROTECT, &off), 0);
    }
    atomic_store(&stage->guest_go, 1);
    ls_sleep_ms(200);
    assert_int_equal(atomic_load(&stage->written), RAM / 4096);
    assert_int_equal(atomic_load(&stage->removed), 0);
    release(&keeper);
    expect_free();
    close(witness);
    ls_peer_close(&peer);
    ls_watch_close(&keeper);
    clear_stage();
}

static void one_that_was_killed(void **state)
{
    struct ls_watch keeper;

    (void)state;
    set_stage(BEATS);
    look_up(&keeper);
    expect_blocked();
    kill(keeper_pid, SIGKILL);
    expect_free();
    assert_int_equal(ls_watch_look(&keeper, ls_now_ms()), LS_WATCH_ENDED);
    release(&keeper);
    ls_watch_close(&keeper);
    clear_stage();
}

static void one_that_lives_is_let_be(void **state)
{
    struct ls_watch keeper;

    (void)state;
    set_stage(BEATS);
    look_up(&keeper);
    /* Nothing is protected (any more): a heart that stands still is of no concern. */
    atomic_store(&stage->progress.state, LS_PROGRESS_RELEASED);
    kill(keeper_pid, SIGSTOP);
    for (int i = 0; i < 100; i++)
        assert_int_equal(ls_watch_look(&keeper, keeper.looked + LS_WATCH_LOOK_MS), LS_WATCH_LIVES);
    /* One look after a long sleep of this very process is no evidence. */
    atomic_store(&stage->progress.state, LS_PROGRESS_COPYING);
    assert_int_equal(ls_watch_look(&keeper, keeper.looked + 3600000), LS_WATCH_LIVES);
    ls_watch_close(&keeper);
    clear_stage();
}

static void what_is_no_keeper_is_refused(void **state)
{
    struct ls_watch keeper;
    struct ls_error err = {0};

    (void)state;
    set_stage(BEATS);
    assert_int_equal(ls_watch_open(&keeper, keeper_pid, 12345, 3, stage_fd, &err), -1);
    assert_int_equal(err.cls, LS_GONE);
    assert_int_equal(ls_watch_open(&keeper, keeper_pid, 0, 3, 999, &err), -1);
    assert_string_equal(err.reason, "progress");
    stage->progress.magic++;
    assert_int_equal(ls_watch_open(&keeper, keeper_pid, 0, 3, stage_fd, &err), -1);
    assert_string_equal(err.reason, "progress");
    clear_stage();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_that_is_stopped),
        cmocka_unit_test(one_that_is_a_zombie_with_a_thread_left),
        cmocka_unit_test(an_event_that_nobody_reads),
        cmocka_unit_test(one_that_was_killed),
        cmocka_unit_test(one_that_lives_is_let_be),
        cmocka_unit_test(what_is_no_keeper_is_refused),
    };
    int fd = open_userfaultfd();

    if (fd < 0) {
        printf("SKIP test_guard_keeper: no userfaultfd here: %s\n", strerror(errno));
        return 0;
    }
    close(fd);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
