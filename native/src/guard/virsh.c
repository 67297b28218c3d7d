/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "guard/virsh.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "common/cleanup.h"
#include "guard/qmp.h"

/* Of libvirt for the agent's answer, seconds. */
#define AGENT_TIMEOUT "2"
#define WORDS_MAX 6

/* Bytes of others, made fit for messages and for the report, which is UTF-8. */
static char *readable(char *text)
{
    for (char *c = text; *c; c++)
        if (*c < ' ' || *c > '~')
            *c = *c == '\n' ? ' ' : '?';
    return text;
}

static char *last_line(char *text)
{
    char *end = text + strlen(text), *line;

    while (end > text && strchr(" \r\n", end[-1]))
        *--end = '\0';
    line = strrchr(text, '\n');
    return readable(line ? line + 1 : text);
}

static int check(struct ls_run_result *result, const char *command, struct ls_error *err)
{
    const char *line;

    if (WIFSIGNALED(result->status))
        return ls_fail(err, LS_INTERNAL, "virsh", "virsh %s was ended by signal %d", command,
                       WTERMSIG(result->status));
    if (WEXITSTATUS(result->status) == 0)
        return 0;
    line = last_line(result->err.text);
    return ls_fail(err, LS_INTERNAL, "virsh", "virsh %s failed: %.300s", command,
                   *line ? line : "it does not say why");
}

/* One call of virsh; its first word is the command. `value`, unless NULL, gets the "return" of the
 * JSON that it prints (a new reference). */
static int call(struct ls_virsh *virsh, const char *const words[WORDS_MAX], int64_t until,
                json_t **value, struct ls_error *err)
{
    const char *argv[4 + WORDS_MAX + 1] = {virsh->program, "-q", "-c", virsh->uri};
    LS_AUTO_FREE struct ls_run_result *result = malloc(sizeof *result);
    LS_AUTO_JSON json_t *reply = NULL;

    if (!result)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory for what virsh says");
    memcpy(argv + 4, words, WORDS_MAX * sizeof *words);
    if (ls_run(argv, &virsh->strays, until, result, err) != 0)
        return ls_context(err, "virsh %s", words[0]);
    if (check(result, words[0], err) != 0)
        return -1;
    if (!value)
        return 0;
    reply = json_loadb(result->out.text, result->out.size, 0, NULL);
    *value = json_incref(json_object_get(reply, "return"));
    if (!*value)
        return ls_fail(err, LS_INTERNAL, "virsh", "virsh %s gives no answer but '%.100s'", words[0],
                       readable(result->out.text));
    return 0;
}

int ls_virsh_status(struct ls_virsh *virsh, char *status, size_t size, int64_t until,
                    struct ls_error *err)
{
    const char *const words[WORDS_MAX] = {"qemu-monitor-command", virsh->domain,
                                          "{\"execute\":\"query-status\"}"};
    LS_AUTO_JSON json_t *value = NULL;
    const char *word;

    if (call(virsh, words, until, &value, err) != 0)
        return -1;
    word = json_string_value(json_object_get(value, "status"));
    if (!word)
        return ls_fail(err, LS_INTERNAL, "virsh", "query-status answers without a status");
    snprintf(status, size, "%s", word);
    return 0;
}

int ls_virsh_cont(struct ls_virsh *virsh, int64_t until, struct ls_error *err)
{
    const char *const words[WORDS_MAX] = {"resume", virsh->domain};

    return call(virsh, words, until, NULL, err);
}

/* libvirt passes on what the agent says in place of an answer, but not its error's class. */
static bool lacks_command(const char *message)
{
    return strstr(message, "QEMU agent command") &&
           (strstr(message, "has not been found") || strstr(message, "has been disabled"));
}

static int ask_agent(void *channel, const char *command, int64_t until, json_t **value,
                     struct ls_error *err)
{
    struct ls_virsh *virsh = channel;
    char text[96];
    const char *const words[WORDS_MAX] = {"qemu-agent-command", virsh->domain, "--timeout",
                                          AGENT_TIMEOUT, text};

    snprintf(text, sizeof text, "{\"execute\":\"%s\"}", command);
    if (call(virsh, words, until, value, err) == 0)
        return 0;
    if (lacks_command(err->message))
        snprintf(err->reason, sizeof err->reason, "%s", LS_AGENT_NO_COMMAND);
    return -1;
}

int ls_virsh_thaw(struct ls_virsh *virsh, int64_t until, enum ls_thaw *outcome,
                  struct ls_error *err)
{
    return ls_agent_thaw_by(ask_agent, virsh, until, outcome, err);
}

void ls_virsh_free(struct ls_virsh *virsh)
{
    free(virsh->program);
    free(virsh->uri);
    free(virsh->domain);
}
