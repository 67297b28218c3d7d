/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A guest of libvirt's, by its program virsh: libvirt takes back its disk leases before the guest
 * runs, and knows that it does, which a `cont` behind its back would spoil. `until` bounds each
 * call. Reasons, beside those of ls_run: virsh (it failed; the message has its last line).
 */
#ifndef LS_GUARD_VIRSH_H
#define LS_GUARD_VIRSH_H

#include "guard/agent.h"
#include "guard/run.h"

struct ls_virsh {
    char *program; /* its path; NULL where the guest is not reached through libvirt */
    char *uri;
    char *domain; /* UUID */
    struct ls_strays strays;
};

/* query-status's "status", as QEMU says it. */
int ls_virsh_status(struct ls_virsh *virsh, char *status, size_t size, int64_t until,
                    struct ls_error *err);

/* Resumes the domain. */
int ls_virsh_cont(struct ls_virsh *virsh, int64_t until, struct ls_error *err);

/* As ls_agent_thaw. */
int ls_virsh_thaw(struct ls_virsh *virsh, int64_t until, enum ls_thaw *outcome,
                  struct ls_error *err);

void ls_virsh_free(struct ls_virsh *virsh);

#endif
