/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The monotonic clock: limits are moments of it, durations differences. */
#ifndef LS_COMMON_CLOCK_H
#define LS_COMMON_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t ls_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t ls_now_us(void)
{
    return ls_now_ns() / 1000;
}

static inline int64_t ls_now_ms(void)
{
    return (int64_t)(ls_now_ns() / 1000000);
}

static inline double ls_seconds(void)
{
    return (double)ls_now_ns() / 1e9;
}

static inline double ls_seconds_since(const struct timespec *began)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - began->tv_sec) + (double)(now.tv_nsec - began->tv_nsec) / 1e9;
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
