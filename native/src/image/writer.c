/* SPDX-License-Identifier: GPL-3.0-or-later */
#define XXH_STATIC_LINKING_ONLY
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "image/append.h"
#include "image/codec.h"
#include "image/format.h"
#include "image/tables.h"

#define ZERO_RUN 4u /* shorter runs of zero pages stay in the data around them */

struct ls_image_writer {
    struct ls_append file;
    struct ls_fmt_head head;
    uint8_t *tables;
    struct ls_image_block *blocks; /* with their file offsets */
    char *path;
    /* Protects what follows. */
    pthread_mutex_t lock;
    bool failed;      /* a put went wrong: there is nothing to finish */
    uint64_t **seen;  /* a bit a page, for each block */
    uint64_t missing; /* pages */
    uint64_t zero_pages;
    struct ls_fmt_record *records;
    uint64_t count, room;
};

static void writer_free(struct ls_image_writer *w)
{
    if (w->seen)
        for (uint32_t i = 0; i < w->head.block_count; i++)
            free(w->seen[i]);
    free(w->seen);
    free(w->records);
    free(w->tables);
    free(w->blocks);
    free(w->path);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

static int prepare(struct ls_image_writer *w, const char *path, struct ls_error *err)
{
    struct ls_tables t;

    if (ls_tables_parse(&w->head, w->tables, &t, err))
        return -1;
    w->blocks = t.blocks;
    t.blocks = NULL;
    ls_tables_free(&t);
    w->path = strdup(path);
    w->seen = calloc(w->head.block_count, sizeof *w->seen);
    if (!w->path || !w->seen)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to write RAM image '%s'", path);
    for (uint32_t i = 0; i < w->head.block_count; i++) {
        uint64_t pages = w->blocks[i].length / LS_PAGE;

        w->missing += pages;
        w->seen[i] = calloc((pages + 63) / 64, sizeof **w->seen);
        if (!w->seen[i])
            return ls_fail(err, LS_INTERNAL, "memory", "no memory to write RAM image '%s'", path);
    }
    /* With codec none this makes the holes, and spares the puts the work of making it longer. */
    if (ls_append_open(&w->file, path, w->head.data_length, err))
        return -1;
    if (w->head.data_length && ftruncate(w->file.fd, (off_t)w->head.data_length)) {
        ls_fail_errno(err, LS_STORAGE, "create", "cannot make RAM image '%s' %llu bytes long", path,
                      (unsigned long long)w->head.data_length);
        ls_append_close(&w->file);
        unlink(path);
        return -1;
    }
    return 0;
}

int ls_image_create(const char *path, const struct ls_image_spec *spec,
                    struct ls_image_writer **writer, struct ls_error *err)
{
    struct ls_image_writer *w = calloc(1, sizeof *w);

    if (!w)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to write RAM image '%s'", path);
    pthread_mutex_init(&w->lock, NULL);
    if (ls_tables_build(spec, &w->head, &w->tables, err) || prepare(w, path, err)) {
        writer_free(w);
        return -1;
    }
    *writer = w;
    return 0;
}

/* Marks the pages as given, or refuses if one was before. */
static int claim(struct ls_image_writer *w, uint32_t block, uint64_t first, uint64_t pages,
                 struct ls_error *err)
{
    uint64_t total, twice = UINT64_MAX;

    if (block >= w->head.block_count)
        return ls_fail(err, LS_INTERNAL, "range", "there is no block %u in the image", block);
    total = w->blocks[block].length / LS_PAGE;
    if (pages == 0 || first >= total || pages > total - first)
        return ls_fail(err, LS_INTERNAL, "range",
                       "pages %llu to %llu are not in block '%s' of %llu pages",
                       (unsigned long long)first, (unsigned long long)(first + pages),
                       w->blocks[block].name, (unsigned long long)total);
    pthread_mutex_lock(&w->lock);
    for (uint64_t p = first; p < first + pages && twice == UINT64_MAX; p++)
        if (w->seen[block][p / 64] & 1ull << p % 64)
            twice = p;
    if (twice == UINT64_MAX) {
        for (uint64_t p = first; p < first + pages; p++)
            w->seen[block][p / 64] |= 1ull << p % 64;
        w->missing -= pages;
    } else {
        w->failed = true;
    }
    pthread_mutex_unlock(&w->lock);
    if (twice != UINT64_MAX)
        return ls_fail(err, LS_INTERNAL, "twice", "page %llu of block '%s' was given twice",
                       (unsigned long long)twice, w->blocks[block].name);
    return 0;
}

static int add_record(struct ls_image_writer *w, const struct ls_fmt_record *r,
                      struct ls_error *err)
{
    int ret = 0;

    pthread_mutex_lock(&w->lock);
    if (w->count == w->room) {
        uint64_t room = w->room ? w->room * 2 : 1024;
        void *bigger = realloc(w->records, room * sizeof *w->records);

        if (bigger) {
            w->records = bigger;
            w->room = room;
        } else {
            w->failed = true;
            ret = ls_fail(err, LS_INTERNAL, "memory", "no memory for the records of a RAM image");
        }
    }
    if (!ret)
        w->records[w->count++] = *r;
    pthread_mutex_unlock(&w->lock);
    return ret;
}

/* Records hold 2^32-1 pages at most. */
static int put_zero(struct ls_image_writer *w, uint32_t block, uint64_t first, uint64_t pages,
                    struct ls_error *err)
{
    while (pages > 0) {
        uint32_t n = pages > UINT32_MAX ? UINT32_MAX : (uint32_t)pages;
        struct ls_fmt_record r = {
            .block = block, .kind = LS_FMT_ZERO, .first_page = first, .pages = n};

        if (add_record(w, &r, err))
            return -1;
        first += n;
        pages -= n;
    }
    return 0;
}

static int put_data(struct ls_image_writer *w, struct ls_image_codec *c, uint32_t block,
                    uint64_t first, uint32_t pages, const void *data, struct ls_error *err)
{
    size_t length = (size_t)pages * LS_PAGE;
    struct ls_fmt_record r = {.block = block,
                              .kind = LS_FMT_DATA,
                              .codec = LS_CODEC_NONE,
                              .first_page = first,
                              .pages = pages,
                              .stored = (uint32_t)length};
    const void *stored = data;
    int ret;

    if (w->head.codec == LS_CODEC_NONE) {
        r.file_offset = w->blocks[block].file_offset + first * LS_PAGE;
        r.checksum = XXH3_64bits(data, length);
        ret = ls_append_place(&w->file, data, length, r.file_offset, ls_codec_stored(c), err);
    } else {
        const void *frame;
        size_t n = ls_codec_compress(c, data, length, &frame);

        if (n > 0) {
            r.codec = (uint8_t)w->head.codec;
            r.stored = (uint32_t)n;
            stored = frame;
        }
        r.checksum = XXH3_64bits(stored, r.stored);
        ret = ls_append(&w->file, stored, r.stored, &r.file_offset, err);
    }
    if (ret)
        return -1;
    return add_record(w, &r, err);
}

int ls_image_put(struct ls_image_writer *w, struct ls_image_codec *c, uint32_t block,
                 uint64_t first, uint32_t pages, const void *data, struct ls_error *err)
{
    bool zero[LS_IMAGE_RUN];
    const uint8_t *bytes = data;
    uint32_t zeros = 0, from = 0, at = 0;

    if (pages > LS_IMAGE_RUN)
        return ls_fail(err, LS_INTERNAL, "range", "%u pages in one put; %u are possible", pages,
                       LS_IMAGE_RUN);
    if (claim(w, block, first, pages, err))
        return -1;
    for (uint32_t i = 0; i < pages; i++)
        zeros += zero[i] = ls_page_is_zero(bytes + (size_t)i * LS_PAGE);
    if (zeros) {
        pthread_mutex_lock(&w->lock);
        w->zero_pages += zeros;
        pthread_mutex_unlock(&w->lock);
    }
    /* [from, at) is data not yet put. */
    while (at < pages) {
        uint32_t end = at;

        while (end < pages && zero[end])
            end++;
        if (end - at >= ZERO_RUN || (end > at && from == at && end == pages)) {
            if (at > from &&
                put_data(w, c, block, first + from, at - from, bytes + (size_t)from * LS_PAGE, err))
                return -1;
            if (put_zero(w, block, first + at, end - at, err))
                return -1;
            from = end;
        }
        at = end;
        while (at < pages && !zero[at])
            at++;
    }
    if (at > from)
        return put_data(w, c, block, first + from, at - from, bytes + (size_t)from * LS_PAGE, err);
    return 0;
}

int ls_image_put_zero(struct ls_image_writer *w, uint32_t block, uint64_t first, uint64_t pages,
                      struct ls_error *err)
{
    if (claim(w, block, first, pages, err))
        return -1;
    pthread_mutex_lock(&w->lock);
    w->zero_pages += pages;
    pthread_mutex_unlock(&w->lock);
    return put_zero(w, block, first, pages, err);
}

uint64_t ls_image_stored(struct ls_image_writer *w)
{
    return ls_append_stored(&w->file);
}

static int by_place(const void *a, const void *b)
{
    const struct ls_fmt_record *x = a, *y = b;

    if (x->block != y->block)
        return x->block < y->block ? -1 : 1;
    return x->first_page < y->first_page ? -1 : x->first_page > y->first_page;
}

static void sort_and_merge(struct ls_image_writer *w)
{
    uint64_t kept = 0;

    qsort(w->records, w->count, sizeof *w->records, by_place);
    for (uint64_t i = 0; i < w->count; i++) {
        const struct ls_fmt_record *r = &w->records[i];
        struct ls_fmt_record *last = kept ? &w->records[kept - 1] : NULL;

        if (last && last->kind == LS_FMT_ZERO && r->kind == LS_FMT_ZERO &&
            last->block == r->block && r->pages <= UINT32_MAX - last->pages)
            last->pages += r->pages;
        else
            w->records[kept++] = *r;
    }
    w->count = kept;
}

static int missing_page(const struct ls_image_writer *w, struct ls_error *err)
{
    for (uint32_t b = 0; b < w->head.block_count; b++)
        for (uint64_t p = 0; p < w->blocks[b].length / LS_PAGE; p++)
            if (!(w->seen[b][p / 64] & 1ull << p % 64))
                return ls_fail(err, LS_INTERNAL, "missing",
                               "page %llu of block '%s' was never given (%llu pages in all)",
                               (unsigned long long)p, w->blocks[b].name,
                               (unsigned long long)w->missing);
    return ls_fail(err, LS_INTERNAL, "missing", "pages were never given");
}

/* Appends a part of the index and takes it into its checksum. */
static int append_index(struct ls_image_writer *w, XXH3_state_t *hash, const void *data,
                        size_t length, struct ls_error *err)
{
    const uint8_t *from = data;
    uint64_t offset;

    XXH3_128bits_update(hash, data, length);
    while (length > 0) {
        size_t n = length < LS_APPEND_CHUNK / 2 ? length : LS_APPEND_CHUNK / 2;

        if (ls_append(&w->file, from, n, &offset, err))
            return -1;
        from += n;
        length -= n;
    }
    return 0;
}

static int pad(struct ls_image_writer *w, struct ls_error *err)
{
    static const uint8_t zeros[LS_PAGE];
    size_t over = ls_append_offset(&w->file) % LS_PAGE;
    uint64_t offset;

    return over ? ls_append(&w->file, zeros, LS_PAGE - over, &offset, err) : 0;
}

static int write_index(struct ls_image_writer *w, struct ls_fmt_footer *footer,
                       struct ls_error *err)
{
    XXH3_state_t *hash = XXH3_createState();
    XXH128_canonical_t canonical;
    uint64_t offset;
    int ret;

    if (!hash)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory for a checksum");
    XXH3_128bits_reset(hash);
    w->head.record_count = w->count;
    if (w->head.codec != LS_CODEC_NONE)
        w->head.data_length = ls_append_offset(&w->file);
    ret = pad(w, err);
    footer->index_offset = ls_append_offset(&w->file);
    if (!ret)
        ret = append_index(w, hash, &w->head, sizeof w->head, err);
    if (!ret)
        ret = append_index(w, hash, w->tables, ls_tables_length(&w->head), err);
    if (!ret)
        ret = append_index(w, hash, w->records, w->count * sizeof *w->records, err);
    footer->index_length = ls_append_offset(&w->file) - footer->index_offset;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(hash));
    XXH3_freeState(hash);
    if (ret || pad(w, err))
        return -1;
    memcpy(footer->magic, LS_FMT_FOOTER_MAGIC, sizeof footer->magic);
    footer->version = LS_FMT_VERSION;
    footer->footer_length = sizeof *footer;
    footer->file_size = ls_append_offset(&w->file) + sizeof *footer;
    memcpy(footer->checksum, canonical.digest, sizeof footer->checksum);
    footer->footer_checksum = XXH3_64bits(footer, offsetof(struct ls_fmt_footer, footer_checksum));
    /* All before the footer is on the disk before the footer can be. */
    if (ls_append_flush(&w->file, err))
        return -1;
    return ls_append(&w->file, footer, sizeof *footer, &offset, err);
}

static void fill_stats(struct ls_image_writer *w, const struct ls_fmt_footer *footer,
                       struct ls_image_stats *stats)
{
    *stats = (struct ls_image_stats){.zero_bytes = w->zero_pages * LS_PAGE,
                                     .stored_bytes = ls_append_stored(&w->file),
                                     .file_bytes = footer->file_size,
                                     .records = w->count};
    for (uint32_t b = 0; b < w->head.block_count; b++)
        stats->ram_bytes += w->blocks[b].length;
    for (int i = 0; i < 16; i++) {
        stats->checksum[2 * i] = "0123456789abcdef"[footer->checksum[i] >> 4];
        stats->checksum[2 * i + 1] = "0123456789abcdef"[footer->checksum[i] & 15];
    }
}

int ls_image_finish(struct ls_image_writer *w, struct ls_image_stats *stats, struct ls_error *err)
{
    struct ls_fmt_footer footer = {.version = 0};

    if (w->file.failed) {
        *err = w->file.error;
        goto fail;
    }
    if (w->missing) {
        missing_page(w, err);
        goto fail;
    }
    if (w->failed) {
        ls_fail(err, LS_INTERNAL, "twice", "pages were given twice, or a record was lost");
        goto fail;
    }
    sort_and_merge(w);
    if (w->count > LS_FMT_MAX_RECORDS) {
        ls_fail(err, LS_INTERNAL, "limit", "the RAM is in more pieces than an image holds");
        goto fail;
    }
    if (write_index(w, &footer, err) || ls_append_flush(&w->file, err))
        goto fail;
    if (stats)
        fill_stats(w, &footer, stats);
    ls_append_close(&w->file);
    writer_free(w);
    return 0;
fail:
    ls_context(err, "RAM image '%s'", w->path);
    ls_image_discard(w);
    return -1;
}

void ls_image_discard(struct ls_image_writer *w)
{
    if (!w)
        return;
    ls_append_close(&w->file);
    unlink(w->path);
    writer_free(w);
}
