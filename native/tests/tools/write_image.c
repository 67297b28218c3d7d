/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * For tests: an image of a stopped process' memory, without any of the capture.
 *
 *   write_image IMAGE CODEC MACHINE PID <<END
 *   block NAME LENGTH HOST_ADDRESS
 *   range GUEST_ADDRESS BLOCK_NUMBER OFFSET LENGTH
 *   END
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/io.h"
#include "image/image.h"

static struct ls_image_block blocks[LS_IMAGE_BLOCKS];
static uint64_t hosts[LS_IMAGE_BLOCKS];
static struct ls_image_range ranges[LS_IMAGE_RANGES];

static int die(const struct ls_error *err)
{
    fprintf(stderr, "write_image: %s\n", err->message);
    return 1;
}

static void read_lines(struct ls_image_spec *spec)
{
    char line[512];

    while (fgets(line, sizeof line, stdin)) {
        struct ls_image_block *b = &blocks[spec->block_count];
        struct ls_image_range *r = &ranges[spec->range_count];

        if (sscanf(line, "block %255s %" SCNu64 " %" SCNu64, b->name, &b->length,
                   &hosts[spec->block_count]) == 3) {
            b->page_size = LS_PAGE;
            spec->block_count++;
        } else if (sscanf(line, "range %" SCNu64 " %" SCNu32 " %" SCNu64 " %" SCNu64, &r->gpa,
                          &r->block, &r->offset, &r->length) == 4) {
            spec->range_count++;
        } else {
            fprintf(stderr, "write_image: bad line: %s", line);
            exit(1);
        }
    }
}

int main(int argc, char **argv)
{
    struct ls_image_string strings[] = {{"machine", argc == 5 ? argv[3] : ""}, {"arch", "x86_64"}};
    struct ls_image_spec spec = {
        .id = {1, 2, 3}, .blocks = blocks, .ranges = ranges, .strings = strings, .string_count = 2};
    static uint8_t run[LS_IMAGE_RUN * LS_PAGE] __attribute__((aligned(LS_PAGE)));
    struct ls_image_writer *w;
    struct ls_image_codec *c;
    struct ls_image_stats stats;
    struct ls_error err = {0};
    char path[64];
    int mem;

    if (argc != 5)
        return 2;
    read_lines(&spec);
    if (ls_codec_parse(argv[2], &spec.codec, &err) || ls_image_create(argv[1], &spec, &w, &err))
        return die(&err);
    snprintf(path, sizeof path, "/proc/%s/mem", argv[4]);
    mem = open(path, O_RDONLY | O_CLOEXEC);
    c = ls_image_codec_new(spec.codec, 0);
    if (mem < 0 || !c) {
        perror(path);
        return 1;
    }
    for (uint32_t b = 0; b < spec.block_count; b++) {
        for (uint64_t p = 0; p < blocks[b].length / LS_PAGE; p += LS_IMAGE_RUN) {
            uint64_t left = blocks[b].length / LS_PAGE - p;
            uint32_t n = left < LS_IMAGE_RUN ? (uint32_t)left : LS_IMAGE_RUN;

            if (ls_pread_full(mem, run, (size_t)n * LS_PAGE, (off_t)(hosts[b] + p * LS_PAGE),
                              &err) ||
                ls_image_put(w, c, b, p, n, run, &err))
                return die(&err);
        }
    }
    ls_image_codec_free(c);
    if (ls_image_finish(w, &stats, &err))
        return die(&err);
    printf("%s\n", stats.checksum);
    return 0;
}
