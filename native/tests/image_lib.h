/* SPDX-License-Identifier: GPL-3.0-or-later */
/* A small guest and its images, for the tests of image/ and stream/. */
#ifndef LS_TESTS_IMAGE_LIB_H
#define LS_TESTS_IMAGE_LIB_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/image.h"

#define GUEST_BLOCKS 3

/* Blocks in QEMU's order, main RAM not the first and not at the start of a 2 MiB piece. */
struct guest {
    struct ls_image_block blocks[GUEST_BLOCKS];
    struct ls_image_range ranges[4];
    struct ls_image_string strings[3];
    struct ls_image_spec spec;
    uint8_t *ram[GUEST_BLOCKS];
};

static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Pages of all kinds: random, text, zero, nearly zero. */
static inline void fill_pages(uint8_t *to, uint64_t pages, uint64_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
    uint64_t kind = 0, left = 0;

    for (uint64_t p = 0; p < pages; p++) {
        uint8_t *page = to + p * LS_PAGE;

        if (left == 0) {
            kind = next_random(&state) % 4;
            left = 1 + next_random(&state) % 12;
        }
        left--;
        memset(page, 0, LS_PAGE);
        if (kind == 1)
            for (unsigned i = 0; i < LS_PAGE; i += 8) {
                uint64_t word = next_random(&state);

                memcpy(page + i, &word, 8);
            }
        else if (kind == 2)
            for (unsigned i = 0; i < LS_PAGE; i++)
                page[i] = (uint8_t) "a page of text that is compressed well. "[(i + p) % 40];
        else if (kind == 3)
            page[next_random(&state) % LS_PAGE] = 1;
    }
}

/* `pages` of main RAM; count of blocks from 1 (only main RAM) to GUEST_BLOCKS. */
static inline struct guest *guest_new(uint64_t pages, uint32_t blocks, enum ls_codec codec)
{
    static const char *const names[GUEST_BLOCKS] = {"pc.ram", "vga.vram", "/rom@etc/acpi/tables"};
    const uint64_t lengths[GUEST_BLOCKS] = {pages * LS_PAGE, 7 * LS_PAGE, LS_PAGE};
    struct guest *g = calloc(1, sizeof *g);
    uint64_t low = pages / 2 * LS_PAGE;

    assert_non_null(g);
    for (uint32_t i = 0; i < blocks; i++) {
        uint32_t to = (i + 1) % blocks; /* main RAM is not the first where it has company */

        snprintf(g->blocks[to].name, sizeof g->blocks[to].name, "%s", names[i]);
        g->blocks[to].length = lengths[i];
        g->blocks[to].page_size = LS_PAGE;
        g->ram[to] = aligned_alloc(LS_PAGE, lengths[i]);
        assert_non_null(g->ram[to]);
        fill_pages(g->ram[to], lengths[i] / LS_PAGE, i + pages);
    }
    g->ranges[0] = (struct ls_image_range){
        .gpa = 0x100000000, .offset = low, .length = pages * LS_PAGE - low, .block = 1 % blocks};
    g->ranges[1] = (struct ls_image_range){.gpa = 0, .length = low, .block = 1 % blocks};
    g->strings[0] = (struct ls_image_string){"machine", "pc-i440fx-7.2"};
    g->strings[1] = (struct ls_image_string){"qemu_version", "7.2.22"};
    g->strings[2] = (struct ls_image_string){"arch", "x86_64"};
    g->spec =
        (struct ls_image_spec){.id = {0x5c, 0x1f, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
                               .codec = codec,
                               .block_count = blocks,
                               .range_count = low ? 2 : 1,
                               .string_count = 3,
                               .blocks = g->blocks,
                               .ranges = g->ranges,
                               .strings = g->strings};
    return g;
}

static inline void guest_free(struct guest *g)
{
    for (int i = 0; i < GUEST_BLOCKS; i++)
        free(g->ram[i]);
    free(g);
}

/* Puts all pages in runs of up to `run`, front to back. */
static inline void guest_put(struct guest *g, struct ls_image_writer *w, uint32_t run)
{
    struct ls_image_codec *c = ls_image_codec_new(g->spec.codec, 0);
    struct ls_error err = {0};

    assert_non_null(c);
    for (uint32_t b = 0; b < g->spec.block_count; b++) {
        uint64_t pages = g->blocks[b].length / LS_PAGE;

        for (uint64_t p = 0; p < pages; p += run) {
            uint32_t n = pages - p < run ? (uint32_t)(pages - p) : run;

            if (ls_image_put(w, c, b, p, n, g->ram[b] + p * LS_PAGE, &err))
                fail_msg("%s", err.message);
        }
    }
    ls_image_codec_free(c);
}

static inline struct ls_image_stats guest_write(struct guest *g, const char *path, uint32_t run)
{
    struct ls_image_writer *w;
    struct ls_image_stats stats;
    struct ls_error err = {0};

    unlink(path);
    if (ls_image_create(path, &g->spec, &w, &err))
        fail_msg("%s", err.message);
    guest_put(g, w, run);
    if (ls_image_finish(w, &stats, &err))
        fail_msg("%s", err.message);
    return stats;
}

static inline struct ls_image *guest_open(const char *path)
{
    struct ls_image *image;
    struct ls_error err = {0};

    if (ls_image_open(path, &image, &err))
        fail_msg("%s", err.message);
    return image;
}

/* The image has this guest's memory, read in pieces of `piece`, and verifies. */
static inline void guest_compare(struct guest *g, const char *path, size_t piece)
{
    struct ls_image *image = guest_open(path);
    uint8_t *buf = malloc(piece);
    struct ls_error err = {0};

    assert_non_null(buf);
    for (uint32_t b = 0; b < g->spec.block_count; b++)
        for (uint64_t at = 0; at < g->blocks[b].length; at += piece) {
            size_t n = g->blocks[b].length - at < piece ? g->blocks[b].length - at : piece;

            if (ls_image_read(image, b, at, buf, n, &err))
                fail_msg("%s", err.message);
            assert_memory_equal(buf, g->ram[b] + at, n);
        }
    if (ls_image_verify(image, NULL, NULL, &err))
        fail_msg("%s", err.message);
    free(buf);
    ls_image_close(image);
}

/* A folder of its own; O_DIRECT works in it or not, as its file system likes. */
static inline char *scratch_dir(const char *parent)
{
    char *path;

    if (!parent)
        parent = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    assert_true(asprintf(&path, "%s/livesnap-test-XXXXXX", parent) > 0);
    assert_non_null(mkdtemp(path));
    return path;
}

static inline char *in_dir(const char *folder, const char *name)
{
    char *path;

    assert_true(asprintf(&path, "%s/%s", folder, name) > 0);
    return path;
}

#endif
