/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The guest agent as far as the guard needs it. Each connection begins with 0xFF (which empties the
 * agent's parser of what an earlier client left half sent) and guest-sync-delimited, whose answer
 * comes behind another 0xFF: all before it is of an earlier conversation.
 */
#ifndef LS_GUARD_AGENT_H
#define LS_GUARD_AGENT_H

#include <jansson.h>

#include "guard/wire.h"

enum ls_thaw {
    LS_THAW_DONE,    /* the guest was frozen and is thawed now */
    LS_THAW_NOTHING, /* it was not frozen */
};

/*
 * Asks, thaws if frozen, and asks again: success means that the agent said "thawed". A guest whose
 * agent has no freeze commands cannot have been frozen: LS_THAW_NOTHING. `until` bounds all of it.
 */
int ls_agent_thaw(const char *path, int64_t until, enum ls_thaw *outcome, struct ls_error *err);

/* The reason of an agent that does not know a command, or may not run it. */
#define LS_AGENT_NO_COMMAND "no-command"

/* Runs one command of an agent and gives its "return" value (a new reference). */
typedef int ls_agent_ask(void *channel, const char *command, int64_t until, json_t **result,
                         struct ls_error *err);

/* ls_agent_thaw by other means than the agent's socket. */
int ls_agent_thaw_by(ls_agent_ask *ask, void *channel, int64_t until, enum ls_thaw *outcome,
                     struct ls_error *err);

/* guest-fsfreeze-status: "thawed" or "frozen" into `status`. For tests and messages. */
int ls_agent_status(const char *path, char *status, size_t size, int64_t until,
                    struct ls_error *err);

#endif
