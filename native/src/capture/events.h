/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Events on standard output: one JSON object a line, never waiting for who reads. */
#ifndef LS_CAPTURE_EVENTS_H
#define LS_CAPTURE_EVENTS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/error.h"

#define LS_EVENTS_MAX 65536u

struct ls_events {
    int fd; /* -1: nobody reads any more */
    size_t used;
    char buf[LS_EVENTS_MAX];
};

/* Takes the object. `needed` events are kept until the reader takes them, others are dropped when
 * the reader is slow. */
void ls_events_send(struct ls_events *ev, json_t *object, bool needed);

/* {"event":"error", ...} */
void ls_events_error(struct ls_events *ev, const struct ls_error *err);

/* Writes what the reader takes now. True if something is left. */
bool ls_events_flush(struct ls_events *ev);

/* The same until nothing is left, at most `ms`. */
void ls_events_finish(struct ls_events *ev, int ms);

#endif
