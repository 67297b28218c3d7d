/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "stream/stream.h"

#include <stdlib.h>
#include <string.h>

#include "common/io.h"
#include "stream/format.h"

#define BUFFER (1u << 20)

struct out {
    int fd;
    struct ls_image *image;
    ls_image_progress_fn progress;
    void *opaque;
    uint64_t done, total; /* bytes of RAM */
    int64_t last_block;   /* of the page before; -1: none */
    uint8_t *buf;
    size_t used;
};

static int flush(struct out *o, struct ls_error *err)
{
    size_t n = o->used;

    o->used = 0;
    return n ? ls_write_full(o->fd, o->buf, n, err) : 0;
}

static int put(struct out *o, const void *data, size_t length, struct ls_error *err)
{
    if (o->used + length > BUFFER && flush(o, err))
        return -1;
    if (length > BUFFER)
        return ls_write_full(o->fd, data, length, err);
    memcpy(o->buf + o->used, data, length);
    o->used += length;
    return 0;
}

static int put8(struct out *o, uint8_t value, struct ls_error *err)
{
    return put(o, &value, 1, err);
}

static int put32(struct out *o, uint32_t value, struct ls_error *err)
{
    uint32_t be = __builtin_bswap32(value);

    return put(o, &be, 4, err);
}

static int put64(struct out *o, uint64_t value, struct ls_error *err)
{
    uint64_t be = __builtin_bswap64(value);

    return put(o, &be, 8, err);
}

/* A length byte and the bytes. */
static int put_name(struct out *o, const char *name, struct ls_error *err)
{
    size_t length = strlen(name);

    return put8(o, (uint8_t)length, err) || put(o, name, length, err) ? -1 : 0;
}

static int put_footer(struct out *o, struct ls_error *err)
{
    return put8(o, LS_QEMU_FOOTER, err) || put32(o, LS_QEMU_RAM_SECTION, err) ? -1 : 0;
}

static int put_start(struct out *o, const char *machine, struct ls_error *err)
{
    const struct ls_image_info *info = ls_image_info(o->image);

    if (put32(o, LS_QEMU_MAGIC, err) || put32(o, LS_QEMU_VERSION, err) ||
        put8(o, LS_QEMU_CONFIGURATION, err) || put32(o, (uint32_t)strlen(machine), err) ||
        put(o, machine, strlen(machine), err))
        return -1;
    if (put8(o, LS_QEMU_SECTION_START, err) || put32(o, LS_QEMU_RAM_SECTION, err) ||
        put_name(o, "ram", err) || put32(o, 0, err) || put32(o, LS_QEMU_RAM_VERSION, err) ||
        put64(o, info->ram_bytes | LS_RAM_SIZES, err))
        return -1;
    for (uint32_t b = 0; b < info->block_count; b++)
        if (put_name(o, info->blocks[b].name, err) || put64(o, info->blocks[b].length, err))
            return -1;
    return put64(o, LS_RAM_END, err) || put_footer(o, err) ? -1 : 0;
}

static int put_page(struct out *o, uint32_t block, uint64_t page, const uint8_t *data,
                    struct ls_error *err)
{
    bool zero = !data || ls_page_is_zero(data);
    uint64_t head = page * LS_PAGE | (zero ? LS_RAM_ZERO : LS_RAM_PAGE);
    bool same = o->last_block == block;

    if (put64(o, head | (same ? LS_RAM_SAME_BLOCK : 0), err) ||
        (!same && put_name(o, ls_image_info(o->image)->blocks[block].name, err)))
        return -1;
    o->last_block = block;
    return zero ? put8(o, 0, err) : put(o, data, LS_PAGE, err);
}

static int put_run(const struct ls_image_run *run, void *opaque, struct ls_error *err)
{
    struct out *o = opaque;
    const uint8_t *data = run->data;

    for (uint64_t i = 0; i < run->pages; i++)
        if (put_page(o, run->block, run->first_page + i, data ? data + i * LS_PAGE : NULL, err))
            return -1;
    o->done += run->pages * LS_PAGE;
    if (o->progress)
        o->progress(o->done, o->total, o->opaque);
    return 0;
}

static int put_ram(struct out *o, bool main_pages, struct ls_error *err)
{
    const struct ls_image_info *info = ls_image_info(o->image);

    if (put8(o, LS_QEMU_SECTION_END, err) || put32(o, LS_QEMU_RAM_SECTION, err))
        return -1;
    for (uint32_t b = 0; b < info->block_count; b++)
        if ((main_pages || b != info->main_block) && ls_image_walk(o->image, b, put_run, o, err))
            return -1;
    return put64(o, LS_RAM_END, err) || put_footer(o, err) ? -1 : 0;
}

int ls_stream_write(struct ls_image *image, const struct ls_devices *devices, bool main_pages,
                    int fd, ls_image_progress_fn progress, void *opaque, struct ls_error *err)
{
    const struct ls_image_info *info = ls_image_info(image);
    const char *machine = ls_image_string(image, "machine");
    struct out o = {.fd = fd,
                    .image = image,
                    .progress = progress,
                    .opaque = opaque,
                    .total = info->ram_bytes,
                    .last_block = -1};
    int ret;

    if (!machine || !*machine || strlen(machine) > 255)
        return ls_fail(err, LS_USAGE, "machine",
                       "the image does not name the machine type, without which QEMU takes no "
                       "stream");
    if (!main_pages)
        o.total -= info->blocks[info->main_block].length;
    o.buf = malloc(BUFFER);
    if (!o.buf)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to write a stream");
    ret = put_start(&o, machine, err) || put_ram(&o, main_pages, err) ||
                  put(&o, devices->sections, devices->length, err) || put8(&o, LS_QEMU_EOF, err) ||
                  put8(&o, LS_QEMU_VMDESCRIPTION, err) || put32(&o, 2, err) ||
                  put(&o, "{}", 2, err) || flush(&o, err)
              ? -1
              : 0;
    free(o.buf);
    return ret;
}
