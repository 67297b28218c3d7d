/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Whole reads and writes: they retry EINTR and short transfers. */
#ifndef LS_COMMON_IO_H
#define LS_COMMON_IO_H

#include <stddef.h>
#include <sys/types.h>

#include "common/error.h"

/* Reads exactly `size` bytes at `offset` of `fd`; fewer is LS_STORAGE, reason "short". */
int ls_pread_full(int fd, void *buf, size_t size, off_t offset, struct ls_error *err);

/* Writes exactly `size` bytes at `offset` of `fd`, or fails with LS_STORAGE, reason "write". */
int ls_pwrite_full(int fd, const void *buf, size_t size, off_t offset, struct ls_error *err);

/* Writes exactly `size` bytes to a stream descriptor. */
int ls_write_full(int fd, const void *buf, size_t size, struct ls_error *err);

#endif
