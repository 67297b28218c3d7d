/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The process whose memory is captured, seen from outside: what /proc says of it, where its RAM
 * blocks lie, and how to get a userfaultfd of its address space.
 */
#ifndef LS_TARGET_TARGET_H
#define LS_TARGET_TARGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "common/error.h"

/* ---- /proc ---- */

/* Field 22 of /proc/PID/stat, in clock ticks since boot: with the pid it names a process for good.
 * LS_GONE if there is no such process. */
int ls_proc_start_time(pid_t pid, uint64_t *start_time, struct ls_error *err);

/* One mapping of /proc/PID/maps; ksm_mergeable and the rest below come from smaps alone. */
struct ls_vma {
    uint64_t start;
    uint64_t end;
    bool readable;
    bool writable;
    bool executable;
    bool shared;
    uint64_t file_offset;
    dev_t device;
    ino_t inode;            /* 0: anonymous */
    uint64_t page_size;     /* smaps: KernelPageSize, bytes */
    uint64_t rss_bytes;     /* smaps: Rss and Swap: private memory that has content */
    bool mergeable;         /* smaps: VmFlags mg (KSM) */
    bool uffd_missing;      /* smaps: VmFlags um */
    bool uffd_wp;           /* smaps: VmFlags uw */
    bool hugetlb;           /* smaps: VmFlags ht */
    uint64_t hugetlb_bytes; /* smaps: Shared_Hugetlb and Private_Hugetlb: what it has in memory */
    bool io;                /* smaps: VmFlags io or pf (device memory) */
    char name[256];         /* path, "[heap]", or "" */
};

enum ls_vma_source { LS_MAPS, LS_SMAPS };

/* Calls `each` for every mapping in address order until it returns non-zero. smaps costs a walk of
 * all page tables (milliseconds per GiB of 4 KiB pages): never read it while the guest stands
 * still. 0, or -1 when /proc cannot be read. */
int ls_proc_maps(pid_t pid, enum ls_vma_source source,
                 int (*each)(const struct ls_vma *vma, void *opaque), void *opaque,
                 struct ls_error *err);

/* The same of an open file of either kind, from where it is. Whether there was any mapping; lines
 * that are none are passed over. */
int ls_proc_read_maps(FILE *file, int (*each)(const struct ls_vma *vma, void *opaque),
                      void *opaque);

/* What /proc/PID/task/TID/status says. */
struct ls_proc_status {
    char state;        /* R S D T t Z X */
    pid_t tracer;      /* 0: not traced */
    int seccomp;       /* 0 none, 1 strict, 2 filter */
    bool shadow_stack; /* x86_Thread_features names shstk */
    uint64_t blocked;  /* signal mask */
};
int ls_proc_status(pid_t pid, pid_t tid, struct ls_proc_status *status, struct ls_error *err);

/* ---- RAM blocks (design: what `info ramblock` prints) ---- */

struct ls_ramblock {
    char id[256];
    uint64_t page_size;  /* bytes */
    uint64_t offset;     /* in QEMU's ram_addr_t space */
    uint64_t used;       /* bytes; a /rom@ block may grow up to total */
    uint64_t total;      /* bytes mapped */
    uint64_t host;       /* address in the target */
    bool readonly;       /* to the guest; only known where QEMU prints it (8.0 and newer) */
    uint64_t descriptor; /* address of QEMU's struct RAMBlock, 0 if not looked for */
};

struct ls_rammap {
    size_t count;
    struct ls_ramblock *blocks;
};

/*
 * Finds the host address of every migratable RAM block. `info_ramblock` is the text of QEMU's HMP
 * command `info ramblock`; from 8.0 on it has the addresses, before the blocks are looked for in
 * QEMU's heap. LS_REFUSED, reason "ramblock", names the block that was not found exactly once.
 */
int ls_rammap_locate(pid_t pid, const char *info_ramblock, struct ls_rammap *map,
                     struct ls_error *err);

/* The same while the guest stands still: looks where `before` found each block, and searches only
 * for what is not there any more. `map` must not be `before`. */
int ls_rammap_refresh(pid_t pid, const char *info_ramblock, const struct ls_rammap *before,
                      struct ls_rammap *map, struct ls_error *err);

void ls_rammap_free(struct ls_rammap *map);

/* ---- attach ---- */

enum ls_attach_how {
    LS_ATTACH_DEVICE, /* QEMU already holds /dev/userfaultfd, from QMP getfd */
    LS_ATTACH_INJECT, /* it is handed over by injected calls */
};

struct ls_attach_result {
    int uffd;                /* O_CLOEXEC | O_NONBLOCK; UFFDIO_API not called yet */
    unsigned stood_still_us; /* how long the thread that made it was stopped */
};

/*
 * Gets a userfaultfd of the target's address space. A short-lived child does it, so that a target
 * that never stops (D state) holds up nothing; whatever dies on the way, the target goes on
 * unharmed. What an earlier attempt left in the target is closed first. LS_REFUSED with a reason if
 * it is not possible, LS_GONE if the target ended.
 */
int ls_attach_userfaultfd(pid_t pid, enum ls_attach_how how, struct ls_attach_result *out,
                          struct ls_error *err);

/*
 * The same by injected calls, of a userfaultfd that the target keeps open as well, as number
 * `theirs`: what is registered with it stays so when we die.
 */
int ls_attach_lend(pid_t pid, int *uffd, int *theirs, struct ls_error *err);

/* Closes that one in the target; nothing if it is not there. */
int ls_attach_take_back(pid_t pid, int theirs, struct ls_error *err);

/* Whether a userfaultfd can be had: 0, or LS_REFUSED with the first reason. Stops the target's main
 * thread for a moment if it has a seccomp filter, which only then can be read. */
int ls_attach_preflight(pid_t pid, struct ls_error *err);

#endif
