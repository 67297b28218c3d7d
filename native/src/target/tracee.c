/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "target/tracee.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault.h"
#include "target/target.h"

/* How long to look for the end of a system call, before any other place will do. */
#define CALL_WAIT_US 50000
#define RETRY_US 1000
/* A stop inside a restartable sequence is tried again, this often. */
#define MAX_STOPS 2000
/* Not in every libc's header. */
#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif
#define EVENT_STOP 128 /* PTRACE_EVENT_STOP */
#define KERNEL_SIGSET 8

/* -1, with the class that errno of ptrace(2) or of /proc/PID/mem stands for. */
static int ptrace_failed(const struct ls_tracee *t, const char *what, struct ls_error *err)
{
    if (errno == ESRCH)
        return ls_fail(err, LS_GONE, "gone", "process %d ended while %s", (int)t->pid, what);
    return ls_fail_errno(err, LS_REFUSED, "ptrace", "%s of thread %d failed", what, (int)t->tid);
}

int ls_tracee_read(const struct ls_tracee *t, uint64_t address, void *buf, size_t size,
                   struct ls_error *err)
{
    if (pread(t->mem, buf, size, (off_t)address) == (ssize_t)size)
        return 0;
    return ls_fail_errno(err, LS_REFUSED, "memory", "cannot read %zu bytes at %#llx of process %d",
                         size, (unsigned long long)address, (int)t->pid);
}

int ls_tracee_write(const struct ls_tracee *t, uint64_t address, const void *buf, size_t size,
                    struct ls_error *err)
{
    if (pwrite(t->mem, buf, size, (off_t)address) == (ssize_t)size)
        return 0;
    return ls_fail_errno(err, LS_REFUSED, "memory", "cannot write %zu bytes at %#llx of process %d",
                         size, (unsigned long long)address, (int)t->pid);
}

/* ---- finding code ---- */

static int search_mapping(const struct ls_vma *vma, void *opaque)
{
    struct ls_tracee *t = opaque;
    size_t size = vma->end - vma->start;
    LS_AUTO_FREE uint8_t *text = NULL;
    ssize_t got;

    /* only what comes from a file and cannot be written to: never a translation buffer */
    if (!vma->executable || vma->writable || vma->shared || !vma->inode || vma->name[0] != '/' ||
        size > 256u << 20)
        return 0;
    text = malloc(size);
    if (!text)
        return 0;
    got = pread(t->mem, text, size, (off_t)vma->start);
    return got > 0 && ls_arch_find_code(text, (size_t)got, vma->start, &t->code);
}

static int search_libc(const struct ls_vma *vma, void *opaque)
{
    const char *base = strrchr(vma->name, '/');

    if (base && (strncmp(base, "/libc.", 6) == 0 || strncmp(base, "/libc-", 6) == 0 ||
                 strncmp(base, "/ld-musl", 8) == 0))
        return search_mapping(vma, opaque);
    return 0;
}

int ls_tracee_open(struct ls_tracee *t, pid_t pid, pid_t tid, struct ls_error *err)
{
    struct ls_tracee fresh = {.pid = pid, .tid = tid, .mem = -1};
    char path[64];

    *t = fresh;
    snprintf(path, sizeof path, "/proc/%d/mem", (int)pid);
    t->mem = open(path, O_RDWR | O_CLOEXEC);
    if (t->mem < 0 && errno == ENOENT)
        return ls_fail(err, LS_GONE, "gone", "process %d does not exist", (int)pid);
    if (t->mem < 0)
        return ls_fail_errno(err, LS_REFUSED, "permission",
                             "cannot open the memory of process %d; run the helper as root",
                             (int)pid);
    if (ls_proc_maps(pid, LS_MAPS, search_libc, t, err) != 0)
        return -1;
    if ((!t->code.call || !t->code.heal) && ls_proc_maps(pid, LS_MAPS, search_mapping, t, err) != 0)
        return -1;
    if (!t->code.call || !t->code.heal)
        return ls_fail(err, LS_REFUSED, "code",
                       "cannot attach to process %d: none of the program files it has mapped "
                       "holds the instructions needed to call from it",
                       (int)pid);
    return 0;
}

/* ---- stopping ---- */

/* Waits for the next stop. *sig is the signal (or SIGTRAP | 0x80 at a system call), *event the
 * PTRACE_EVENT. */
static int wait_stop(struct ls_tracee *t, int *sig, int *event, struct ls_error *err)
{
    int status;
    pid_t got;

    do {
        got = waitpid(t->tid, &status, __WALL);
    } while (got < 0 && errno == EINTR);
    if (got != t->tid || !WIFSTOPPED(status)) {
        t->stopped = t->parked = t->masked = false;
        return ls_fail(err, LS_GONE, "gone", "process %d ended while it was being attached to",
                       (int)t->pid);
    }
    t->stopped = true;
    *sig = WSTOPSIG(status);
    *event = status >> 16;
    return 0;
}

static int resume(struct ls_tracee *t, int request, int sig, struct ls_error *err)
{
    if (ptrace(request, t->tid, NULL, (void *)(intptr_t)sig) != 0)
        return ptrace_failed(t, "resuming", err);
    t->stopped = false;
    return 0;
}

/* One interrupt: from running to PTRACE_EVENT_STOP. */
static int interrupt(struct ls_tracee *t, struct ls_error *err)
{
    int sig;
    int event;

    if (ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL) != 0)
        return ptrace_failed(t, "interrupting", err);
    for (;;) {
        if (wait_stop(t, &sig, &event, err) != 0)
            return -1;
        if (event == EVENT_STOP)
            return 0;
        /* a signal on its way came first: it goes on to where it was going */
        if (resume(t, PTRACE_CONT, event == 0 ? sig : 0, err) != 0)
            return -1;
    }
}

/* Whether the thread was stopped inside a restartable sequence: the kernel aborts one that it
 * interrupts, but not one that it finds itself in the middle of after the registers were set. */
static bool in_rseq(const struct ls_tracee *t)
{
    struct {
        uint64_t address;
        uint32_t size;
        uint32_t signature;
        uint32_t flags;
        uint32_t pad;
    } config = {0};
    uint64_t descriptor = 0;
    struct ls_error ignored;

    if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, t->tid, sizeof config, &config) < 0 ||
        config.address == 0)
        return false;
    /* struct rseq: cpu_id_start, cpu_id, then the address of the sequence that runs, or 0 */
    if (ls_tracee_read(t, config.address + 8, &descriptor, sizeof descriptor, &ignored) != 0)
        return true;
    return descriptor != 0;
}

/* Whether an attacher that died has left the thread right before a call: what that call opens has
 * to be there before strays are looked for. */
static bool about_to_call(const struct ls_tracee *t)
{
    return ls_arch_thread_ip(t->thread) == t->code.call;
}

static int stop_well(struct ls_tracee *t, struct ls_error *err)
{
    uint64_t give_up = ls_now_us() + CALL_WAIT_US;

    for (int i = 0; i < MAX_STOPS; i++) {
        enum ls_arch_where where;

        t->since_us = ls_now_us();
        if (interrupt(t, err) != 0)
            return -1;
        if (ls_arch_thread_read(t->tid, &t->thread, &where, err) != 0)
            return -1;
        if (where == LS_IN_CALL || (ls_now_us() > give_up && !about_to_call(t) && !in_rseq(t)))
            return 0;
        ls_arch_thread_free(t->thread);
        t->thread = NULL;
        if (resume(t, PTRACE_CONT, 0, err) != 0)
            return -1;
        usleep(RETRY_US);
    }
    return ls_fail(err, LS_REFUSED, "busy", "thread %d never stopped where it can be attached to",
                   (int)t->tid);
}

int ls_tracee_stop(struct ls_tracee *t, struct ls_error *err)
{
    struct ls_proc_status status;

    if (LS_FAULT("attach.seize.before"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    /* never PTRACE_O_EXITKILL: the target has to outlive us */
    if (ptrace(PTRACE_SEIZE, t->tid, NULL, (void *)(uintptr_t)PTRACE_O_TRACESYSGOOD) != 0)
        return ptrace_failed(t, "seizing", err);
    if (LS_FAULT("attach.seize.after"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    if (stop_well(t, err) != 0)
        return -1;
    if (LS_FAULT("attach.stopped"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    if (ls_proc_status(t->pid, t->tid, &status, err) != 0)
        return -1;
    return ls_seccomp_fetch(t->tid, status.seccomp, &t->filters, err);
}

/* ---- parking ---- */

int ls_tracee_park(struct ls_tracee *t, struct ls_error *err)
{
    const uint64_t all = ~0ull;
    const uint8_t *frame;
    uint64_t address;
    size_t size;

    if (ptrace(PTRACE_GETSIGMASK, t->tid, KERNEL_SIGSET, &t->mask) != 0)
        return ptrace_failed(t, "reading the signal mask", err);
    if (ls_arch_frame(t->thread, &t->code, t->mask, LS_SCRATCH, &frame, &size, &address,
                      &t->scratch, err) != 0)
        return -1;
    if (LS_FAULT("attach.frame.before"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    if (ls_tracee_write(t, address, frame, size, err) != 0)
        return ls_context(err, "no room for a signal frame on the stack");
    if (LS_FAULT("attach.frame.written"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    if (ls_arch_park(t->tid, t->thread, &t->code) != 0)
        return ptrace_failed(t, "setting the registers", err);
    t->parked = true;
    if (LS_FAULT("attach.parked"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    if (ptrace(PTRACE_SETSIGMASK, t->tid, KERNEL_SIGSET, &all) != 0)
        return ptrace_failed(t, "setting the signal mask", err);
    t->masked = true;
    if (LS_FAULT("attach.masked"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    return 0;
}

/* ---- calls ---- */

/* Runs the thread to its next entry into or exit from a system call. */
static int to_syscall_stop(struct ls_tracee *t, struct ls_error *err)
{
    int sig = 0;
    int event = 0;

    for (;;) {
        /* SIGSTOP cannot be masked: it takes effect, for all threads but this one, which joins them
         * when it is let go */
        if (resume(t, PTRACE_SYSCALL, event == 0 && sig == SIGSTOP ? sig : 0, err) != 0)
            return -1;
        if (wait_stop(t, &sig, &event, err) != 0)
            return -1;
        if (sig == (SIGTRAP | 0x80))
            return 0;
        if (event == 0 && sig != SIGSTOP)
            return ls_fail(err, LS_INTERNAL, "signal",
                           "thread %d got signal %d in the middle of an injected call", (int)t->tid,
                           sig);
    }
}

static bool pass_point(const char *point, const char *step)
{
    char name[96];

    snprintf(name, sizeof name, "%s.%s", point, step);
    return ls_fault_pass(name);
}

int ls_tracee_call(struct ls_tracee *t, const char *point, enum ls_arch_call call,
                   const uint64_t args[6], int64_t *result, struct ls_error *err)
{
    struct seccomp_data data;
    uint32_t verdict;

    if (pass_point(point, "before"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    ls_arch_seccomp_data(call, args, &t->code, &data);
    verdict = ls_seccomp_verdict(&t->filters, &data);
    if (verdict != SECCOMP_RET_ALLOW)
        return ls_fail(err, LS_REFUSED, "seccomp",
                       "cannot attach to process %d: its seccomp filter %s when it calls %s",
                       (int)t->pid, ls_seccomp_word(verdict), ls_arch_call_names[call]);
    if (ls_arch_prepare_call(t->tid, t->thread, &t->code, call, args) != 0)
        return ptrace_failed(t, "setting the registers", err);
    if (pass_point(point, "prepared"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    if (to_syscall_stop(t, err) != 0)
        return -1;
    t->entered = true;
    if (pass_point(point, "entered"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    if (to_syscall_stop(t, err) != 0)
        return -1;
    t->entered = false;
    if (ls_arch_result(t->tid, result) != 0)
        return ptrace_failed(t, "reading the result", err);
    /* at once, so that a result which looks like an interrupted call is never taken for one */
    if (ls_arch_park(t->tid, t->thread, &t->code) != 0)
        return ptrace_failed(t, "setting the registers", err);
    if (pass_point(point, "returned"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    return 0;
}

/* ---- leaving ---- */

void ls_tracee_leave(struct ls_tracee *t, unsigned *stood_still_us)
{
    struct ls_error ignored;

    if (!t->stopped)
        return;
    /* a call that was entered is finished first: it cannot be taken back without a seccomp filter
     * seeing a call number of -1; if that fails, the frame heals the thread */
    if (t->entered && to_syscall_stop(t, &ignored) != 0) {
        if (t->stopped)
            ptrace(PTRACE_DETACH, t->tid, NULL, NULL);
        t->stopped = false;
        return;
    }
    t->entered = false;
    /* until the registers are back, the frame would heal the thread, whatever its mask */
    if (t->masked)
        ptrace(PTRACE_SETSIGMASK, t->tid, KERNEL_SIGSET, &t->mask);
    t->masked = false;
    (void)LS_FAULT("attach.leave.unmasked");
    if (t->parked)
        ls_arch_restore(t->tid, t->thread);
    t->parked = false;
    (void)LS_FAULT("attach.leave.restored");
    ptrace(PTRACE_DETACH, t->tid, NULL, NULL);
    t->stopped = false;
    if (stood_still_us)
        *stood_still_us = (unsigned)(ls_now_us() - t->since_us);
    (void)LS_FAULT("attach.leave.detached");
}

void ls_tracee_close(struct ls_tracee *t)
{
    ls_tracee_leave(t, NULL);
    ls_arch_thread_free(t->thread);
    ls_seccomp_free(&t->filters);
    if (t->mem >= 0)
        close(t->mem);
    t->thread = NULL;
    t->mem = -1;
}
