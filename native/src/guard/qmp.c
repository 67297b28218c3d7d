/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "guard/qmp.h"

#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"

static int receive(struct ls_qmp *qmp, int64_t until, json_t **message, struct ls_error *err)
{
    char *line;
    size_t size;

    if (ls_wire_line(&qmp->wire, &line, &size, until, err) != 0)
        return -1;
    *message = json_loadb(line, size, 0, NULL);
    if (!json_is_object(*message)) {
        json_decref(*message);
        *message = NULL;
        return ls_fail(err, LS_INTERNAL, "not-qmp", "what was received is not QMP: '%.60s'", line);
    }
    return 0;
}

int ls_qmp_open(struct ls_qmp *qmp, const char *path, int64_t until, struct ls_error *err)
{
    LS_AUTO_JSON json_t *greeting = NULL;

    *qmp = (struct ls_qmp){.wire = LS_WIRE_NONE, .next_id = 1};
    if (ls_wire_connect(&qmp->wire, path, until, err) != 0)
        return -1;
    if (receive(qmp, until, &greeting, err) != 0) {
        if (strcmp(err->reason, "timeout") == 0)
            ls_fail(
                err, LS_INTERNAL, "busy",
                "no greeting from '%s' within the limit: another client holds it, or QEMU hangs",
                path);
        else
            ls_context(err, "'%s'", path);
        ls_qmp_close(qmp);
        return -1;
    }
    if (!json_object_get(greeting, "QMP")) {
        ls_qmp_close(qmp);
        return ls_fail(err, LS_INTERNAL, "not-qmp", "'%s' does not greet as QMP does", path);
    }
    if (ls_qmp_execute(qmp, "qmp_capabilities", NULL, until, NULL, err) != 0) {
        ls_context(err, "'%s'", path);
        ls_qmp_close(qmp);
        return -1;
    }
    return 0;
}

static int send_command(struct ls_qmp *qmp, const char *command, json_t *arguments, const char *id,
                        int64_t until, struct ls_error *err)
{
    LS_AUTO_JSON json_t *request = json_pack("{ss ss}", "execute", command, "id", id);
    LS_AUTO_FREE char *text = NULL;

    if (request && arguments)
        json_object_set(request, "arguments", arguments);
    text = request ? json_dumps(request, JSON_COMPACT) : NULL;
    if (!text)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory for a command");
    if (ls_wire_send(&qmp->wire, text, strlen(text), until, err) != 0)
        return -1;
    return ls_wire_send(&qmp->wire, "\r\n", 2, until, err);
}

int ls_qmp_execute(struct ls_qmp *qmp, const char *command, json_t *arguments, int64_t until,
                   json_t **result, struct ls_error *err)
{
    char id[32];

    snprintf(id, sizeof id, "livesnap-guard-%u", qmp->next_id++);
    if (send_command(qmp, command, arguments, id, until, err) != 0)
        return ls_context(err, "QMP command '%s'", command);
    for (;;) {
        LS_AUTO_JSON json_t *message = NULL;
        const char *answers;
        json_t *value;

        if (receive(qmp, until, &message, err) != 0)
            return ls_context(err, "QMP command '%s'", command);
        answers = json_string_value(json_object_get(message, "id"));
        if (!answers || strcmp(answers, id) != 0)
            continue;
        value = json_object_get(message, "error");
        if (value) {
            const char *why = json_string_value(json_object_get(value, "desc"));

            return ls_fail(err, LS_INTERNAL, "command", "QMP command '%s' failed: %.300s", command,
                           why ? why : "(no description)");
        }
        value = json_object_get(message, "return");
        if (!value)
            return ls_fail(err, LS_INTERNAL, "not-qmp",
                           "the answer to QMP command '%s' has neither return nor error", command);
        if (result)
            *result = json_incref(value);
        return 0;
    }
}

int ls_qmp_status(struct ls_qmp *qmp, char *status, size_t size, int64_t until,
                  struct ls_error *err)
{
    LS_AUTO_JSON json_t *result = NULL;
    const char *word;

    if (ls_qmp_execute(qmp, "query-status", NULL, until, &result, err) != 0)
        return -1;
    word = json_string_value(json_object_get(result, "status"));
    if (!word)
        return ls_fail(err, LS_INTERNAL, "not-qmp", "query-status answers without a status");
    snprintf(status, size, "%s", word);
    return 0;
}

void ls_qmp_close(struct ls_qmp *qmp)
{
    ls_wire_close(&qmp->wire);
}
