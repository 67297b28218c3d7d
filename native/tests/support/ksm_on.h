/* SPDX-License-Identifier: GPL-3.0-or-later */
/* KSM of this machine, switched on for a test, and hurried. */
#ifndef LS_TESTS_KSM_ON_H
#define LS_TESTS_KSM_ON_H

#include <stdint.h>
#include <sys/types.h>

/* NULL, or why it cannot be: it is not ours to switch. However this process ends, all is put back:
 * a process of its own sees to that. */
const char *ksm_on(void);
/* Puts everything back; what was merged is not merged any more. */
void ksm_off(void);

/* NULL if it has had its chance at a memory that was there from the beginning on; or why not: it
 * was paused by somebody else, or has too many others on this machine to go through. */
const char *ksm_at_work(void);

/* How many pages of a process are merged now. */
uint64_t ksm_merged(pid_t pid);

#endif
