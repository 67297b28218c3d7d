/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Lines over a UNIX stream socket, with a limit on each wait and on the length of a line. `until`
 * is a moment of the monotonic clock in ms (common/clock.h). After a failure the connection is of
 * no more use: close it.
 */
#ifndef LS_GUARD_WIRE_H
#define LS_GUARD_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#define LS_WIRE_LINE_MAX (1024 * 1024)

struct ls_wire {
    int fd;
    char *buf;
    size_t size;  /* allocated */
    size_t start; /* of what has been read and not been given out */
    size_t end;
};

/* A path of any length is taken. Reasons: missing, refused, not-a-socket, busy, timeout. */
int ls_wire_connect(struct ls_wire *wire, const char *path, int64_t until, struct ls_error *err);

/* Reasons: timeout, closed. */
int ls_wire_send(struct ls_wire *wire, const char *data, size_t size, int64_t until,
                 struct ls_error *err);

/*
 * The next line, without its end ("\n" or "\r\n") and with a NUL behind it; valid until the next
 * call. Reasons: timeout, closed, too-long.
 */
int ls_wire_line(struct ls_wire *wire, char **line, size_t *size, int64_t until,
                 struct ls_error *err);

void ls_wire_close(struct ls_wire *wire);

#define LS_AUTO_WIRE __attribute__((cleanup(ls_wire_close)))
#define LS_WIRE_NONE                                                                               \
    {                                                                                              \
        .fd = -1                                                                                   \
    }

#endif
