/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Log lines for the journal (identifier `livesnap`) and stderr, with guest and snapshot id in each.
 * Never blocks: a log daemon that hangs, or a pipe that nobody reads, costs the line and nothing
 * else. That is why it is not syslog(3).
 */
#ifndef LS_GUARD_LOG_H
#define LS_GUARD_LOG_H

#include <syslog.h>

/* Whose lines these are; the strings are copied. Before that, and with NULL, "-" is written. */
void ls_log_subject(const char *guest, const char *id);

/* Which part of the program speaks, a literal: "guard" unless said otherwise. */
void ls_log_part(const char *part);

/* One line; `level` is one of LOG_ERR, LOG_WARNING, LOG_NOTICE, LOG_INFO. */
void ls_log(int level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
