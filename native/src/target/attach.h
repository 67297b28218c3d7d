/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The parts of attaching, for one another, `features` and tests; the interface is target.h. */
#ifndef LS_TARGET_ATTACH_H
#define LS_TARGET_ATTACH_H

#include "target/target.h"
#include "target/tracee.h"

enum ls_attach_job {
    LS_JOB_CHECK,  /* only ask the seccomp filters */
    LS_JOB_TIDY,   /* only close what an earlier attempt left */
    LS_JOB_ATTACH, /* get a userfaultfd */
    LS_JOB_LEND,   /* the same, and leave it open in the target */
    LS_JOB_RETURN, /* close the one that was left open */
};

struct ls_attach_outcome {
    int uffd;                /* LS_JOB_ATTACH and LS_JOB_LEND, else -1 */
    int theirs;              /* LS_JOB_LEND: its number in the target; LS_JOB_RETURN: asked for */
    unsigned stood_still_us; /* how long the thread was stopped */
    unsigned refused;        /* LS_JOB_CHECK: the calls that its filters refuse, see below */
};

/* Does `job` in a child process, on thread `tid` of `pid`. `out` may be NULL for LS_JOB_TIDY. */
int ls_attach_run(pid_t pid, pid_t tid, enum ls_attach_job job, enum ls_attach_how how,
                  struct ls_attach_outcome *out, struct ls_error *err);

/* What can be known without stopping the target: calls `each` for every reason why attaching is
 * not possible. -1 only if the target does not exist. */
int ls_attach_reasons(pid_t pid, pid_t tid,
                      void (*each)(const char *reason, const char *message, void *opaque),
                      void *opaque, struct ls_error *err);

/* Which calls the target's filters refuse; bit n stands for enum ls_arch_call n. */
unsigned ls_attach_refused_calls(const struct ls_tracee *t, enum ls_attach_how how,
                                 bool have_device);

/* LS_REFUSED, reason "seccomp", naming the calls of such a set; 0 if it is empty. */
int ls_attach_refuse_calls(pid_t pid, unsigned refused, struct ls_error *err);

/* ---- descriptors of the target ---- */

/* /dev/userfaultfd: its device number, or 0 if this kernel has none. */
dev_t ls_uffd_device(void);

/* /dev/userfaultfd, open with flags that mark it as ours wherever it is found; -1 and errno. */
int ls_uffd_device_open(void);

/* A descriptor of the target for /dev/userfaultfd that is not marked, or -1. */
int ls_target_find_device(pid_t pid, dev_t device);

/* Whether a descriptor of the target is a userfaultfd. */
bool ls_target_has_uffd(pid_t pid, int fd);

/* What an attacher that died left in the target: the numbers, at most `max`; returns how many. */
size_t ls_target_strays(pid_t pid, int *fds, size_t max);

/* ---- what this host and this process may ---- */

bool ls_have_cap_sys_ptrace(void);
int ls_yama_scope(void); /* 0 where there is no Yama */
bool ls_have_pidfd_getfd(void);

int ls_pidfd_open(pid_t pid);
int ls_pidfd_getfd(int pidfd, int fd);

#endif
