/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture/budget.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "capture/stage_memory.h"
#include "common/clock.h"

#define RESERVE (256ull << 20)   /* memory that is left to the host besides the half */
#define LOOK_S 1.0               /* how often the host is asked */
#define GROW_SLOTS 8u            /* at a time: the keeper has other things to do */
#define HYSTERESIS (64ull << 20) /* less than this is not worth growing for */
#define CALM_S 10.0              /* how long after pressure nothing is taken */

static uint64_t available(void)
{
    uint64_t kib, found = 0;
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %lu kB", &kib) == 1)
            found = kib << 10;
    if (f)
        fclose(f);
    return found;
}

/* What staging may be if it has `own` now, which is not available any more. */
static uint64_t allowed(const struct ls_budget *b, uint64_t own)
{
    uint64_t all = available() + own;
    uint64_t half = all > RESERVE ? (all - RESERVE) / 2 : 0;

    return half < b->most ? half : b->most;
}

/* A window of 2 s needs no capability. 10 % of it is more than a page cache that turns over. */
static int open_pressure(void)
{
    static const char trigger[] = "some 200000 2000000";
    int fd = open("/proc/pressure/memory", O_RDWR | O_NONBLOCK | O_CLOEXEC);

    if (fd >= 0 && write(fd, trigger, sizeof trigger) < 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

void ls_budget_open(struct ls_budget *b, uint64_t asked, uint64_t content, uint64_t *bytes)
{
    memset(b, 0, sizeof *b);
    b->automatic = asked == 0;
    /* A few slots more: each thread holds one that is not full. */
    b->most = asked ? asked : content + LS_SLOTS_MIN * LS_SLOT_BYTES;
    b->pressure = b->automatic ? open_pressure() : -1;
    clock_gettime(CLOCK_MONOTONIC, &b->looked_at);
    *bytes = b->automatic ? allowed(b, 0) : asked;
}

void ls_budget_close(struct ls_budget *b)
{
    if (b->pressure >= 0)
        close(b->pressure);
    b->pressure = -1;
}

void ls_budget_press(struct ls_budget *b, struct ls_stage *s)
{
    /* relaxed: a moment's value will do */
    int32_t free_slots = atomic_load_explicit(&s->free_count, memory_order_relaxed);

    clock_gettime(CLOCK_MONOTONIC, &b->pressed_at);
    b->pressed = true;
    if (free_slots > 0)
        ls_stage_shrink(s, ((uint32_t)free_slots + 1) / 2, LS_SLOTS_MIN);
}

static void fit(struct ls_budget *b, struct ls_stage *s)
{
    uint64_t own = ls_stage_bytes(s), may = allowed(b, own);

    if (own > may)
        ls_stage_shrink(s, (uint32_t)((own - may) / LS_SLOT_BYTES), LS_SLOTS_MIN);
    else if (own + HYSTERESIS <= may && !(b->pressed && ls_seconds_since(&b->pressed_at) < CALM_S))
        ls_stage_grow(s, GROW_SLOTS);
    else
        clock_gettime(CLOCK_MONOTONIC, &b->looked_at);
}

void ls_budget_look(struct ls_budget *b, struct ls_stage *s, bool capturing)
{
    if (!capturing)
        ls_stage_shrink(s, UINT32_MAX, 0);
    else if (b->automatic && ls_seconds_since(&b->looked_at) >= LOOK_S)
        fit(b, s);
}
