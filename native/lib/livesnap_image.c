/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The image reader of the helper, with an interface that stays as it is. */
#include "livesnap_image.h"

#include <stdlib.h>
#include <string.h>

#include "image/image.h"

#define PUBLIC __attribute__((visibility("default")))

struct livesnap_image {
    struct ls_image *image;
};

static int told(const struct ls_error *err, struct livesnap_image_error *error)
{
    *error = (struct livesnap_image_error){.error_class = (int)err->cls, .system_error = err->sys};
    memcpy(error->reason, err->reason, sizeof error->reason);
    memcpy(error->message, err->message, sizeof error->message);
    return -1;
}

PUBLIC int livesnap_image_open(const char *path, struct livesnap_image **image,
                               struct livesnap_image_error *error)
{
    struct livesnap_image *made = malloc(sizeof *made);
    struct ls_error err = {0};

    if (!made) {
        ls_fail(&err, LS_INTERNAL, "memory", "no memory to open RAM image '%s'", path);
        return told(&err, error);
    }
    if (ls_image_open(path, &made->image, &err)) {
        free(made);
        return told(&err, error);
    }
    *image = made;
    return 0;
}

PUBLIC void livesnap_image_close(struct livesnap_image *image)
{
    if (!image)
        return;
    ls_image_close(image->image);
    free(image);
}

PUBLIC void livesnap_image_describe(const struct livesnap_image *image,
                                    struct livesnap_image_about *about)
{
    const struct ls_image_info *info = ls_image_info(image->image);

    *about = (struct livesnap_image_about){
        .version = info->version,
        .blocks = info->block_count,
        .ranges = info->range_count,
        .main_block = info->main_block,
        .ram_bytes = info->ram_bytes,
        .zero_bytes = info->zero_bytes,
        .stored_bytes = info->stored_bytes,
        .file_bytes = info->file_bytes,
    };
    memcpy(about->id, info->id, sizeof about->id);
    memcpy(about->checksum, info->checksum, sizeof about->checksum);
    strncpy(about->compression, ls_codec_name(info->codec), sizeof about->compression - 1);
}

PUBLIC int livesnap_image_block(const struct livesnap_image *image, uint32_t index,
                                struct livesnap_image_block *block)
{
    const struct ls_image_info *info = ls_image_info(image->image);

    if (index >= info->block_count)
        return -1;
    *block = (struct livesnap_image_block){
        .length = info->blocks[index].length,
        .page_size = info->blocks[index].page_size,
    };
    memcpy(block->name, info->blocks[index].name, sizeof block->name);
    return 0;
}

PUBLIC int livesnap_image_range(const struct livesnap_image *image, uint32_t index,
                                struct livesnap_image_range *range)
{
    const struct ls_image_info *info = ls_image_info(image->image);

    if (index >= info->range_count)
        return -1;
    *range = (struct livesnap_image_range){
        .address = info->ranges[index].gpa,
        .offset = info->ranges[index].offset,
        .length = info->ranges[index].length,
        .block = info->ranges[index].block,
    };
    return 0;
}

PUBLIC const char *livesnap_image_string(const struct livesnap_image *image, const char *key)
{
    return ls_image_string(image->image, key);
}

PUBLIC int livesnap_image_read(struct livesnap_image *image, uint32_t block, uint64_t offset,
                               void *buffer, uint64_t length, struct livesnap_image_error *error)
{
    struct ls_error err = {0};

    return ls_image_read(image->image, block, offset, buffer, length, &err) ? told(&err, error) : 0;
}

PUBLIC int livesnap_image_read_physical(struct livesnap_image *image, uint64_t address,
                                        void *buffer, uint64_t length,
                                        struct livesnap_image_error *error)
{
    struct ls_error err = {0};

    return ls_image_read_gpa(image->image, address, buffer, length, &err) ? told(&err, error) : 0;
}

PUBLIC int livesnap_image_verify_range(struct livesnap_image *image, uint32_t block,
                                       uint64_t offset, uint64_t length,
                                       struct livesnap_image_error *error)
{
    struct ls_error err = {0};

    return ls_image_verify_range(image->image, block, offset, length, &err) ? told(&err, error) : 0;
}

PUBLIC int livesnap_image_verify(struct livesnap_image *image, struct livesnap_image_error *error)
{
    struct ls_error err = {0};

    return ls_image_verify(image->image, NULL, NULL, &err) ? told(&err, error) : 0;
}
