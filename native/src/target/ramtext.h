/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The text of QEMU's HMP command `info ramblock`. It comes from a guest's process: any text is
 * refused or made out. */
#ifndef LS_TARGET_RAMTEXT_H
#define LS_TARGET_RAMTEXT_H

#include <stdbool.h>

#include "target/target.h"

#define LS_RAMTEXT_BLOCKS 4096u

/* A block that the text lists, all but its descriptor filled; host only if it is printed (8.0 and
 * newer). Non-zero ends the reading with -1. */
typedef int (*ls_ramtext_fn)(const struct ls_ramblock *block, bool printed_host, void *opaque,
                             struct ls_error *err);

/*
 * Calls `each` for every block with a name, in the order of the text. Each has an id, a page size
 * that is a power of two, used <= total, total > 0, and ends below 2^64 wherever it begins.
 * LS_REFUSED, reason "ramblock", names the line that cannot be made out.
 */
int ls_ramtext_parse(const char *text, ls_ramtext_fn each, void *opaque, struct ls_error *err);

#endif
