/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "common/alone.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

int ls_stand_alone(void)
{
    /* Closed standard streams would give their numbers to files and sockets of ours. */
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            return -1;
    /* A QMP or agent socket of the owner's would keep QEMU's single place for a client. */
    close_range(STDERR_FILENO + 1, ~0U, 0);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    umask(077);
    return 0;
}
