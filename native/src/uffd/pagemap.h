/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * What the kernel says about the pages of another process: which are there, which are
 * write-protected, which are huge. By PAGEMAP_SCAN (Linux 6.7) or, before it, by reading
 * /proc/PID/pagemap, bit 57. Neither allocates in ls_pagemap_scan(); the fault path uses it.
 */
#ifndef LS_UFFD_PAGEMAP_H
#define LS_UFFD_PAGEMAP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

enum {
    LS_PM_PRESENT = 1,   /* in memory, in swap, or a marker of protection in the page table */
    LS_PM_PROTECTED = 2, /* a write would fault into the userfaultfd */
    LS_PM_HUGE = 4,      /* mapped by an entry of the level above (2 MiB) */
    LS_PM_MAPPED = 8,    /* in memory and mapped: neither swap, nor on the move, nor a marker */
};

struct ls_pagemap {
    int fd;
    bool scan; /* the kernel has PAGEMAP_SCAN */
};

/* Opens /proc/PID/pagemap and finds out which way the kernel offers. `force_file` takes the old
 * way even where PAGEMAP_SCAN exists (tests). */
int ls_pagemap_open(struct ls_pagemap *pm, pid_t pid, bool force_file, struct ls_error *err);
void ls_pagemap_close(struct ls_pagemap *pm);

/* Whether the running kernel has PAGEMAP_SCAN. */
bool ls_pagemap_have_scan(void);

/*
 * Calls `visit` for the runs of present pages in [start, end), in ascending order; what lies
 * between the runs is not present (or, with PAGEMAP_SCAN, the unprotected zero page, whose next
 * write makes a new page as in a hole). A visit that does not return 0 ends the scan with that
 * value. Returns 0, that value, or -1 with errno.
 */
typedef int (*ls_pagemap_visit)(uint64_t start, uint64_t end, unsigned flags, void *arg);
int ls_pagemap_scan(const struct ls_pagemap *pm, uint64_t start, uint64_t end,
                    ls_pagemap_visit visit, void *arg);

#endif
