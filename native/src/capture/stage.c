/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture/stage.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

#define RESERVE (256ull << 20) /* memory that `auto` leaves to the host besides the half */
#define TOUCH_PIECE (32ull << 20)
#define TOUCH_SECONDS 30 /* the owner waits for this; what is not touched by then is not used */

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *limit)
{
    return syscall(SYS_futex, word, op, value, limit, NULL, 0);
}

uint64_t ls_stage_auto(uint64_t ram_bytes)
{
    uint64_t available = 0, kib;
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %lu kB", &kib) == 1)
            available = kib << 10;
    if (f)
        fclose(f);
    available = available > RESERVE ? (available - RESERVE) / 2 : 0;
    /* A few slots more than RAM: each thread holds one that is not full. */
    ram_bytes += LS_SLOTS_MIN * LS_SLOT_BYTES;
    return available < ram_bytes ? available : ram_bytes;
}

static void *shared_memory(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    madvise(p, bytes, MADV_DONTDUMP);
    return p;
}

/*
 * A file for the staging memory. memfds follow shmem_enabled, which is `never` nearly everywhere;
 * a tmpfs of our own may have huge pages. The mount is never attached to any path: it ends with its
 * last file. Without the right to mount, or before Linux 5.2, it is a memfd after all.
 */
static int staging_file(void)
{
    LS_AUTO_CLOSE int fs = fsopen("tmpfs", FSOPEN_CLOEXEC);
    LS_AUTO_CLOSE int mount = -1;
    int fd = -1;

    if (fs >= 0 && fsconfig(fs, FSCONFIG_SET_STRING, "huge", "always", 0) == 0 &&
        fsconfig(fs, FSCONFIG_SET_STRING, "size", "0", 0) == 0 && /* no limit of its own */
        fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        mount = fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    if (mount >= 0)
        fd = openat(mount, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    return fd >= 0 ? fd : memfd_create("livesnap-staging", MFD_CLOEXEC);
}

/* The staging memory itself, at an address that is a multiple of a huge page. */
static uint8_t *staging_memory(uint64_t bytes, struct ls_error *err)
{
    LS_AUTO_CLOSE int fd = staging_file();
    uint8_t *room, *at;

    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0) {
        ls_fail_errno(err, LS_INTERNAL, "staging", "cannot make %llu bytes of staging memory",
                      (unsigned long long)bytes);
        return NULL;
    }
    room = mmap(NULL, bytes + LS_SLOT_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) {
        ls_fail_errno(err, LS_INTERNAL, "staging", "no room for %llu bytes of staging memory",
                      (unsigned long long)bytes);
        return NULL;
    }
    at = (uint8_t *)(((uintptr_t)room + LS_SLOT_BYTES - 1) & ~(uintptr_t)(LS_SLOT_BYTES - 1));
    if (mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        ls_fail_errno(err, LS_INTERNAL, "staging", "cannot map %llu bytes of staging memory",
                      (unsigned long long)bytes);
        munmap(room, bytes + LS_SLOT_BYTES);
        return NULL;
    }
    if (at > room)
        munmap(room, (size_t)(at - room));
    munmap(at + bytes, (size_t)(room + LS_SLOT_BYTES - at));
    madvise(at, bytes, MADV_HUGEPAGE);
    madvise(at, bytes, MADV_DONTDUMP);
    return at;
}

static int touch(struct ls_stage *s, bool (*stop)(void *), void *arg, struct ls_error *err)
{
    time_t began = time(NULL);

    for (uint64_t at = 0; at < s->bytes; at += TOUCH_PIECE) {
        uint64_t n = s->bytes - at < TOUCH_PIECE ? s->bytes - at : TOUCH_PIECE;

        if (stop && stop(arg))
            return ls_fail(err, LS_ABORTED, "aborted", "aborted while staging was made ready");
        if (time(NULL) - began > TOUCH_SECONDS && at >= LS_SLOTS_MIN * LS_SLOT_BYTES) {
            munmap(s->data + at, s->bytes - at);
            s->bytes = at;
            break;
        }
        /* Asks for huge pages whatever shmem_enabled says; a refusal costs only speed. */
        madvise(s->data + at, n, MADV_COLLAPSE);
        for (uint64_t i = 0; i < n; i += 4096)
            ((volatile uint8_t *)s->data)[at + i] = 0;
    }
    return 0;
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

struct ls_stage *ls_stage_new(uint64_t bytes, uint64_t pages, bool (*stop)(void *), void *arg,
                              struct ls_error *err)
{
    uint64_t words = (pages + 63) / 64;
    uint32_t slots = (uint32_t)(bytes / LS_SLOT_BYTES);
    struct ls_stage *s;
    size_t size;

    if (slots < LS_SLOTS_MIN)
        slots = LS_SLOTS_MIN;
    size = place(NULL, NULL, slots, words);
    s = shared_memory(size);
    if (!s) {
        ls_fail_errno(err, LS_INTERNAL, "memory", "no shared memory");
        return NULL;
    }
    place(s, (uint8_t *)s, slots, words);
    s->slots = slots;
    s->bytes = slots * LS_SLOT_BYTES;
    s->zero_words = words;
    s->notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->data = staging_memory(s->bytes, err);
    if (!s->data || touch(s, stop, arg, err)) {
        ls_stage_free(s);
        return NULL;
    }
    s->usable = (uint32_t)(s->bytes / LS_SLOT_BYTES);
    for (uint32_t i = 0; i < s->usable; i++)
        ls_stage_give(s, i);
    return s;
}

void ls_stage_free(struct ls_stage *s)
{
    if (!s)
        return;
    if (s->data)
        munmap(s->data, s->bytes);
    if (s->notify >= 0)
        close(s->notify);
    munmap(s, place(NULL, NULL, s->slots, s->zero_words));
}

int ls_stage_read_only(struct ls_stage *s, struct ls_error *err)
{
    if (mprotect(s->data, s->bytes, PROT_READ) < 0)
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
