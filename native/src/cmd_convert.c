/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `livesnap-helper convert`: one request on standard input, events on standard output. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "capture/convert.h"
#include "commands.h"

int ls_cmd_convert(int argc, char **argv)
{
    if (argc != 1) {
        fprintf(stderr, "usage: livesnap-helper %s\nOne request is read from standard input.\n",
                argv[0]);
        return LS_USAGE;
    }
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            return LS_INTERNAL;
    close_range(STDERR_FILENO + 1, ~0u, 0);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    umask(077);
    return ls_convert_run(STDIN_FILENO, STDOUT_FILENO);
}
