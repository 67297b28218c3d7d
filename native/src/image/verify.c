/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Reads an image whole: data against its checksums, and all the rest, which has to be zero. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/io.h"
#include "image/codec.h"
#include "image/reader.h"

/* Stored bytes of one record, to be sorted by where they lie. */
struct extent {
    uint64_t offset;
    uint64_t record;
};

static int by_offset(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;

    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static int not_zero(const struct ls_image *image, uint64_t offset, struct ls_error *err)
{
    for (uint32_t b = 0; image->info.codec == LS_CODEC_NONE && b < image->info.block_count; b++) {
        const struct ls_image_block *block = &image->tables.blocks[b];
        uint64_t gpa;

        if (offset < block->file_offset || offset - block->file_offset >= block->length)
            continue;
        offset -= block->file_offset;
        if (ls_image_gpa_of(image, b, offset, &gpa))
            return ls_fail(err, LS_TORN, "zero",
                           "block '%s' offset 0x%llx (guest address 0x%llx), file offset %llu: "
                           "the page is not zero as it has to be",
                           block->name, (unsigned long long)offset, (unsigned long long)gpa,
                           (unsigned long long)(block->file_offset + offset));
        return ls_fail(err, LS_TORN, "zero",
                       "block '%s' offset 0x%llx (no guest address), file offset %llu: "
                       "the page is not zero as it has to be",
                       block->name, (unsigned long long)offset,
                       (unsigned long long)(block->file_offset + offset));
    }
    return ls_fail(err, LS_TORN, "zero", "file offset %llu: padding is not zero",
                   (unsigned long long)offset);
}

/* [from, to) has to be zero. Holes of the file are not read. */
static int check_zero(struct ls_image *image, uint64_t from, uint64_t to, struct ls_error *err)
{
    uint8_t *buf = ls_codec_pages(image->codec);

    while (from < to) {
        off_t data = lseek(image->fd, (off_t)from, SEEK_DATA);
        size_t n;

        if (data < 0 && errno == ENXIO)
            return 0;
        /* Where the file system knows no holes, all is data. */
        if (data > 0 && (uint64_t)data > from)
            from = (uint64_t)data;
        if (from >= to)
            return 0;
        n = to - from < LS_CODEC_SCRATCH ? to - from : LS_CODEC_SCRATCH;
        if (ls_pread_full(image->fd, buf, n, (off_t)from, err))
            return -1;
        for (size_t at = 0; at < n; at += LS_PAGE)
            if (!ls_is_zero(buf + at, n - at < LS_PAGE ? n - at : LS_PAGE))
                return not_zero(image, from + at, err);
        from += n;
    }
    return 0;
}

static struct extent *extents(const struct ls_image *image, uint64_t *count)
{
    struct extent *e;

    *count = 0;
    for (uint64_t i = 0; i < image->info.record_count; i++)
        *count += image->records[i].kind == LS_FMT_DATA;
    e = calloc(*count + 1, sizeof *e);
    if (!e)
        return NULL;
    *count = 0;
    for (uint64_t i = 0; i < image->info.record_count; i++)
        if (image->records[i].kind == LS_FMT_DATA)
            e[(*count)++] = (struct extent){image->records[i].file_offset, i};
    qsort(e, *count, sizeof *e, by_offset);
    return e;
}

static int verify(struct ls_image *image, const struct extent *e, uint64_t count,
                  ls_image_progress_fn progress, void *opaque, struct ls_error *err)
{
    uint64_t next = 0;

    for (uint64_t i = 0; i < count; i++) {
        const void *pages;

        if (e[i].offset < next || (e[i].offset > next && image->info.codec != LS_CODEC_NONE))
            return ls_image_torn(image, e[i].record, err,
                                 "the data does not follow what lies before it");
        if (check_zero(image, next, e[i].offset, err))
            return -1;
        if (ls_image_load(image, e[i].record, &pages, err))
            return -1;
        next = e[i].offset + image->records[e[i].record].stored;
        if (progress)
            progress(next, image->data_length, opaque);
    }
    if (image->info.codec != LS_CODEC_NONE && next != image->data_length)
        return ls_fail(err, LS_TORN, "format", "the data ends at %llu and the data area at %llu",
                       (unsigned long long)next, (unsigned long long)image->data_length);
    return check_zero(image, next, image->index_offset, err);
}

int ls_image_verify(struct ls_image *image, ls_image_progress_fn progress, void *opaque,
                    struct ls_error *err)
{
    uint64_t count;
    struct extent *e = extents(image, &count);
    int ret;

    if (!e)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to verify RAM image '%s'",
                       image->name);
    ret = verify(image, e, count, progress, opaque, err);
    free(e);
    if (!ret && progress)
        progress(image->data_length, image->data_length, opaque);
    return ret ? ls_context(err, "RAM image '%s'", image->name) : 0;
}
