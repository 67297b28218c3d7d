/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Opens an image: everything that is checked before a byte of guest memory is given out. */
#define XXH_STATIC_LINKING_ONLY
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/io.h"
#include "image/reader.h"

#define PIECE (1u << 20) /* the index is hashed in pieces of this before memory is asked for */

static int read_at(const struct ls_image *image, void *buf, size_t length, uint64_t offset,
                   struct ls_error *err)
{
    return ls_pread_full(image->fd, buf, length, (off_t)offset, err);
}

static int read_footer(struct ls_image *image, struct ls_fmt_footer *f, struct ls_error *err)
{
    struct stat st;
    uint64_t size;

    if (fstat(image->fd, &st))
        return ls_fail_errno(err, LS_STORAGE, "read", "cannot learn its size");
    if (!S_ISREG(st.st_mode))
        return ls_fail(err, LS_USAGE, "not-image", "it is not a regular file");
    size = (uint64_t)st.st_size;
    if (size < 2 * LS_PAGE || size % LS_PAGE != 0)
        return ls_fail(err, LS_TORN, "cut",
                       "it is %llu bytes long, which no image is; it was cut or never finished",
                       (unsigned long long)size);
    if (read_at(image, f, sizeof *f, size - sizeof *f, err))
        return -1;
    if (memcmp(f->magic, LS_FMT_FOOTER_MAGIC, sizeof f->magic) != 0)
        return ls_fail(err, LS_TORN, "cut",
                       "it does not end with an image's footer; it was cut or never finished");
    if (f->version != LS_FMT_VERSION)
        return ls_fail(err, LS_TORN, "version", "it has version %u; this helper reads %u",
                       f->version, LS_FMT_VERSION);
    if (f->footer_checksum != XXH3_64bits(f, offsetof(struct ls_fmt_footer, footer_checksum)) &&
        CHECK_SUMS)
        return ls_fail(err, LS_TORN, "checksum", "its footer has a wrong checksum");
    if (f->footer_length != sizeof *f || !ls_is_zero(f->reserved, sizeof f->reserved))
        return ls_fail(err, LS_TORN, "reserved", "a reserved field of its footer is not zero");
    if (f->file_size != size)
        return ls_fail(err, LS_TORN, "cut", "it is %llu bytes long and its footer says %llu",
                       (unsigned long long)size, (unsigned long long)f->file_size);
    if (f->index_offset % LS_PAGE != 0 || f->index_offset > size ||
        f->index_length > size - f->index_offset || f->index_length < sizeof(struct ls_fmt_head) ||
        f->index_offset + LS_ROUND_UP(f->index_length, LS_PAGE) + sizeof *f != size)
        return ls_fail(err, LS_TORN, "format", "its index is not where it has to be");
    image->index_offset = f->index_offset;
    image->info.file_bytes = size;
    return 0;
}

static int read_head(const struct ls_image *image, const struct ls_fmt_footer *f,
                     struct ls_fmt_head *h, struct ls_error *err)
{
    if (read_at(image, h, sizeof *h, f->index_offset, err) || ls_head_check(h, err))
        return -1;
    if (sizeof *h + ls_tables_length(h) + h->record_count * sizeof(struct ls_fmt_record) !=
        f->index_length)
        return ls_fail(err, LS_TORN, "format", "the parts of its index do not have its length");
    if (h->data_length > f->index_offset || LS_ROUND_UP(h->data_length, LS_PAGE) != f->index_offset)
        return ls_fail(err, LS_TORN, "format", "its data area does not end at its index");
    return 0;
}

static bool checksum_is(XXH128_hash_t hash, const uint8_t *expected)
{
    XXH128_canonical_t canonical;

    XXH128_canonicalFromHash(&canonical, hash);
    return memcmp(canonical.digest, expected, sizeof canonical.digest) == 0 || !CHECK_SUMS;
}

/* Checks index and padding in pieces; nothing is kept. */
static int hash_index(const struct ls_image *image, const struct ls_fmt_footer *f,
                      struct ls_error *err)
{
    XXH3_state_t *hash = XXH3_createState();
    uint8_t *piece = malloc(PIECE);
    uint64_t length = LS_ROUND_UP(f->index_length, LS_PAGE);
    int ret = 0;

    if (!hash || !piece)
        ret = ls_fail(err, LS_INTERNAL, "memory", "no memory to check its index");
    else
        XXH3_128bits_reset(hash);
    for (uint64_t at = 0; at < length && !ret; at += PIECE) {
        size_t n = length - at < PIECE ? length - at : PIECE;
        size_t own = f->index_length - at < n ? f->index_length - at : n;

        ret = read_at(image, piece, n, f->index_offset + at, err);
        if (ret)
            break;
        XXH3_128bits_update(hash, piece, own);
        if (!ls_is_zero(piece + own, n - own))
            ret = ls_fail(err, LS_TORN, "checksum", "the padding of its index is not zero");
    }
    if (!ret && !checksum_is(XXH3_128bits_digest(hash), f->checksum))
        ret = ls_fail(err, LS_TORN, "checksum", "its index has a wrong checksum");
    XXH3_freeState(hash);
    free(piece);
    return ret;
}

static int bad_record(struct ls_error *err, uint64_t index, const char *why)
{
    return ls_fail(err, LS_TORN, "format", "record %llu of its index %s", (unsigned long long)index,
                   why);
}

static int check_record(const struct ls_image *image, const struct ls_fmt_record *r, uint64_t i,
                        struct ls_error *err)
{
    uint64_t bytes = (uint64_t)r->pages * LS_PAGE;

    if (r->kind == LS_FMT_ZERO) {
        if (r->codec || r->stored || r->file_offset || r->checksum)
            return bad_record(err, i, "is of zero pages and has data");
        return 0;
    }
    if (r->kind != LS_FMT_DATA)
        return bad_record(err, i, "is of no known kind");
    if (r->pages > LS_IMAGE_RUN)
        return bad_record(err, i, "has too many pages");
    if (r->codec != LS_CODEC_NONE && r->codec != image->info.codec)
        return bad_record(err, i, "has a codec that is not the image's");
    if (r->codec == LS_CODEC_NONE ? r->stored != bytes : r->stored == 0 || r->stored >= bytes)
        return bad_record(err, i, "has a stored length that is not possible");
    if (r->file_offset > image->data_length || r->stored > image->data_length - r->file_offset)
        return bad_record(err, i, "lies outside the data area");
    if (image->info.codec == LS_CODEC_NONE &&
        r->file_offset != image->tables.blocks[r->block].file_offset + r->first_page * LS_PAGE)
        return bad_record(err, i, "is not at its place in the data area");
    return 0;
}

/* Every block covered from first to last page, in order. */
static int check_records(struct ls_image *image, struct ls_error *err)
{
    const struct ls_image_info *info = &image->info;
    uint32_t block = 0;
    uint64_t next = 0;

    for (uint64_t i = 0; i < info->record_count; i++) {
        const struct ls_fmt_record *r = &image->records[i];

        if (block >= info->block_count || r->block != block || r->first_page != next)
            return bad_record(err, i, "does not follow the one before");
        if (r->pages == 0 || r->reserved != 0 ||
            r->pages > image->tables.blocks[block].length / LS_PAGE - next)
            return bad_record(err, i, "goes beyond its block");
        if (check_record(image, r, i, err))
            return -1;
        if (next == 0)
            image->first_record[block] = i;
        next += r->pages;
        if (r->kind == LS_FMT_ZERO)
            image->info.zero_bytes += (uint64_t)r->pages * LS_PAGE;
        image->info.stored_bytes += r->stored;
        if (next == image->tables.blocks[block].length / LS_PAGE) {
            image->info.ram_bytes += image->tables.blocks[block].length;
            block++;
            next = 0;
        }
    }
    if (block != info->block_count)
        return ls_fail(err, LS_TORN, "format", "its records do not cover block %u", block);
    image->first_record[block] = info->record_count;
    return 0;
}

static void fill_info(struct ls_image *image, const struct ls_fmt_head *h,
                      const struct ls_fmt_footer *f)
{
    struct ls_image_info *info = &image->info;

    info->version = h->version;
    memcpy(info->id, h->id, sizeof info->id);
    info->codec = (enum ls_codec)h->codec;
    info->block_count = h->block_count;
    info->range_count = h->range_count;
    info->string_count = h->string_count;
    info->blocks = image->tables.blocks;
    info->ranges = image->tables.ranges;
    info->strings = image->tables.strings;
    info->main_block = h->main_block;
    info->record_count = h->record_count;
    for (int i = 0; i < 16; i++) {
        info->checksum[2 * i] = "0123456789abcdef"[f->checksum[i] >> 4];
        info->checksum[2 * i + 1] = "0123456789abcdef"[f->checksum[i] & 15];
    }
}

static int open_index(struct ls_image *image, struct ls_error *err)
{
    struct ls_fmt_footer f;
    struct ls_fmt_head h;

    if (read_footer(image, &f, err) || read_head(image, &f, &h, err) || hash_index(image, &f, err))
        return -1;
    image->index = malloc(f.index_length);
    image->first_record = calloc(h.block_count + 1u, sizeof *image->first_record);
    image->codec = ls_image_codec_new(LS_CODEC_NONE, 0);
    if (!image->index || !image->first_record || !image->codec)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory for its index of %llu bytes",
                       (unsigned long long)f.index_length);
    if (read_at(image, image->index, f.index_length, f.index_offset, err))
        return -1;
    /* Read twice: it must be the same, or what was checked is not what is used. */
    if (memcmp(image->index, &h, sizeof h) != 0 ||
        !checksum_is(XXH3_128bits(image->index, f.index_length), f.checksum))
        return ls_fail(err, LS_TORN, "checksum", "its index changes while it is read");
    if (ls_tables_parse(&h, image->index + sizeof h, &image->tables, err))
        return -1;
    image->records = (const void *)(image->index + sizeof h + ls_tables_length(&h));
    image->data_length = h.data_length;
    fill_info(image, &h, &f);
    return check_records(image, err);
}

int ls_image_open_fd(int fd, const char *name, struct ls_image **out, struct ls_error *err)
{
    struct ls_image *image = calloc(1, sizeof *image);

    if (!image || !(image->name = strdup(name))) {
        free(image);
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to open RAM image '%s'", name);
    }
    image->fd = fd;
    if (open_index(image, err)) {
        ls_image_close(image);
        return ls_context(err, "RAM image '%s'", name);
    }
    *out = image;
    return 0;
}

int ls_image_open(const char *path, struct ls_image **image, struct ls_error *err)
{
    /* Not to wait for the other end of a FIFO. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return ls_fail_errno(err, LS_STORAGE, "open", "cannot open RAM image '%s'", path);
    if (ls_image_open_fd(fd, path, image, err)) {
        close(fd);
        return -1;
    }
    (*image)->own_fd = true;
    return 0;
}

void ls_image_close(struct ls_image *image)
{
    if (!image)
        return;
    if (image->own_fd)
        close(image->fd);
    ls_tables_free(&image->tables);
    ls_image_codec_free(image->codec);
    for (unsigned i = 0; i < LS_KEPT; i++)
        free(image->kept[i].pages);
    free(image->index);
    free(image->first_record);
    free(image->name);
    free(image);
}
