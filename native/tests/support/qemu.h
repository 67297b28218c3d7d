/* SPDX-License-Identifier: GPL-3.0-or-later */
/* A QEMU with nothing but firmware in it: its main thread waits in ppoll, a vCPU runs under TCG. */
#ifndef LS_TESTS_QEMU_H
#define LS_TESTS_QEMU_H

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

struct qemu {
    pid_t pid;
    int qmp;
    char dir[64];
};

/* False if there is no QEMU here. `sandboxed`: as user nobody with every sandbox option that
 * management software sets. */
bool qemu_start(struct qemu *q, bool sandboxed);
void qemu_stop(struct qemu *q);

/* The "return" of a command, which must succeed; the caller drops the reference. */
json_t *qemu_command(struct qemu *q, const char *json);
/* Text of a command of the human monitor; the caller frees it. */
char *qemu_hmp(struct qemu *q, const char *line);
/* Hands over a descriptor by getfd. */
void qemu_getfd(struct qemu *q, const char *name, int fd);
/* A thread that runs a vCPU. */
pid_t qemu_vcpu_thread(struct qemu *q);
/* Fails the test unless QMP answers and the guest is running. */
void qemu_goes_on(struct qemu *q);

#endif
