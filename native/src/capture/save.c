/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Claim, copy, prove, release: the way of every page, whether a fault or the sweep asks for it. */
#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "capture/engine.h"
#include "common/fault.h"
#include "uffd/uffd.h"

#define MOVING_TRIES 20

void ls_chunk_pages(const struct ls_engine *e, const struct ls_block *b, uint64_t chunk,
                    struct ls_mask *pages)
{
    uint64_t at = chunk * LS_CHUNK_PAGES, first = b->base + b->pad,
             end = first + b->length / LS_SMALL;

    (void)e;
    memset(pages, 0, sizeof *pages);
    if (first < at)
        first = at;
    if (end > at + LS_CHUNK_PAGES)
        end = at + LS_CHUNK_PAGES;
    if (first < end)
        ls_mask_set_range(pages, (unsigned)(first - at), (unsigned)(end - at));
}

void ls_stager_flush(struct ls_engine *e, struct ls_stager *s)
{
    if (!s->held)
        return;
    if (e->stage->slot[s->slot].extents > 0)
        ls_stage_submit(e->stage, s->slot);
    else
        ls_stage_give(e->stage, s->slot);
    s->held = false;
    s->used = 0;
}

/* Makes room for `pages` in one slot; waits for the writer if need be. -1 if the engine stops. */
static int make_room(struct ls_engine *e, struct ls_stager *s, unsigned pages,
                     struct ls_fault_thread *fault)
{
    if (s->held && s->used + pages <= LS_CHUNK_PAGES)
        return 0;
    ls_stager_flush(e, s);
    for (;;) {
        /* acquire: seen before the queue is looked at */
        uint32_t seen = atomic_load_explicit(&e->stage->free_news, memory_order_acquire);

        if (ls_engine_stopping(e))
            return -1;
        if (ls_stage_take(e->stage, fault ? 0 : ls_engine_reserve(e), &s->slot))
            break;
        if (fault) {
            /* Waiting for the storage is not hanging; events must be read meanwhile. */
            ls_engine_tick(e);
            ls_fault_drain(fault);
        }
        ls_stage_wait_free(e->stage, seen, 50);
    }
    s->held = true;
    s->used = 0;
    return 0;
}

/* Shared memory is read by its file: what is a hole there reads as zero and stays one, while a look
 * at the guest's own address would take a page for it. */
static int read_file(const struct ls_block *b, uint64_t address, const struct ls_mask *data,
                     uint8_t *to, struct ls_error *err)
{
    for (unsigned a = 0, z; ls_mask_run(data, &a, &z); a = z) {
        size_t length = (z - a) * LS_SMALL;
        ssize_t got =
            pread(b->fd, to, length, (off_t)(b->file_offset + address - b->host + a * LS_SMALL));

        if (got < 0)
            return ls_fail_errno(err, LS_TORN, "unmapped", "cannot read RAM block '%s' at %#llx",
                                 b->id, (unsigned long long)(address + a * LS_SMALL));
        if ((size_t)got != length)
            return ls_fail(err, LS_TORN, "unmapped", "the file of RAM block '%s' was cut short",
                           b->id);
        to += length;
    }
    return 0;
}

static int copy_pages(struct ls_engine *e, const struct ls_block *b, uint64_t address,
                      const struct ls_mask *data, unsigned count, uint8_t *to, struct ls_error *err)
{
    struct iovec local = {.iov_base = to, .iov_len = count * LS_SMALL};
    struct iovec remote[LS_CHUNK_PAGES / 2 + 1];
    unsigned n = 0;
    ssize_t got;

    if (b->shared)
        return read_file(b, address, data, to, err);
    for (unsigned a = 0, z; ls_mask_run(data, &a, &z); a = z) {
        remote[n].iov_base = (void *)(uintptr_t)(address + a * LS_SMALL);
        remote[n++].iov_len = (z - a) * LS_SMALL;
    }
    got = process_vm_readv(e->pid, &local, 1, remote, n, 0);
    if (got == (ssize_t)local.iov_len)
        return 0;
    if (got < 0 && errno == ESRCH)
        return ls_uffd_fail(err, errno, "read", address, LS_HUGE);
    if (got < 0 && errno != EFAULT)
        return ls_fail_errno(err, LS_INTERNAL, "read", "cannot read RAM block '%s' at %#llx", b->id,
                             (unsigned long long)address);
    return ls_fail(err, LS_TORN, "unmapped", "RAM block '%s' is not readable at %#llx any more",
                   b->id, (unsigned long long)address);
}

/* Lifts protection of [from, to) and wakes; waits while a trip-wire event is in the way. */
static int release_range(struct ls_engine *e, uint64_t from, uint64_t to,
                         struct ls_fault_thread *fault, struct ls_error *err)
{
    static const struct timespec pause = {.tv_nsec = 20000};

    while (from < to) {
        if (ls_uffd_protect(e->uffd, from, to - from, false, &from) == 0)
            return 0;
        if (ls_uffd_errno(errno) != LS_UFFD_AGAIN)
            return ls_uffd_fail(err, errno, "release", from, to - from);
        if (ls_engine_stopping(e))
            return 0; /* who stops us releases everything */
        if (fault)
            ls_fault_drain(fault);
        else
            nanosleep(&pause, NULL);
    }
    return 0;
}

/* Releases what was saved here, in as few calls as can be: pages between that are saved by others
 * or were never populated may be released along; pages still being copied must not. */
static int release_pages(struct ls_engine *e, uint64_t chunk, uint64_t address,
                         const struct ls_mask *data, const struct ls_mask *inside,
                         struct ls_fault_thread *fault, struct ls_error *err)
{
    struct ls_mask may;

    for (unsigned i = 0; i < LS_CHUNK_WORDS; i++) {
        uint64_t word = chunk * LS_CHUNK_WORDS + i;

        /* acquire: pairs with the release after another thread's copy */
        may.word[i] =
            (atomic_load_explicit(&e->saved[word], memory_order_acquire) | ~e->populated[word]) &
            inside->word[i];
    }
    for (unsigned a = ls_mask_next(data, 0, true); a < LS_CHUNK_PAGES;) {
        unsigned stop = ls_mask_next(&may, a, false), last = stop;

        while (!ls_mask_test(data, last - 1))
            last--;
        if (release_range(e, address + a * LS_SMALL, address + last * LS_SMALL, fault, err))
            return -1;
        a = stop < LS_CHUNK_PAGES ? ls_mask_next(data, stop, true) : LS_CHUNK_PAGES;
    }
    return 0;
}

/* The slot's last extent, if it is of the same chunk: faults on neighbours come one after the
 * other, and one long extent is stored faster, and smaller, than many short ones. */
static struct ls_extent *last_of_chunk(struct ls_slot *slot, uint64_t first_page)
{
    struct ls_extent *x = slot->extents > 0 ? &slot->extent[slot->extents - 1] : NULL;

    return x && x->page >= first_page && x->page < first_page + LS_CHUNK_PAGES ? x : NULL;
}

/* Notes which pages are zero and lists the others for the writer. */
static unsigned sort_pages(struct ls_engine *e, struct ls_stager *s, uint64_t chunk,
                           const struct ls_mask *data, unsigned count)
{
    struct ls_slot *slot = &e->stage->slot[s->slot];
    const uint8_t *at = (const uint8_t *)ls_slot_data(e->stage, s->slot) + s->used * LS_SMALL;
    uint64_t page = chunk * LS_CHUNK_PAGES;
    struct ls_extent *x = last_of_chunk(slot, page);
    struct ls_mask zero = {{0}};
    unsigned i = 0, zeros = 0;

    for (unsigned p = ls_mask_next(data, 0, true); p < LS_CHUNK_PAGES;
         p = ls_mask_next(data, p + 1, true), i++) {
        if (ls_page_is_zero(at + i * LS_SMALL)) {
            ls_mask_set(&zero, p);
            zeros++;
        } else if (x && x->page + x->count == page + p && x->offset + x->count == s->used + i) {
            x->count++;
        } else {
            x = &slot->extent[slot->extents++];
            x->page = page + p;
            x->offset = s->used + i;
            x->count = 1;
        }
    }
    if (zeros > 0)
        for (unsigned w = 0; w < LS_CHUNK_WORDS; w++)
            atomic_fetch_or_explicit(&e->stage->zero[chunk * LS_CHUNK_WORDS + w], zero.word[w],
                                     memory_order_relaxed);
    if (x)
        s->used = x->offset + x->count > s->used ? x->offset + x->count : s->used;
    (void)count;
    return zeros;
}

/*
 * Pages that lost their protection, -1 with errno. Punching a hole into the file of hugetlbfs takes
 * the content, sends no event and leaves the protection; so a page that was mapped when armed has
 * to be mapped. It is not while the kernel moves it, which takes a moment.
 */
static int unproven(struct ls_engine *e, const struct ls_block *b, uint64_t chunk, uint64_t address,
                    const struct ls_mask *data)
{
    static const struct timespec moment = {.tv_nsec = 1000000};
    bool mapped = b->hugetlb && e->huge[chunk];
    int missing = ls_scan_proof(e, address, data, mapped);

    for (int i = 0; missing > 0 && mapped && i < MOVING_TRIES; i++) {
        nanosleep(&moment, NULL);
        missing = ls_scan_proof(e, address, data, mapped);
    }
    return missing;
}

/*
 * Whether pages of a shared file that were content when armed are a hole now; -1 with errno. QEMU
 * discards shared memory by punching a hole, of which only the madvise() that follows tells us; in
 * between, zeros are read, and the protection is in its place. hugetlbfs knows no holes: see above.
 */
static int punched(const struct ls_block *b, uint64_t address, const struct ls_mask *data)
{
    if (!b->shared || b->hugetlb)
        return 0;
    for (unsigned a = 0, z; ls_mask_run(data, &a, &z); a = z) {
        off_t from = (off_t)(b->file_offset + address - b->host + a * LS_SMALL);
        off_t hole = lseek(b->fd, from, SEEK_HOLE);

        if (hole < 0)
            return -1;
        if (hole < from + (off_t)((z - a) * LS_SMALL))
            return 1;
    }
    return 0;
}

/* Copies what has content, and proves that it is of the instant, unless the guest stands still. */
static int copy_proven(struct ls_engine *e, const struct ls_block *b, uint64_t chunk,
                       uint64_t address, const struct ls_mask *data, unsigned count, uint8_t *to,
                       struct ls_error *err)
{
    int missing = 0, holes = 0;

    if (LS_FAULT("capture.copy"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    if (e->still)
        return copy_pages(e, b, address, data, count, to, err);
    /* Reading a private page that is gone would make a new one: look before that as well. */
    if (b->hugetlb && !b->shared)
        missing = unproven(e, b, chunk, address, data);
    if (missing == 0) {
        if (copy_pages(e, b, address, data, count, to, err))
            return -1;
        missing = unproven(e, b, chunk, address, data);
        holes = punched(b, address, data);
    }
    if (missing < 0 || holes < 0)
        return ls_uffd_fail(err, errno, "look at", address, LS_HUGE);
    if (missing > 0)
        return ls_fail(err, LS_TORN, "proof",
                       "%d pages of RAM block '%s' near %#llx lost their write protection before "
                       "they were saved; the snapshot is thrown away",
                       missing, b->id, (unsigned long long)address);
    if (holes > 0)
        return ls_fail(err, LS_TORN, "discarded",
                       "the guest's process discarded RAM of block '%s' near %#llx before it was "
                       "saved; the snapshot is thrown away",
                       b->id, (unsigned long long)address);
    if (LS_FAULT("capture.release"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    return 0;
}

/*
 * Which of the wanted pages are the caller's from now on. A huge page is claimed by its first word:
 * two threads that shared it would each release a part, and take it apart.
 */
static void claim(struct ls_engine *e, const struct ls_block *b, uint64_t chunk,
                  const struct ls_mask *want, struct ls_mask *mine)
{
    bool whole = ls_chunk_is_huge(e, b, chunk), first = true;

    memset(mine, 0, sizeof *mine);
    for (unsigned i = 0; i < LS_CHUNK_WORDS; i++) {
        if (!want->word[i])
            continue;
        /* acq_rel: exactly one thread gets each bit */
        mine->word[i] =
            want->word[i] & ~atomic_fetch_or_explicit(&e->claimed[chunk * LS_CHUNK_WORDS + i],
                                                      want->word[i], memory_order_acq_rel);
        if (whole && first && !mine->word[i])
            return;
        first = false;
    }
}

static int fail(struct ls_engine *e, const struct ls_error *err)
{
    ls_engine_fail(e, err);
    return -1;
}

int ls_save_pages(struct ls_engine *e, struct ls_stager *s, uint64_t chunk,
                  const struct ls_mask *want, struct ls_fault_thread *fault)
{
    const struct ls_block *b = ls_layout_of_page(&e->layout, chunk * LS_CHUNK_PAGES);
    uint64_t address = ls_chunk_address(b, chunk);
    struct ls_mask mine, data, inside;
    unsigned need = 0, count, saved;
    struct ls_error err;

    for (unsigned i = 0; i < LS_CHUNK_WORDS; i++) {
        uint64_t word = chunk * LS_CHUNK_WORDS + i;
        /* relaxed: a guess; the claim below decides */
        uint64_t free =
            want->word[i] & ~atomic_load_explicit(&e->claimed[word], memory_order_relaxed);

        need += (unsigned)__builtin_popcountll(free & e->populated[word]);
    }
    /* Room first: a page must not stay claimed while its thread waits for the storage. */
    if (need > 0 && make_room(e, s, need, fault))
        return -1;
    claim(e, b, chunk, want, &mine);
    for (unsigned i = 0; i < LS_CHUNK_WORDS; i++)
        data.word[i] = mine.word[i] & e->populated[chunk * LS_CHUNK_WORDS + i];
    count = ls_mask_count(&data);
    saved = ls_mask_count(&mine);
    if (saved == 0)
        return 0;
    if (count > 0) {
        uint8_t *to = (uint8_t *)ls_slot_data(e->stage, s->slot) + s->used * LS_SMALL;

        if (copy_proven(e, b, chunk, address, &data, count, to, &err))
            return fail(e, &err);
    }
    for (unsigned i = 0; i < LS_CHUNK_WORDS; i++)
        if (mine.word[i])
            /* release: the copy comes before the bit */
            atomic_fetch_or_explicit(&e->saved[chunk * LS_CHUNK_WORDS + i], mine.word[i],
                                     memory_order_release);
    if (count > 0) {
        /* relaxed: for a rule of thumb */
        atomic_fetch_sub_explicit(&e->stage->to_come, count, memory_order_relaxed);
        ls_chunk_pages(e, b, chunk, &inside);
        if (!e->still && release_pages(e, chunk, address, &data, &inside, fault, &err))
            return fail(e, &err);
        atomic_fetch_add_explicit(&e->zero_pages, sort_pages(e, s, chunk, &data, count),
                                  memory_order_relaxed);
    }
    ls_engine_tick(e);
    atomic_fetch_add_explicit(&e->progress->done_bytes, saved * LS_SMALL, memory_order_relaxed);
    /* acq_rel: who sees the last page saved sees all of them */
    if (atomic_fetch_add_explicit(&e->saved_pages, saved, memory_order_acq_rel) + saved ==
        e->total_pages)
        ls_engine_tell(e);
    return (int)saved;
}
