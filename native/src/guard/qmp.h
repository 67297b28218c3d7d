/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * QMP as far as the guard needs it: one connection, one command at a time, each wait with a limit.
 * After a command that was not answered in time nobody knows whether it took effect: close, connect
 * again and ask.
 */
#ifndef LS_GUARD_QMP_H
#define LS_GUARD_QMP_H

#include <jansson.h>

#include "guard/wire.h"

struct ls_qmp {
    struct ls_wire wire;
    unsigned next_id;
};

/*
 * Connects, takes the greeting and negotiates. Reasons as of ls_wire_connect, and: busy (connected,
 * but no greeting in time: QEMU serves one client at a time), not-qmp.
 */
int ls_qmp_open(struct ls_qmp *qmp, const char *path, int64_t until, struct ls_error *err);

/*
 * Runs a command and gives its "return" value (a new reference; `result` may be NULL). `arguments`
 * may be NULL and stays the caller's. Events and answers to others are passed over. An error of
 * QEMU's has the reason "command"; the connection is still good after it.
 */
int ls_qmp_execute(struct ls_qmp *qmp, const char *command, json_t *arguments, int64_t until,
                   json_t **result, struct ls_error *err);

/* query-status's "status", such as "running" or "paused", into `status`. */
int ls_qmp_status(struct ls_qmp *qmp, char *status, size_t size, int64_t until,
                  struct ls_error *err);

void ls_qmp_close(struct ls_qmp *qmp);

#define LS_AUTO_QMP __attribute__((cleanup(ls_qmp_close)))

static inline void ls_json_drop(json_t **value)
{
    json_decref(*value);
}

#define LS_AUTO_JSON __attribute__((cleanup(ls_json_drop)))

#endif
