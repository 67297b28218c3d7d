/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "guard/agent.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "common/cleanup.h"
#include "guard/qmp.h"

static int converse(void *channel, const char *command, int64_t until, json_t **result,
                    struct ls_error *err)
{
    struct ls_wire *wire = channel;
    LS_AUTO_JSON json_t *message = NULL;
    char text[96], *line;
    size_t size;
    json_t *value;
    int length = snprintf(text, sizeof text, "{\"execute\":\"%s\"}\n", command);

    if (ls_wire_send(wire, text, (size_t)length, until, err) != 0 ||
        ls_wire_line(wire, &line, &size, until, err) != 0)
        return ls_context(err, "agent command '%s'", command);
    message = json_loadb(line, size, 0, NULL);
    value = json_object_get(message, "error");
    if (value) {
        const char *class = json_string_value(json_object_get(value, "class"));
        const char *why = json_string_value(json_object_get(value, "desc"));
        int absent = class && strcmp(class, "CommandNotFound") == 0;

        if (why && strstr(why, "has been disabled"))
            absent = 1;
        return ls_fail(err, LS_INTERNAL, absent ? LS_AGENT_NO_COMMAND : "command",
                       "agent command '%s' failed: %.300s", command,
                       why ? why : "(no description)");
    }
    value = json_object_get(message, "return");
    if (!value)
        return ls_fail(err, LS_INTERNAL, "not-agent",
                       "the answer to agent command '%s' is not an agent's: '%.60s'", command,
                       line);
    *result = json_incref(value);
    return 0;
}

/* Is this line the answer to our sync? It may have stale output before its 0xFF. */
static int answers_sync(char *line, size_t size, json_int_t id)
{
    char *mark = memrchr(line, 0xff, size);
    LS_AUTO_JSON json_t *message = NULL;
    const json_t *value;

    if (!mark)
        return 0;
    message = json_loadb(mark + 1, size - (size_t)(mark + 1 - line), 0, NULL);
    value = json_object_get(message, "return");
    return json_is_integer(value) && json_integer_value(value) == id;
}

static int open_agent(struct ls_wire *wire, const char *path, int64_t until, struct ls_error *err)
{
    uint32_t number = 0;
    char text[128];
    int length;

    if (ls_wire_connect(wire, path, until, err) != 0)
        return -1;
    (void)!getrandom(&number, sizeof number, GRND_NONBLOCK);
    length = snprintf(text, sizeof text,
                      "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%u}}\n",
                      (unsigned)number);
    if (ls_wire_send(wire, text, (size_t)length, until, err) != 0)
        return ls_context(err, "agent at '%s'", path);
    for (;;) {
        char *line;
        size_t size;

        if (ls_wire_line(wire, &line, &size, until, err) != 0)
            return ls_context(err, "agent at '%s' does not answer", path);
        if (answers_sync(line, size, number))
            return 0;
    }
}

static int ask_status(ls_agent_ask *ask, void *channel, char *status, size_t size, int64_t until,
                      struct ls_error *err)
{
    LS_AUTO_JSON json_t *result = NULL;
    const char *word;

    if (ask(channel, "guest-fsfreeze-status", until, &result, err) != 0)
        return -1;
    word = json_string_value(result);
    if (!word)
        return ls_fail(err, LS_INTERNAL, "not-agent", "guest-fsfreeze-status gives no word");
    snprintf(status, size, "%s", word);
    return 0;
}

int ls_agent_status(const char *path, char *status, size_t size, int64_t until,
                    struct ls_error *err)
{
    LS_AUTO_WIRE struct ls_wire wire = LS_WIRE_NONE;

    if (open_agent(&wire, path, until, err) != 0)
        return -1;
    return ask_status(converse, &wire, status, size, until, err);
}

static int unless_absent(const struct ls_error *err)
{
    return strcmp(err->reason, LS_AGENT_NO_COMMAND) == 0 ? 0 : -1;
}

int ls_agent_thaw_by(ls_agent_ask *ask, void *channel, int64_t until, enum ls_thaw *outcome,
                     struct ls_error *err)
{
    LS_AUTO_JSON json_t *count = NULL;
    char status[32];

    *outcome = LS_THAW_NOTHING;
    if (ask_status(ask, channel, status, sizeof status, until, err) != 0) {
        if (unless_absent(err) != 0)
            return -1;
    } else if (strcmp(status, "thawed") == 0) {
        return 0;
    }
    if (ask(channel, "guest-fsfreeze-thaw", until, &count, err) != 0)
        return unless_absent(err);
    *outcome = json_integer_value(count) > 0 ? LS_THAW_DONE : LS_THAW_NOTHING;
    if (ask_status(ask, channel, status, sizeof status, until, err) != 0)
        return unless_absent(err);
    if (strcmp(status, "thawed") != 0)
        return ls_fail(err, LS_INTERNAL, "frozen", "the guest says '%s' after a thaw", status);
    *outcome = LS_THAW_DONE;
    return 0;
}

int ls_agent_thaw(const char *path, int64_t until, enum ls_thaw *outcome, struct ls_error *err)
{
    LS_AUTO_WIRE struct ls_wire wire = LS_WIRE_NONE;

    if (open_agent(&wire, path, until, err) != 0)
        return -1;
    return ls_agent_thaw_by(converse, &wire, until, outcome, err);
}
