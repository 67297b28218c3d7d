/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A QEMU that was started for a migration, and gets main RAM from an image while its guest runs:
 * what it touches at once, the rest behind that. The userfaultfd stays open in QEMU as well until
 * all is there, so that a server that dies leaves faults that wait, never zeros.
 */
#ifndef LS_SERVE_SERVE_H
#define LS_SERVE_SERVE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "common/error.h"

struct ls_serve_options {
    const char *source; /* the image, or its snapshot's folder */
    pid_t pid;
    uint64_t start_time;
    const char *block;    /* QEMU's id of the RAM block */
    const char *ramblock; /* what `info ramblock` prints there */
    bool all;             /* also what nobody asks for; then QEMU is let go */
};

/* Until all is loaded (0), or the process has ended (LS_GONE). LS_REFUSED: nothing was
 * touched; most other failures end the process. */
int ls_serve_run(const struct ls_serve_options *options, FILE *events, struct ls_error *err);

#endif
