/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "target/seccomp.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/ptrace.h>

#include "target/cbpf.h"

/* Not in every libc's header. */
#ifndef PTRACE_SECCOMP_GET_FILTER
#define PTRACE_SECCOMP_GET_FILTER 0x420c
#endif

/* The kernel's own limit on the length of a path of filters is 32768 instructions. */
#define MAX_FILTERS 4096

static int fetch_one(pid_t tid, size_t index, struct ls_seccomp_filter *filter)
{
    long length = ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, NULL);

    if (length < 0)
        return -1;
    filter->code = calloc((size_t)length + 1, sizeof *filter->code);
    if (!filter->code)
        return -1;
    filter->length = (size_t)length;
    if (ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, filter->code) != length) {
        free(filter->code);
        return -1;
    }
    return 0;
}

int ls_seccomp_fetch(pid_t tid, int mode, struct ls_seccomp *filters, struct ls_error *err)
{
    struct ls_seccomp found = {0};

    if (mode == SECCOMP_MODE_STRICT)
        return ls_fail(err, LS_REFUSED, "seccomp",
                       "cannot attach to thread %d: it runs in seccomp's strict mode, which would "
                       "kill it",
                       (int)tid);
    if (mode == 0) {
        *filters = found;
        return 0;
    }
    for (; found.count < MAX_FILTERS; found.count++) {
        void *more = realloc(found.filters, (found.count + 1) * sizeof *found.filters);

        if (more) {
            found.filters = more;
            if (fetch_one(tid, found.count, &found.filters[found.count]) == 0)
                continue;
        }
        break;
    }
    /* ENOENT: there is no filter of this number, so all are known */
    if (found.count == 0 || found.count == MAX_FILTERS || errno != ENOENT) {
        ls_fail_errno(err, LS_REFUSED, "seccomp",
                      "cannot read the seccomp filters of thread %d (needs CAP_SYS_ADMIN and a "
                      "kernel with CONFIG_CHECKPOINT_RESTORE)",
                      (int)tid);
        ls_seccomp_free(&found);
        return -1;
    }
    *filters = found;
    return 0;
}

void ls_seccomp_free(struct ls_seccomp *filters)
{
    for (size_t i = 0; i < filters->count; i++)
        free(filters->filters[i].code);
    free(filters->filters);
    *filters = (struct ls_seccomp){0};
}

uint32_t ls_seccomp_verdict(const struct ls_seccomp *filters, const struct seccomp_data *data)
{
    uint32_t worst = SECCOMP_RET_ALLOW;

    for (size_t i = 0; i < filters->count; i++) {
        uint32_t verdict;

        if (ls_cbpf_run(filters->filters[i].code, filters->filters[i].length, data, &verdict) != 0)
            return SECCOMP_RET_KILL_PROCESS;
        /* the kernel compares actions as signed numbers: KILL_PROCESS is the least of all */
        if ((int32_t)(verdict & SECCOMP_RET_ACTION_FULL) <
            (int32_t)(worst & SECCOMP_RET_ACTION_FULL))
            worst = verdict;
    }
    return worst;
}

const char *ls_seccomp_word(uint32_t verdict)
{
    switch (verdict & SECCOMP_RET_ACTION_FULL) {
    case SECCOMP_RET_ALLOW:
        return "allows it";
    case SECCOMP_RET_LOG:
        return "logs it";
    case SECCOMP_RET_TRACE:
        return "asks a tracer";
    case SECCOMP_RET_USER_NOTIF:
        return "asks a supervisor";
    case SECCOMP_RET_ERRNO:
        return "denies it with an error";
    case SECCOMP_RET_TRAP:
        return "answers it with SIGSYS";
    case SECCOMP_RET_KILL_THREAD:
        return "kills the thread";
    default:
        return "kills the process";
    }
}
