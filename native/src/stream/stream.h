/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * What stock QEMU takes: a migration stream made of a RAM image and the device state that
 * xen-save-devices-state wrote; or the blocks of an image as plain files, or its memory as an ELF
 * core.
 */
#ifndef LS_STREAM_STREAM_H
#define LS_STREAM_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "image/image.h"

/* The sections of a device state file, without its header and its last byte. */
struct ls_devices {
    uint8_t *file;
    const uint8_t *sections;
    size_t length;
};

/*
 * Reads and checks a device state file as far as that is possible: sections do not tell their
 * length. Magic, version, the head of the first section, the footer of the last and the end mark
 * are checked; that it is whole is for the manifest's checksum to say. LS_TORN if it is none.
 */
int ls_devices_load(const char *path, struct ls_devices *devices, struct ls_error *err);
void ls_devices_free(struct ls_devices *devices);

/*
 * Writes the stream for `-incoming` to a descriptor. Without `main_pages` the pages of main RAM
 * are left out: the destination must have them already (docs/image-format.md, "Mapping it as
 * RAM"). LS_USAGE if the image does not name the machine type. `progress` may be NULL.
 */
int ls_stream_write(struct ls_image *image, const struct ls_devices *devices, bool main_pages,
                    int fd, ls_image_progress_fn progress, void *opaque, struct ls_error *err);

/*
 * What libvirt's save files have in front of that stream: its header, and the domain's XML from a
 * file. `running`: whether the domain is to run when it was restored. LS_TORN if the file is no XML
 * of a domain (its first bytes tell; libvirt judges the rest).
 */
int ls_libvirt_header_write(const char *path, bool running, int fd, struct ls_error *err);

/* Name of the file that ls_raw_write makes of a block: its id, bytes but [A-Za-z0-9._@:+-] and a
 * leading dot as %XX. `name` has room for 3 * LS_IMAGE_NAME bytes. */
void ls_raw_name(const char *block, char *name);

/* Writes each block to a sparse file of its own in `dir`, which is made if it is not there. Each
 * file gets its name when it is whole; one that is there already is replaced. */
int ls_raw_write(struct ls_image *image, const char *dir, ls_image_progress_fn progress,
                 void *opaque, struct ls_error *err);

/*
 * Writes guest memory as an ELF core, which crash, Volatility and others read: a sparse file, which
 * gets its name when it is whole. Processors come from the device state. LS_REFUSED if the guest is
 * not x86-64.
 */
int ls_elf_write(struct ls_image *image, const struct ls_devices *devices, const char *path,
                 ls_image_progress_fn progress, void *opaque, struct ls_error *err);

#endif
