/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `livesnap-helper info IMAGE`: what an image says of itself, as one JSON object. */
#include <jansson.h>
#include <stdio.h>

#include "commands.h"
#include "common/event.h"
#include "stream/source.h"

/* Text of the image that is not UTF-8 cannot be JSON. */
static json_t *text(const char *value)
{
    json_t *string = value ? json_string(value) : json_null();

    return string ? string : json_null();
}

static json_t *blocks(const struct ls_image_info *info)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < info->block_count; i++) {
        const struct ls_image_block *b = &info->blocks[i];

        json_array_append_new(list, json_pack("{s:o, s:I, s:I, s:I}", "name", text(b->name),
                                              "length", (json_int_t)b->length, "page_size",
                                              (json_int_t)b->page_size, "file_offset",
                                              (json_int_t)b->file_offset));
    }
    return list;
}

static json_t *ranges(const struct ls_image_info *info)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < info->range_count; i++) {
        const struct ls_image_range *r = &info->ranges[i];

        json_array_append_new(list,
                              json_pack("{s:I, s:o, s:I, s:I}", "gpa", (json_int_t)r->gpa, "block",
                                        text(info->blocks[r->block].name), "offset",
                                        (json_int_t)r->offset, "length", (json_int_t)r->length));
    }
    return list;
}

static json_t *strings(const struct ls_image_info *info)
{
    json_t *object = json_object();

    for (uint32_t i = 0; i < info->string_count; i++)
        json_object_set_new(object, info->strings[i].key, text(info->strings[i].value));
    return object;
}

static json_t *describe(const struct ls_image *image)
{
    const struct ls_image_info *info = ls_image_info(image);
    char id[37], *to = id;

    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *to++ = '-';
        to += sprintf(to, "%02x", info->id[i]);
    }
    return json_pack("{s:i, s:s, s:s, s:i, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:s, s:o, "
                     "s:o, s:o}",
                     "version", (int)info->version, "id", id, "compression",
                     ls_codec_name(info->codec), "block_count", (int)info->block_count,
                     "main_block", text(info->blocks[info->main_block].name), "machine",
                     text(ls_image_string(image, "machine")), "qemu_version",
                     text(ls_image_string(image, "qemu_version")), "arch",
                     text(ls_image_string(image, "arch")), "ram_bytes", (json_int_t)info->ram_bytes,
                     "zero_bytes", (json_int_t)info->zero_bytes, "stored_bytes",
                     (json_int_t)info->stored_bytes, "file_bytes", (json_int_t)info->file_bytes,
                     "records", (json_int_t)info->record_count, "checksum", info->checksum,
                     "blocks", blocks(info), "gpa", ranges(info), "strings", strings(info));
}

int ls_cmd_info(int argc, char **argv)
{
    struct ls_image *image;
    struct ls_error err = {0};
    json_t *object;

    if (argc != 2) {
        fprintf(stderr, "usage: livesnap-helper info IMAGE|SNAPSHOT_DIR\n");
        return LS_USAGE;
    }
    if (ls_source_open(argv[1], &image, &err))
        return ls_event_error(stdout, &err);
    object = describe(image);
    ls_image_close(image);
    if (!object) {
        ls_fail(&err, LS_INTERNAL, "memory", "cannot describe RAM image '%s'", argv[1]);
        return ls_event_error(stdout, &err);
    }
    json_dumpf(object, stdout, JSON_COMPACT);
    printf("\n");
    json_decref(object);
    return fflush(stdout) ? LS_STORAGE : LS_OK;
}
