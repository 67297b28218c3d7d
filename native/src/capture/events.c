/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture/events.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "common/event.h"

void ls_events_send(struct ls_events *ev, json_t *object, bool needed)
{
    size_t room = needed ? LS_EVENTS_MAX : LS_EVENTS_MAX / 2;
    size_t n = json_dumpb(object, ev->buf + ev->used, LS_EVENTS_MAX - ev->used,
                          JSON_COMPACT | JSON_REAL_PRECISION(9));

    json_decref(object);
    if (n > 0 && ev->used + n < room && ev->fd >= 0) {
        ev->buf[ev->used + n] = '\n';
        ev->used += n + 1;
    }
    ls_events_flush(ev);
}

void ls_events_error(struct ls_events *ev, const struct ls_error *err)
{
    ls_events_send(ev,
                   json_pack("{s:s, s:s, s:s, s:s, s:i}", "event", "error", "class",
                             ls_class_name(err->cls), "reason", err->reason, "message",
                             err->message, "errno", err->sys),
                   true);
}

bool ls_events_flush(struct ls_events *ev)
{
    while (ev->used > 0 && ev->fd >= 0) {
        struct pollfd p = {.fd = ev->fd, .events = POLLOUT};
        ssize_t n;

        /* A pipe that polls writable takes PIPE_BUF bytes without waiting, whatever its flags. */
        if (poll(&p, 1, 0) <= 0)
            return true;
        n = write(ev->fd, ev->buf, ev->used < PIPE_BUF ? ev->used : PIPE_BUF);
        if (n < 0 && errno == EAGAIN)
            return true;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            ev->fd = -1;
            break;
        }
        ev->used -= (size_t)n;
        memmove(ev->buf, ev->buf + n, ev->used);
    }
    if (ev->fd < 0)
        ev->used = 0;
    return false;
}

void ls_events_finish(struct ls_events *ev, int ms)
{
    for (; ls_events_flush(ev) && ms > 0; ms -= 10) {
        struct pollfd p = {.fd = ev->fd, .events = POLLOUT};

        poll(&p, 1, 10);
    }
}
