/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Whatever a file holds, the reader refuses it or reads it; checksums are taken as right here. */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stream/stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(struct ls_image *image)
{
    static const uint8_t end[] = {0};
    const struct ls_devices devices = {.sections = end, .length = 0};
    const struct ls_image_info *info = ls_image_info(image);
    static uint8_t buf[3 * LS_PAGE];
    struct ls_error err = {0};
    int null;

    for (uint32_t b = 0; b < info->block_count && b < 8; b++) {
        uint64_t length = info->blocks[b].length;
        size_t n = length < sizeof buf ? (size_t)length : sizeof buf;

        ls_image_read(image, b, 0, buf, n, &err);
        ls_image_read(image, b, length - n, buf, n, &err);
        ls_image_read(image, b, length, buf, 1, &err);
    }
    for (uint32_t r = 0; r < info->range_count && r < 8; r++) {
        ls_image_gpa_extent(image, info->ranges[r].gpa);
        ls_image_read_gpa(image, info->ranges[r].gpa + 1, buf, sizeof buf, &err);
    }
    ls_image_verify(image, NULL, NULL, &err);
    /* Zero pages are many where a file says so: not for minutes. */
    if (info->ram_bytes > 16u << 20)
        return;
    null = open("/dev/null", O_WRONLY);
    ls_stream_write(image, &devices, true, null, NULL, NULL, &err);
    close(null);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    struct ls_image *image;
    struct ls_error err = {0};

    if (fd < 0)
        fd = memfd_create("image", MFD_CLOEXEC);
    /* Sizes are multiples of a page, or nothing but the first check would be tried. */
    size = size / LS_PAGE * LS_PAGE;
    if (ftruncate(fd, 0) || pwrite(fd, data, size, 0) != (ssize_t)size)
        return 0;
    if (ls_image_open_fd(fd, "fuzz", &image, &err) == 0) {
        use(image);
        ls_image_close(image);
    }
    return 0;
}
