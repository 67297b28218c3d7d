/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `livesnap-helper guard`: makes this process one that outlives what it guards against. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commands.h"
#include "guard/guard.h"
#include "guard/log.h"

/* Standard streams that are closed would give their numbers to sockets: fills them. */
static int hold_standard_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            return -1;
    return 0;
}

int ls_cmd_guard(int argc, char **argv)
{
    struct sigaction ignore = {.sa_handler = SIG_IGN};

    if (argc != 1) {
        fprintf(stderr, "usage: livesnap-helper %s\nRequests are read from standard input.\n",
                argv[0]);
        return LS_USAGE;
    }
    if (hold_standard_streams() != 0)
        return LS_INTERNAL;
    /* A QMP or agent socket inherited from the owner would keep QEMU's single place for a client.
     */
    close_range(STDERR_FILENO + 1, ~0U, 0);
    sigaction(SIGPIPE, &ignore, NULL);
    sigaction(SIGHUP, &ignore, NULL);
    sigaction(SIGINT, &ignore, NULL);
    /* Inherited as ignored it would keep from the guard how its own children end. */
    signal(SIGCHLD, SIG_DFL);
    if (getsid(0) != getpid() && setsid() < 0)
        ls_log(LOG_WARNING, "cannot start a session: start the guard in one of its own");
    prctl(PR_SET_DUMPABLE, 0);
    umask(077);
    if (chdir("/") != 0)
        ls_log(LOG_WARNING, "cannot change to '/': %s", strerror(errno));
    return ls_guard_run(STDIN_FILENO, STDOUT_FILENO);
}
