/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Attaching with a fault at one point, in a process that plays the helper. FAULTS builds only. */
#ifndef LS_TESTS_POINTS_H
#define LS_TESTS_POINTS_H

#ifdef LS_FAULTS

#include <stdbool.h>
#include <sys/types.h>

/* The ways to a userfaultfd; the last one hides /dev/userfaultfd from the helper, as old kernels
 * do. */
enum way { WAY_DEVICE, WAY_INJECT, WAY_SYSCALL, WAYS };
extern const char *const way_names[WAYS];

/* Calls `each` for every point of attaching that is on this way, by name. */
void points_each(enum way way, void (*each)(const char *point, void *opaque), void *opaque);

/* Attaches with `action` at `point` and returns the helper's wait status: it exits with 0 if it got
 * a userfaultfd. Counts the point as tested. */
int points_attach(pid_t pid, enum way way, const char *point, const char *action);

/* Fails the test if a point on the list was never tested; prints how often any was. */
void points_all_tested(void);

#endif
#endif
