/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "guard/reach.h"

#include <stdlib.h>

#include "common/clock.h"

/* Limits of one try, ms. */
#define MONITOR_MS 3000
#define THAW_MS 2000
/* libvirt's daemon may be starting anew. */
#define VIRSH_MS 5000

static bool by_libvirt(const struct ls_reach *reach)
{
    return reach->virsh.program != NULL;
}

int ls_reach_open(struct ls_try *attempt, struct ls_reach *reach, struct ls_error *err)
{
    attempt->reach = reach;
    attempt->until = ls_now_ms() + (by_libvirt(reach) ? VIRSH_MS : MONITOR_MS);
    if (by_libvirt(reach))
        return 0;
    return ls_qmp_open(&attempt->qmp, reach->qmp_socket, attempt->until, err);
}

int ls_reach_status(struct ls_try *attempt, char *status, size_t size, struct ls_error *err)
{
    if (by_libvirt(attempt->reach))
        return ls_virsh_status(&attempt->reach->virsh, status, size, attempt->until, err);
    return ls_qmp_status(&attempt->qmp, status, size, attempt->until, err);
}

int ls_reach_cont(struct ls_try *attempt, struct ls_error *err)
{
    if (by_libvirt(attempt->reach))
        return ls_virsh_cont(&attempt->reach->virsh, attempt->until, err);
    return ls_qmp_execute(&attempt->qmp, "cont", NULL, attempt->until, NULL, err);
}

void ls_reach_close(struct ls_try *attempt)
{
    ls_qmp_close(&attempt->qmp);
}

int ls_reach_thaw(struct ls_reach *reach, enum ls_thaw *outcome, struct ls_error *err)
{
    if (by_libvirt(reach))
        return ls_virsh_thaw(&reach->virsh, ls_now_ms() + VIRSH_MS, outcome, err);
    return ls_agent_thaw(reach->agent_socket, ls_now_ms() + THAW_MS, outcome, err);
}

size_t ls_reach_take_sockets(const struct ls_reach *reach, const struct ls_peer *owner, pid_t qemu,
                             int *fds, size_t room)
{
    const char *const paths[2] = {reach->qmp_socket, reach->agent_socket};

    return by_libvirt(reach) ? 0 : ls_peer_take_sockets(owner, qemu, paths, fds, room);
}

int ls_reach_undo_ms(const struct ls_reach *reach)
{
    return by_libvirt(reach) ? 1000 : 500;
}

void ls_reach_free(struct ls_reach *reach)
{
    free(reach->qmp_socket);
    free(reach->agent_socket);
    ls_virsh_free(&reach->virsh);
}
