/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Milliseconds of the monotonic clock: the guard's limits are moments of it. */
#ifndef LS_GUARD_CLOCK_H
#define LS_GUARD_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t ls_now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* What is left until `until`, never negative: a timeout for poll(). */
static inline int ls_left_ms(int64_t until)
{
    int64_t left = until - ls_now_ms();

    return left < 0 ? 0 : left > 3600000 ? 3600000 : (int)left;
}

static inline void ls_sleep_ms(int ms)
{
    struct timespec span = {.tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000L};

    nanosleep(&span, NULL);
}

#endif
