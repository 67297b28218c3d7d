/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * One thread of another process, stopped by ptrace(2) and made to run system calls. Used by the
 * short-lived attacher only: whoever dies with a tracee lets it go, and it heals (arch/).
 */
#ifndef LS_TARGET_TRACEE_H
#define LS_TARGET_TRACEE_H

#include <stdint.h>
#include <sys/types.h>

#include "arch/arch.h"
#include "common/error.h"
#include "target/seccomp.h"

/* Bytes of the target's stack for arguments of calls. */
#define LS_SCRATCH 512

struct ls_tracee {
    pid_t pid;
    pid_t tid;
    int mem; /* /proc/PID/mem */
    struct ls_arch_code code;
    struct ls_seccomp filters;
    struct ls_arch_thread *thread;
    uint64_t mask;    /* signals that the thread had blocked */
    uint64_t scratch; /* address of LS_SCRATCH bytes */
    bool stopped;     /* ptrace may be asked about it */
    bool parked;      /* its registers are ours */
    bool entered;     /* it is inside an injected call */
    bool masked;      /* its signal mask is ours */
    uint64_t since_us;
};

/* Opens the target's memory and finds the code; the target does not notice. */
int ls_tracee_open(struct ls_tracee *t, pid_t pid, pid_t tid, struct ls_error *err);

/* Stops the thread, best at the end of a system call, and reads its seccomp filters. */
int ls_tracee_stop(struct ls_tracee *t, struct ls_error *err);

/* Parks the stopped thread over its healing frame and keeps signals queued. */
int ls_tracee_park(struct ls_tracee *t, struct ls_error *err);

/* Makes the parked thread call, after its filters have been asked. *result is the value or -errno.
 * `point` is the start of the names of the fault points passed on the way. */
int ls_tracee_call(struct ls_tracee *t, const char *point, enum ls_arch_call call,
                   const uint64_t args[6], int64_t *result, struct ls_error *err);

/* Declares the fault points of a call and makes it: `point` must be a literal. */
#define LS_TRACEE_CALL(t, point, call, args, result, err)                                          \
    ({                                                                                             \
        LS_FAULT_DECLARE("attach." point ".before");                                               \
        LS_FAULT_DECLARE("attach." point ".prepared");                                             \
        LS_FAULT_DECLARE("attach." point ".entered");                                              \
        LS_FAULT_DECLARE("attach." point ".returned");                                             \
        ls_tracee_call(t, "attach." point, call, args, result, err);                               \
    })

/* The thread goes on as if nothing had been. Best effort: whatever fails, the frame heals it.
 * *stood_still_us, if not NULL: since the stop. */
void ls_tracee_leave(struct ls_tracee *t, unsigned *stood_still_us);

/* Frees what ls_tracee_open took. Leaves first if need be. */
void ls_tracee_close(struct ls_tracee *t);

int ls_tracee_read(const struct ls_tracee *t, uint64_t address, void *buf, size_t size,
                   struct ls_error *err);
int ls_tracee_write(const struct ls_tracee *t, uint64_t address, const void *buf, size_t size,
                    struct ls_error *err);

#endif
