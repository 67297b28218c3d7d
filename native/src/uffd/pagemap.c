/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "uffd/pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "uffd/uffd.h"

/* PAGEMAP_SCAN of <linux/fs.h>, Linux 6.7; Debian 12's headers are older. */
struct pm_region {
    uint64_t start;
    uint64_t end;
    uint64_t categories;
};

struct pm_arg {
    uint64_t size;
    uint64_t flags;
    uint64_t start;
    uint64_t end;
    uint64_t walk_end;
    uint64_t vec;
    uint64_t vec_len;
    uint64_t max_pages;
    uint64_t category_inverted;
    uint64_t category_mask;
    uint64_t category_anyof_mask;
    uint64_t return_mask;
};

#define PM_SCAN_IOCTL _IOWR('f', 16, struct pm_arg)
#define PM_IS_WRITTEN (1u << 1)
#define PM_IS_PRESENT (1u << 3)
#define PM_IS_SWAPPED (1u << 4)
#define PM_IS_PFNZERO (1u << 5)
#define PM_IS_HUGE (1u << 6)

/* Bits of an entry of /proc/PID/pagemap. */
#define ENTRY_PFN ((1ull << 55) - 1)
#define ENTRY_UFFD_WP (1ull << 57)
#define ENTRY_SWAPPED (1ull << 62)
#define ENTRY_PRESENT (1ull << 63)

#define REGIONS 64
#define ENTRIES 512 /* those of 2 MiB */

static int scan_ioctl(int fd, uint64_t start, uint64_t end, struct pm_region *vec, uint64_t len,
                      uint64_t *walk_end)
{
    struct pm_arg arg = {
        .size = sizeof arg,
        .start = start,
        .end = end,
        .vec = (uint64_t)(uintptr_t)vec,
        .vec_len = len,
        .category_anyof_mask = PM_IS_PRESENT | PM_IS_SWAPPED,
        .return_mask = PM_IS_PRESENT | PM_IS_SWAPPED | PM_IS_WRITTEN | PM_IS_PFNZERO | PM_IS_HUGE,
    };
    int n;

    do
        n = ioctl(fd, PM_SCAN_IOCTL, &arg);
    while (n < 0 && errno == EINTR);
    *walk_end = arg.walk_end;
    return n;
}

bool ls_pagemap_have_scan(void)
{
    struct pm_region vec;
    uint64_t walk_end;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int n;

    if (fd < 0)
        return false;
    n = scan_ioctl(fd, 0, 0, &vec, 1, &walk_end);
    close(fd);
    return n >= 0;
}

int ls_pagemap_open(struct ls_pagemap *pm, pid_t pid, bool force_file, struct ls_error *err)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/%d/pagemap", (int)pid);
    pm->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (pm->fd < 0)
        return ls_fail_errno(err, errno == ENOENT ? LS_GONE : LS_REFUSED, "pagemap",
                             "cannot open '%s'", path);
    pm->scan = !force_file && ls_pagemap_have_scan();
    return 0;
}

void ls_pagemap_close(struct ls_pagemap *pm)
{
    if (pm->fd >= 0)
        close(pm->fd);
    pm->fd = -1;
}

static int scan_new(const struct ls_pagemap *pm, uint64_t start, uint64_t end,
                    ls_pagemap_visit visit, void *arg)
{
    struct pm_region vec[REGIONS];
    struct ls_turn turn;

    ls_turn_begin(&turn);
    while (start < end) {
        /* In pieces as well: the walk holds the target's mmap_lock. */
        uint64_t stop = (start / LS_UFFD_PIECE + 1) * LS_UFFD_PIECE;
        uint64_t walk_end;
        int n;

        if (stop > end)
            stop = end;
        n = scan_ioctl(pm->fd, start, stop, vec, REGIONS, &walk_end);
        if (n < 0)
            return -1;
        for (int i = 0; i < n; i++) {
            unsigned flags = LS_PM_PRESENT;
            int rc;

            /* The zero page, mapped because somebody read a hole: still as good as a hole. */
            if ((vec[i].categories & PM_IS_PFNZERO) && (vec[i].categories & PM_IS_WRITTEN))
                continue;
            if (!(vec[i].categories & PM_IS_WRITTEN))
                flags |= LS_PM_PROTECTED;
            if (vec[i].categories & PM_IS_PRESENT)
                flags |= LS_PM_MAPPED;
            if (vec[i].categories & PM_IS_HUGE)
                flags |= LS_PM_HUGE;
            rc = visit(vec[i].start, vec[i].end, flags, arg);
            if (rc)
                return rc;
        }
        if (walk_end <= start) {
            errno = EIO;
            return -1;
        }
        start = walk_end;
        if (start < end)
            ls_turn_give(&turn);
    }
    return 0;
}

static unsigned entry_flags(uint64_t entry)
{
    unsigned flags = 0;

    if (entry & (ENTRY_PRESENT | ENTRY_SWAPPED))
        flags |= LS_PM_PRESENT;
    if (entry & ENTRY_PRESENT)
        flags |= LS_PM_MAPPED;
    /* A marker in a page table of hugetlbfs has no other bit. */
    if (entry & ENTRY_UFFD_WP)
        flags |= LS_PM_PRESENT | LS_PM_PROTECTED;
    return flags;
}

/* A huge page shows as 512 present pages with consecutive, aligned frame numbers. Small pages may
 * look the same by chance; treating them as one is correct as well, only coarser. */
static bool looks_huge(const uint64_t *entry, uint64_t start, size_t n)
{
    uint64_t pfn = entry[0] & ENTRY_PFN;

    if (start % LS_HUGE != 0 || n != ENTRIES || pfn == 0 || pfn % ENTRIES != 0)
        return false;
    for (size_t i = 0; i < n; i++)
        if (!(entry[i] & ENTRY_PRESENT) || (entry[i] & ENTRY_PFN) != pfn + i)
            return false;
    return true;
}

static int scan_old(const struct ls_pagemap *pm, uint64_t start, uint64_t end,
                    ls_pagemap_visit visit, void *arg)
{
    uint64_t entry[ENTRIES];

    while (start < end) {
        uint64_t stop = (start / LS_HUGE + 1) * LS_HUGE;
        unsigned huge;
        size_t want, n;
        ssize_t got;

        if (stop > end)
            stop = end;
        want = (stop - start) / LS_SMALL;
        got = pread(pm->fd, entry, want * sizeof *entry, (off_t)(start / LS_SMALL * sizeof *entry));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        n = (size_t)got / sizeof *entry;
        if (n == 0) {
            errno = ESRCH; /* an address space that is gone reads as an empty file */
            return -1;
        }
        huge = looks_huge(entry, start, n) ? LS_PM_HUGE : 0;
        for (size_t i = 0; i < n;) {
            unsigned flags = entry_flags(entry[i]);
            size_t first = i;
            int rc;

            while (i < n && entry_flags(entry[i]) == flags)
                i++;
            if (!(flags & LS_PM_PRESENT))
                continue;
            rc = visit(start + first * LS_SMALL, start + i * LS_SMALL, flags | huge, arg);
            if (rc)
                return rc;
        }
        start += n * LS_SMALL;
    }
    return 0;
}

int ls_pagemap_scan(const struct ls_pagemap *pm, uint64_t start, uint64_t end,
                    ls_pagemap_visit visit, void *arg)
{
    if (start >= end)
        return 0;
    return pm->scan ? scan_new(pm, start, end, visit, arg) : scan_old(pm, start, end, visit, arg);
}
