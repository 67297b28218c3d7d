/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The image's structures as they lie in the file: docs/image-format.md, in its order. */
#ifndef LS_IMAGE_FORMAT_H
#define LS_IMAGE_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the image's structures are used as they lie in the file, which is little-endian"
#endif

#define LS_FMT_VERSION 1u
#define LS_FMT_AREA (2u << 20) /* codec none: areas of blocks begin at multiples of it */
#define LS_FMT_MAX_RAM (1ull << 44)
#define LS_FMT_MAX_RECORDS (1ull << 27)
#define LS_FMT_MAX_KEY 63u
#define LS_FMT_MAX_VALUE 4095u
#define LS_FMT_FOOTER_MAGIC "LSNAPIMG"
#define LS_FMT_HEAD_MAGIC "LSNAPIDX"

enum { LS_FMT_ZERO = 0, LS_FMT_DATA = 1 };

struct ls_fmt_footer {
    uint8_t magic[8];
    uint32_t version;
    uint32_t footer_length;
    uint64_t file_size;
    uint64_t index_offset;
    uint64_t index_length;
    uint8_t checksum[16];
    uint8_t reserved[4032];
    uint64_t footer_checksum;
};

struct ls_fmt_head {
    uint8_t magic[8];
    uint32_t version;
    uint32_t head_length;
    uint8_t id[16];
    uint32_t codec;
    uint32_t page_size;
    uint32_t block_count;
    uint32_t range_count;
    uint32_t string_count;
    uint32_t main_block;
    uint64_t record_count;
    uint64_t data_length;
    uint64_t strings_length;
    uint8_t parent_id[16];
    uint8_t parent_checksum[16];
    uint8_t encryption[80];
    uint8_t reserved[64];
};

struct ls_fmt_block {
    uint64_t length;
    uint64_t file_offset;
    uint64_t page_size;
    uint32_t reserved;
    uint32_t name_length;
    uint8_t name[256];
};

struct ls_fmt_range {
    uint64_t gpa;
    uint64_t offset;
    uint64_t length;
    uint32_t block;
    uint32_t reserved;
};

struct ls_fmt_record {
    uint32_t block;
    uint8_t kind;
    uint8_t codec;
    uint16_t reserved;
    uint64_t first_page;
    uint32_t pages;
    uint32_t stored;
    uint64_t file_offset;
    uint64_t checksum;
};

_Static_assert(sizeof(struct ls_fmt_footer) == 4096, "footer");
_Static_assert(offsetof(struct ls_fmt_footer, footer_checksum) == 4088, "footer");
_Static_assert(sizeof(struct ls_fmt_head) == 256, "head");
_Static_assert(offsetof(struct ls_fmt_head, parent_id) == 80, "head");
_Static_assert(offsetof(struct ls_fmt_head, reserved) == 192, "head");
_Static_assert(sizeof(struct ls_fmt_block) == 288, "block");
_Static_assert(sizeof(struct ls_fmt_range) == 32, "range");
_Static_assert(sizeof(struct ls_fmt_record) == 40, "record");

#define LS_ROUND_UP(n, to) (((n) + (to)-1) / (to) * (to))

#endif
