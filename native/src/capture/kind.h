/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Guests come first: what nobody waits for takes a tenth of a busy CPU, not nothing. What a guest
 * waits for takes all it can get. To be urgent again needs CAP_SYS_NICE; without it, one stays
 * kind.
 */
#ifndef LS_CAPTURE_KIND_H
#define LS_CAPTURE_KIND_H

#define LS_KIND 10 /* a nice value; 0 is urgent */

/* Of the calling thread alone, and those that it starts. */
void ls_kind_thread(int nice);

/* Of the session, which is the helper's own: niceness counts within an autogroup only, and that is
 * a session. */
void ls_kind_group(int nice);

#endif
