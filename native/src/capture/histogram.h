/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Times in microseconds, counted in buckets of 1/8 of a power of two; several threads count. */
#ifndef LS_CAPTURE_HISTOGRAM_H
#define LS_CAPTURE_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

#define LS_HISTOGRAM_BUCKETS (8 * 40)

struct ls_histogram {
    _Atomic uint64_t bucket[LS_HISTOGRAM_BUCKETS]; /* relaxed: read after the threads ended */
    _Atomic uint64_t max_ns;
};

static inline void ls_histogram_add(struct ls_histogram *h, uint64_t ns)
{
    unsigned log = ns < 8 ? 3 : 63 - (unsigned)__builtin_clzll(ns);
    unsigned at = (log - 3) * 8 + (unsigned)(ns >> (log - 3) & 7);
    uint64_t max = atomic_load_explicit(&h->max_ns, memory_order_relaxed);

    if (at >= LS_HISTOGRAM_BUCKETS)
        at = LS_HISTOGRAM_BUCKETS - 1;
    atomic_fetch_add_explicit(&h->bucket[at], 1, memory_order_relaxed);
    while (ns > max && !atomic_compare_exchange_weak_explicit(
                           &h->max_ns, &max, ns, memory_order_relaxed, memory_order_relaxed))
        ;
}

/* Microseconds below which the part `q` (0 to 1) of all times lies. */
static inline double ls_histogram_us(struct ls_histogram *h, double q)
{
    double max = (double)atomic_load_explicit(&h->max_ns, memory_order_relaxed) / 1e3;
    uint64_t total = 0, seen = 0;

    for (unsigned i = 0; i < LS_HISTOGRAM_BUCKETS; i++)
        total += atomic_load_explicit(&h->bucket[i], memory_order_relaxed);
    if (q >= 1)
        return max;
    for (unsigned i = 0; i < LS_HISTOGRAM_BUCKETS && total > 0; i++) {
        seen += atomic_load_explicit(&h->bucket[i], memory_order_relaxed);
        if ((double)seen >= q * (double)total) {
            double top = (double)((8ull + i % 8 + 1) << (i / 8)) / 1e3;

            return top < max ? top : max;
        }
    }
    return max;
}

#endif
