/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Pauses KSM while RAM is protected (ksmd replaces protected pages by unprotected ones), and puts
 * it back afterwards, also when captures of several guests overlap and when some of them die.
 *
 * State lies in /run/livesnap/ksm: `lock` (flock), `was` (what /sys/kernel/mm/ksm/run held) and one
 * file for each holder, named <pid>-<start time>. KSM is put back when the last holder has let go
 * or is dead, unless somebody else has changed it meanwhile.
 */
#ifndef LS_COMMON_KSM_H
#define LS_COMMON_KSM_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/error.h"

/*
 * Process `holder` needs KSM to stand still. When it returns, ksmd is in no scan. `*paused` tells
 * whether there is something to let go of: false where KSM is not running and nobody paused it.
 */
int ls_ksm_pause(pid_t holder, bool *paused, struct ls_error *err);

/* Whether ksmd scans at present. */
bool ls_ksm_runs(void);

/* `holder` needs it no more (harmless if it never did). Drops the dead as well. */
int ls_ksm_resume(pid_t holder, struct ls_error *err);

/* Drops the holders that are dead, and puts KSM back if none is left: for guard and recovery. */
int ls_ksm_tidy(struct ls_error *err);

/* For tests: other places for the state and for KSM's switch. NULL: the real ones. */
void ls_ksm_places(const char *folder, const char *run);

#endif
