/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The process that holds the userfaultfd: reads requests, drives engine and writer, reports. It
 * opens, writes and logs nothing that can block once the guest's RAM is protected.
 */
#ifndef LS_CAPTURE_KEEPER_H
#define LS_CAPTURE_KEEPER_H

#include <stdbool.h>
#include <time.h>

#include "capture/budget.h"
#include "capture/engine.h"
#include "capture/events.h"
#include "capture/request.h"
#include "capture/writer.h"

enum ls_keeper_phase {
    LS_PHASE_ATTACHED,  /* waits for `protect` */
    LS_PHASE_PROTECTED, /* waits for `arm` */
    LS_PHASE_ARMED,     /* the sweep runs */
    LS_PHASE_RELEASED,  /* the guest is free, the writer stores */
};

struct ls_keeper {
    struct ls_lines in;
    struct ls_events out;
    struct ls_request start;
    enum ls_keeper_phase phase;

    struct ls_layout first; /* as found before attaching; ls_engine_set_layout() takes it */
    struct ls_rammap map;   /* likewise, to find the blocks again quickly */
    struct ls_stage *stage;
    struct ls_budget budget;
    struct ls_progress *progress;
    int progress_fd;
    struct ls_engine *engine;
    bool prearmed;   /* the engine has `first`, and may have protected it */
    bool has_layout; /* the engine has the one that the image is of */
    bool ksm_held;

    pid_t writer;
    int writer_pidfd;
    int target_pidfd;
    struct ls_image_string strings[LS_REQUEST_STRINGS];
    struct ls_writer_options writer_options;

    struct timespec protected_at, armed_at, reported_at;
    double protected_s;
};

/* `capture`: everything from the first request to the last event. Returns the exit code. */
int ls_keeper_run(int in, int out);

/* ---- setup.c: what is done before the first request after `start` ---- */
int ls_keeper_setup(struct ls_keeper *k, struct ls_error *err);

/* Fills the stage's part of the image's specification from the layout. */
int ls_keeper_describe(struct ls_keeper *k, const struct ls_layout *layout, struct ls_error *err);

/* ---- obey.c: reads requests that have come, and does them ---- */
int ls_keeper_obey(struct ls_keeper *k, struct ls_error *err);

#endif
