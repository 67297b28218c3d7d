/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `livesnap-helper convert`: one request on standard input, events on standard output. */
#include <stdio.h>
#include <unistd.h>

#include "capture/convert.h"
#include "commands.h"
#include "common/alone.h"

int ls_cmd_convert(int argc, char **argv)
{
    if (argc != 1) {
        fprintf(stderr, "usage: livesnap-helper %s\nOne request is read from standard input.\n",
                argv[0]);
        return LS_USAGE;
    }
    if (ls_stand_alone() != 0)
        return LS_INTERNAL;
    return ls_convert_run(STDIN_FILENO, STDOUT_FILENO);
}
