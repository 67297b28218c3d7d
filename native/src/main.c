/* SPDX-License-Identifier: GPL-3.0-or-later */
/* livesnap-helper: one program, one subcommand for each thing the modules ask of a hypervisor. */
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "commands.h"
#include "version.h"

struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
};

static const struct command commands[] = {
    {"capture", ls_cmd_capture, "snapshot the RAM of a guest that runs on"},
    {"convert", ls_cmd_convert, "a RAM image from a migration stream that QEMU has written"},
    {"engines", ls_cmd_engines, "which engines can capture the RAM of a process, and why not"},
    {"features", ls_cmd_features, "what this host, and one process on it, allow"},
    {"guard", ls_cmd_guard, "undo a bracket whose owner died, watch the keeper"},
    {"ksm", ls_cmd_ksm, "put KSM back if captures that paused it have died"},
    {"info", ls_cmd_info, "what a RAM image says of itself"},
    {"verify", ls_cmd_verify, "read a RAM image whole and check it"},
    {"read", ls_cmd_read, "guest memory out of a RAM image"},
    {"serve", ls_cmd_serve, "the RAM of a clone while it runs, page by page"},
    {"export", ls_cmd_export, "a migration stream for QEMU, or the blocks as files"},
#ifdef LS_FAULTS
    {"faults", ls_cmd_faults, "list the fault points of this test build"},
#endif
    {0},
};

static int print_version(void)
{
    struct utsname uts;

    uname(&uts);
    printf("livesnap-helper %s (protocol %d, %s)\n", LS_VERSION, LS_PROTOCOL, uts.machine);
    return LS_OK;
}

static int usage(FILE *out, int code)
{
    fprintf(out, "usage: livesnap-helper COMMAND [ARGUMENTS]\n       livesnap-helper --version\n");
    for (const struct command *c = commands; c->name; c++)
        fprintf(out, "  %-10s %s\n", c->name, c->summary);
    return code;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return usage(stderr, LS_USAGE);
    if (strcmp(argv[1], "--version") == 0)
        return print_version();
    if (strcmp(argv[1], "--help") == 0)
        return usage(stdout, LS_OK);
    for (const struct command *c = commands; c->name; c++)
        if (strcmp(argv[1], c->name) == 0)
            return c->run(argc - 1, argv + 1);
    fprintf(stderr, "livesnap-helper: unknown command '%s'\n", argv[1]);
    return usage(stderr, LS_USAGE);
}
