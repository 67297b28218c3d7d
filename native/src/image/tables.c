/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "image/tables.h"

#include <stdlib.h>
#include <string.h>

static int bad(struct ls_error *err, const char *what, uint64_t index, const char *why)
{
    return ls_fail(err, LS_TORN, "format", "%s %llu of the index %s", what,
                   (unsigned long long)index, why);
}

void ls_tables_free(struct ls_tables *t)
{
    free(t->blocks);
    free(t->ranges);
    free(t->strings);
    free(t->text);
    *t = (struct ls_tables){0};
}

size_t ls_tables_length(const struct ls_fmt_head *head)
{
    return head->block_count * sizeof(struct ls_fmt_block) +
           head->range_count * sizeof(struct ls_fmt_range) + head->strings_length;
}

int ls_head_check(const struct ls_fmt_head *head, struct ls_error *err)
{
    if (memcmp(head->magic, LS_FMT_HEAD_MAGIC, sizeof head->magic) != 0 ||
        head->head_length != sizeof *head)
        return ls_fail(err, LS_TORN, "format", "the index does not begin with its head");
    if (head->version != LS_FMT_VERSION)
        return ls_fail(err, LS_TORN, "version", "the index has version %u; this helper reads %u",
                       head->version, LS_FMT_VERSION);
    if (!ls_is_zero(head->parent_id, sizeof head->parent_id) ||
        !ls_is_zero(head->parent_checksum, sizeof head->parent_checksum))
        return ls_fail(err, LS_TORN, "reserved",
                       "the image is an increment; this helper reads whole images only");
    if (!ls_is_zero(head->encryption, sizeof head->encryption))
        return ls_fail(err, LS_TORN, "reserved",
                       "the image is encrypted; this helper reads plain images only");
    if (!ls_is_zero(head->reserved, sizeof head->reserved))
        return ls_fail(err, LS_TORN, "reserved", "a reserved field of the head is not zero");
    if (head->codec > LS_CODEC_ZSTD)
        return ls_fail(err, LS_TORN, "codec", "codec %u is not known", head->codec);
    if (head->page_size != LS_PAGE)
        return ls_fail(err, LS_TORN, "format", "the page size is %u and not %u", head->page_size,
                       LS_PAGE);
    if (head->block_count < 1 || head->block_count > LS_IMAGE_BLOCKS)
        return ls_fail(err, LS_TORN, "limit", "%u blocks; from 1 to %u are possible",
                       head->block_count, LS_IMAGE_BLOCKS);
    if (head->range_count > LS_IMAGE_RANGES)
        return ls_fail(err, LS_TORN, "limit", "%u ranges; at most %u are possible",
                       head->range_count, LS_IMAGE_RANGES);
    if (head->string_count > LS_IMAGE_STRINGS ||
        head->strings_length >
            LS_IMAGE_STRINGS * LS_ROUND_UP(4 + LS_FMT_MAX_KEY + LS_FMT_MAX_VALUE, 8) ||
        head->strings_length % 8 != 0)
        return ls_fail(err, LS_TORN, "limit", "%u strings of %llu bytes; at most %u are possible",
                       head->string_count, (unsigned long long)head->strings_length,
                       LS_IMAGE_STRINGS);
    if (head->main_block >= head->block_count)
        return ls_fail(err, LS_TORN, "limit", "main RAM is block %u of %u", head->main_block,
                       head->block_count);
    if (head->record_count < 1 || head->record_count > LS_FMT_MAX_RECORDS)
        return ls_fail(err, LS_TORN, "limit", "%llu records; from 1 to %llu are possible",
                       (unsigned long long)head->record_count, LS_FMT_MAX_RECORDS);
    return 0;
}

static int parse_name(const struct ls_fmt_block *in, struct ls_image_block *out)
{
    if (in->name_length < 1 || in->name_length >= sizeof in->name)
        return -1;
    for (uint32_t i = 0; i < in->name_length; i++)
        if (in->name[i] < 0x20 || in->name[i] > 0x7e)
            return -1;
    if (!ls_is_zero(in->name + in->name_length, sizeof in->name - in->name_length))
        return -1;
    memcpy(out->name, in->name, sizeof out->name);
    return 0;
}

static int parse_blocks(const struct ls_fmt_head *head, const uint8_t *bytes, struct ls_tables *t,
                        struct ls_error *err)
{
    uint64_t ram = 0, end = 0;

    for (uint32_t i = 0; i < head->block_count; i++) {
        struct ls_image_block *b = &t->blocks[i];
        struct ls_fmt_block in;

        memcpy(&in, bytes + i * sizeof in, sizeof in);
        if (parse_name(&in, b) || in.reserved != 0)
            return bad(err, "block", i, "has no proper name");
        b->length = in.length;
        b->page_size = in.page_size;
        b->file_offset = in.file_offset;
        if (b->length == 0 || b->length % LS_PAGE != 0 || b->length > LS_FMT_MAX_RAM - ram)
            return bad(err, "block", i, "has a length that is not possible");
        if (b->page_size < LS_PAGE || (b->page_size & (b->page_size - 1)) != 0)
            return bad(err, "block", i, "has a page size that is not possible");
        if (head->codec != LS_CODEC_NONE
                ? b->file_offset != 0
                : b->file_offset % LS_FMT_AREA != 0 || b->file_offset > 1ull << 60)
            return bad(err, "block", i, "lies at a file offset that is not possible");
        for (uint32_t k = 0; k < i; k++) {
            const struct ls_image_block *o = &t->blocks[k];

            if (strcmp(o->name, b->name) == 0)
                return bad(err, "block", i, "has the name of another");
            if (head->codec == LS_CODEC_NONE && b->file_offset < o->file_offset + o->length &&
                o->file_offset < b->file_offset + b->length)
                return bad(err, "block", i, "lies in the file where another does");
        }
        ram += b->length;
        if (b->file_offset + b->length > end)
            end = b->file_offset + b->length;
    }
    if (head->codec != LS_CODEC_NONE)
        return 0;
    if (t->blocks[head->main_block].file_offset != 0)
        return bad(err, "block", head->main_block, "is main RAM and not at the file's start");
    if (end != head->data_length)
        return ls_fail(err, LS_TORN, "format", "the data area does not end with its last block");
    return 0;
}

static int parse_ranges(const struct ls_fmt_head *head, const uint8_t *bytes, struct ls_tables *t,
                        struct ls_error *err)
{
    uint64_t free_from = 0;

    for (uint32_t i = 0; i < head->range_count; i++) {
        struct ls_image_range *r = &t->ranges[i];
        struct ls_fmt_range in;

        memcpy(&in, bytes + i * sizeof in, sizeof in);
        *r = (struct ls_image_range){
            .gpa = in.gpa, .offset = in.offset, .length = in.length, .block = in.block};
        if (in.reserved != 0 || in.block >= head->block_count)
            return bad(err, "range", i, "names no block");
        if ((in.gpa | in.offset | in.length) % LS_PAGE != 0 || in.length == 0 ||
            in.length > t->blocks[in.block].length ||
            in.offset > t->blocks[in.block].length - in.length || in.gpa > UINT64_MAX - in.length)
            return bad(err, "range", i, "is not within its block");
        if (in.gpa < free_from)
            return bad(err, "range", i, "overlaps the one before or is out of order");
        free_from = in.gpa + in.length;
    }
    return 0;
}

static bool good_key(const char *key, size_t length)
{
    if (length < 1 || length > LS_FMT_MAX_KEY)
        return false;
    for (size_t i = 0; i < length; i++)
        if (!(key[i] >= 'a' && key[i] <= 'z') && !(key[i] >= '0' && key[i] <= '9') && key[i] != '_')
            return false;
    return true;
}

static int parse_strings(const struct ls_fmt_head *head, const uint8_t *bytes, struct ls_tables *t,
                         struct ls_error *err)
{
    uint64_t at = 0, left = head->strings_length;
    char *text = t->text;

    for (uint32_t i = 0; i < head->string_count; i++) {
        uint16_t key, value;

        if (left < 4)
            return bad(err, "string", i, "goes beyond its part");
        memcpy(&key, bytes + at, 2);
        memcpy(&value, bytes + at + 2, 2);
        at += 4;
        left -= 4;
        if ((uint64_t)key + value > left || value > LS_FMT_MAX_VALUE)
            return bad(err, "string", i, "goes beyond its part");
        if (!good_key((const char *)bytes + at, key) || memchr(bytes + at + key, 0, value))
            return bad(err, "string", i, "has a bad key or value");
        t->strings[i].key = text;
        memcpy(text, bytes + at, key);
        text[key] = 0;
        text += key + 1;
        t->strings[i].value = text;
        memcpy(text, bytes + at + key, value);
        text[value] = 0;
        text += value + 1;
        at += key + value;
        left -= key + value;
        for (uint32_t k = 0; k < i; k++)
            if (strcmp(t->strings[k].key, t->strings[i].key) == 0)
                return bad(err, "string", i, "has the key of another");
    }
    if (left >= 8 || !ls_is_zero(bytes + at, left))
        return ls_fail(err, LS_TORN, "format", "the strings of the index do not end as they must");
    return 0;
}

int ls_tables_parse(const struct ls_fmt_head *head, const uint8_t *bytes, struct ls_tables *t,
                    struct ls_error *err)
{
    size_t ranges = head->block_count * sizeof(struct ls_fmt_block);
    size_t strings = ranges + head->range_count * sizeof(struct ls_fmt_range);

    /* A key and a value each get a NUL in the place of their length: it is never longer. */
    *t = (struct ls_tables){
        .blocks = calloc(head->block_count, sizeof *t->blocks),
        .ranges = calloc(head->range_count + 1u, sizeof *t->ranges),
        .strings = calloc(head->string_count + 1u, sizeof *t->strings),
        .text = calloc(1, head->strings_length + 1),
    };
    if (!t->blocks || !t->ranges || !t->strings || !t->text) {
        ls_tables_free(t);
        return ls_fail(err, LS_INTERNAL, "memory", "no memory for the index of a RAM image");
    }
    if (parse_blocks(head, bytes, t, err) || parse_ranges(head, bytes + ranges, t, err) ||
        parse_strings(head, bytes + strings, t, err)) {
        ls_tables_free(t);
        return -1;
    }
    return 0;
}

/* Main RAM: docs/image-format.md, "What a writer does". */
static uint32_t main_block(const struct ls_image_spec *spec)
{
    uint32_t best = 0;
    uint64_t most = 0;

    for (uint32_t i = 0; i < spec->range_count; i++)
        if (spec->ranges[i].gpa == 0 && spec->ranges[i].block < spec->block_count)
            return spec->ranges[i].block;
    for (uint32_t b = 0; b < spec->block_count; b++) {
        uint64_t bytes = spec->range_count ? 0 : spec->blocks[b].length;

        for (uint32_t i = 0; i < spec->range_count; i++)
            if (spec->ranges[i].block == b)
                bytes += spec->ranges[i].length;
        if (bytes > most) {
            most = bytes;
            best = b;
        }
    }
    return best;
}

static int by_address(const void *a, const void *b)
{
    const struct ls_fmt_range *x = a, *y = b;

    return x->gpa < y->gpa ? -1 : x->gpa > y->gpa;
}

static void build_blocks(const struct ls_image_spec *spec, struct ls_fmt_head *head, uint8_t *to)
{
    uint64_t next = LS_ROUND_UP(spec->blocks[head->main_block].length, LS_FMT_AREA);

    head->data_length = spec->blocks[head->main_block].length;
    for (uint32_t i = 0; i < spec->block_count; i++) {
        const struct ls_image_block *b = &spec->blocks[i];
        struct ls_fmt_block out = {.length = b->length, .page_size = b->page_size};

        out.name_length = (uint32_t)strnlen(b->name, sizeof b->name);
        memcpy(out.name, b->name, out.name_length);
        if (spec->codec == LS_CODEC_NONE && i != head->main_block) {
            out.file_offset = next;
            head->data_length = next + b->length;
            next += LS_ROUND_UP(b->length, LS_FMT_AREA);
        }
        memcpy(to + i * sizeof out, &out, sizeof out);
    }
    if (spec->codec != LS_CODEC_NONE)
        head->data_length = 0;
}

static void build_ranges(const struct ls_image_spec *spec, struct ls_fmt_range *out)
{
    for (uint32_t i = 0; i < spec->range_count; i++)
        out[i] = (struct ls_fmt_range){.gpa = spec->ranges[i].gpa,
                                       .offset = spec->ranges[i].offset,
                                       .length = spec->ranges[i].length,
                                       .block = spec->ranges[i].block};
    qsort(out, spec->range_count, sizeof *out, by_address);
}

static void build_strings(const struct ls_image_spec *spec, uint8_t *to)
{
    for (uint32_t i = 0; i < spec->string_count; i++) {
        uint16_t key = (uint16_t)strlen(spec->strings[i].key);
        uint16_t value = (uint16_t)strlen(spec->strings[i].value);

        memcpy(to, &key, 2);
        memcpy(to + 2, &value, 2);
        memcpy(to + 4, spec->strings[i].key, key);
        memcpy(to + 4 + key, spec->strings[i].value, value);
        to += 4 + key + value;
    }
}

int ls_tables_build(const struct ls_image_spec *spec, struct ls_fmt_head *head, uint8_t **bytes,
                    struct ls_error *err)
{
    struct ls_tables t;
    size_t length = 0;
    uint8_t *ranges;

    *head = (struct ls_fmt_head){.version = LS_FMT_VERSION,
                                 .head_length = sizeof *head,
                                 .codec = spec->codec,
                                 .page_size = LS_PAGE,
                                 .block_count = spec->block_count,
                                 .range_count = spec->range_count,
                                 .string_count = spec->string_count,
                                 .main_block = main_block(spec),
                                 .record_count = 1};
    memcpy(head->magic, LS_FMT_HEAD_MAGIC, sizeof head->magic);
    memcpy(head->id, spec->id, sizeof head->id);
    for (uint32_t i = 0; i < spec->string_count && i < LS_IMAGE_STRINGS; i++) {
        size_t key = strlen(spec->strings[i].key), value = strlen(spec->strings[i].value);

        if (key > LS_FMT_MAX_KEY || value > LS_FMT_MAX_VALUE)
            return ls_fail(err, LS_USAGE, "limit", "string '%.64s' of the image is too long",
                           spec->strings[i].key);
        length += 4 + key + value;
    }
    head->strings_length = LS_ROUND_UP(length, 8);
    if (ls_head_check(head, err)) {
        err->cls = LS_USAGE;
        return -1;
    }
    *bytes = aligned_alloc(8, LS_ROUND_UP(ls_tables_length(head), 8));
    if (!*bytes)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory for the index of a RAM image");
    memset(*bytes, 0, ls_tables_length(head));
    build_blocks(spec, head, *bytes);
    ranges = *bytes + spec->block_count * sizeof(struct ls_fmt_block);
    build_ranges(spec, (struct ls_fmt_range *)(void *)ranges);
    build_strings(spec, ranges + spec->range_count * sizeof(struct ls_fmt_range));
    if (ls_tables_parse(head, *bytes, &t, err)) {
        free(*bytes);
        *bytes = NULL;
        if (err->cls == LS_TORN)
            err->cls = LS_USAGE;
        return -1;
    }
    ls_tables_free(&t);
    return 0;
}
