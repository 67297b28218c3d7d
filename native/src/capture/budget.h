/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * How much memory staging may have: for `staging: auto` at most half of what the host has available
 * less a reserve, looked at again while the capture runs, and given back when others wait for
 * memory (PSI). Once the guest is free, every slot that was stored is given back at once.
 */
#ifndef LS_CAPTURE_BUDGET_H
#define LS_CAPTURE_BUDGET_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "capture/stage.h"

struct ls_budget {
    bool automatic;
    uint64_t most; /* bytes: all that can be staged, and a slot for each thread */
    int pressure;  /* a PSI trigger, to be polled for POLLPRI; -1: the kernel has none */
    struct timespec looked_at, pressed_at;
    bool pressed; /* pressed_at is set */
};

/* `asked` is what the request says, 0 for auto; `content` what can be
 * staged; what to begin with is in *bytes. */
void ls_budget_open(struct ls_budget *budget, uint64_t asked, uint64_t content, uint64_t *bytes);
void ls_budget_close(struct ls_budget *budget);

/* The trigger fired: others wait for memory. Gives half of what is free back. */
void ls_budget_press(struct ls_budget *budget, struct ls_stage *stage);

/* To be called several times a second; `capturing`: the guest's RAM is protected still. */
void ls_budget_look(struct ls_budget *budget, struct ls_stage *stage, bool capturing);

#endif
