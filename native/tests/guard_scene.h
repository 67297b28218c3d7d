/* SPDX-License-Identifier: GPL-3.0-or-later */
/* A real QEMU, a guard, and an owner that gets as far in the bracket as the play says. */
#ifndef LS_TESTS_GUARD_SCENE_H
#define LS_TESTS_GUARD_SCENE_H

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
    int later_ms;    /* 0, or the deadline that is asked for once the guest stands still */
    bool was_paused; /* the guest is paused by its operator */
    bool with_agent;
    bool reset;       /* somebody resets the guest while it is stopped */
    int start_offset; /* added to QEMU's start time */
};

static inline pid_t start_qemu(const char *qmp)
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

static inline void ask(const char *qmp_path, const char *command, char *status, size_t size)
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

static inline void expect_status(const struct scene *scene, const char *expected)
{
    char status[32];

    ask(scene->qmp, NULL, status, sizeof status);
    assert_string_equal(status, expected);
}

static inline uint64_t start_time(pid_t pid)
{
    struct ls_peer peer;
    struct ls_error err;
    uint64_t ticks;

    assert_int_equal(ls_peer_open(&peer, pid, 0, &err), 0);
    ticks = peer.start_time;
    ls_peer_close(&peer);
    return ticks;
}

static inline void tell(int fd, json_t *request)
{
    char *text = json_dumps(request, JSON_COMPACT);

    dprintf(fd, "%s\n", text);
    free(text);
    json_decref(request);
}

/* Lets the guard's events pass until one contains `word`. */
static inline int hear(int fd, const char *word, int ms)
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

_Noreturn static inline void be_owner(const struct scene *scene, const struct play *play,
                                      int requests, int ready)
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
    if (play->later_ms) {
        tell(requests, json_pack("{ss si}", "request", "bracket", "deadline_ms", play->later_ms));
        if (hear(scene->events, "bracket", 2000) != 0)
            _exit(8);
    }
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

/* A guard, as a child; returns where it takes requests. */
static inline int start_guard(struct scene *scene)
{
    int requests[2], events[2];
    char *argv[] = {(char *)(uintptr_t) "guard", NULL};

    snprintf(scene->report, sizeof scene->report, "%s", lab_path("guard.json"));
    unlink(scene->report);
    assert_int_equal(pipe2(requests, O_CLOEXEC), 0);
    assert_int_equal(pipe2(events, O_CLOEXEC), 0);
    scene->events = events[0];
    scene->guard = lab_fork();
    if (scene->guard == 0) {
        dup2(requests[0], 0);
        dup2(events[1], 1);
        exit(ls_cmd_guard(1, argv));
    }
    close(requests[0]);
    close(events[1]);
    return requests[1];
}

/* Guest, guard and owner, at the step where the test begins. */
static inline void set_scene(struct scene *scene, const struct play *play)
{
    int requests, ready[2];
    char status[32], c;

    snprintf(scene->qmp, sizeof scene->qmp, "%s", lab_path("qmp"));
    snprintf(scene->agent, sizeof scene->agent, "%s", lab_path("agent"));
    unlink(scene->qmp);
    scene->qemu = start_qemu(scene->qmp);
    ask(scene->qmp, play->was_paused ? "stop" : NULL, status, sizeof status);
    assert_string_equal(status, play->was_paused ? "paused" : "running");
    requests = start_guard(scene);
    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    scene->owner = lab_fork();
    if (scene->owner == 0)
        be_owner(scene, play, requests, ready[1]);
    close(requests);
    close(ready[1]);
    assert_int_equal(read(ready[0], &c, 1), 1);
    close(ready[0]);
}

static inline void clear_scene(struct scene *scene)
{
    close(scene->events);
    lab_end(scene->owner);
    lab_end(scene->guard);
    lab_end(scene->qemu);
}

/* The report's value of `key`; missing is NULL. */
static inline json_t *reported(const struct scene *scene, const char *key)
{
    static json_t *report;

    json_decref(report);
    report = json_load_file(scene->report, 0, NULL);
    return json_object_get(report, key);
}

static inline void expect_report(const struct scene *scene, const char *reason, bool resumed,
                                 bool thawed)
{
    assert_string_equal(json_string_value(reported(scene, "reason")), reason);
    assert_int_equal(json_is_true(reported(scene, "resumed")), resumed);
    assert_int_equal(json_is_true(reported(scene, "thawed")), thawed);
    assert_true(json_is_true(reported(scene, "finished")));
    assert_int_equal(strlen(json_string_value(reported(scene, "at"))), 20);
    assert_string_equal(json_string_value(reported(scene, "problem")), "");
}

#endif
