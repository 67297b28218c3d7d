/* SPDX-License-Identifier: GPL-3.0-or-later */
/* What the guard is told: the fields of its requests. docs/guard.md describes them. */
#ifndef LS_GUARD_REQUEST_H
#define LS_GUARD_REQUEST_H

#include <jansson.h>

#include "guard/undo.h"

/* Fills `guard` from a `start` request and opens the processes named there. LS_USAGE, reason
 * "usage", names the field that is missing or wrong; LS_GONE: one of the processes has ended. */
int ls_guard_take_start(struct ls_guard *guard, const json_t *request, struct ls_error *err);

/* `deadline_ms` of a `bracket` request. */
int ls_guard_take_deadline(const json_t *request, json_int_t *ms, struct ls_error *err);

#endif
