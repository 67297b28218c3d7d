/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * What the keeper tells others through shared memory: a sealed memfd that it fills and that the
 * guard maps read-only through /proc/KEEPER/fd/N. It needs no cooperation of a keeper that hangs.
 *
 * Who reads it must take nothing for granted: check magic, version and range_count, and treat
 * every field as one that may change at any moment.
 *
 * A hung keeper: state is in LS_PROGRESS_PROTECTING .. LS_PROGRESS_COPYING and `heartbeat` has not
 * changed for two seconds. Whether guest threads wait is told by `faults_pending` (faults that
 * were read and are not yet released) and, for faults that a stopped keeper cannot even read, by
 * poll(POLLIN) on the userfaultfd itself.
 */
#ifndef LS_CAPTURE_PROGRESS_H
#define LS_CAPTURE_PROGRESS_H

#include <stdatomic.h>
#include <stdint.h>

#define LS_PROGRESS_MAGIC 0x53474f525050534cull /* "LSPPROGS" */
#define LS_PROGRESS_VERSION 1u
#define LS_PROGRESS_MAX_RANGES 1024u

enum ls_progress_state {
    LS_PROGRESS_ATTACHED = 1,   /* has a userfaultfd, nothing is registered */
    LS_PROGRESS_PROTECTING = 2, /* ranges are registered; faults are released without saving */
    LS_PROGRESS_COPYING = 3,    /* armed: a fault is saved before it is released */
    LS_PROGRESS_RELEASED = 4,   /* the userfaultfd is closed; the guest is free; storing goes on */
    LS_PROGRESS_DONE = 5,       /* the image is whole */
    LS_PROGRESS_FAILED = 6,     /* thrown away; the guest is free */
};

/* One range of the guest process' address space, as registered with the userfaultfd. */
struct ls_progress_range {
    uint64_t start;
    uint64_t length;
};

struct ls_progress {
    uint64_t magic;
    uint32_t version;
    uint32_t size; /* sizeof (struct ls_progress) */

    /* Grows with each page saved or released, and at least every 100 ms while the fault threads
     * live, also while they wait for staging. Written relaxed: only its change matters. */
    _Atomic uint64_t heartbeat;
    _Atomic uint64_t faults_pending; /* relaxed; a hint */
    _Atomic uint32_t state;          /* enum ls_progress_state; release store, acquire load */
    uint32_t reserved;

    /* Statistics, all relaxed. Bytes. */
    _Atomic uint64_t total_bytes;
    _Atomic uint64_t done_bytes;   /* saved in staging or known to be zero */
    _Atomic uint64_t stored_bytes; /* in the image file so far */
    _Atomic uint64_t faults;

    /* Release store after ranges[] are filled, acquire load before they are read. It is set before
     * the first of them is registered and never lowered. */
    _Atomic uint32_t range_count;
    uint32_t reserved2;
    struct ls_progress_range ranges[LS_PROGRESS_MAX_RANGES];
};

#endif
