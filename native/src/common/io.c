/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "common/io.h"

#include <errno.h>
#include <unistd.h>

int ls_pread_full(int fd, void *buf, size_t size, off_t offset, struct ls_error *err)
{
    char *at = buf;

    while (size > 0) {
        ssize_t n = pread(fd, at, size, offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return ls_fail_errno(err, LS_STORAGE, "read", "cannot read at offset %lld",
                                 (long long)offset);
        if (n == 0)
            return ls_fail(err, LS_STORAGE, "short",
                           "the file ends at offset %lld, %zu bytes early", (long long)offset,
                           size);
        at += n;
        offset += n;
        size -= (size_t)n;
    }
    return 0;
}

int ls_pwrite_full(int fd, const void *buf, size_t size, off_t offset, struct ls_error *err)
{
    const char *at = buf;

    while (size > 0) {
        ssize_t n = pwrite(fd, at, size, offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return ls_fail_errno(err, LS_STORAGE, "write", "cannot write at offset %lld",
                                 (long long)offset);
        at += n;
        offset += n;
        size -= (size_t)n;
    }
    return 0;
}

int ls_write_full(int fd, const void *buf, size_t size, struct ls_error *err)
{
    const char *at = buf;

    while (size > 0) {
        ssize_t n = write(fd, at, size);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return ls_fail_errno(err, LS_STORAGE, "write", "cannot write to the output");
        at += n;
        size -= (size_t)n;
    }
    return 0;
}
