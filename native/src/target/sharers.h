/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Other processes that map a target's RAM: their writes pass its page tables by. */
#ifndef LS_TARGET_SHARERS_H
#define LS_TARGET_SHARERS_H

#include "target/target.h"

/*
 * Calls `each` once for every other process that maps part of a RAM block of the map shared and
 * writable, with its name and the block's id. Processes that end meanwhile are passed over.
 * LS_GONE if the target ended.
 */
int ls_target_sharers(pid_t pid, const struct ls_rammap *map,
                      void (*each)(pid_t other, const char *name, const char *block, void *opaque),
                      void *opaque, struct ls_error *err);

/* Whether the target's memory may be read at all: 0, or LS_REFUSED, reason "read". Reads a byte of
 * its program. */
int ls_target_check_read(pid_t pid, struct ls_error *err);

#endif
