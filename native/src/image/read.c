/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Gives out guest memory: by block, by guest-physical address, or all of a block in order. */
#include <stdio.h>
#include <string.h>

#include "image/reader.h"

const struct ls_image_info *ls_image_info(const struct ls_image *image)
{
    return &image->info;
}

const char *ls_image_string(const struct ls_image *image, const char *key)
{
    for (uint32_t i = 0; i < image->info.string_count; i++)
        if (strcmp(image->tables.strings[i].key, key) == 0)
            return image->tables.strings[i].value;
    return NULL;
}

int ls_image_find_block(const struct ls_image *image, const char *name)
{
    for (uint32_t i = 0; i < image->info.block_count; i++)
        if (strcmp(image->tables.blocks[i].name, name) == 0)
            return (int)i;
    return -1;
}

bool ls_image_gpa_of(const struct ls_image *image, uint32_t block, uint64_t offset, uint64_t *gpa)
{
    for (uint32_t i = 0; i < image->info.range_count; i++) {
        const struct ls_image_range *r = &image->tables.ranges[i];

        if (r->block == block && offset >= r->offset && offset - r->offset < r->length) {
            *gpa = r->gpa + (offset - r->offset);
            return true;
        }
    }
    return false;
}

int ls_image_torn(const struct ls_image *image, uint64_t record, struct ls_error *err,
                  const char *what)
{
    const struct ls_fmt_record *r = &image->records[record];
    uint64_t gpa, offset = r->first_page * LS_PAGE;
    char where[64] = "no guest address";

    if (ls_image_gpa_of(image, r->block, offset, &gpa))
        snprintf(where, sizeof where, "guest address 0x%llx", (unsigned long long)gpa);
    return ls_fail(err, LS_TORN, "checksum",
                   "block '%s' offset 0x%llx (%u pages, %s), file offset %llu: %s",
                   image->tables.blocks[r->block].name, (unsigned long long)offset, r->pages, where,
                   (unsigned long long)r->file_offset, what);
}

/* The record that has this page; the page is in the block. */
static uint64_t find_record(const struct ls_image *image, uint32_t block, uint64_t page)
{
    uint64_t low = image->first_record[block], high = image->first_record[block + 1];

    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;

        if (image->records[middle].first_page <= page)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static int check_range(const struct ls_image *image, uint32_t block, uint64_t offset,
                       uint64_t length, struct ls_error *err)
{
    if (block >= image->info.block_count || offset > image->tables.blocks[block].length ||
        length > image->tables.blocks[block].length - offset)
        return ls_fail(err, LS_USAGE, "address",
                       "%llu bytes at offset 0x%llx are not in block %u of RAM image '%s'",
                       (unsigned long long)length, (unsigned long long)offset, block, image->name);
    return 0;
}

int ls_image_read(struct ls_image *image, uint32_t block, uint64_t offset, void *buf, size_t length,
                  struct ls_error *err)
{
    uint8_t *to = buf;

    if (check_range(image, block, offset, length, err))
        return -1;
    while (length > 0) {
        uint64_t i = find_record(image, block, offset / LS_PAGE);
        const struct ls_fmt_record *r = &image->records[i];
        uint64_t skip = offset - r->first_page * LS_PAGE;
        uint64_t left = (uint64_t)r->pages * LS_PAGE - skip;
        size_t n = length < left ? length : left;

        if (r->kind == LS_FMT_ZERO) {
            memset(to, 0, n);
        } else {
            const void *pages;

            if (ls_image_recall(image, i, &pages, err))
                return -1;
            memcpy(to, (const uint8_t *)pages + skip, n);
        }
        to += n;
        offset += n;
        length -= n;
    }
    return 0;
}

int ls_image_verify_range(struct ls_image *image, uint32_t block, uint64_t offset, uint64_t length,
                          struct ls_error *err)
{
    if (check_range(image, block, offset, length, err))
        return -1;
    if (length == 0)
        return 0;
    for (uint64_t i = find_record(image, block, offset / LS_PAGE);
         i < image->first_record[block + 1] &&
         image->records[i].first_page * LS_PAGE < offset + length;
         i++) {
        const void *pages;

        if (image->records[i].kind == LS_FMT_DATA && ls_image_load(image, i, &pages, err))
            return -1;
    }
    return 0;
}

static const struct ls_image_range *find_range(const struct ls_image *image, uint64_t gpa)
{
    for (uint32_t i = 0; i < image->info.range_count; i++) {
        const struct ls_image_range *r = &image->tables.ranges[i];

        if (gpa >= r->gpa && gpa - r->gpa < r->length)
            return r;
    }
    return NULL;
}

uint64_t ls_image_gpa_extent(const struct ls_image *image, uint64_t gpa)
{
    uint64_t extent = 0;
    const struct ls_image_range *r;

    while ((r = find_range(image, gpa + extent)))
        extent = r->gpa + r->length - gpa;
    return extent;
}

int ls_image_read_gpa(struct ls_image *image, uint64_t gpa, void *buf, size_t length,
                      struct ls_error *err)
{
    uint8_t *to = buf;

    while (length > 0) {
        const struct ls_image_range *r = find_range(image, gpa);
        uint64_t left;
        size_t n;

        if (!r)
            return ls_fail(err, LS_USAGE, "address",
                           "there is no RAM at guest address 0x%llx in RAM image '%s'",
                           (unsigned long long)gpa, image->name);
        left = r->gpa + r->length - gpa;
        n = length < left ? length : left;
        if (ls_image_read(image, r->block, r->offset + (gpa - r->gpa), to, n, err))
            return -1;
        to += n;
        gpa += n;
        length -= n;
    }
    return 0;
}

int ls_image_walk(struct ls_image *image, uint32_t block, ls_image_run_fn fn, void *opaque,
                  struct ls_error *err)
{
    for (uint64_t i = image->first_record[block]; i < image->first_record[block + 1]; i++) {
        const struct ls_fmt_record *r = &image->records[i];
        struct ls_image_run run = {
            .block = block, .first_page = r->first_page, .pages = r->pages, .data = NULL};

        if (r->kind == LS_FMT_DATA && ls_image_load(image, i, &run.data, err))
            return -1;
        if (fn(&run, opaque, err))
            return -1;
    }
    return 0;
}
