/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "stream/beside.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int remove_part(struct ls_beside *b, int failed)
{
    unlink(b->part);
    free(b->part);
    return failed;
}

int ls_beside_begin(struct ls_beside *b, const char *path, uint64_t length, struct ls_error *err)
{
    b->path = path;
    if (asprintf(&b->part, "%s.part", path) < 0)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to write '%s'", path);
    if (unlink(b->part) && errno != ENOENT) {
        ls_fail_errno(err, LS_STORAGE, "create", "cannot remove '%s'", b->part);
        free(b->part);
        return -1;
    }
    if (ls_append_open(&b->file, b->part, length, err)) {
        free(b->part);
        return -1;
    }
    if (ftruncate(b->file.fd, (off_t)length) == 0)
        return 0;
    ls_fail_errno(err, LS_STORAGE, "create", "cannot make '%s' %llu bytes long", b->part,
                  (unsigned long long)length);
    ls_append_close(&b->file);
    return remove_part(b, -1);
}

int ls_beside_end(struct ls_beside *b, int failed, struct ls_error *err)
{
    if (!failed)
        failed = ls_append_flush(&b->file, err);
    ls_append_close(&b->file);
    if (!failed && rename(b->part, b->path))
        failed = ls_fail_errno(err, LS_STORAGE, "rename", "cannot rename '%s' to '%s'", b->part,
                               b->path);
    if (failed)
        return remove_part(b, failed);
    free(b->part);
    return 0;
}
