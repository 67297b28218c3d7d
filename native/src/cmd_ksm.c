/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `livesnap-helper ksm`: recovery's way to put KSM back after captures that died. */
#include <stdio.h>

#include "commands.h"
#include "common/ksm.h"

int ls_cmd_ksm(int argc, char **argv)
{
    struct ls_error err;

    if (argc != 1) {
        fprintf(stderr, "usage: livesnap-helper %s\n", argv[0]);
        return LS_USAGE;
    }
    if (ls_ksm_tidy(&err) != 0) {
        fprintf(stderr, "livesnap-helper: %s\n", err.message);
        return (int)err.cls;
    }
    return LS_OK;
}
