/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The guard beside a real QEMU: whatever becomes of the owner, the guest ends as it was found. */
#include "guard_lab.h"

#include <fcntl.h>

#include "commands.h"
#include "guard/agent.h"
#include "guard/guard.h"
#include "guard/qmp.h"
#include "guard/undo.h"

/* How far the owner goes before it waits for its end. */
enum owner_step { STARTED, BRACKET, STOPPED, RUNNING };

struct scene {
    pid_t qemu, guard, owner;
    int events; /* what the guard says */
    char qmp[128], agent[128], report[128];
};

struct play {
    enum owner_step until;
    int deadline_ms;
    bool was_paused; /* the guest is paused by its operator */
    bool with_agent;
    bool reset;       /* somebody resets the guest while it is stopped */
    int start_offset; /* added to QEMU's start time */
};

static pid_t start_qemu(const char *qmp)
{
    char chardev[192];
    pid_t pid = lab_fork();

    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);

        dup2(null, 0);
        dup2(null, 1);
        snprintf(chardev, sizeof chardev, "unix:%s,server=on,wait=off", qmp);
        execlp("qemu-system-x86_64", "qemu-system-x86_64", "-machine", "pc,accel=tcg", "-m", "16",
               "-nodefaults", "-display", "none", "-qmp", chardev, (char *)NULL);
        _exit(127);
    }
    return pid;
}

static void ask(const char *qmp_path, const char *command, char *status, size_t size)
{
    int64_t until = ls_now_ms() + 10000;
    struct ls_error err = {0};
    LS_AUTO_QMP struct ls_qmp qmp;

    while (ls_qmp_open(&qmp, qmp_path, ls_now_ms() + 1000, &err) != 0) {
        if (ls_now_ms() > until)
            fail_msg("%s", err.message);
        ls_sleep_ms(20);
    }
    if (command && ls_qmp_execute(&qmp, command, NULL, until, NULL, &err) != 0)
        fail_msg("%s", err.message);
    if (ls_qmp_status(&qmp, status, size, until, &err) != 0)
        fail_msg("%s", err.message);
}

static void expect_status(const struct scene *scene, const char *expected)
{
    char status[32];

    ask(scene->qmp, NULL, status, sizeof status);
    assert_string_equal(status, expected);
}

static uint64_t start_time(pid_t pid)
{
    struct ls_peer peer;
    struct ls_error err;
    uint64_t ticks;

    assert_int_equal(ls_peer_open(&peer, pid, 0, &err), 0);
    ticks = peer.start_time;
    ls_peer_close(&peer);
    return ticks;
}

static void tell(int fd, json_t *request)
{
    char *text = json_dumps(request, JSON_COMPACT);

    dprintf(fd, "%s\n", text);
    free(text);
    json_decref(request);
}

/* Lets the guard's events pass until one contains `word`. */
static int hear(int fd, const char *word, int ms)
{
    int64_t until = ls_now_ms() + ms;
    char text[4096] = "";
    size_t used = 0;

    for (;;) {
        struct pollfd one = {.fd = fd, .events = POLLIN};
        ssize_t n;

        if (strstr(text, word))
            return 0;
        if (poll(&one, 1, ls_left_ms(until)) != 1)
            return -1;
        n = read(fd, text + used, sizeof text - 1 - used);
        if (n <= 0)
            return -1;
        used += (size_t)n;
        text[used] = '\0';
    }
}

_Noreturn static void be_owner(const struct scene *scene, const struct play *play, int requests,
                               int ready)
{
    struct ls_error err;
    struct ls_qmp qmp;
    json_t *start = json_pack(
        "{ss ss ss* sI sI ss ss sI sI sb ss}", "request", "start", "qmp_socket", scene->qmp,
        "agent_socket", play->with_agent ? scene->agent : NULL, "pid", (json_int_t)scene->qemu,
        "start_time", (json_int_t)start_time(scene->qemu) + play->start_offset, "guest", "web1",
        "id", "6f1c", "owner", (json_int_t)getpid(), "owner_start_time",
        (json_int_t)start_time(getpid()), "was_running", !play->was_paused, "report",
        scene->report);

    tell(requests, start);
    if (hear(scene->events, "ready", 2000) != 0)
        goto wait;
    if (play->until >= BRACKET) {
        tell(requests,
             json_pack("{ss si}", "request", "bracket", "deadline_ms", play->deadline_ms));
        if (hear(scene->events, "bracket", 2000) != 0)
            _exit(3);
    }
    if (ls_qmp_open(&qmp, scene->qmp, ls_now_ms() + 5000, &err) != 0)
        _exit(4);
    if (play->until >= STOPPED &&
        ls_qmp_execute(&qmp, "stop", NULL, ls_now_ms() + 5000, NULL, &err) != 0)
        _exit(5);
    if (play->reset &&
        ls_qmp_execute(&qmp, "system_reset", NULL, ls_now_ms() + 5000, NULL, &err) != 0)
        _exit(7);
    if (play->until >= RUNNING) {
        if (ls_qmp_execute(&qmp, "cont", NULL, ls_now_ms() + 5000, NULL, &err) != 0)
            _exit(6);
        tell(requests, json_pack("{ss}", "request", "running"));
    }
wait:
    (void)!write(ready, "!", 1);
    for (;;)
        pause();
}

/* Guest, guard and owner, at the step where the test begins. */
static void set_scene(struct scene *scene, const struct play *play)
{
    int requests[2], events[2], ready[2];
    char status[32], *argv[] = {(char *)(uintptr_t) "guard", NULL};
    char c;

    snprintf(scene->qmp, sizeof scene->qmp, "%s", lab_path("qmp"));
    snprintf(scene->agent, sizeof scene->agent, "%s", lab_path("agent"));
    snprintf(scene->report, sizeof scene->report, "%s", lab_path("guard.json"));
    unlink(scene->report);
    unlink(scene->qmp);
    scene->qemu = start_qemu(scene->qmp);
    ask(scene->qmp, play->was_paused ? "stop" : NULL, status, sizeof status);
    assert_string_equal(status, play->was_paused ? "paused" : "running");
    assert_int_equal(pipe2(requests, O_CLOEXEC), 0);
    assert_int_equal(pipe2(events, O_CLOEXEC), 0);
    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    scene->events = events[0];
    scene->guard = lab_fork();
    if (scene->guard == 0) {
        dup2(requests[0], 0);
        dup2(events[1], 1);
        exit(ls_cmd_guard(1, argv));
    }
    close(requests[0]);
    close(events[1]);
    scene->owner = lab_fork();
    if (scene->owner == 0)
        be_owner(scene, play, requests[1], ready[1]);
    close(requests[1]);
    close(ready[1]);
    assert_int_equal(read(ready[0], &c, 1), 1);
    close(ready[0]);
}

static void clear_scene(struct scene *scene)
{
    close(scene->events);
    lab_end(scene->owner);
    lab_end(scene->guard);
    lab_end(scene->qemu);
}

/* The report's value of `key`; missing is NULL. */
static json_t *reported(const struct scene *scene, const char *key)
{
    static json_t *report;

    json_decref(report);
    report = json_load_file(scene->report, 0, NULL);
    return json_object_get(report, key);
}

static void expect_report(const struct scene *scene, const char *reason, bool resumed, bool thawed)
{
    assert_string_equal(json_string_value(reported(scene, "reason")), reason);
    assert_int_equal(json_is_true(reported(scene, "resumed")), resumed);
    assert_int_equal(json_is_true(reported(scene, "thawed")), thawed);
    assert_true(json_is_true(reported(scene, "finished")));
    assert_int_equal(strlen(json_string_value(reported(scene, "at"))), 20);
    assert_string_equal(json_string_value(reported(scene, "problem")), "");
}

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
