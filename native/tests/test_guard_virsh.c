/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The guard of a guest of libvirt's, with a virsh that plays its part and can fail, hang and be
 * missing; tests/guests has the real one. "QEMU" is here only to end.
 */
#include "guard_scene.h"

#include <sys/stat.h>

#include "guard/virsh.h"

#define UUID "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
#define ALWAYS "-q -c qemu:///lab "
#define STATUS ALWAYS "qemu-monitor-command " UUID " {\"execute\":\"query-status\"}"
#define RESUME ALWAYS "resume " UUID
#define AGENT(command)                                                                             \
    ALWAYS "qemu-agent-command " UUID " --timeout 2 {\"execute\":\"guest-fsfreeze-" command "\"}"

/* Beside it: `log` of its calls, `status` of the guest, what its `agent` says, and how it fails. */
static const char fake_virsh[] =
    "#!/bin/sh\n"
    "cd \"${0%/*}\" && echo \"$*\" >>log || exit 9\n"
    "fails() { printf 'error: it failed\\nerror: %s\\n' \"$1\" >&2; exit 1; }\n"
    "if [ -e hang ]; then rm hang; sleep 60; fi\n"
    "read -r failures <failures\n"
    "if [ \"$failures\" -gt 0 ]; then\n"
    "    echo $((failures - 1)) >failures\n"
    "    fails \"$(printf 'Cannot recv data: \\303\\251')\"\n"
    "fi\n"
    "read -r status <status\n"
    "read -r agent <agent\n"
    "case \"$*\" in\n"
    "'" STATUS "')\n"
    "    printf '{\"return\":{\"status\":\"%s\"},\"id\":\"libvirt-7\"}\\n\\n' \"$status\";;\n"
    "'" RESUME "')\n"
    "    [ \"$status\" = paused ] || fails 'it is not paused'\n"
    "    echo running >status; echo;;\n"
    "*' " UUID " --timeout 2 '*)\n"
    "    [ \"$status\" = running ] || fails 'domain is not running'\n"
    "    case \"$agent\" in\n"
    "    none) fails \"unable to execute QEMU agent command 'x': The command x has not been "
    "found\";;\n"
    "    off) fails \"unable to execute QEMU agent command 'x': Command x has been disabled: "
    "no\";;\n"
    "    deaf) fails 'Guest agent is not responding: QEMU guest agent is not connected';;\n"
    "    esac\n"
    "    case \"$*\" in\n"
    "    '" AGENT("status") "') printf '{\"return\":\"%s\"}\\n\\n' \"$agent\";;\n"
                            "    '" AGENT(
                                "thaw") "') echo thawed >agent; printf '{\"return\":2}\\n\\n';;\n"
                                        "    esac;;\n"
                                        "*) fails 'unknown command';;\n"
                                        "esac\n";

static void put(const char *name, const char *text)
{
    FILE *file = fopen(lab_path(name), "w");

    assert_non_null(file);
    assert_true(fprintf(file, "%s\n", text) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void expect_file(const char *name, const char *expected)
{
    char text[4096] = "";
    FILE *file = fopen(lab_path(name), "r");

    assert_non_null(file);
    (void)!fread(text, 1, sizeof text - 1, file);
    fclose(file);
    assert_string_equal(text, expected);
}

/* A virsh of a guest that is in `status`, and whose agent says `agent`; "none" knows no freeze. */
static void make_virsh(const char *status, const char *agent)
{
    put("virsh", fake_virsh);
    assert_int_equal(chmod(lab_path("virsh"), 0700), 0);
    put("status", status);
    put("agent", agent ? agent : "");
    put("failures", "0");
    unlink(lab_path("log"));
}

static struct ls_virsh reach_virsh(void)
{
    return (struct ls_virsh){.program = (char *)(uintptr_t)lab_path("virsh"),
                             .uri = (char *)(uintptr_t) "qemu:///lab",
                             .domain = (char *)(uintptr_t)UUID};
}

static pid_t start_idler(void)
{
    pid_t pid = lab_fork();

    if (pid == 0)
        for (;;)
            pause();
    return pid;
}

/* A start request through libvirt, and what differs from it; null takes a field away. */
static json_t *make_start(const struct scene *scene, const char *changes)
{
    json_t *start = json_pack(
        "{ss sI sI ss ss sI sI sb ss s{ss ss ss sb}}", "request", "start", "pid",
        (json_int_t)scene->qemu, "start_time", (json_int_t)start_time(scene->qemu), "guest", "web1",
        "id", "6f1c", "owner", (json_int_t)scene->owner, "owner_start_time",
        (json_int_t)start_time(scene->owner), "was_running", 1, "report", scene->report, "libvirt",
        "uri", "qemu:///lab", "domain", UUID, "virsh", lab_path("virsh"), "freeze", 1);
    json_t *other = json_loads(changes, 0, NULL);

    assert_non_null(other);
    assert_int_equal(json_object_update_recursive(start, other), 0);
    json_decref(other);
    return start;
}

struct cast {
    const char *status; /* of the guest */
    const char *agent;
    bool unfrozen; /* nobody is going to freeze it */
    int deadline_ms;
};

static int requests; /* to the guard; held open by the test */

static void set_bracket(struct scene *scene, const struct cast *cast)
{
    make_virsh(cast->status, cast->agent);
    scene->qemu = start_idler();
    scene->owner = start_idler();
    signal(SIGCHLD, SIG_IGN); /* the guard has to learn how virsh ends all the same */
    requests = start_guard(scene);
    signal(SIGCHLD, SIG_DFL);
    tell(requests, make_start(scene, cast->unfrozen ? "{\"libvirt\":{\"freeze\":false}}" : "{}"));
    assert_int_equal(hear(scene->events, "ready", 5000), 0);
    tell(requests, json_pack("{ss si}", "request", "bracket", "deadline_ms",
                             cast->deadline_ms ? cast->deadline_ms : 60000));
    assert_int_equal(hear(scene->events, "\"bracket\"", 5000), 0);
}

static void clear(struct scene *scene)
{
    close(requests);
    clear_scene(scene);
}

/* The owner dies in the bracket; ends when the guard has. */
static void undo(struct scene *scene, const struct cast *cast)
{
    set_bracket(scene, cast);
    kill(scene->owner, SIGKILL);
    assert_int_equal(lab_wait(scene->guard, 4000), LS_GUARD_UNDID);
}

static void a_paused_guest_is_resumed(void **state)
{
    struct scene scene;

    (void)state;
    undo(&scene, &(struct cast){.status = "paused", .agent = "thawed"});
    expect_file("status", "running\n");
    expect_report(&scene, "owner died", true, false);
    expect_file("log", STATUS "\n" RESUME "\n" STATUS "\n" AGENT("status") "\n");
    clear(&scene);
}

static void one_that_stands_still_for_another_reason_is_left(void **state)
{
    struct scene scene;

    (void)state;
    undo(&scene, &(struct cast){.status = "io-error", .agent = "none", .unfrozen = true});
    expect_report(&scene, "owner died", false, false);
    assert_string_equal(json_string_value(reported(&scene, "status")), "io-error");
    expect_file("log", STATUS "\n");
    clear(&scene);
}

static void a_frozen_guest_is_thawed(void **state)
{
    struct scene scene;

    (void)state;
    undo(&scene, &(struct cast){.status = "running", .agent = "frozen"});
    expect_report(&scene, "owner died", false, true);
    expect_file("agent", "thawed\n");
    expect_file("log", STATUS "\n" AGENT("status") "\n" AGENT("thaw") "\n" AGENT("status") "\n");
    clear(&scene);
}

static void an_agent_that_cannot_freeze_has_not_frozen(void **state)
{
    struct scene scene;

    (void)state;
    undo(&scene, &(struct cast){.status = "paused", .agent = "none"});
    expect_report(&scene, "owner died", true, false);
    clear(&scene);
    undo(&scene, &(struct cast){.status = "paused", .agent = "off"});
    expect_report(&scene, "owner died", true, false);
    clear(&scene);
}

static void an_agent_that_is_deaf_holds_up_the_thaw_alone(void **state)
{
    struct scene scene;

    (void)state;
    set_bracket(&scene, &(struct cast){.status = "paused", .agent = "deaf"});
    kill(scene.owner, SIGKILL);
    assert_int_equal(lab_wait(scene.guard, 1000), -2);
    expect_file("status", "running\n");
    assert_non_null(strstr(json_string_value(reported(&scene, "problem")), "is not connected"));
    put("agent", "frozen");
    assert_int_equal(lab_wait(scene.guard, 4000), LS_GUARD_UNDID);
    expect_report(&scene, "owner died", true, true);
    clear(&scene);
}

static void libvirt_that_starts_anew_is_tried_again(void **state)
{
    struct scene scene;

    (void)state;
    set_bracket(&scene, &(struct cast){.status = "paused", .unfrozen = true});
    put("failures", "2");
    kill(scene.owner, SIGKILL);
    assert_int_equal(lab_wait(scene.guard, 4000), LS_GUARD_UNDID);
    expect_report(&scene, "owner died", true, false);
    expect_file("log", STATUS "\n" STATUS "\n" STATUS "\n" RESUME "\n" STATUS "\n");
    clear(&scene);
}

static void virsh_that_hangs_is_killed_and_tried_again(void **state)
{
    struct scene scene;
    int64_t began;

    (void)state;
    set_bracket(&scene, &(struct cast){.status = "paused", .unfrozen = true});
    put("hang", "");
    began = ls_now_ms();
    kill(scene.owner, SIGKILL);
    assert_int_equal(lab_wait(scene.guard, 9000), LS_GUARD_UNDID);
    assert_in_range(ls_now_ms() - began, 4900, 8500);
    expect_report(&scene, "owner died", true, false);
    expect_file("log", STATUS "\n" STATUS "\n" RESUME "\n" STATUS "\n");
    clear(&scene);
}

static void without_virsh_it_tries_until_qemu_is_gone(void **state)
{
    struct scene scene;

    (void)state;
    set_bracket(&scene, &(struct cast){.status = "paused"});
    unlink(lab_path("virsh"));
    kill(scene.owner, SIGKILL);
    assert_int_equal(lab_wait(scene.guard, 600), -2);
    assert_true(json_is_false(reported(&scene, "finished")));
    assert_non_null(strstr(json_string_value(reported(&scene, "problem")), "cannot execute"));
    kill(scene.qemu, SIGKILL);
    assert_int_equal(lab_wait(scene.guard, 3000), LS_GONE);
    assert_true(json_is_true(reported(&scene, "gone")));
    clear(&scene);
}

static void sigterm_ends_the_trying(void **state)
{
    struct scene scene;

    (void)state;
    set_bracket(&scene, &(struct cast){.status = "paused"});
    put("failures", "1000");
    kill(scene.owner, SIGKILL);
    assert_int_equal(lab_wait(scene.guard, 300), -2);
    kill(scene.guard, SIGTERM);
    assert_int_equal(lab_wait(scene.guard, 3000), LS_GUARD_UNDID);
    assert_true(json_is_false(reported(&scene, "finished")));
    clear(&scene);
}

static void a_hung_owner_is_killed_by_the_deadline(void **state)
{
    struct scene scene;

    (void)state;
    set_bracket(&scene, &(struct cast){.status = "paused", .agent = "frozen", .deadline_ms = 1000});
    kill(scene.owner, SIGSTOP);
    assert_int_equal(lab_wait(scene.guard, 4000), LS_GUARD_UNDID);
    assert_int_equal(lab_wait(scene.owner, 1000), -1);
    expect_report(&scene, "deadline", true, true);
    clear(&scene);
}

static void what_virsh_complains_of_is_passed_on(void **state)
{
    struct ls_virsh virsh = reach_virsh();
    struct ls_error err = {0};
    char status[32];

    (void)state;
    make_virsh("paused", "thawed");
    put("failures", "1");
    assert_int_equal(ls_virsh_status(&virsh, status, sizeof status, ls_now_ms() + 5000, &err), -1);
    assert_string_equal(err.reason, "virsh");
    assert_string_equal(err.message,
                        "virsh qemu-monitor-command failed: error: Cannot recv data: ??");
    assert_int_equal(ls_virsh_status(&virsh, status, sizeof status, ls_now_ms() + 5000, &err), 0);
    assert_string_equal(status, "paused");
    put("virsh", "#!/bin/sh\nprintf '{\"error\":\\377}'\n");
    assert_int_equal(ls_virsh_status(&virsh, status, sizeof status, ls_now_ms() + 5000, &err), -1);
    assert_string_equal(err.message,
                        "virsh qemu-monitor-command gives no answer but '{\"error\":?}'");
    put("virsh", "#!/bin/sh\nexit 1\n");
    assert_int_equal(ls_virsh_cont(&virsh, ls_now_ms() + 5000, &err), -1);
    assert_string_equal(err.message, "virsh resume failed: it does not say why");
    put("virsh", "#!/bin/sh\nkill -9 $$\n");
    assert_int_equal(ls_virsh_cont(&virsh, ls_now_ms() + 5000, &err), -1);
    assert_string_equal(err.message, "virsh resume was ended by signal 9");
    put("virsh", "#!/bin/sh\nsleep 60\n");
    assert_int_equal(ls_virsh_cont(&virsh, ls_now_ms() + 100, &err), -1);
    assert_string_equal(err.reason, "timeout");
}

static void a_start_that_is_wrong_is_refused(void **state)
{
    static const char *const wrong[] = {
        "{\"qmp_socket\":\"/q\"}",
        "{\"qmp_socket\":\"/q\",\"agent_socket\":\"/a\"}",
        "{\"agent_socket\":\"/a\"}",
        "{\"libvirt\":null}",
        "{\"libvirt\":null,\"qmp_socket\":null}",
        "{\"libvirt\":null,\"agent_socket\":\"/a\"}",
        "{\"libvirt\":null,\"qmp_socket\":1}",
        "{\"libvirt\":\"qemu:///system\"}",
        "{\"libvirt\":true}",
        "{\"libvirt\":{\"uri\":null}}",
        "{\"libvirt\":{\"uri\":\"\"}}",
        "{\"libvirt\":{\"uri\":[]}}",
        "{\"libvirt\":{\"domain\":null}}",
        "{\"libvirt\":{\"domain\":7}}",
        "{\"libvirt\":{\"domain\":\"web1\"}}",
        "{\"libvirt\":{\"domain\":\"" UUID "0\"}}",
        "{\"libvirt\":{\"domain\":\"-b4e28ba-2fa1-11d2-883f-0016d3cca427\"}}",
        "{\"libvirt\":{\"virsh\":null}}",
        "{\"libvirt\":{\"virsh\":\"virsh\"}}",
        "{\"libvirt\":{\"virsh\":\"./virsh\"}}",
        "{\"libvirt\":{\"freeze\":null}}",
        "{\"libvirt\":{\"freeze\":1}}",
        "{\"libvirt\":{\"freeze\":\"true\"}}",
    };
    struct scene scene = {.owner = start_idler(), .qemu = start_idler()};

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        requests = start_guard(&scene);
        tell(requests, make_start(&scene, wrong[i]));
        if (hear(scene.events, "\"usage\"", 5000) != 0 || lab_wait(scene.guard, 5000) != LS_USAGE)
            fail_msg("taken: %s", wrong[i]);
        close(requests);
        close(scene.events);
    }
    lab_end(scene.owner);
    lab_end(scene.qemu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_paused_guest_is_resumed),
        cmocka_unit_test(one_that_stands_still_for_another_reason_is_left),
        cmocka_unit_test(a_frozen_guest_is_thawed),
        cmocka_unit_test(an_agent_that_cannot_freeze_has_not_frozen),
        cmocka_unit_test(an_agent_that_is_deaf_holds_up_the_thaw_alone),
        cmocka_unit_test(libvirt_that_starts_anew_is_tried_again),
        cmocka_unit_test(virsh_that_hangs_is_killed_and_tried_again),
        cmocka_unit_test(without_virsh_it_tries_until_qemu_is_gone),
        cmocka_unit_test(sigterm_ends_the_trying),
        cmocka_unit_test(a_hung_owner_is_killed_by_the_deadline),
        cmocka_unit_test(what_virsh_complains_of_is_passed_on),
        cmocka_unit_test(a_start_that_is_wrong_is_refused),
    };

    return cmocka_run_group_tests(tests, lab_open, lab_close);
}
