/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The guard beside a real QEMU: whatever becomes of the owner, the guest ends as it was found. */
#include "guard_scene.h"

static void owner_is_killed_while_stopped(void **state)
{
    struct scene scene;

    (void)state;
    set_scene(&scene, &(struct play){.until = STOPPED, .deadline_ms = 60000});
    kill(scene.owner, SIGKILL);
    assert_int_equal(lab_wait(scene.guard, 2000), LS_GUARD_UNDID);
    expect_status(&scene, "running");
    expect_report(&scene, "owner died", true, false);
    clear_scene(&scene);
}

static void guest_that_was_reset_meanwhile_is_resumed(void **state)
{
    struct scene scene;

    (void)state;
    set_scene(&scene, &(struct play){.until = STOPPED, .deadline_ms = 60000, .reset = true});
    kill(scene.owner, SIGKILL);
    assert_int_equal(lab_wait(scene.guard, 2000), LS_GUARD_UNDID);
    expect_status(&scene, "running");
    expect_report(&scene, "owner died", true, false);
    clear_scene(&scene);
}

static void owner_is_killed_before_stop(void **state)
{
    struct scene scene;

    (void)state;
    set_scene(&scene, &(struct play){.until = BRACKET, .deadline_ms = 60000});
    kill(scene.owner, SIGKILL);
    assert_int_equal(lab_wait(scene.guard, 2000), LS_GUARD_UNDID);
    expect_status(&scene, "running");
    expect_report(&scene, "owner died", false, false);
    clear_scene(&scene);
}

static void guest_that_was_paused_stays_paused(void **state)
{
    struct scene scene;

    (void)state;
    set_scene(&scene, &(struct play){.until = BRACKET, .deadline_ms = 60000, .was_paused = true});
    kill(scene.owner, SIGKILL);
    assert_int_equal(lab_wait(scene.guard, 2000), LS_GUARD_UNDID);
    expect_status(&scene, "paused");
    expect_report(&scene, "owner died", false, false);
    clear_scene(&scene);
}

static void hung_owner_is_killed_by_the_deadline(void **state)
{
    struct scene scene;
    int64_t began;

    (void)state;
    set_scene(&scene, &(struct play){.until = STOPPED, .deadline_ms = 1600});
    began = ls_now_ms(); /* a little after the guard's count began */
    kill(scene.owner, SIGSTOP);
    assert_int_equal(lab_wait(scene.guard, 3000), LS_GUARD_UNDID);
    assert_in_range(ls_now_ms() - began, 800, 1600);
    assert_int_equal(lab_wait(scene.owner, 1000), -1);
    expect_status(&scene, "running");
    expect_report(&scene, "deadline", true, false);
    clear_scene(&scene);
}

/* The owner has something to do for which the guest has to stand still longer. */
static void the_deadline_is_the_one_asked_for_last(void **state)
{
    struct scene scene;
    int64_t began;

    (void)state;
    set_scene(&scene, &(struct play){.until = STOPPED, .deadline_ms = 1000, .later_ms = 3000});
    began = ls_now_ms();
    kill(scene.owner, SIGSTOP);
    assert_int_equal(lab_wait(scene.guard, 5000), LS_GUARD_UNDID);
    assert_in_range(ls_now_ms() - began, 1800, 3000);
    expect_status(&scene, "running");
    expect_report(&scene, "deadline", true, false);
    clear_scene(&scene);
}

static void qemu_is_killed(void **state)
{
    struct scene scene;

    (void)state;
    set_scene(&scene, &(struct play){.until = STOPPED, .deadline_ms = 60000});
    kill(scene.qemu, SIGKILL);
    assert_int_equal(lab_wait(scene.guard, 2000), LS_GONE);
    clear_scene(&scene);
    /* While the bracket is being undone. */
    set_scene(&scene, &(struct play){.until = STOPPED, .deadline_ms = 60000, .with_agent = true});
    kill(scene.owner, SIGKILL);
    ls_sleep_ms(300); /* there is no agent: it tries on */
    assert_int_equal(lab_wait(scene.guard, 0), -2);
    assert_true(json_is_false(reported(&scene, "finished")));
    kill(scene.qemu, SIGKILL);
    assert_int_equal(lab_wait(scene.guard, 2000), LS_GONE);
    assert_true(json_is_true(reported(&scene, "gone")));
    clear_scene(&scene);
}

static void nobody_is_thawed_in_a_guest_that_is_off(void **state)
{
    json_t *actions = json_pack("{ss ss}", "reboot", "shutdown", "shutdown", "pause");
    struct scene scene;
    struct ls_error err;
    struct ls_qmp qmp;
    char status[32];

    (void)state;
    set_scene(&scene, &(struct play){.until = STOPPED, .deadline_ms = 60000, .with_agent = true});
    kill(scene.owner, SIGKILL);
    ls_sleep_ms(300); /* there is no agent: it tries on */
    assert_int_equal(lab_wait(scene.guard, 0), -2);
    assert_int_equal(ls_qmp_open(&qmp, scene.qmp, ls_now_ms() + 5000, &err), 0);
    assert_int_equal(ls_qmp_execute(&qmp, "set-action", actions, ls_now_ms() + 1000, NULL, &err),
                     0);
    ls_qmp_close(&qmp);
    json_decref(actions);
    ask(scene.qmp, "system_reset", status, sizeof status);
    assert_int_equal(lab_wait(scene.guard, 3000), LS_GUARD_UNDID);
    expect_status(&scene, "shutdown");
    expect_report(&scene, "owner died", true, false);
    clear_scene(&scene);
}

static void before_the_bracket_nothing_is_touched(void **state)
{
    struct scene scene;
    char status[32];

    (void)state;
    set_scene(&scene, &(struct play){.until = STARTED});
    kill(scene.owner, SIGKILL);
    assert_int_equal(lab_wait(scene.guard, 2000), 0);
    assert_int_equal(access(scene.report, F_OK), -1);
    ask(scene.qmp, "stop", status, sizeof status);
    assert_string_equal(status, "paused");
    clear_scene(&scene);
}

static void after_running_nothing_is_touched(void **state)
{
    struct scene scene;

    (void)state;
    set_scene(&scene, &(struct play){.until = RUNNING, .deadline_ms = 200});
    assert_int_equal(lab_wait(scene.guard, 2000), 0); /* no keeper: nothing to stay for */
    kill(scene.owner, SIGKILL);
    assert_int_equal(access(scene.report, F_OK), -1);
    expect_status(&scene, "running");
    clear_scene(&scene);
}

static void another_client_delays_it_only(void **state)
{
    struct scene scene;
    struct ls_error err;
    struct ls_wire other;
    char *line;
    size_t size;

    (void)state;
    set_scene(&scene, &(struct play){.until = STOPPED, .deadline_ms = 60000});
    /* Waits in QEMU's backlog behind the owner, so it is before the guard. */
    assert_int_equal(ls_wire_connect(&other, scene.qmp, ls_now_ms() + 1000, &err), 0);
    kill(scene.owner, SIGKILL);
    assert_int_equal(ls_wire_line(&other, &line, &size, ls_now_ms() + 1000, &err), 0);
    assert_int_equal(lab_wait(scene.guard, 3500), -2);
    assert_non_null(strstr(json_string_value(reported(&scene, "problem")), "another client"));
    ls_wire_close(&other);
    assert_int_equal(lab_wait(scene.guard, 3000), LS_GUARD_UNDID);
    expect_status(&scene, "running");
    clear_scene(&scene);
}

static void sigterm_undoes(void **state)
{
    struct scene scene;

    (void)state;
    set_scene(&scene, &(struct play){.until = STOPPED, .deadline_ms = 60000});
    kill(scene.guard, SIGTERM);
    assert_int_equal(lab_wait(scene.guard, 2000), LS_GUARD_UNDID);
    expect_status(&scene, "running");
    expect_report(&scene, "terminated", true, false);
    clear_scene(&scene);
}

static void another_process_of_that_number_is_refused(void **state)
{
    struct scene scene;

    (void)state;
    set_scene(&scene, &(struct play){.until = STARTED, .start_offset = 1});
    assert_int_equal(lab_wait(scene.guard, 2000), LS_GONE);
    clear_scene(&scene);
}

static void connections_end_without_the_owners_help(void **state)
{
    const char *const paths[2] = {NULL, NULL};
    struct scene scene;
    struct ls_peer owner;
    struct ls_error err;
    int fds[4];

    (void)state;
    set_scene(&scene, &(struct play){.until = STOPPED, .deadline_ms = 60000});
    kill(scene.owner, SIGSTOP); /* stands for one that hangs in the kernel */
    assert_int_equal(ls_peer_open(&owner, scene.owner, 0, &err), 0);
    assert_int_equal(ls_peer_take_sockets(&owner, scene.qemu, paths, fds, 4), 1);
    shutdown(fds[0], SHUT_RDWR);
    close(fds[0]);
    expect_status(&scene, "paused"); /* QEMU serves the next client */
    ls_peer_close(&owner);
    clear_scene(&scene);
}

/* Speaks as an agent does: hangs while `*hang`, and is frozen until it is thawed. */
static pid_t serve_agent(const char *path)
{
    int listener = lab_listen(path);
    pid_t pid = lab_fork();
    bool frozen = true;

    if (pid) {
        close(listener);
        return pid;
    }
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        FILE *stream = fdopen(fd, "r");
        char line[512];

        while (fgets(line, sizeof line, stream)) {
            const char *id = strstr(line, "\"id\":");

            if (id)
                dprintf(fd, "\xff{\"return\": %ld}\n", strtol(id + 5, NULL, 10));
            else if (strstr(line, "status"))
                dprintf(fd, "{\"return\": \"%s\"}\n", frozen ? "frozen" : "thawed");
            else
                dprintf(fd, "{\"return\": %d}\n", frozen), frozen = false;
        }
        fclose(stream);
    }
}

static void a_frozen_guest_is_thawed_when_its_agent_answers(void **state)
{
    struct scene scene;
    pid_t agent;
    char status[32];
    struct ls_error err;

    (void)state;
    set_scene(&scene, &(struct play){.until = STOPPED, .deadline_ms = 60000, .with_agent = true});
    agent = lab_serve(scene.agent, &(struct lab_step){.expect = "never"}, 1); /* it hangs */
    kill(scene.owner, SIGKILL);
    assert_int_equal(lab_wait(scene.guard, 2600), -2);
    expect_status(&scene, "running"); /* the resume does not wait for the thaw */
    assert_true(json_is_false(reported(&scene, "finished")));
    assert_true(json_is_true(reported(&scene, "resumed")));
    assert_non_null(strstr(json_string_value(reported(&scene, "problem")), "thaw"));
    lab_end(agent);
    agent = serve_agent(scene.agent);
    assert_int_equal(lab_wait(scene.guard, 4000), LS_GUARD_UNDID);
    expect_report(&scene, "owner died", true, true);
    assert_int_equal(ls_agent_status(scene.agent, status, sizeof status, ls_now_ms() + 1000, &err),
                     0);
    assert_string_equal(status, "thawed");
    lab_end(agent);
    clear_scene(&scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(owner_is_killed_while_stopped),
        cmocka_unit_test(owner_is_killed_before_stop),
        cmocka_unit_test(guest_that_was_reset_meanwhile_is_resumed),
        cmocka_unit_test(guest_that_was_paused_stays_paused),
        cmocka_unit_test(hung_owner_is_killed_by_the_deadline),
        cmocka_unit_test(the_deadline_is_the_one_asked_for_last),
        cmocka_unit_test(qemu_is_killed),
        cmocka_unit_test(nobody_is_thawed_in_a_guest_that_is_off),
        cmocka_unit_test(before_the_bracket_nothing_is_touched),
        cmocka_unit_test(after_running_nothing_is_touched),
        cmocka_unit_test(another_client_delays_it_only),
        cmocka_unit_test(sigterm_undoes),
        cmocka_unit_test(another_process_of_that_number_is_refused),
        cmocka_unit_test(connections_end_without_the_owners_help),
        cmocka_unit_test(a_frozen_guest_is_thawed_when_its_agent_answers),
    };

    if (system("qemu-system-x86_64 --version >/dev/null 2>&1") != 0) {
        printf("SKIP test_guard_real: no qemu-system-x86_64 here\n");
        return 0;
    }
    return cmocka_run_group_tests(tests, lab_open, lab_close);
}
