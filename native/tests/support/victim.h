/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A process to attach to, whose main thread does one thing over and over and checks each time that
 * nothing was changed behind its back: general registers, AVX registers, rounding mode, signal
 * mask, the call's result.
 */
#ifndef LS_TESTS_VICTIM_H
#define LS_TESTS_VICTIM_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

enum victim_kind {
    VICTIM_PPOLL, /* for ever, woken by a byte in a pipe; its own signal mask */
    VICTIM_POLL,  /* with a time limit: restart_syscall */
    VICTIM_READ,  /* of a pipe */
    VICTIM_FUTEX, /* with a time limit */
    VICTIM_NANOSLEEP,
    VICTIM_SIGTIMEDWAIT,
    VICTIM_SIGSUSPEND,
    VICTIM_EPOLL,
    VICTIM_BUSY,     /* integer arithmetic */
    VICTIM_BUSY_AVX, /* a sum in YMM registers */
    VICTIM_KINDS,
};
extern const char *const victim_names[VICTIM_KINDS];

struct victim_state {
    _Atomic int ready;
    _Atomic long rounds;
    _Atomic long signals; /* of SIGRTMIN, that its handler saw */
    _Atomic int fed;      /* futex word */
    _Atomic int stop;
    char complaint[256]; /* of the first round that went wrong */
    _Atomic int failed;
};

struct victim {
    pid_t pid;
    struct victim_state *state; /* shared with it */
    void *region;               /* address of 64 KiB that only it has */
};

/* Starts one; `device`: it holds /dev/userfaultfd as if by getfd. */
void victim_start(struct victim *v, enum victim_kind kind, int device);
/* Ends it, and fails the test if it had a complaint. */
void victim_stop(struct victim *v);
/* Waits until it has done `rounds` more; fails the test if it complains or stands still. */
void victim_goes_on(struct victim *v, long rounds);

/* Descriptors of a process as one sorted line of text: numbers and what they are. The caller frees
 * it. */
char *descriptors_of(pid_t pid);

#endif
