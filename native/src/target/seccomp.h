/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The seccomp filters of a stopped thread, and what they would say to a call. */
#ifndef LS_TARGET_SECCOMP_H
#define LS_TARGET_SECCOMP_H

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

struct ls_seccomp_filter {
    struct sock_filter *code;
    size_t length;
};

struct ls_seccomp {
    size_t count;
    struct ls_seccomp_filter *filters;
};

/* Fetches all filters of a thread that this process has stopped; none if its seccomp mode is 0.
 * Needs CAP_SYS_ADMIN. */
int ls_seccomp_fetch(pid_t tid, int mode, struct ls_seccomp *filters, struct ls_error *err);
void ls_seccomp_free(struct ls_seccomp *filters);

/* The verdict (SECCOMP_RET_*) of all filters together, as the kernel combines them. */
uint32_t ls_seccomp_verdict(const struct ls_seccomp *filters, const struct seccomp_data *data);

/* "kills the process" and so on, for messages. */
const char *ls_seccomp_word(uint32_t verdict);

#endif
