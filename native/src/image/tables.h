/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The parts of an index before its records: built from a specification, checked when read. Writer
 * and reader share the checks, so that no image is written that could not be opened. */
#ifndef LS_IMAGE_TABLES_H
#define LS_IMAGE_TABLES_H

#include "image/format.h"
#include "image/image.h"

/* What a checked index says. The strings point into `text`. */
struct ls_tables {
    struct ls_image_block *blocks;
    struct ls_image_range *ranges;
    struct ls_image_string *strings;
    char *text;
};

void ls_tables_free(struct ls_tables *t);

/* Checks all of the head but the sums that depend on the file. */
int ls_head_check(const struct ls_fmt_head *head, struct ls_error *err);

/* Length of blocks, ranges and strings; the head has been checked. */
size_t ls_tables_length(const struct ls_fmt_head *head);

/* Checks `bytes` (ls_tables_length of them) and fills *t; head->data_length included where the
 * codec is none. Errors are LS_TORN. */
int ls_tables_parse(const struct ls_fmt_head *head, const uint8_t *bytes, struct ls_tables *t,
                    struct ls_error *err);

/* Fills the head (but for record_count, and data_length of compressed images) and *bytes, to be
 * freed by the caller. Errors are LS_USAGE. */
int ls_tables_build(const struct ls_image_spec *spec, struct ls_fmt_head *head, uint8_t **bytes,
                    struct ls_error *err);

#endif
