/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `livesnap-helper serve`: main RAM for a QEMU whose guest runs already, out of an image. */
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <unistd.h>

#include "commands.h"
#include "common/alone.h"
#include "common/event.h"
#include "serve/serve.h"
#include "stream/source.h"

static int parse(int argc, char **argv, struct ls_serve_options *o, struct ls_error *err)
{
    static const struct option options[] = {
        {"pid", required_argument, NULL, 'p'},   {"start-time", required_argument, NULL, 's'},
        {"block", required_argument, NULL, 'b'}, {"ramblock", required_argument, NULL, 'r'},
        {"asked-only", no_argument, NULL, 'a'},  {0}};
    uint64_t number;
    int c;

    opterr = 0;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'p':
            if (ls_source_number("--pid", optarg, &number, err))
                return -1;
            o->pid = (pid_t)number;
            break;
        case 's':
            if (ls_source_number("--start-time", optarg, &o->start_time, err))
                return -1;
            break;
        case 'b':
            o->block = optarg;
            break;
        case 'r':
            o->ramblock = optarg;
            break;
        case 'a':
            o->all = false;
            break;
        default:
            goto usage;
        }
    }
    if (optind != argc - 1 || o->pid <= 0 || !o->start_time || !o->block || !o->ramblock)
        goto usage;
    o->source = argv[optind];
    return 0;
usage:
    return ls_fail(err, LS_USAGE, "usage",
                   "usage: livesnap-helper serve --pid N --start-time N --block NAME "
                   "--ramblock TEXT [--asked-only] IMAGE|SNAPSHOT_DIR");
}

int ls_cmd_serve(int argc, char **argv)
{
    struct ls_serve_options o = {.all = true};
    struct ls_error err = {0};

    if (ls_stand_alone() != 0)
        return LS_INTERNAL;
    /* A guest must not wait because nobody reads how far its RAM is. */
    fcntl(STDOUT_FILENO, F_SETFL, O_NONBLOCK);
    if (parse(argc, argv, &o, &err) == 0 && ls_serve_run(&o, stdout, &err) == 0)
        return LS_OK;
    /* Whoever started it may listen no more. */
    fprintf(stderr, "%s: %s\n", ls_class_name(err.cls), err.message);
    return ls_event_error(stdout, &err);
}
