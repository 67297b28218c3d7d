/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `livesnap-helper read IMAGE --gpa N --length N`: guest memory as raw bytes on standard output. */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "commands.h"
#include "common/cleanup.h"
#include "common/event.h"
#include "common/io.h"
#include "stream/source.h"

struct place {
    const char *block; /* NULL: `at` is a guest-physical address */
    uint64_t at, length;
    bool has_at, has_length;
};

static int parse(int argc, char **argv, struct place *p, const char **path, struct ls_error *err)
{
    static const struct option options[] = {{"gpa", required_argument, NULL, 'g'},
                                            {"block", required_argument, NULL, 'b'},
                                            {"offset", required_argument, NULL, 'o'},
                                            {"length", required_argument, NULL, 'l'},
                                            {0}};
    bool gpa = false;
    int c;

    opterr = 0;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'b':
            p->block = optarg;
            break;
        case 'g':
            gpa = true;
            /* fall through */
        case 'o':
            if (p->has_at || ls_source_number("address", optarg, &p->at, err))
                goto usage;
            p->has_at = true;
            break;
        case 'l':
            if (ls_source_number("--length", optarg, &p->length, err))
                goto usage;
            p->has_length = true;
            break;
        default:
            goto usage;
        }
    }
    if (optind != argc - 1 || !p->has_at || !p->has_length || gpa == (p->block != NULL))
        goto usage;
    *path = argv[optind];
    return 0;
usage:
    return ls_fail(err, LS_USAGE, "usage",
                   "usage: livesnap-helper read IMAGE|SNAPSHOT_DIR (--gpa N | --block NAME "
                   "--offset N) --length N");
}

/* All of it is there: nothing is written if not. */
static int check(const struct ls_image *image, const struct place *p, uint32_t *block,
                 struct ls_error *err)
{
    uint64_t there;

    if (p->block) {
        int found = ls_image_find_block(image, p->block);

        if (found < 0)
            return ls_fail(err, LS_USAGE, "block", "there is no block '%s' in the image", p->block);
        *block = (uint32_t)found;
        there = ls_image_info(image)->blocks[found].length;
        there = p->at < there ? there - p->at : 0;
    } else {
        there = ls_image_gpa_extent(image, p->at);
    }
    if (p->length > there)
        return ls_fail(err, LS_USAGE, "address",
                       "%llu bytes from 0x%llx are asked for and %llu are RAM of the image",
                       (unsigned long long)p->length, (unsigned long long)p->at,
                       (unsigned long long)there);
    return 0;
}

static int copy(struct ls_image *image, const struct place *p, uint32_t block, struct ls_error *err)
{
    const size_t piece = 1u << 20;
    LS_AUTO_FREE uint8_t *buf = malloc(piece);

    if (!buf)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to read the image");
    for (uint64_t done = 0; done < p->length;) {
        size_t n = p->length - done < piece ? (size_t)(p->length - done) : piece;

        if (p->block ? ls_image_read(image, block, p->at + done, buf, n, err)
                     : ls_image_read_gpa(image, p->at + done, buf, n, err))
            return -1;
        if (ls_write_full(STDOUT_FILENO, buf, n, err))
            return -1;
        done += n;
    }
    return 0;
}

int ls_cmd_read(int argc, char **argv)
{
    struct place p = {0};
    const char *path = NULL;
    struct ls_image *image;
    struct ls_error err = {0};
    uint32_t block = 0;
    int ret;

    signal(SIGPIPE, SIG_IGN);
    if (parse(argc, argv, &p, &path, &err) || ls_source_open(path, &image, &err))
        return ls_event_error(stderr, &err);
    ret = check(image, &p, &block, &err);
    if (!ret)
        ret = copy(image, &p, block, &err);
    ls_image_close(image);
    return ret ? ls_event_error(stderr, &err) : LS_OK;
}
