/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "common/fault.h"

#ifdef LS_FAULTS

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum action { NONE, KILL, KILL_BOTH, STOP, SLEEP, FAIL };

/* Weak: a program without a single point has no such section. */
extern const char *const __start_ls_faults[] __attribute__((weak));
extern const char *const __stop_ls_faults[] __attribute__((weak));

static char chosen[64];
static enum action action;
static long sleep_ms;
/* Shared with children, so that "the second time" counts a child's passes too. */
static _Atomic long *passes_left;

void ls_fault_choose(const char *spec)
{
    char copy[128];
    char *save = NULL;
    char *name;
    char *what;
    char *count;

    action = NONE;
    if (!spec)
        return;
    if (!passes_left) {
        void *shared = mmap(NULL, sizeof *passes_left, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS, -1, 0);

        if (shared == MAP_FAILED)
            abort();
        passes_left = shared;
    }
    snprintf(copy, sizeof copy, "%s", spec);
    name = strtok_r(copy, ":", &save);
    what = strtok_r(NULL, ":", &save);
    count = strtok_r(NULL, ":", &save);
    if (!name || !what) {
        fprintf(stderr, "LIVESNAP_FAULT: '%s' is not name:action[:n]\n", spec);
        abort();
    }
    snprintf(chosen, sizeof chosen, "%s", name);
    /* relaxed: set before any thread or child that could pass a point exists */
    atomic_store_explicit(passes_left, count ? atol(count) : 1, memory_order_relaxed);
    if (strcmp(what, "kill") == 0) {
        action = KILL;
    } else if (strcmp(what, "killboth") == 0) {
        action = KILL_BOTH;
    } else if (strcmp(what, "stop") == 0) {
        action = STOP;
    } else if (strcmp(what, "error") == 0) {
        action = FAIL;
    } else if (strncmp(what, "sleep", 5) == 0) {
        action = SLEEP;
        sleep_ms = atol(what + 5);
    } else {
        fprintf(stderr, "LIVESNAP_FAULT: unknown action '%s'\n", what);
        abort();
    }
}

__attribute__((constructor)) static void choose_from_environment(void)
{
    ls_fault_choose(getenv("LIVESNAP_FAULT"));
}

bool ls_fault_pass(const char *name)
{
    if (action == NONE || strcmp(name, chosen) != 0)
        return false;
    /* relaxed: only the count itself is shared, nothing is published through it */
    if (atomic_fetch_sub_explicit(passes_left, 1, memory_order_relaxed) != 1)
        return false;
    switch (action) {
    case KILL_BOTH:
        kill(getppid(), SIGKILL);
        /* fallthrough */
    case KILL:
        kill(getpid(), SIGKILL);
        for (;;)
            pause();
    case STOP:
        kill(getpid(), SIGSTOP);
        return false;
    case SLEEP:
        nanosleep(&(struct timespec){sleep_ms / 1000, sleep_ms % 1000 * 1000000}, NULL);
        return false;
    default:
        return true;
    }
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

void ls_fault_list(void (*each)(const char *name, void *opaque), void *opaque)
{
    size_t count = (size_t)(__stop_ls_faults - __start_ls_faults);
    const char **names = calloc(count + 1, sizeof *names);

    if (!names)
        abort();
    if (count > 0)
        memcpy(names, __start_ls_faults, count * sizeof *names);
    qsort(names, count, sizeof *names, by_name);
    for (size_t i = 0; i < count; i++)
        if (i == 0 || strcmp(names[i], names[i - 1]) != 0)
            each(names[i], opaque);
    free(names);
}

#endif
