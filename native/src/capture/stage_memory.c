/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture/stage_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

#define FILL_SECONDS 30 /* the owner waits for this */

/*
 * A file for the staging memory. memfds follow shmem_enabled, which is `never` nearly everywhere;
 * a tmpfs of our own may have huge pages. The mount is never attached to any path: it ends with its
 * last file. Without the right to mount, or before Linux 5.2, it is a memfd after all.
 */
static int staging_file(bool *huge)
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
    *huge = fd >= 0;
    return fd >= 0 ? fd : memfd_create("livesnap-staging", MFD_CLOEXEC);
}

uint8_t *ls_stage_memory_map(uint32_t slots, bool *huge, struct ls_error *err)
{
    uint64_t bytes = slots * LS_SLOT_BYTES;
    LS_AUTO_CLOSE int fd = staging_file(huge);
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

/* False if there is no memory for it. */
static bool touch(uint8_t *slot, bool huge)
{
    /* Asks for a huge page whatever shmem_enabled says; a refusal costs only speed. Not where they
     * come by themselves: it disturbs all CPUs. */
    if (!huge)
        madvise(slot, LS_SLOT_BYTES, MADV_COLLAPSE);
    /* Says ENOMEM where a write would end in SIGBUS. */
    return madvise(slot, LS_SLOT_BYTES, MADV_POPULATE_WRITE) == 0;
}

/* Slots with memory: one more or one less. */
static void count(struct ls_stage *s, int change)
{
    /* relaxed: rules of thumb read it */
    uint32_t now = atomic_load_explicit(&s->usable, memory_order_relaxed) + (uint32_t)change;

    atomic_store_explicit(&s->usable, now, memory_order_relaxed);
    if (now > atomic_load_explicit(&s->most_usable, memory_order_relaxed))
        atomic_store_explicit(&s->most_usable, now, memory_order_relaxed);
}

uint32_t ls_stage_grow(struct ls_stage *s, uint32_t wanted)
{
    uint32_t done = 0;

    while (done < wanted && s->empty_count > 0) {
        uint32_t slot = s->empty[s->empty_count - 1];

        if (!touch(ls_slot_data(s, slot), s->huge))
            break;
        s->empty_count--;
        count(s, 1);
        ls_stage_give(s, slot);
        done++;
    }
    return done;
}

uint32_t ls_stage_shrink(struct ls_stage *s, uint32_t wanted, uint32_t least)
{
    uint32_t slot, done = 0;

    while (done < wanted && ls_stage_bytes(s) > least * LS_SLOT_BYTES &&
           ls_stage_take(s, 0, &slot)) {
        madvise(ls_slot_data(s, slot), LS_SLOT_BYTES, MADV_REMOVE);
        s->empty[s->empty_count++] = slot;
        count(s, -1);
        done++;
    }
    return done;
}

int ls_stage_fill(struct ls_stage *s, uint32_t wanted, bool (*stop)(void *), void *arg,
                  struct ls_error *err)
{
    time_t began = time(NULL);

    for (uint32_t i = 0; i < wanted; i++) {
        if (stop && stop(arg))
            return ls_fail(err, LS_ABORTED, "aborted", "aborted while staging was made ready");
        if (i >= LS_SLOTS_MIN && time(NULL) - began > FILL_SECONDS)
            break;
        if (ls_stage_grow(s, 1) == 0) {
            if (i >= LS_SLOTS_MIN)
                break;
            return ls_fail_errno(err, LS_REFUSED, "staging", "there is no memory for staging");
        }
    }
    return 0;
}
