/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture/kind.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

void ls_kind_thread(int nice)
{
    setpriority(PRIO_PROCESS, 0, nice); /* in Linux, of a thread */
}

void ls_kind_group(int nice)
{
    int fd = open("/proc/self/autogroup", O_WRONLY | O_CLOEXEC);

    if (fd < 0)
        return; /* the kernel has no autogroups */
    if (dprintf(fd, "%d", nice) < 0)
        errno = 0; /* nothing depends on it */
    close(fd);
}
