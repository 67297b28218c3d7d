/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `faults`: prints the name of every fault point, one a line. Only in the build with LS_FAULTS. */
#include "commands.h"

#ifdef LS_FAULTS

#include <stdio.h>

#include "common/fault.h"

static void print_name(const char *name, void *opaque)
{
    fprintf(opaque, "%s\n", name);
}

int ls_cmd_faults(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    ls_fault_list(print_name, stdout);
    return LS_OK;
}

#endif
