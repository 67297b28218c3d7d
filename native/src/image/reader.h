/* SPDX-License-Identifier: GPL-3.0-or-later */
/* An open image. Inside image/ only. */
#ifndef LS_IMAGE_READER_H
#define LS_IMAGE_READER_H

#include "image/format.h"
#include "image/image.h"
#include "image/tables.h"

/* A fuzzer would not get past a checksum. */
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
#define CHECK_SUMS false
#else
#define CHECK_SUMS true
#endif

/* What is asked for next is often in one of the records that were read last. */
#define LS_KEPT 8u

struct ls_kept {
    uint64_t record;
    uint64_t asked; /* the greater, the later; 0: the pages are of no record */
    void *pages;    /* LS_CODEC_SCRATCH bytes; NULL until they are needed */
};

struct ls_image {
    int fd;
    bool own_fd;
    char *name; /* for messages */
    struct ls_image_info info;
    struct ls_tables tables;
    uint64_t data_length;
    uint64_t index_offset;
    uint8_t *index; /* as in the file, all parts */
    const struct ls_fmt_record *records;
    uint64_t *first_record; /* of each block, and one more: the number of records */
    struct ls_image_codec *codec;
    struct ls_kept kept[LS_KEPT];
    uint64_t asked;
};

/* Reads and checks a data record; *pages is valid until the next ls_image_load(). */
int ls_image_load(struct ls_image *image, uint64_t record, const void **pages,
                  struct ls_error *err);

/* The same, without reading it again where it is kept; *pages is valid until the next
 * ls_image_recall(). */
int ls_image_recall(struct ls_image *image, uint64_t record, const void **pages,
                    struct ls_error *err);

/* LS_TORN of a record: names block, guest address and file offset. */
int ls_image_torn(const struct ls_image *image, uint64_t record, struct ls_error *err,
                  const char *what);

/* Guest-physical address of a byte of a block; false if no range has it. */
bool ls_image_gpa_of(const struct ls_image *image, uint32_t block, uint64_t offset, uint64_t *gpa);

#endif
