/* SPDX-License-Identifier: GPL-3.0-or-later */
/* A sparse file that is made beside its name, and gets it when it is whole. */
#ifndef LS_STREAM_BESIDE_H
#define LS_STREAM_BESIDE_H

#include <stdint.h>

#include "common/error.h"
#include "image/append.h"

struct ls_beside {
    struct ls_append file; /* of its full length, all of it a hole: for ls_append_place() */
    const char *path;
    char *part;
};

/* Begins PATH.part, mode 0600; what an earlier try has left there goes. `path` is not copied. */
int ls_beside_begin(struct ls_beside *b, const char *path, uint64_t length, struct ls_error *err);

/* Ends it: the file gets its name, in place of what had it, or is removed if `failed`, or if this
 * fails. Returns `failed` or -1 then. */
int ls_beside_end(struct ls_beside *b, int failed, struct ls_error *err);

#endif
