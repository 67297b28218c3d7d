/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The guard's life: requests come as lines of JSON on `in`, events go to `out`.
 *
 *     idle --bracket--> bracket --running--> running --(keeper gone)--> end
 *
 * idle: the end of `in` ends the guard. bracket: the end of `in`, the owner's death, SIGTERM or the
 * deadline undoes the bracket. running: only the keeper is watched. "quit" ends it at any time.
 */
#ifndef LS_GUARD_GUARD_H
#define LS_GUARD_GUARD_H

/* The exit code of a guard that had something to undo, beside those of enum ls_class. */
#define LS_GUARD_UNDID 10

int ls_guard_run(int in, int out);

#endif
