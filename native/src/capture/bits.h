/* SPDX-License-Identifier: GPL-3.0-or-later */
/* A chunk is 2 MiB: 512 pages, eight words of each bitmap. Masks of one chunk, and their runs. */
#ifndef LS_CAPTURE_BITS_H
#define LS_CAPTURE_BITS_H

#include <stdbool.h>
#include <stdint.h>

#define LS_CHUNK_PAGES 512u
#define LS_CHUNK_WORDS 8u

struct ls_mask {
    uint64_t word[LS_CHUNK_WORDS];
};

static inline bool ls_mask_test(const struct ls_mask *m, unsigned bit)
{
    return m->word[bit / 64] >> (bit % 64) & 1;
}

static inline void ls_mask_set(struct ls_mask *m, unsigned bit)
{
    m->word[bit / 64] |= 1ull << (bit % 64);
}

/* Sets the bits [first, end). */
static inline void ls_mask_set_range(struct ls_mask *m, unsigned first, unsigned end)
{
    while (first < end) {
        unsigned low = first % 64;
        unsigned n = 64 - low < end - first ? 64 - low : end - first;
        uint64_t bits = n == 64 ? ~0ull : (1ull << n) - 1;

        m->word[first / 64] |= bits << low;
        first += n;
    }
}

static inline unsigned ls_mask_count(const struct ls_mask *m)
{
    unsigned n = 0;

    for (unsigned i = 0; i < LS_CHUNK_WORDS; i++)
        n += (unsigned)__builtin_popcountll(m->word[i]);
    return n;
}

/* The first bit at or after `from` that is `value`; LS_CHUNK_PAGES if there is none. */
static inline unsigned ls_mask_next(const struct ls_mask *m, unsigned from, bool value)
{
    while (from < LS_CHUNK_PAGES) {
        uint64_t word = (value ? m->word[from / 64] : ~m->word[from / 64]) >> (from % 64);

        if (word)
            return from + (unsigned)__builtin_ctzll(word);
        from = (from / 64 + 1) * 64;
    }
    return LS_CHUNK_PAGES;
}

/* Goes through the runs of set bits: for (a = 0; ls_mask_run(&m, &a, &b); a = b) [a, b) */
static inline bool ls_mask_run(const struct ls_mask *m, unsigned *first, unsigned *end)
{
    *first = ls_mask_next(m, *first, true);
    if (*first >= LS_CHUNK_PAGES)
        return false;
    *end = ls_mask_next(m, *first, false);
    return true;
}

#endif
