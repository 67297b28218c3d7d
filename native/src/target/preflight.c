/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Why attaching would not work, as far as it can be known beforehand. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "target/attach.h"

#define CAP_SYS_PTRACE_BIT 19
#define TRACED_WAIT_US 300000
#define TRACED_STEP_US 5000

struct reasons {
    void (*each)(const char *reason, const char *message, void *opaque);
    void *opaque;
};

__attribute__((format(printf, 3, 4))) static void say(const struct reasons *r, const char *reason,
                                                      const char *format, ...)
{
    char message[400];
    va_list ap;

    va_start(ap, format);
    vsnprintf(message, sizeof message, format, ap);
    va_end(ap);
    r->each(reason, message, r->opaque);
}

bool ls_have_cap_sys_ptrace(void)
{
    FILE *file = fopen("/proc/self/status", "re");
    uint64_t caps = 0;
    char line[256];

    if (!file)
        return false;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "CapEff: %" SCNx64, &caps) == 1)
            break;
    fclose(file);
    return caps >> CAP_SYS_PTRACE_BIT & 1;
}

int ls_yama_scope(void)
{
    FILE *file = fopen("/proc/sys/kernel/yama/ptrace_scope", "re");
    int scope = 0;

    if (!file)
        return 0;
    if (fscanf(file, "%d", &scope) != 1)
        scope = 0;
    fclose(file);
    return scope;
}

bool ls_have_pidfd_getfd(void)
{
    return !(ls_pidfd_getfd(-1, 0) < 0 && errno == ENOSYS);
}

static void host_reasons(const struct reasons *r)
{
    if (!ls_arch_supported)
        say(r, "arch", "this architecture (%s) is not supported: only x86_64 is", ls_arch_name);
    if (ls_yama_scope() >= 3)
        say(r, "yama",
            "the kernel forbids ptrace for good (kernel.yama.ptrace_scope is %d); it takes a "
            "reboot with a value below 3",
            ls_yama_scope());
    if (!ls_have_cap_sys_ptrace())
        say(r, "capability", "this process has no CAP_SYS_PTRACE; run the helper as root");
    if (!ls_have_pidfd_getfd())
        say(r, "pidfd_getfd", "the kernel has no pidfd_getfd; it takes Linux 5.6 or newer");
}

int ls_attach_reasons(pid_t pid, pid_t tid,
                      void (*each)(const char *reason, const char *message, void *opaque),
                      void *opaque, struct ls_error *err)
{
    const struct reasons r = {each, opaque};
    struct ls_proc_status status;

    if (ls_proc_status(pid, tid, &status, err) != 0)
        return -1;
    if (status.state == 'Z' || status.state == 'X')
        return ls_fail(err, LS_GONE, "gone", "process %d ended", (int)pid);
    host_reasons(&r);
    if (status.tracer)
        say(&r, "traced", "process %d is traced by process %d already (a debugger?)", (int)pid,
            (int)status.tracer);
    else if (status.state == 'T' || status.state == 't')
        say(&r, "stopped", "process %d is stopped by a signal; continue it with SIGCONT", (int)pid);
    if (status.shadow_stack)
        say(&r, "shadow_stack",
            "process %d runs with a shadow stack (CET), over which no frame can be put", (int)pid);
    if (status.seccomp == 1)
        say(&r, "seccomp", "process %d runs in seccomp's strict mode, which would kill it",
            (int)pid);
    return 0;
}

struct first {
    bool any;
    struct ls_error err;
};

static void keep_first(const char *reason, const char *message, void *opaque)
{
    struct first *first = opaque;

    if (!first->any)
        ls_fail(&first->err, LS_REFUSED, reason, "cannot attach: %s", message);
    first->any = true;
}

static int static_preflight(pid_t pid, pid_t tid, struct ls_error *err)
{
    struct first first;

    for (int waited = 0;; waited += TRACED_STEP_US) {
        first = (struct first){0};
        if (ls_attach_reasons(pid, tid, keep_first, &first, err) != 0)
            return -1;
        if (!first.any)
            return 0;
        /* an attacher that was killed this moment has not quite let go yet */
        if (strcmp(first.err.reason, "traced") != 0 || waited >= TRACED_WAIT_US)
            break;
        usleep(TRACED_STEP_US);
    }
    *err = first.err;
    return -1;
}

/* The thread that is stopped: the main one. Tests of the build with fault points choose others. */
static pid_t thread_of(pid_t pid)
{
#ifdef LS_FAULTS
    const char *chosen = getenv("LIVESNAP_ATTACH_THREAD");

    if (chosen)
        return atoi(chosen);
#endif
    return pid;
}

int ls_attach_preflight(pid_t pid, struct ls_error *err)
{
    pid_t tid = thread_of(pid);
    struct ls_attach_outcome outcome = {0};
    struct ls_proc_status status;

    if (static_preflight(pid, tid, err) != 0 || ls_proc_status(pid, tid, &status, err) != 0)
        return -1;
    if (status.seccomp == 0)
        return 0;
    if (ls_attach_run(pid, tid, LS_JOB_CHECK, LS_ATTACH_DEVICE, &outcome, err) != 0)
        return -1;
    return ls_attach_refuse_calls(pid, outcome.refused, err);
}

static int attach(pid_t pid, enum ls_attach_job job, enum ls_attach_how how,
                  struct ls_attach_outcome *outcome, struct ls_error *err)
{
    pid_t tid = thread_of(pid);

    return static_preflight(pid, tid, err) != 0 ||
                   ls_attach_run(pid, tid, job, how, outcome, err) != 0
               ? -1
               : 0;
}

int ls_attach_userfaultfd(pid_t pid, enum ls_attach_how how, struct ls_attach_result *out,
                          struct ls_error *err)
{
    struct ls_attach_outcome outcome = {0};

    if (attach(pid, LS_JOB_ATTACH, how, &outcome, err))
        return -1;
    *out = (struct ls_attach_result){outcome.uffd, outcome.stood_still_us};
    return 0;
}

int ls_attach_lend(pid_t pid, int *uffd, int *theirs, struct ls_error *err)
{
    struct ls_attach_outcome outcome = {0};

    if (attach(pid, LS_JOB_LEND, LS_ATTACH_INJECT, &outcome, err))
        return -1;
    *uffd = outcome.uffd;
    *theirs = outcome.theirs;
    return 0;
}

int ls_attach_take_back(pid_t pid, int theirs, struct ls_error *err)
{
    struct ls_attach_outcome outcome = {.theirs = theirs};

    return attach(pid, LS_JOB_RETURN, LS_ATTACH_INJECT, &outcome, err);
}
