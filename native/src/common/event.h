/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Events of subcommands that do one thing and end: JSON, one object a line. */
#ifndef LS_COMMON_EVENT_H
#define LS_COMMON_EVENT_H

#include <stdint.h>
#include <stdio.h>

#include "common/error.h"

/* "usage", "refused", ... */
const char *ls_class_name(enum ls_class cls);

/* Prints the error event; returns the exit code. */
int ls_event_error(FILE *out, const struct ls_error *err);

/* Progress of long work: at most every 250 ms, with percent and the seconds that are left. */
struct ls_meter {
    FILE *out; /* NULL: silent */
    double started, last;
};

void ls_meter_start(struct ls_meter *m, FILE *out);
/* An ls_image_progress_fn; opaque is the meter. */
void ls_meter_progress(uint64_t done, uint64_t total, void *opaque);

#endif
