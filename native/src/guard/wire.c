/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "guard/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "common/cleanup.h"
#include "common/clock.h"

static int wait_for(const struct ls_wire *wire, short events, int64_t until, struct ls_error *err)
{
    for (;;) {
        struct pollfd one = {.fd = wire->fd, .events = events};
        int n = poll(&one, 1, ls_left_ms(until));

        if (n > 0)
            return 0;
        if (n == 0)
            return ls_fail(err, LS_INTERNAL, "timeout", "no answer within the limit");
        if (errno != EINTR)
            return ls_fail_errno(err, LS_INTERNAL, "poll", "cannot wait for the socket");
    }
}

/* Long paths do not fit a socket address: they are reached through a descriptor of their folder. */
static int fill_address(struct sockaddr_un *address, const char *path, int *folder,
                        struct ls_error *err)
{
    const char *slash = strrchr(path, '/');
    LS_AUTO_FREE char *name = NULL;

    address->sun_family = AF_UNIX;
    if (strlen(path) < sizeof address->sun_path) {
        strcpy(address->sun_path, path);
        return 0;
    }
    if (!slash)
        return ls_fail(err, LS_USAGE, "usage", "the socket's name '%s' is too long", path);
    name = strndup(path, (size_t)(slash - path) + 1);
    *folder = name ? open(name, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    if (*folder < 0)
        return ls_fail_errno(err, LS_INTERNAL, "missing", "cannot open the folder of '%s'", path);
    if (snprintf(address->sun_path, sizeof address->sun_path, "/proc/self/fd/%d/%s", *folder,
                 slash + 1) >= (int)sizeof address->sun_path)
        return ls_fail(err, LS_USAGE, "usage", "the socket's name '%s' is too long", path);
    return 0;
}

static int connect_fails(const char *path, struct ls_error *err)
{
    switch (errno) {
    case ENOENT:
    case ENOTDIR:
        return ls_fail_errno(err, LS_INTERNAL, "missing", "cannot connect to '%s'", path);
    case ECONNREFUSED:
        return ls_fail_errno(err, LS_INTERNAL, "refused", "nothing listens at '%s'", path);
    case EAGAIN:
        return ls_fail(err, LS_INTERNAL, "busy", "'%s' is held by another client", path);
    case ENOTSOCK:
    case EPROTOTYPE:
        return ls_fail_errno(err, LS_INTERNAL, "not-a-socket", "cannot connect to '%s'", path);
    default:
        return ls_fail_errno(err, LS_INTERNAL, "connect", "cannot connect to '%s'", path);
    }
}

int ls_wire_connect(struct ls_wire *wire, const char *path, int64_t until, struct ls_error *err)
{
    struct sockaddr_un address = {0};
    LS_AUTO_CLOSE int folder = -1;
    LS_AUTO_CLOSE int fd = -1;

    if (fill_address(&address, path, &folder, err) != 0)
        return -1;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return ls_fail_errno(err, LS_INTERNAL, "socket", "cannot make a socket");
    while (connect(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        if (errno == EINTR)
            continue;
        /* EAGAIN: the backlog of the listener is full. It never becomes pollable: ask again. */
        if (errno != EAGAIN || ls_left_ms(until) == 0)
            return connect_fails(path, err);
        ls_sleep_ms(10);
    }
    *wire = (struct ls_wire){.fd = ls_steal_fd(&fd)};
    return 0;
}

int ls_wire_send(struct ls_wire *wire, const char *data, size_t size, int64_t until,
                 struct ls_error *err)
{
    while (size > 0) {
        ssize_t n = send(wire->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n >= 0) {
            data += n;
            size -= (size_t)n;
        } else if (errno == EAGAIN) {
            if (wait_for(wire, POLLOUT, until, err) != 0)
                return -1;
        } else if (errno != EINTR) {
            return ls_fail_errno(err, LS_INTERNAL, "closed", "cannot send");
        }
    }
    return 0;
}

static int make_room(struct ls_wire *wire, struct ls_error *err)
{
    size_t size = wire->size ? wire->size * 2 : 4096;
    char *bigger;

    if (wire->start > 0) {
        memmove(wire->buf, wire->buf + wire->start, wire->end - wire->start);
        wire->end -= wire->start;
        wire->start = 0;
    }
    if (wire->end + 1 < wire->size)
        return 0;
    if (wire->size >= LS_WIRE_LINE_MAX)
        return ls_fail(err, LS_INTERNAL, "too-long", "a line of more than %d bytes was sent",
                       LS_WIRE_LINE_MAX);
    bigger = realloc(wire->buf, size);
    if (!bigger)
        return ls_fail_errno(err, LS_INTERNAL, "memory", "no memory for a line");
    wire->buf = bigger;
    wire->size = size;
    return 0;
}

static int fill(struct ls_wire *wire, int64_t until, struct ls_error *err)
{
    for (;;) {
        ssize_t n;

        if (make_room(wire, err) != 0 || wait_for(wire, POLLIN, until, err) != 0)
            return -1;
        n = recv(wire->fd, wire->buf + wire->end, wire->size - wire->end - 1, MSG_DONTWAIT);
        if (n > 0) {
            wire->end += (size_t)n;
            return 0;
        }
        if (n == 0)
            return ls_fail(err, LS_INTERNAL, "closed", "the other side closed the connection");
        if (errno != EAGAIN && errno != EINTR)
            return ls_fail_errno(err, LS_INTERNAL, "closed", "cannot receive");
    }
}

int ls_wire_line(struct ls_wire *wire, char **line, size_t *size, int64_t until,
                 struct ls_error *err)
{
    size_t seen = 0; /* bytes known to hold no line end, so that a long line is searched once */

    for (;;) {
        char *from = wire->buf ? wire->buf + wire->start : NULL;
        size_t have = wire->end - wire->start;
        char *end = have > seen ? memchr(from + seen, '\n', have - seen) : NULL;

        if (end) {
            wire->start += (size_t)(end - from) + 1;
            if (end > from && end[-1] == '\r')
                end--;
            *end = '\0';
            *line = from;
            *size = (size_t)(end - from);
            return 0;
        }
        seen = have;
        if (fill(wire, until, err) != 0)
            return -1;
    }
}

void ls_wire_close(struct ls_wire *wire)
{
    if (wire->fd >= 0)
        close(wire->fd);
    free(wire->buf);
    *wire = (struct ls_wire)LS_WIRE_NONE;
}
