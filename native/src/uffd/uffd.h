/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The ioctls of a userfaultfd that belongs to another process' address space.
 *
 * Every call over a range goes in pieces of LS_UFFD_PIECE: one call over gigabytes would hold the
 * target's mmap_lock for tens of milliseconds. Addresses are the target's; all are page aligned.
 */
#ifndef LS_UFFD_UFFD_H
#define LS_UFFD_UFFD_H

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#define LS_SMALL 4096ull /* the unit of all bitmaps here, and of the image */
#define LS_HUGE (2ull << 20)
#define LS_UFFD_PIECE (64ull << 20)

/*
 * Work over large ranges takes the target's mmap_lock for each piece. Taking it again at once keeps
 * out whoever waits for it, for 4 ms and more; so every millisecond it is left alone for a moment.
 */
struct ls_turn {
    uint64_t since_ns;
};
void ls_turn_begin(struct ls_turn *turn);
/* Between two pieces. */
void ls_turn_give(struct ls_turn *turn);

/* What an errno of a userfaultfd call means; decided in one place, ls_uffd_errno(). */
enum ls_uffd_class {
    LS_UFFD_AGAIN, /* a trip-wire event waits to be read: read events, then retry */
    LS_UFFD_LOST,  /* the range is not mapped or not registered any more */
    LS_UFFD_DEAD,  /* the address space is gone */
    LS_UFFD_FATAL, /* anything else */
};

enum ls_uffd_class ls_uffd_errno(int sys);

/*
 * The handshake. Needs write protection of private and shared memory and the trip wires for
 * removed, unmapped and moved ranges; a kernel without one of them is LS_REFUSED, reason
 * "userfaultfd", and is named in the message.
 */
int ls_uffd_handshake(int uffd, struct ls_error *err);

/* The same of features that ls_uffd_probe() found. */
int ls_uffd_check_features(uint64_t features, struct ls_error *err);

/*
 * What a kernel offers, asked on a userfaultfd of our own that is closed again. Returns 0 and the
 * kernel's UFFD_FEATURE_* in *features; without permission or support -1, LS_REFUSED.
 */
int ls_uffd_probe(uint64_t *features, struct ls_error *err);

int ls_uffd_register(int uffd, uint64_t start, uint64_t length, struct ls_error *err);

/* Lifts protection and forgets the range, and then wakes who waits there: the kernel's UNREGISTER
 * does not wake those who wait for write protection. Ranges already gone are no error. */
void ls_uffd_unregister(int uffd, uint64_t start, uint64_t length);

/* The same in one call, after protection has been lifted: for mappings of hugetlbfs, which the
 * kernel does not put together again once they were cut into pieces. */
void ls_uffd_unregister_whole(int uffd, uint64_t start, uint64_t length);

/*
 * Sets or lifts write protection; lifting wakes. Returns 0, or -1 with errno; the part before
 * *done (if given) has been handled, so that a caller that got EAGAIN can go on from there.
 * No allocation, no message: this is the fault path.
 */
int ls_uffd_protect(int uffd, uint64_t start, uint64_t length, bool on, uint64_t *done);

int ls_uffd_wake(int uffd, uint64_t start, uint64_t length);

/* Turns the errno of a call on [start, +length) into an error of the right class. */
int ls_uffd_fail(struct ls_error *err, int sys, const char *what, uint64_t start, uint64_t length);

#endif
