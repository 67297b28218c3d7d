/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "guard/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/ksm.h"
#include "guard/log.h"
#include "guard/qmp.h"
#include "guard/request.h"

#define REQUEST_MAX 65536

enum state { IDLE, BRACKET, RUNNING, ENDED };

struct life {
    enum state state;
    bool started; /* the start request has been taken */
    bool in_ended;
    int in;
    int out;
    int64_t undo_at; /* in BRACKET */
    int code;        /* exit code, in ENDED */
    struct ls_guard guard;
    size_t used;
    char input[REQUEST_MAX];
};

/* An event on `out`, which takes a reference. A reader that does not read loses it. */
static void emit(const struct life *life, json_t *event)
{
    struct pollfd out = {.fd = life->out, .events = POLLOUT};
    char *text = event ? json_dumps(event, JSON_COMPACT) : NULL;

    json_decref(event);
    if (text && poll(&out, 1, 0) == 1 && (out.revents & POLLOUT))
        (void)!dprintf(life->out, "%s\n", text);
    free(text);
}

static void end(struct life *life, int code)
{
    life->state = ENDED;
    life->code = code;
}

static const char *class_word(enum ls_class cls)
{
    return cls == LS_USAGE ? "usage" : cls == LS_GONE ? "gone" : "internal";
}

static void complain(const struct life *life, const struct ls_error *err)
{
    ls_log(LOG_ERR, "%s", err->message);
    emit(life, json_pack("{ss ss ss ss si}", "event", "error", "class", class_word(err->cls),
                         "reason", err->reason, "message", err->message, "errno", err->sys));
}

static void never_first_for_oom(void)
{
    LS_AUTO_CLOSE int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    if (fd < 0 || write(fd, "-1000", 5) != 5)
        ls_log(LOG_WARNING, "cannot set oom_score_adj to -1000: %s", strerror(errno));
}

static int bracket(struct life *life, const json_t *request, struct ls_error *err)
{
    json_int_t deadline, reserve = ls_reach_undo_ms(&life->guard.reach);

    if (ls_guard_take_deadline(request, &deadline, err) != 0)
        return -1;
    /* The undo is to be done by the deadline. */
    life->undo_at = ls_now_ms() + deadline - (deadline / 4 < reserve ? deadline / 4 : reserve);
    life->state = BRACKET;
    return 0;
}

static int obey(struct life *life, const char *what, const json_t *request, struct ls_error *err)
{
    if (strcmp(what, "quit") == 0) {
        end(life, LS_OK);
        return 0;
    }
    if (strcmp(what, "start") == 0 && !life->started) {
        if (ls_guard_take_start(&life->guard, request, err) != 0) {
            end(life, (int)err->cls);
            return -1;
        }
        life->started = true;
        never_first_for_oom();
        emit(life, json_pack("{ss}", "event", "ready"));
        return 0;
    }
    /* Again in the bracket: a new deadline, counted from then. */
    if (strcmp(what, "bracket") == 0 && life->started &&
        (life->state == IDLE || life->state == BRACKET)) {
        if (bracket(life, request, err) != 0)
            return -1;
        emit(life, json_pack("{ss}", "event", "bracket"));
        return 0;
    }
    if (strcmp(what, "running") == 0 && life->state == BRACKET) {
        life->state = RUNNING;
        emit(life, json_pack("{ss}", "event", "running"));
        return 0;
    }
    return ls_fail(err, LS_USAGE, "usage", "the request '%.40s' is unknown, or not for now", what);
}

static void take_request(struct life *life, const char *line, size_t size)
{
    LS_AUTO_JSON json_t *request = json_loadb(line, size, 0, NULL);
    const char *what = json_string_value(json_object_get(request, "request"));
    struct ls_error err;

    if (!what)
        (void)ls_fail(&err, LS_USAGE, "usage", "a line is not a request: '%.60s'", line);
    else if (obey(life, what, request, &err) == 0)
        return;
    complain(life, &err);
    /* Before the bracket a guard that is not understood ends; in it, it goes on to guard. */
    if (life->state == IDLE)
        end(life, (int)err.cls);
}

static void read_requests(struct life *life)
{
    ssize_t n = read(life->in, life->input + life->used, sizeof life->input - 1 - life->used);
    char *from = life->input, *line_end;

    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n <= 0) {
        life->in_ended = true;
        return;
    }
    life->used += (size_t)n;
    while (life->state != ENDED &&
           (line_end = memchr(from, '\n', life->used - (size_t)(from - life->input)))) {
        *line_end = '\0';
        take_request(life, from, (size_t)(line_end - from));
        from = line_end + 1;
    }
    life->used -= (size_t)(from - life->input);
    memmove(life->input, from, life->used);
    if (life->used >= sizeof life->input - 1) /* no line is that long: as good as closed */
        life->in_ended = true;
}

/* Releases RAM of a keeper that hangs. In the bracket the owner finds its helper dead and undoes.
 */
static void leave_keeper(struct life *life)
{
    struct ls_guard *guard = &life->guard;

    ls_log(LOG_ERR, "keeper %d hangs (state %c): releasing the guest's RAM",
           (int)guard->keeper.peer.pid, ls_peer_state(&guard->keeper.peer));
    if (!guard->outcome.reason)
        ls_outcome_begin(guard, "keeper hung");
    ls_undo_release(guard);
    if (!guard->outcome.released)
        return; /* looked at, and tried, again */
    guard->outcome.finished = true;
    ls_report_write(guard);
    guard->outcome.finished = false;
    emit(life, json_pack("{ss ss}", "event", "released", "reason", "keeper hung"));
    ls_watch_close(&guard->keeper);
    guard->has_keeper = false;
    if (life->state == RUNNING)
        end(life, LS_GUARD_UNDID);
}

static void watch_keeper(struct life *life)
{
    struct ls_guard *guard = &life->guard;
    struct ls_error err;

    if (!guard->has_keeper)
        return;
    switch (ls_watch_look(&guard->keeper, ls_now_ms())) {
    case LS_WATCH_HUNG:
        leave_keeper(life);
        break;
    case LS_WATCH_ENDED:
        /* A keeper that was killed has left KSM paused. */
        if (ls_ksm_tidy(&err) != 0)
            ls_log(LOG_ERR, "%s", err.message);
        ls_watch_close(&guard->keeper);
        guard->has_keeper = false;
        guard->outcome.released = true; /* by its end */
        break;
    case LS_WATCH_LIVES:
        break;
    }
}

static void undo(struct life *life, const char *reason)
{
    ls_undo(&life->guard, reason);
    emit(life, json_pack("{ss ss sb sb}", "event", "undone", "reason", reason, "resumed",
                         life->guard.outcome.resumed, "thawed", life->guard.outcome.thawed));
    end(life, life->guard.outcome.gone ? LS_GONE : LS_GUARD_UNDID);
}

/* Dead, and what it had said before has been read: another process may hold the pipe open. */
static bool owner_died(const struct life *life)
{
    struct pollfd in = {.fd = life->in, .events = POLLIN};

    return ls_peer_ended(&life->guard.owner) && poll(&in, 1, 0) == 0;
}

/* What follows from what was seen; requests have been taken before. */
static void decide(struct life *life, bool told_to_end)
{
    struct ls_guard *guard = &life->guard;

    if (life->state == ENDED)
        return;
    if (guard->qemu.pidfd >= 0 && ls_peer_ended(&guard->qemu)) {
        ls_log(LOG_NOTICE, "QEMU, process %d, has ended", (int)guard->qemu.pid);
        end(life, LS_GONE);
        return;
    }
    switch (life->state) {
    case IDLE:
        if (!life->in_ended && !told_to_end)
            break;
        /* RAM that was protected before the bracket: the keeper lets go of it by itself, unless it
         * hangs. */
        if (guard->has_keeper && ls_watch_holds_ram(&guard->keeper))
            life->state = RUNNING;
        else
            end(life, LS_OK);
        break;
    case BRACKET:
        if (life->in_ended || owner_died(life))
            undo(life, "owner died");
        else if (told_to_end)
            undo(life, "terminated");
        else if (ls_now_ms() >= life->undo_at)
            undo(life, "deadline");
        break;
    case RUNNING:
        if (!guard->has_keeper)
            end(life, LS_OK);
        break;
    case ENDED:
        break;
    }
}

static int wait_ms(const struct life *life)
{
    int ms = life->guard.has_keeper ? LS_WATCH_LOOK_MS : -1;

    if (life->state == BRACKET) {
        int left = ls_left_ms(life->undo_at);

        if (ms < 0 || left < ms)
            ms = left;
    }
    return ms;
}

static void live(struct life *life)
{
    while (life->state != ENDED) {
        struct pollfd all[5] = {
            {.fd = life->in_ended ? -1 : life->in, .events = POLLIN},
            {.fd = life->guard.signals, .events = POLLIN},
            {.fd = life->guard.qemu.pidfd, .events = POLLIN},
            {.fd = life->guard.has_keeper ? life->guard.keeper.peer.pidfd : -1, .events = POLLIN},
            {.fd = life->state == BRACKET ? life->guard.owner.pidfd : -1, .events = POLLIN},
        };
        struct signalfd_siginfo signal;
        bool told_to_end = false;

        if (poll(all, 5, wait_ms(life)) < 0 && errno != EINTR) {
            ls_log(LOG_ERR, "poll: %s", strerror(errno));
            ls_sleep_ms(50);
            continue;
        }
        if (all[0].revents)
            read_requests(life);
        if ((all[1].revents & POLLIN) &&
            read(life->guard.signals, &signal, sizeof signal) == sizeof signal)
            told_to_end = true;
        watch_keeper(life);
        decide(life, told_to_end);
    }
}

static int open_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int ls_guard_run(int in, int out)
{
    struct life *life = calloc(1, sizeof *life);
    int code;

    if (!life)
        return LS_INTERNAL;
    life->in = in;
    life->out = out;
    life->guard.qemu = life->guard.owner = (struct ls_peer)LS_PEER_NONE;
    life->guard.keeper = (struct ls_watch)LS_WATCH_NONE;
    life->guard.signals = open_signals();
    live(life);
    code = life->code;
    ls_watch_close(&life->guard.keeper);
    ls_peer_close(&life->guard.owner);
    ls_peer_close(&life->guard.qemu);
    if (life->guard.signals >= 0)
        close(life->guard.signals);
    ls_reach_free(&life->guard.reach);
    free(life->guard.guest);
    free(life->guard.id);
    free(life->guard.report);
    free(life);
    return code;
}
