/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Steps of the attacher, each on a stopped and (but for the first) parked thread. */
#ifndef LS_TARGET_ATTACHER_H
#define LS_TARGET_ATTACHER_H

#include "target/attach.h"

/* LS_REFUSED, reason "seccomp", names the calls that the target's filters do not allow. */
int ls_attach_check_filters(const struct ls_tracee *t, enum ls_attach_how how, bool have_device,
                            struct ls_error *err);

/* Closes what an earlier attempt left in the target. */
int ls_attach_tidy(struct ls_tracee *t, struct ls_error *err);

/* Gets a userfaultfd of the target; all that was opened there for it is closed again. With `theirs`
 * the userfaultfd itself is not: its number there. */
int ls_attach_in_target(struct ls_tracee *t, enum ls_attach_how how, int *uffd, int *theirs,
                        struct ls_error *err);

/* Closes a userfaultfd of the target; nothing if it has another descriptor of that number. */
int ls_attach_return(struct ls_tracee *t, int theirs, struct ls_error *err);

#endif
