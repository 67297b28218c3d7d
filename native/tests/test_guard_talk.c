/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The guard's QMP and agent clients against others that stall, babble and break off. */
#include "guard_lab.h"

#include <sys/stat.h>

#include "guard/agent.h"
#include "guard/qmp.h"

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"
#define CAPABILITIES "qmp_capabilities"
#define ID(n) "\"id\": \"livesnap-guard-" #n "\""
#define STEPS(...)                                                                                 \
    (const struct lab_step[])                                                                      \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }
#define COUNT(...) (sizeof(STEPS(__VA_ARGS__)) / sizeof(struct lab_step))
#define SERVE(path, ...) lab_serve(path, STEPS(__VA_ARGS__), COUNT(__VA_ARGS__))

static void expect_reason(int result, const struct ls_error *err, const char *reason)
{
    assert_int_equal(result, -1);
    assert_string_equal(err->reason, reason);
}

static void answers_in_pieces_between_events(void **state)
{
    const char *path = lab_path("qmp");
    pid_t server = SERVE(path, {.reply = "{\"QMP\": {\"ver"},
                         {.reply = "sion\": {}, \"capabilities\": []}}\r\n", .pause_ms = 30},
                         {.expect = CAPABILITIES, .reply = "{\"return\": {}, " ID(1) "}\r\n"},
                         {.reply = "{\"event\": \"STOP\"}\r\n{\"return\": 1, \"id\": 7}\r\n"},
                         {.expect = "query-status",
                          .reply = "{\"event\": \"RESUME\"}\r\n{\"return\": {\"status\": \"pau"},
                         {.reply = "sed\"}, " ID(2) "}\r\n", .pause_ms = 30},
                         {.expect = "cont",
                          .reply = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no "
                                   "way\"}, " ID(3) "}\r\n"});
    struct ls_error err = {0};
    struct ls_qmp qmp;
    char status[32];

    (void)state;
    assert_int_equal(ls_qmp_open(&qmp, path, ls_now_ms() + 2000, &err), 0);
    assert_int_equal(ls_qmp_status(&qmp, status, sizeof status, ls_now_ms() + 2000, &err), 0);
    assert_string_equal(status, "paused");
    expect_reason(ls_qmp_execute(&qmp, "cont", NULL, ls_now_ms() + 2000, NULL, &err), &err,
                  "command");
    assert_non_null(strstr(err.message, "no way"));
    ls_qmp_close(&qmp);
    lab_end(server);
}

static void every_wait_has_a_limit(void **state)
{
    const char *silent = lab_path("silent"), *deaf = lab_path("deaf");
    pid_t one = SERVE(silent, {.expect = "never"});
    pid_t two = SERVE(deaf, {.reply = GREETING},
                      {.expect = CAPABILITIES, .reply = "{\"return\": {}, " ID(1) "}\r\n"});
    struct ls_error err = {0};
    struct ls_qmp qmp;
    int64_t began = ls_now_ms();

    (void)state;
    expect_reason(ls_qmp_open(&qmp, silent, ls_now_ms() + 150, &err), &err, "busy");
    assert_int_equal(ls_qmp_open(&qmp, deaf, ls_now_ms() + 1000, &err), 0);
    expect_reason(ls_qmp_execute(&qmp, "cont", NULL, ls_now_ms() + 150, NULL, &err), &err,
                  "timeout");
    ls_qmp_close(&qmp);
    assert_true(ls_now_ms() - began < 1500);
    lab_end(one);
    lab_end(two);
}

static void a_full_backlog_is_bounded(void **state)
{
    const char *path = lab_path("full");
    int listener = lab_listen(path), held[8];
    struct ls_error err = {0};
    struct ls_qmp qmp;
    int64_t began = ls_now_ms();
    size_t count = 0;

    (void)state;
    for (; count < 8; count++) { /* nobody accepts */
        struct ls_wire wire;

        if (ls_wire_connect(&wire, path, ls_now_ms(), &err) != 0)
            break;
        held[count] = wire.fd;
    }
    assert_true(count > 0 && count < 8);
    expect_reason(ls_qmp_open(&qmp, path, ls_now_ms() + 150, &err), &err, "busy");
    assert_true(ls_now_ms() - began < 1000);
    while (count > 0)
        close(held[--count]);
    close(listener);
}

static void garbage_is_named(void **state)
{
    static char endless[2 * LS_WIRE_LINE_MAX];
    const char *path = lab_path("garbage");
    struct ls_error err = {0};
    struct ls_qmp qmp;
    pid_t server;

    (void)state;
    server = SERVE(path, {.reply = "SSH-2.0-OpenSSH_9.2\r\n"});
    expect_reason(ls_qmp_open(&qmp, path, ls_now_ms() + 1000, &err), &err, "not-qmp");
    lab_end(server);
    server = SERVE(path, {.reply = "{\"hello\": 1}\r\n"});
    expect_reason(ls_qmp_open(&qmp, path, ls_now_ms() + 1000, &err), &err, "not-qmp");
    lab_end(server);
    server = SERVE(path, {.reply = "\n", .size = 1});
    expect_reason(ls_qmp_open(&qmp, path, ls_now_ms() + 1000, &err), &err, "not-qmp");
    lab_end(server);
    memset(endless, 'x', sizeof endless);
    server = SERVE(path, {.reply = endless, .size = sizeof endless});
    expect_reason(ls_qmp_open(&qmp, path, ls_now_ms() + 5000, &err), &err, "too-long");
    lab_end(server);
}

static void missing_and_refused_are_told_apart(void **state)
{
    struct ls_error err = {0};
    struct ls_qmp qmp;

    (void)state;
    expect_reason(ls_qmp_open(&qmp, lab_path("nothing"), ls_now_ms() + 500, &err), &err, "missing");
    close(lab_listen(lab_path("left")));
    expect_reason(ls_qmp_open(&qmp, lab_path("left"), ls_now_ms() + 500, &err), &err, "refused");
}

static void a_long_path_is_reached(void **state)
{
    char folder[200], path[256], home[256];
    struct ls_error err = {0};
    struct ls_qmp qmp;
    pid_t server;

    (void)state;
    snprintf(folder, sizeof folder, "%s/%0100d", lab_folder, 7);
    assert_int_equal(mkdir(folder, 0700), 0);
    assert_non_null(getcwd(home, sizeof home));
    assert_int_equal(chdir(folder), 0);
    server = SERVE("q", {.reply = GREETING},
                   {.expect = CAPABILITIES, .reply = "{\"return\": {}, " ID(1) "}\r\n"});
    assert_int_equal(chdir(home), 0);
    snprintf(path, sizeof path, "%s/q", folder);
    assert_true(strlen(path) > 108);
    assert_int_equal(ls_qmp_open(&qmp, path, ls_now_ms() + 1000, &err), 0);
    ls_qmp_close(&qmp);
    lab_end(server);
}

/* An agent's sync answer needs the id that was sent: a child that speaks just enough of it. */
static pid_t serve_agent(const char *path, const char *stale, int frozen, int thaw_holds)
{
    int listener = lab_listen(path);
    pid_t pid = lab_fork();

    if (pid) {
        close(listener);
        return pid;
    }
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        FILE *stream = fdopen(fd, "r");
        char line[512];

        dprintf(fd, "%s", stale);
        while (fgets(line, sizeof line, stream)) {
            const char *id = strstr(line, "\"id\":");

            if (strstr(line, "guest-sync-delimited") && line[0] == '\xff')
                dprintf(fd, "\xff{\"return\": %ld}\n", strtol(id + 5, NULL, 10));
            else if (frozen < 0)
                dprintf(fd, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"x\"}}\n");
            else if (strstr(line, "guest-fsfreeze-status"))
                dprintf(fd, "{\"return\": \"%s\"}\n", frozen ? "frozen" : "thawed");
            else if (strstr(line, "guest-fsfreeze-thaw")) {
                dprintf(fd, "{\"return\": %d}\n", frozen);
                frozen = frozen && !thaw_holds;
            }
        }
        fclose(stream);
    }
}

static void thaw_is_asked_for_and_checked(void **state)
{
    /* An answer that an earlier client left, half a line, and a sync that is not ours. */
    static const char stale[] = "{\"return\": \"frozen\"}\n{\"retu\xff{\"return\": 5}\n";
    static const struct {
        const char *stale;
        int frozen, holds, result;
        enum ls_thaw outcome;
    } cases[] = {
        {"", 2, 1, 0, LS_THAW_DONE},     {"", 0, 1, 0, LS_THAW_NOTHING},
        {stale, 1, 1, 0, LS_THAW_DONE},  {"", -1, 1, 0, LS_THAW_NOTHING},
        {"", 1, 0, -1, LS_THAW_NOTHING},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *path = lab_path("agent");
        pid_t agent = serve_agent(path, cases[i].stale, cases[i].frozen, cases[i].holds);
        struct ls_error err = {0};
        enum ls_thaw outcome = LS_THAW_NOTHING;

        assert_int_equal(ls_agent_thaw(path, ls_now_ms() + 1000, &outcome, &err), cases[i].result);
        if (cases[i].result == 0)
            assert_int_equal(outcome, cases[i].outcome);
        else
            assert_string_equal(err.reason, "frozen");
        lab_end(agent);
    }
}

static void a_hung_agent_is_bounded(void **state)
{
    const char *path = lab_path("hung");
    pid_t agent = SERVE(path, {.reply = "\xff{\"return\": 1}\n{\"ret"}, {.expect = "never"});
    struct ls_error err = {0};
    enum ls_thaw outcome;
    int64_t began = ls_now_ms();

    (void)state;
    expect_reason(ls_agent_thaw(path, ls_now_ms() + 200, &outcome, &err), &err, "timeout");
    assert_true(ls_now_ms() - began < 800);
    lab_end(agent);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_in_pieces_between_events),
        cmocka_unit_test(every_wait_has_a_limit),
        cmocka_unit_test(a_full_backlog_is_bounded),
        cmocka_unit_test(garbage_is_named),
        cmocka_unit_test(missing_and_refused_are_told_apart),
        cmocka_unit_test(a_long_path_is_reached),
        cmocka_unit_test(thaw_is_asked_for_and_checked),
        cmocka_unit_test(a_hung_agent_is_bounded),
    };

    return cmocka_run_group_tests(tests, lab_open, lab_close);
}
