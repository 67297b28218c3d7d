/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `livesnap-helper guard`: makes this process one that outlives what it guards against. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "commands.h"
#include "common/alone.h"
#include "guard/guard.h"
#include "guard/log.h"

int ls_cmd_guard(int argc, char **argv)
{
    if (argc != 1) {
        fprintf(stderr, "usage: livesnap-helper %s\nRequests are read from standard input.\n",
                argv[0]);
        return LS_USAGE;
    }
    if (ls_stand_alone() != 0)
        return LS_INTERNAL;
    /* Inherited as ignored it would keep from the guard how its own children end. */
    signal(SIGCHLD, SIG_DFL);
    if (getsid(0) != getpid() && setsid() < 0)
        ls_log(LOG_WARNING, "cannot start a session: start the guard in one of its own");
    prctl(PR_SET_DUMPABLE, 0);
    if (chdir("/") != 0)
        ls_log(LOG_WARNING, "cannot change to '/': %s", strerror(errno));
    return ls_guard_run(STDIN_FILENO, STDOUT_FILENO);
}
