/* SPDX-License-Identifier: GPL-3.0-or-later */
/* KSM of this machine, switched on for a test, and hurried. */
#ifndef LS_TESTS_KSM_ON_H
#define LS_TESTS_KSM_ON_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* NULL, or why it cannot be. However this process ends, all is put back: a process of its own sees
 * to that. */
const char *ksm_on(void);
/* Lets it rest, or go on; unless a capture on this machine has paused it. */
void ksm_rest(bool rest);
/* Puts everything back. */
void ksm_off(void);

/* To be asked again and again. NULL if it has had its chance at a memory that was there from the
 * beginning on; or why not yet: it was switched by somebody else, or has too many others on this
 * machine to go through. */
const char *ksm_at_work(void);

/* How many pages of a process are merged now. */
uint64_t ksm_merged(pid_t pid);

#endif
