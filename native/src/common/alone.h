/* SPDX-License-Identifier: GPL-3.0-or-later */
/* A process that goes on whatever becomes of the one that started it. */
#ifndef LS_COMMON_ALONE_H
#define LS_COMMON_ALONE_H

/*
 * Keeps nothing of the owner's but the standard streams, ignores what its end sends (SIGPIPE,
 * SIGHUP, SIGINT), and makes files for itself alone. -1: a standard stream that was closed could
 * not be filled.
 */
int ls_stand_alone(void);

#endif
