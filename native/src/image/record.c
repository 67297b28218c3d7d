/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Reads the pages of one record: in passing, or to be kept. */
#include <stdlib.h>
#include <xxhash.h>

#include "common/io.h"
#include "image/codec.h"
#include "image/reader.h"

static int read_record(struct ls_image *image, uint64_t record, void *to, struct ls_error *err)
{
    const struct ls_fmt_record *r = &image->records[record];
    void *stored = r->codec == LS_CODEC_NONE ? to : ls_codec_stored(image->codec);

    if (ls_pread_full(image->fd, stored, r->stored, (off_t)r->file_offset, err))
        return ls_context(err, "RAM image '%s'", image->name);
    if (XXH3_64bits(stored, r->stored) != r->checksum && CHECK_SUMS)
        return ls_image_torn(image, record, err, "the data has a wrong checksum");
    if (r->codec != LS_CODEC_NONE &&
        ls_codec_decompress(image->codec, (enum ls_codec)r->codec, stored, r->stored, to,
                            (size_t)r->pages * LS_PAGE))
        return ls_image_torn(image, record, err, "the frame does not give its pages");
    return 0;
}

int ls_image_load(struct ls_image *image, uint64_t record, const void **pages, struct ls_error *err)
{
    void *to = ls_codec_pages(image->codec);

    *pages = to;
    return read_record(image, record, to, err);
}

/* Where the record is kept, or what has not been asked for the longest. */
static struct ls_kept *place_of(struct ls_image *image, uint64_t record)
{
    struct ls_kept *oldest = &image->kept[0];

    for (unsigned i = 0; i < LS_KEPT; i++) {
        struct ls_kept *k = &image->kept[i];

        if (k->asked > 0 && k->record == record)
            return k;
        if (k->asked < oldest->asked)
            oldest = k;
    }
    return oldest;
}

int ls_image_recall(struct ls_image *image, uint64_t record, const void **pages,
                    struct ls_error *err)
{
    struct ls_kept *k = place_of(image, record);

    if (k->asked == 0 || k->record != record) {
        k->asked = 0;
        if (!k->pages && !(k->pages = aligned_alloc(LS_PAGE, LS_CODEC_SCRATCH)))
            return ls_fail(err, LS_INTERNAL, "memory", "no memory to read RAM image '%s'",
                           image->name);
        if (read_record(image, record, k->pages, err))
            return -1;
        k->record = record;
    }
    k->asked = ++image->asked;
    *pages = k->pages;
    return 0;
}
