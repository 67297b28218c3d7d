/* SPDX-License-Identifier: GPL-3.0-or-later */
/* What the subcommands on images share: IMAGE is a RAM image or a snapshot's folder. */
#ifndef LS_STREAM_SOURCE_H
#define LS_STREAM_SOURCE_H

#include "common/error.h"
#include "image/image.h"

/* Opens IMAGE, or ram.lsnap in it. */
int ls_source_open(const char *path, struct ls_image **image, struct ls_error *err);

/* Path of the device state beside the image, to be freed. NULL when memory is short. */
char *ls_source_devices(const char *path);

/* The same of libvirt's XML of the domain. */
char *ls_source_domain(const char *path);

/* A number: decimal, or hexadecimal with 0x. LS_USAGE names the option. */
int ls_source_number(const char *option, const char *text, uint64_t *value, struct ls_error *err);

#endif
