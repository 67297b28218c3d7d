/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A whole migration stream of QEMU's, as `background-snapshot` writes it: where each page of RAM
 * lies in it, and where its device state. Nothing in it is trusted.
 */
#ifndef LS_STREAM_INCOMING_H
#define LS_STREAM_INCOMING_H

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "image/image.h"

/* Values of ls_incoming.page; larger ones are the offset of the page's 4096 bytes. */
#define LS_INCOMING_NONE 0u
#define LS_INCOMING_ZERO 1u

struct ls_incoming_block {
    char name[LS_IMAGE_NAME];
    uint64_t length; /* used bytes, whole pages */
    uint64_t first;  /* number of its first page in ls_incoming.page */
};

struct ls_incoming {
    const uint8_t *data; /* the caller's */
    size_t size;
    char machine[256];
    uint32_t block_count;
    struct ls_incoming_block *blocks;
    uint64_t pages;
    uint64_t *page;
    size_t sections, sections_length; /* of the devices, with their footers, without the end mark */
};

/*
 * Takes the stream apart. Accepted is what is documented in stream/format.h: RAM in section `ram`,
 * each page exactly once, then the device sections. LS_TORN, reason "stream", says what is not so,
 * and where.
 */
int ls_incoming_read(const uint8_t *data, size_t size, struct ls_incoming *in,
                     struct ls_error *err);
void ls_incoming_free(struct ls_incoming *in);

/* Writes the device sections to a new file, in the form of xen-save-devices-state. */
int ls_incoming_write_devices(const struct ls_incoming *in, const char *path, struct ls_error *err);

#endif
