/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture/keeper.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/ksm.h"
#include "guard/log.h"

#define PROGRESS_S 0.25
#define WRITER_GRACE_MS 2000 /* how long a writer may take to remove its image */

static void set_state(struct ls_keeper *k, enum ls_progress_state state)
{
    /* release: whatever the state says has been done */
    if (k->progress)
        atomic_store_explicit(&k->progress->state, state, memory_order_release);
}

static void resume_ksm(struct ls_keeper *k)
{
    struct ls_error ignored;

    if (k->ksm_held)
        ls_ksm_resume(getpid(), &ignored);
    k->ksm_held = false;
}

static void send_progress(struct ls_keeper *k)
{
    struct ls_progress *p = k->progress;
    uint64_t stored = atomic_load_explicit(&k->stage->stored_bytes, memory_order_relaxed);

    atomic_store_explicit(&p->stored_bytes, stored, memory_order_relaxed);
    if (k->phase < LS_PHASE_ARMED || ls_seconds_since(&k->reported_at) < PROGRESS_S)
        return;
    clock_gettime(CLOCK_MONOTONIC, &k->reported_at);
    ls_events_send(&k->out,
                   json_pack("{s:s, s:I, s:I, s:I, s:I, s:I}", "event", "progress", "done_bytes",
                             (json_int_t)atomic_load_explicit(&p->done_bytes, memory_order_relaxed),
                             "total_bytes", (json_int_t)k->engine->layout.ram_bytes, "stored_bytes",
                             (json_int_t)stored, "faults",
                             (json_int_t)atomic_load_explicit(&p->faults, memory_order_relaxed),
                             "staging_bytes", (json_int_t)ls_stage_bytes(k->stage)),
                   false);
}

/* All of RAM is in staging or stored: the guest is let go, the writer may finish. */
static void free_guest(struct ls_keeper *k)
{
    ls_engine_release(k->engine);
    k->protected_s = ls_seconds_since(&k->armed_at);
    set_state(k, LS_PROGRESS_RELEASED);
    k->phase = LS_PHASE_RELEASED;
    resume_ksm(k);
    ls_stage_give_order(k->stage, LS_ORDER_FINISH);
    ls_log(LOG_INFO,
           k->start.still ? "the guest may go on, its RAM was copied in %.3f s"
                          : "the guest is free, its RAM was protected for %.3f s",
           k->protected_s);
    ls_events_send(
        &k->out, json_pack("{s:s, s:f}", "event", "released", "protected_s", k->protected_s), true);
}

static void send_done(struct ls_keeper *k)
{
    const struct ls_image_stats *s = &k->stage->stats;
    struct ls_engine *e = k->engine;

    ls_events_send(
        &k->out,
        json_pack("{s:s, s:f, s:I, s:I, s:I, s:I, s:{s:f, s:f, s:f}, s:{s:I, s:I}, s:I, s:s, s:[]}",
                  "event", "done", "sweep_s", ls_seconds_since(&k->armed_at), "bytes",
                  (json_int_t)s->ram_bytes, "zero_bytes", (json_int_t)s->zero_bytes, "stored_bytes",
                  (json_int_t)s->stored_bytes, "faults",
                  (json_int_t)atomic_load_explicit(&k->progress->faults, memory_order_relaxed),
                  "fault_us", "p50", ls_histogram_us(&e->fault_time, 0.5), "p99",
                  ls_histogram_us(&e->fault_time, 0.99), "max", ls_histogram_us(&e->fault_time, 1),
                  "proof", "scans",
                  (json_int_t)atomic_load_explicit(&e->proof_scans, memory_order_relaxed), "chunks",
                  (json_int_t)atomic_load_explicit(&e->proof_chunks, memory_order_relaxed),
                  "staging_bytes",
                  (json_int_t)atomic_load_explicit(&k->stage->most_usable, memory_order_relaxed) *
                      (json_int_t)LS_SLOT_BYTES,
                  "checksum", s->checksum, "warnings"),
        true);
}

/* 1: everything is done; 0: go on; -1: failed. */
static int look(struct ls_keeper *k, bool target_gone, bool writer_gone, struct ls_error *err)
{
    /* acquire: pairs with the writer's release of stats and error */
    uint32_t state = atomic_load_explicit(&k->stage->state, memory_order_acquire);

    if (state == LS_WRITER_FAILED) {
        *err = k->stage->error;
        return -1;
    }
    if (state == LS_WRITER_DONE)
        return 1;
    if (writer_gone)
        return ls_fail(err, LS_STORAGE, "writer", "the process that stores RAM died");
    if (k->phase == LS_PHASE_RELEASED)
        return 0;
    if (target_gone)
        return ls_fail(err, LS_GONE, "gone", "the guest's process ended during the capture");
    if (ls_engine_failed(k->engine, err))
        return -1;
    if (k->phase == LS_PHASE_ARMED && ls_engine_complete(k->engine))
        free_guest(k);
    return 0;
}

static void drain(int fd)
{
    uint64_t value;

    if (read(fd, &value, sizeof value) < 0)
        errno = 0; /* an eventfd that had nothing */
}

static int loop(struct ls_keeper *k, struct ls_error *err)
{
    int rc = 0;

    while (rc == 0) {
        bool more = ls_events_flush(&k->out);
        struct pollfd p[] = {
            {.fd = k->in.end ? -1 : k->in.fd, .events = POLLIN},
            {.fd = k->engine->news, .events = POLLIN},
            {.fd = k->stage->notify, .events = POLLIN},
            {.fd = k->target_pidfd, .events = POLLIN},
            {.fd = k->writer_pidfd, .events = POLLIN},
            {.fd = more ? k->out.fd : -1, .events = POLLOUT},
            {.fd = k->budget.pressure, .events = POLLPRI},
        };

        if (k->phase == LS_PHASE_RELEASED)
            p[3].fd = -1;
        if (poll(p, sizeof p / sizeof *p, 100) < 0 && errno != EINTR)
            return ls_fail_errno(err, LS_INTERNAL, "poll", "poll failed");
        if (p[1].revents)
            drain(p[1].fd);
        if (p[2].revents)
            drain(p[2].fd);
        if (p[0].revents && ls_keeper_obey(k, err))
            return -1;
        rc = look(k, p[3].revents != 0, p[4].revents != 0, err);
        if (p[6].revents)
            ls_budget_press(&k->budget, k->stage);
        ls_budget_look(&k->budget, k->stage, k->phase != LS_PHASE_RELEASED);
        send_progress(k);
    }
    return rc < 0 ? -1 : 0;
}

/* ---- the ends ---- */

/* The guest first; then the writer gets a moment to remove its image. One in D state is left
 * alone: it holds nothing of the guest. */
static void throw_away(struct ls_keeper *k)
{
    if (k->engine)
        ls_engine_release(k->engine);
    set_state(k, LS_PROGRESS_FAILED);
    resume_ksm(k);
    if (k->writer > 0) {
        struct pollfd p = {.fd = k->writer_pidfd, .events = POLLIN};

        ls_stage_give_order(k->stage, LS_ORDER_DISCARD);
        if (poll(&p, 1, WRITER_GRACE_MS) <= 0)
            syscall(SYS_pidfd_send_signal, k->writer_pidfd, SIGKILL, NULL, 0);
    }
}

static int read_start(struct ls_keeper *k, struct ls_error *err)
{
    for (;;) {
        struct pollfd p = {.fd = k->in.fd, .events = POLLIN};
        size_t length;
        char *line;
        int rc;

        if (poll(&p, 1, -1) < 0 && errno != EINTR)
            return ls_fail_errno(err, LS_INTERNAL, "poll", "poll failed");
        if (ls_lines_fill(&k->in, err))
            return -1;
        line = ls_lines_next(&k->in, &length);
        if (line) {
            rc = ls_request_parse(line, length, &k->start, err);
            free(line);
            if (rc == 0 && k->start.kind != LS_REQUEST_START)
                return ls_fail(err, LS_USAGE, "request", "the first request must be 'start'");
            if (rc == 0)
                ls_log_subject(k->start.guest, k->start.id_text);
            return rc;
        }
        if (k->in.end)
            return ls_fail(err, LS_USAGE, "request", "no request came");
    }
}

static void clean_up(struct ls_keeper *k)
{
    ls_engine_free(k->engine);
    ls_layout_free(&k->first);
    ls_rammap_free(&k->map);
    ls_request_free(&k->start);
    ls_lines_free(&k->in);
    if (k->writer > 0)
        waitpid(k->writer, NULL, WNOHANG);
    ls_stage_free(k->stage);
    ls_budget_close(&k->budget);
    if (k->progress)
        munmap(k->progress, sizeof *k->progress);
    free(k);
}

int ls_keeper_run(int in, int out)
{
    struct ls_keeper *k = calloc(1, sizeof *k);
    struct ls_error err;
    int code = LS_OK;

    if (!k)
        return LS_INTERNAL;
    ls_log_part("capture");
    k->in.fd = in;
    k->out.fd = out;
    k->progress_fd = k->writer_pidfd = k->target_pidfd = k->budget.pressure = -1;
    if (read_start(k, &err) || ls_keeper_setup(k, &err) || loop(k, &err)) {
        throw_away(k);
        ls_log(err.cls == LS_ABORTED ? LOG_NOTICE : LOG_ERR, "no snapshot (%s): %s", err.reason,
               err.message);
        code = (int)err.cls;
        if (err.cls == LS_ABORTED)
            ls_events_send(&k->out,
                           json_pack("{s:s, s:s, s:s}", "event", "aborted", "reason", err.reason,
                                     "message", err.message),
                           true);
        else
            ls_events_error(&k->out, &err);
    } else {
        set_state(k, LS_PROGRESS_DONE);
        ls_log(LOG_INFO, "RAM is stored: %llu bytes in '%s'",
               (unsigned long long)k->stage->stats.stored_bytes, k->start.image);
        send_done(k);
    }
    ls_events_finish(&k->out, 1000);
    clean_up(k);
    return code;
}
