/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `livesnap-helper capture`: requests on standard input, events on standard output. */
#include <stdio.h>
#include <unistd.h>

#include "capture/keeper.h"
#include "commands.h"
#include "common/alone.h"

int ls_cmd_capture(int argc, char **argv)
{
    if (argc != 1) {
        fprintf(stderr, "usage: livesnap-helper %s\nRequests are read from standard input.\n",
                argv[0]);
        return LS_USAGE;
    }
    if (ls_stand_alone() != 0)
        return LS_INTERNAL;
    return ls_keeper_run(STDIN_FILENO, STDOUT_FILENO);
}
