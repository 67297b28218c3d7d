/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * How the guard reaches the guest's monitor and its agent: by their sockets, or through libvirt.
 * Each try has a limit; what takes longer may still take effect, so the next try asks before it
 * does anything.
 */
#ifndef LS_GUARD_REACH_H
#define LS_GUARD_REACH_H

#include <stdbool.h>

#include "guard/agent.h"
#include "guard/peer.h"
#include "guard/qmp.h"
#include "guard/virsh.h"

struct ls_reach {
    bool freeze; /* the guest is going to be frozen: a thaw is due */
    char *qmp_socket;
    char *agent_socket;
    struct ls_virsh virsh; /* in place of both */
};

/* One try at the monitor. */
struct ls_try {
    struct ls_reach *reach;
    int64_t until;
    struct ls_qmp qmp; /* not connected where it goes through libvirt */
};

int ls_reach_open(struct ls_try *attempt, struct ls_reach *reach, struct ls_error *err);

/* The word of query-status, such as "running" or "paused", into `status`. */
int ls_reach_status(struct ls_try *attempt, char *status, size_t size, struct ls_error *err);

/* Lets the guest run. */
int ls_reach_cont(struct ls_try *attempt, struct ls_error *err);

void ls_reach_close(struct ls_try *attempt);

#define LS_AUTO_TRY __attribute__((cleanup(ls_reach_close)))
#define LS_TRY_NONE                                                                                \
    {                                                                                              \
        .qmp = {.wire = LS_WIRE_NONE }                                                             \
    }

/* As ls_agent_thaw, in one try. */
int ls_reach_thaw(struct ls_reach *reach, enum ls_thaw *outcome, struct ls_error *err);

/* Copies of the sockets with which `owner` holds the monitor or the agent: ls_peer_take_sockets.
 * Through libvirt there are none: it serves many clients. */
size_t ls_reach_take_sockets(const struct ls_reach *reach, const struct ls_peer *owner, pid_t qemu,
                             int *fds, size_t room);

/* How long an undo may take where nothing hangs, ms: virsh is started several times. */
int ls_reach_undo_ms(const struct ls_reach *reach);

void ls_reach_free(struct ls_reach *reach);

#endif
