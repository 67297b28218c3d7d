/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The sentinel: a process that ends a guest whose server is gone. The guest waits for RAM that
 * nobody brings then, and could wait for ever.
 */
#ifndef LS_SERVE_SENTINEL_H
#define LS_SERVE_SENTINEL_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/error.h"

struct ls_sentinel {
    pid_t pid;
    int pidfd;    /* of the sentinel: readable when it has ended */
    int lifeline; /* it waits for this end to be closed */
};

/* Starts one for the process that `guest`, a pidfd, names. */
int ls_sentinel_start(struct ls_sentinel *s, int guest, struct ls_error *err);

/* Sends it home: the guest lives on. */
void ls_sentinel_dismiss(struct ls_sentinel *s);

/* Forgets one that has ended by itself, or been killed. */
void ls_sentinel_bury(struct ls_sentinel *s);

#endif
