/* SPDX-License-Identifier: GPL-3.0-or-later */
/* What the kernel is asked: which pages have content, which are protected, and the proof. */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "capture/engine.h"
#include "uffd/uffd.h"

struct scan {
    struct ls_engine *e;
    const struct ls_block *block;
    bool record;
    bool protect; /* what is not protected */
    uint64_t populated;
    uint64_t protected_pages;
    uint64_t huge_pages; /* 4 KiB pages in huge ones */
    uint64_t sabotaged;  /* pages that a test build counts as protected */
};

static void record_run(struct ls_engine *e, const struct ls_block *b, uint64_t start, uint64_t end)
{
    uint64_t first = ls_block_page(b, start), last = ls_block_page(b, end - 1) + 1;
    uint64_t news = 0;

    for (uint64_t p = first; p < last;) {
        uint64_t low = p % 64, n = 64 - low < last - p ? 64 - low : last - p;
        uint64_t bits = (n == 64 ? ~0ull : (1ull << n) - 1) << low;

        news += (uint64_t)__builtin_popcountll(bits & ~e->populated[p / 64]);
        e->populated[p / 64] |= bits;
        atomic_fetch_and_explicit(&e->stage->zero[p / 64], ~bits, memory_order_relaxed);
        p += n;
    }
    atomic_fetch_add_explicit(&e->stage->to_come, news, memory_order_relaxed);
}

static void record_huge(struct ls_engine *e, const struct ls_block *b, uint64_t start, uint64_t end)
{
    for (uint64_t a = (start + LS_HUGE - 1) & ~(LS_HUGE - 1); a + LS_HUGE <= end; a += LS_HUGE)
        e->huge[ls_block_page(b, a) / LS_CHUNK_PAGES] = 1;
}

static int protect_range(const struct ls_block *b, uint64_t start, uint64_t end, void *arg)
{
    struct ls_engine *e = arg;

    (void)b;
    while (start < end) {
        if (ls_uffd_protect(e->uffd, start, end - start, true, &start) == 0)
            return 0;
        if (ls_uffd_errno(errno) != LS_UFFD_AGAIN)
            return -1;
        sched_yield(); /* a fault thread reads the event that is in the way */
    }
    return 0;
}

/* Whether a range of each_range() has content as a whole, and not only where pages are. */
static bool by_range(const struct ls_block *b)
{
    return b->shared || b->hugetlb;
}

static int visit(uint64_t start, uint64_t end, unsigned flags, void *arg)
{
    struct scan *s = arg;
    uint64_t pages = (end - start) / LS_SMALL;

    if (flags & LS_PM_PROTECTED)
        s->protected_pages += pages;
#ifdef LS_FAULTS
    else if (start < s->e->sabotage_end && end > s->e->sabotage_start)
        s->sabotaged += ((end < s->e->sabotage_end ? end : s->e->sabotage_end) -
                         (start > s->e->sabotage_start ? start : s->e->sabotage_start)) /
                        LS_SMALL;
#endif
    if (!by_range(s->block))
        s->populated += pages;
    /* A file on a disk may not tell yet of pages that were written to by way of the mapping. */
    if (s->record && (!by_range(s->block) || s->e->still))
        record_run(s->e, s->block, start, end);
    if (flags & LS_PM_HUGE)
        s->huge_pages += pages;
    /* Of hugetlbfs, whose every chunk is huge, the proof wants to know which are mapped. */
    if (s->record && (flags & (s->block->hugetlb ? LS_PM_MAPPED : LS_PM_HUGE)))
        record_huge(s->e, s->block, start, end);
    if (s->protect && !(flags & LS_PM_PROTECTED) && !by_range(s->block))
        return protect_range(s->block, start, end, s->e);
    return 0;
}

typedef int (*range_fn)(const struct ls_block *, uint64_t, uint64_t, void *);

struct pages {
    const struct ls_block *block;
    range_fn fn; /* NULL: count only */
    void *arg;
    uint64_t mapped; /* bytes */
};

static int visit_pages(uint64_t start, uint64_t end, unsigned flags, void *arg)
{
    struct pages *p = arg;

    if (flags & LS_PM_MAPPED)
        p->mapped += end - start;
    return p->fn ? p->fn(p->block, start, end, p->arg) : 0;
}

/*
 * hugetlbfs does not tell where a file has holes, only how much it holds. If that is what the guest
 * has mapped, content is where pages are. If not, or before PAGEMAP_SCAN, which shows a page on the
 * move as well, content may be anywhere: a hole is then protected, and saved as zeros.
 */
static int each_hugetlb(struct ls_engine *e, const struct ls_block *b, range_fn fn, void *arg)
{
    struct pages p = {.block = b, .arg = arg};
    struct stat st;
    bool all = !e->pagemap.scan;

    if (b->shared) {
        if (ls_pagemap_scan(&e->pagemap, b->host, b->host + b->length, visit_pages, &p) ||
            fstat(b->fd, &st) < 0)
            return -1;
        all = (uint64_t)st.st_blocks * 512 != p.mapped;
    }
    if (all)
        return fn(b, b->host, b->host + b->length, arg);
    p.fn = fn;
    return ls_pagemap_scan(&e->pagemap, b->host, b->host + b->length, visit_pages, &p);
}

/* Goes through the ranges of a block where its file has data. */
static int each_data(const struct ls_block *b, range_fn fn, void *arg)
{
    off_t at = (off_t)b->file_offset, end = at + (off_t)b->length;

    while (at < end) {
        off_t data = lseek(b->fd, at, SEEK_DATA), hole;
        int rc;

        if (data < 0 && errno == ENXIO)
            return 0;
        if (data < 0)
            return -1;
        if (data >= end)
            return 0;
        hole = lseek(b->fd, data, SEEK_HOLE);
        if (hole < 0)
            return -1;
        if (hole > end)
            hole = end;
        data -= data % (off_t)LS_SMALL;
        hole = (hole + (off_t)LS_SMALL - 1) / (off_t)LS_SMALL * (off_t)LS_SMALL;
        rc = fn(b, b->host + (uint64_t)data - b->file_offset,
                b->host + (uint64_t)hole - b->file_offset, arg);
        if (rc)
            return rc;
        at = hole;
    }
    return 0;
}

/* Goes through the ranges of a block that can have content: all of a private one, where the file
 * has data in a shared one, where huge pages are in one of hugetlbfs. */
static int each_range(struct ls_engine *e, const struct ls_block *b, range_fn fn, void *arg)
{
    if (b->hugetlb)
        return each_hugetlb(e, b, fn, arg);
    if (!b->shared)
        return fn(b, b->host, b->host + b->length, arg);
    return each_data(b, fn, arg);
}

static int record_data(const struct ls_block *b, uint64_t start, uint64_t end, void *arg)
{
    record_run(arg, b, start, end);
    return 0;
}

static int scan_range(const struct ls_block *b, uint64_t start, uint64_t end, void *arg)
{
    struct scan *s = arg;

    if (by_range(b)) {
        s->populated += (end - start) / LS_SMALL;
        if (s->record)
            record_run(s->e, b, start, end);
    }
    return ls_pagemap_scan(&s->e->pagemap, start, end, visit, s);
}

/* Everything is zero until the scan finds content. */
static void forget_record(struct ls_engine *e)
{
    memset(e->populated, 0, e->layout.pages / 8);
    memset(e->huge, 0, e->layout.chunks);
    atomic_store_explicit(&e->stage->to_come, 0, memory_order_relaxed);
    for (uint64_t c = 0; c < e->layout.chunks; c++) {
        const struct ls_block *b = ls_layout_of_page(&e->layout, c * LS_CHUNK_PAGES);
        struct ls_mask pages;

        ls_chunk_pages(e, b, c, &pages);
        for (unsigned i = 0; i < LS_CHUNK_WORDS; i++)
            atomic_store_explicit(&e->stage->zero[c * LS_CHUNK_WORDS + i], pages.word[i],
                                  memory_order_relaxed);
    }
}

static int scan_blocks(struct scan *s, struct ls_scan_result *result, struct ls_error *err)
{
    for (uint32_t i = 0; i < s->e->layout.count; i++) {
        s->block = &s->e->layout.block[i];
        if (each_range(s->e, s->block, scan_range, s) ||
            (s->record && s->block->own_or_file && each_data(s->block, record_data, s->e)))
            return ls_uffd_fail(err, errno, "look at", s->block->host, s->block->length);
    }
    result->populated = s->populated;
    result->small = s->populated > s->huge_pages ? s->populated - s->huge_pages : 0;
    result->unprotected = s->populated - s->protected_pages;
    if (result->unprotected >= s->sabotaged)
        result->unprotected -= s->sabotaged;
    return 0;
}

int ls_scan_all(struct ls_engine *e, bool record, struct ls_scan_result *result,
                struct ls_error *err)
{
    struct scan s = {.e = e, .record = record};

    if (record)
        forget_record(e);
    return scan_blocks(&s, result, err);
}

#ifdef LS_FAULTS
static void sabotage(struct ls_engine *e)
{
    if (e->sabotage_end > e->sabotage_start)
        ls_uffd_protect(e->uffd, e->sabotage_start, e->sabotage_end - e->sabotage_start, false,
                        NULL);
}
#endif

int ls_protect_all(struct ls_engine *e, struct ls_error *err)
{
    for (uint32_t i = 0; i < e->layout.count; i++) {
        const struct ls_block *b = &e->layout.block[i];

        if (each_range(e, b, protect_range, e))
            return ls_uffd_fail(err, errno, "write-protect", b->host, b->length);
    }
#ifdef LS_FAULTS
    sabotage(e);
#endif
    return 0;
}

int ls_protect_written(struct ls_engine *e, struct ls_scan_result *result, struct ls_error *err)
{
    struct scan s = {.e = e, .protect = true};

    if (scan_blocks(&s, result, err))
        return -1;
    /* Pages of files that the target has not mapped are not seen one by one. */
    for (uint32_t i = 0; i < e->layout.count && result->unprotected > 0; i++) {
        const struct ls_block *b = &e->layout.block[i];

        if (by_range(b) && each_range(e, b, protect_range, e))
            return ls_uffd_fail(err, errno, "write-protect", b->host, b->length);
    }
#ifdef LS_FAULTS
    sabotage(e);
#endif
    return 0;
}

struct proof {
    uint64_t base;
    const struct ls_mask *data;
    unsigned want; /* flags that each page must have */
    struct ls_mask seen;
};

static int visit_proof(uint64_t start, uint64_t end, unsigned flags, void *arg)
{
    struct proof *p = arg;

    if ((flags & p->want) == p->want)
        ls_mask_set_range(&p->seen, (unsigned)((start - p->base) / LS_SMALL),
                          (unsigned)((end - p->base) / LS_SMALL));
    return 0;
}

int ls_scan_proof(struct ls_engine *e, uint64_t chunk_address, const struct ls_mask *data,
                  bool mapped)
{
    struct proof p = {
        .base = chunk_address, .data = data, .want = LS_PM_PROTECTED | (mapped ? LS_PM_MAPPED : 0)};
    unsigned first = ls_mask_next(data, 0, true), last = LS_CHUNK_PAGES;
    int missing = 0;

    if (first == LS_CHUNK_PAGES)
        return 0;
    while (last > first && !ls_mask_test(data, last - 1))
        last--;
    if (ls_pagemap_scan(&e->pagemap, chunk_address + first * LS_SMALL,
                        chunk_address + last * LS_SMALL, visit_proof, &p))
        return -1;
    for (unsigned i = 0; i < LS_CHUNK_WORDS; i++)
        missing += __builtin_popcountll(data->word[i] & ~p.seen.word[i]);
    atomic_fetch_add_explicit(&e->proof_scans, 1, memory_order_relaxed);
#ifdef LS_FAULTS
    if (chunk_address < e->sabotage_end && chunk_address + LS_HUGE > e->sabotage_start)
        return 0;
#endif
    return missing;
}
