/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Whatever image and device state are made of, what is written for QEMU is a stream: each page of
 * each block once, in its frame, and the device sections as they were. Input: an image, which is of
 * whole pages, and after it the device state.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "must.h"
#include "stream/format.h"
#include "stream/stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RAM_MAX (4u << 20) /* zero pages are many where a file says so: not for minutes */

struct in {
    const uint8_t *at, *end;
};

static const uint8_t *get(struct in *in, size_t n)
{
    const uint8_t *at = in->at;

    must((size_t)(in->end - at) >= n);
    in->at += n;
    return at;
}

static uint64_t number(struct in *in, unsigned bytes)
{
    const uint8_t *p = get(in, bytes);
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes; i++)
        value = value << 8 | p[i];
    return value;
}

/* A length byte, and that name. */
static void name(struct in *in, const char *expected)
{
    uint64_t n = number(in, 1);

    must(n == strlen(expected) && memcmp(get(in, n), expected, n) == 0);
}

static void read_head(struct in *in, struct ls_image *image)
{
    const struct ls_image_info *info = ls_image_info(image);
    const char *machine = ls_image_string(image, "machine");
    uint64_t n;

    must(number(in, 4) == LS_QEMU_MAGIC && number(in, 4) == LS_QEMU_VERSION);
    must(number(in, 1) == LS_QEMU_CONFIGURATION);
    n = number(in, 4);
    must(n == strlen(machine) && memcmp(get(in, n), machine, n) == 0);
    must(number(in, 1) == LS_QEMU_SECTION_START && number(in, 4) == LS_QEMU_RAM_SECTION);
    name(in, "ram");
    must(number(in, 4) == 0 && number(in, 4) == LS_QEMU_RAM_VERSION);
    must(number(in, 8) == (info->ram_bytes | LS_RAM_SIZES));
    for (uint32_t b = 0; b < info->block_count; b++) {
        name(in, info->blocks[b].name);
        must(number(in, 8) == info->blocks[b].length);
    }
    must(number(in, 8) == LS_RAM_END);
    must(number(in, 1) == LS_QEMU_FOOTER && number(in, 4) == LS_QEMU_RAM_SECTION);
}

/* All pages of a block, in order, with what the image has there. */
static void read_block(struct in *in, struct ls_image *image, uint32_t block)
{
    const struct ls_image_block *b = &ls_image_info(image)->blocks[block];
    uint8_t page[LS_PAGE];
    struct ls_error err = {0};

    for (uint64_t at = 0; at < b->length; at += LS_PAGE) {
        uint64_t head = number(in, 8);

        must((head & ~(uint64_t)(LS_PAGE - 1)) == at);
        must(!(head & LS_RAM_SAME_BLOCK) == (at == 0));
        if (at == 0)
            name(in, b->name);
        must(ls_image_read(image, block, at, page, LS_PAGE, &err) == 0);
        if (head & LS_RAM_ZERO)
            must(number(in, 1) == 0 && ls_page_is_zero(page));
        else
            must((head & LS_RAM_PAGE) && memcmp(get(in, LS_PAGE), page, LS_PAGE) == 0);
    }
}

static void read_stream(struct in *in, struct ls_image *image, const struct ls_devices *devices,
                        bool main_pages)
{
    const struct ls_image_info *info = ls_image_info(image);

    read_head(in, image);
    must(number(in, 1) == LS_QEMU_SECTION_END && number(in, 4) == LS_QEMU_RAM_SECTION);
    for (uint32_t b = 0; b < info->block_count; b++)
        if (main_pages || b != info->main_block)
            read_block(in, image, b);
    must(number(in, 8) == LS_RAM_END);
    must(number(in, 1) == LS_QEMU_FOOTER && number(in, 4) == LS_QEMU_RAM_SECTION);
    must(memcmp(get(in, devices->length), devices->sections, devices->length) == 0);
    must(number(in, 1) == LS_QEMU_EOF && number(in, 1) == LS_QEMU_VMDESCRIPTION);
    must(number(in, 4) == 2 && memcmp(get(in, 2), "{}", 2) == 0);
    must(in->at == in->end);
}

static int memory_file(const char *what, const uint8_t *data, size_t size)
{
    int fd = memfd_create(what, MFD_CLOEXEC);

    if (size > 0)
        must(write(fd, data, size) == (ssize_t)size);
    return fd;
}

static void write_and_read(struct ls_image *image, const struct ls_devices *devices, bool main)
{
    int fd = memory_file("stream", NULL, 0);
    struct ls_error err = {0};
    off_t size;
    void *map;
    struct in in;

    if (ls_stream_write(image, devices, main, fd, NULL, NULL, &err) == 0) {
        size = lseek(fd, 0, SEEK_END);
        map = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);
        must(map != MAP_FAILED);
        in = (struct in){map, (const uint8_t *)map + size};
        read_stream(&in, image, devices, main);
        munmap(map, (size_t)size);
    } else {
        must(err.message[0]);
    }
    close(fd);
}

/* Names of files that stay in their folder. */
static void check_names(const struct ls_image_info *info)
{
    char raw[3 * LS_IMAGE_NAME];

    for (uint32_t b = 0; b < info->block_count; b++) {
        ls_raw_name(info->blocks[b].name, raw);
        must(raw[0] && raw[0] != '.' && !strchr(raw, '/'));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t image_size = size / LS_PAGE * LS_PAGE;
    int image_fd = memory_file("image", data, image_size);
    int devices_fd = memory_file("devices", data + image_size, size - image_size);
    struct ls_devices devices;
    struct ls_image *image;
    struct ls_error err = {0};
    char path[64];

    snprintf(path, sizeof path, "/proc/self/fd/%d", devices_fd);
    if (ls_image_open_fd(image_fd, "fuzz", &image, &err) == 0) {
        check_names(ls_image_info(image));
        if (ls_image_info(image)->ram_bytes <= RAM_MAX &&
            ls_devices_load(path, &devices, &err) == 0) {
            write_and_read(image, &devices, true);
            write_and_read(image, &devices, false);
            ls_devices_free(&devices);
        }
        ls_image_close(image);
    }
    close(image_fd);
    close(devices_fd);
    return 0;
}
