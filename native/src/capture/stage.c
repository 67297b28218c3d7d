/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture/stage.h"

#include <limits.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "capture/stage_memory.h"

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *limit)
{
    return syscall(SYS_futex, word, op, value, limit, NULL, 0);
}

static void *shared_memory(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    madvise(p, bytes, MADV_DONTDUMP);
    return p;
}

static uint64_t power_of_two(uint64_t n)
{
    uint64_t p = 2;

    while (p < n)
        p *= 2;
    return p;
}

/* All that is shared besides the staging memory, in one mapping. */
static size_t place(struct ls_stage *s, uint8_t *at, uint32_t slots, uint64_t words)
{
    uint64_t cells = power_of_two(slots);
    size_t used = (sizeof *s + 63) & ~63ul;
    size_t zero = used;
    size_t slot = zero + words * 8;
    size_t cell_a = slot + slots * sizeof(struct ls_slot);
    size_t cell_b = cell_a + cells * sizeof(struct ls_queue_cell);

    if (s) {
        s->zero = (_Atomic uint64_t *)(void *)(at + zero);
        s->slot = (struct ls_slot *)(void *)(at + slot);
        ls_queue_init(&s->free, (struct ls_queue_cell *)(void *)(at + cell_a), cells);
        ls_queue_init(&s->filled, (struct ls_queue_cell *)(void *)(at + cell_b), cells);
    }
    return cell_b + cells * sizeof(struct ls_queue_cell);
}

struct ls_stage *ls_stage_new(uint64_t bytes, uint64_t most, uint64_t pages, bool (*stop)(void *),
                              void *arg, struct ls_error *err)
{
    uint64_t words = (pages + 63) / 64;
    uint32_t wanted = (uint32_t)(bytes / LS_SLOT_BYTES), slots = (uint32_t)(most / LS_SLOT_BYTES);
    struct ls_stage *s;
    size_t size;

    if (wanted < LS_SLOTS_MIN)
        wanted = LS_SLOTS_MIN;
    if (slots < wanted)
        slots = wanted;
    size = place(NULL, NULL, slots, words);
    s = shared_memory(size);
    if (!s) {
        ls_fail_errno(err, LS_INTERNAL, "memory", "no shared memory");
        return NULL;
    }
    place(s, (uint8_t *)s, slots, words);
    s->slots = slots;
    s->zero_words = words;
    s->notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->data = ls_stage_memory_map(slots, &s->huge, err);
    s->empty = calloc(slots, sizeof *s->empty);
    if (!s->data || !s->empty) {
        if (s->data)
            ls_fail(err, LS_INTERNAL, "memory", "out of memory");
        ls_stage_free(s);
        return NULL;
    }
    for (uint32_t i = slots; i > 0; i--)
        s->empty[s->empty_count++] = i - 1;
    if (ls_stage_fill(s, wanted, stop, arg, err)) {
        ls_stage_free(s);
        return NULL;
    }
    return s;
}

void ls_stage_free(struct ls_stage *s)
{
    if (!s)
        return;
    if (s->data)
        munmap(s->data, s->slots * LS_SLOT_BYTES);
    if (s->notify >= 0)
        close(s->notify);
    free(s->empty);
    munmap(s, place(NULL, NULL, s->slots, s->zero_words));
}

int ls_stage_read_only(struct ls_stage *s, struct ls_error *err)
{
    if (mprotect(s->data, s->slots * LS_SLOT_BYTES, PROT_READ) < 0)
        return ls_fail_errno(err, LS_INTERNAL, "staging", "cannot protect the staging memory");
    return 0;
}

/* Tells who waits on `news`. seq_cst on both words: either the waiter sees the raised word, or we
 * see the waiter. */
static void tell(_Atomic uint32_t *news, _Atomic uint32_t *waiters)
{
    atomic_fetch_add_explicit(news, 1, memory_order_seq_cst);
    if (atomic_load_explicit(waiters, memory_order_seq_cst) > 0)
        futex(news, FUTEX_WAKE, INT_MAX, NULL);
}

static void wait_for(_Atomic uint32_t *news, _Atomic uint32_t *waiters, uint32_t seen, unsigned ms)
{
    struct timespec limit = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

    atomic_fetch_add_explicit(waiters, 1, memory_order_seq_cst);
    futex(news, FUTEX_WAIT, seen, &limit); /* returns at once if the word is not `seen` */
    atomic_fetch_sub_explicit(waiters, 1, memory_order_seq_cst);
}

bool ls_stage_take(struct ls_stage *s, uint32_t reserve, uint32_t *slot)
{
    /* relaxed: the reserve is a rule of thumb, the queue itself decides */
    if (atomic_load_explicit(&s->free_count, memory_order_relaxed) <= (int32_t)reserve)
        return false;
    if (!ls_queue_pop(&s->free, slot))
        return false;
    atomic_fetch_sub_explicit(&s->free_count, 1, memory_order_relaxed);
    s->slot[*slot].extents = 0;
    return true;
}

void ls_stage_give(struct ls_stage *s, uint32_t slot)
{
    ls_queue_push(&s->free, slot);
    atomic_fetch_add_explicit(&s->free_count, 1, memory_order_relaxed);
    tell(&s->free_news, &s->free_waiters);
}

void ls_stage_wait_free(struct ls_stage *s, uint32_t seen, unsigned ms)
{
    wait_for(&s->free_news, &s->free_waiters, seen, ms);
}

void ls_stage_submit(struct ls_stage *s, uint32_t slot)
{
    ls_queue_push(&s->filled, slot);
    tell(&s->filled_news, &s->filled_waiters);
}

bool ls_stage_fetch(struct ls_stage *s, uint32_t *slot)
{
    return ls_queue_pop(&s->filled, slot);
}

void ls_stage_wait_filled(struct ls_stage *s, uint32_t seen, unsigned ms)
{
    wait_for(&s->filled_news, &s->filled_waiters, seen, ms);
}

void ls_stage_wake_all(struct ls_stage *s)
{
    tell(&s->free_news, &s->free_waiters);
    tell(&s->filled_news, &s->filled_waiters);
}

void ls_stage_give_order(struct ls_stage *s, enum ls_stage_order order)
{
    /* release: publishes spec and zero map */
    atomic_store_explicit(&s->order, order, memory_order_release);
    ls_stage_wake_all(s);
}
