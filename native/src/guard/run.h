/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Runs a program within a limit: killed with all its process group when the limit is over, and
 * never waited for any longer, even if it hangs in the kernel and does not die.
 */
#ifndef LS_GUARD_RUN_H
#define LS_GUARD_RUN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

/* What it may write to each of its outputs. */
#define LS_RUN_OUTPUT_MAX 65536
/* So many that do not die are left, and then no more are started until one of them has. */
#define LS_RUN_STRAYS_MAX 4

/* Programs that were killed and have not died; begins as zeros. */
struct ls_strays {
    pid_t pid[LS_RUN_STRAYS_MAX];
};

struct ls_run_output {
    size_t size;
    char text[LS_RUN_OUTPUT_MAX + 1]; /* with a NUL behind it */
};

struct ls_run_result {
    int status; /* as of waitpid() */
    struct ls_run_output out;
    struct ls_run_output err;
};

/*
 * argv[0] is the program's path. It gets /dev/null, two pipes and nothing else of this process, and
 * an environment of PATH and LC_ALL=C. One that cannot be executed says so on its standard error
 * and exits with 127. `until` is a moment of the monotonic clock. Reasons: timeout, too-long (it
 * was killed as well), stuck.
 */
int ls_run(const char *const argv[], struct ls_strays *strays, int64_t until,
           struct ls_run_result *result, struct ls_error *err);

#endif
