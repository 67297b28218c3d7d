/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Reads RAM images of livesnap (docs/image-format.md). liblivesnap-image.so needs libc and nothing
 * else.
 *
 * What can fail returns 0, or -1 with the error filled in. All that comes out of an image was
 * compared with its checksum first. One thread at a time for each image.
 */
#ifndef LIVESNAP_IMAGE_H
#define LIVESNAP_IMAGE_H

#include <stdint.h>

struct livesnap_image;

/* Classes of errors. */
enum livesnap_image_class {
    LIVESNAP_IMAGE_USAGE = 1,   /* there is no such block, or no RAM at that address */
    LIVESNAP_IMAGE_STORAGE = 5, /* the file cannot be read */
    LIVESNAP_IMAGE_TORN = 6,    /* the file is not what was written */
    LIVESNAP_IMAGE_INTERNAL = 7 /* anything else, such as no memory */
};

struct livesnap_image_error {
    int error_class;
    int system_error; /* errno, or 0 */
    char reason[32];  /* a word for programs */
    char message[480];
};

struct livesnap_image_about {
    uint32_t version;
    uint32_t blocks;
    uint32_t ranges;
    uint32_t main_block;
    uint64_t ram_bytes;
    uint64_t zero_bytes;
    uint64_t stored_bytes;
    uint64_t file_bytes;
    uint8_t id[16];
    char checksum[33];
    char compression[8];
};

struct livesnap_image_block {
    uint64_t length;
    uint64_t page_size;
    char name[256];
};

/* `length` bytes from guest-physical address `address` on are `block` from `offset` on. */
struct livesnap_image_range {
    uint64_t address;
    uint64_t offset;
    uint64_t length;
    uint32_t block;
};

int livesnap_image_open(const char *path, struct livesnap_image **image,
                        struct livesnap_image_error *error);
void livesnap_image_close(struct livesnap_image *image);
void livesnap_image_describe(const struct livesnap_image *image,
                             struct livesnap_image_about *about);
int livesnap_image_block(const struct livesnap_image *image, uint32_t index,
                         struct livesnap_image_block *block);
int livesnap_image_range(const struct livesnap_image *image, uint32_t index,
                         struct livesnap_image_range *range);
const char *livesnap_image_string(const struct livesnap_image *image, const char *key);
int livesnap_image_read(struct livesnap_image *image, uint32_t block, uint64_t offset, void *buffer,
                        uint64_t length, struct livesnap_image_error *error);
int livesnap_image_read_physical(struct livesnap_image *image, uint64_t address, void *buffer,
                                 uint64_t length, struct livesnap_image_error *error);
/* Reads a range of a block from the file, and gives nothing out. */
int livesnap_image_verify_range(struct livesnap_image *image, uint32_t block, uint64_t offset,
                                uint64_t length, struct livesnap_image_error *error);
/* Reads all of the file, what is between the pages as well. */
int livesnap_image_verify(struct livesnap_image *image, struct livesnap_image_error *error);

#endif
