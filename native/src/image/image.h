/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The RAM image: the file that holds the memory of a snapshot. docs/image-format.md is the format.
 *
 * A writer takes runs of pages in any order from several threads and refuses to finish unless each
 * page of each block came exactly once. A reader gives any page without reading the rest.
 * Failures: LS_STORAGE (the file system), LS_TORN (the file is not what a writer made),
 * LS_USAGE (a specification or request out of limits), LS_INTERNAL (pages given twice or never).
 */
#ifndef LS_IMAGE_IMAGE_H
#define LS_IMAGE_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#define LS_PAGE 4096u         /* the unit of an image, whatever the host's page size */
#define LS_IMAGE_RUN 512u     /* pages in one put of data at most (2 MiB) */
#define LS_IMAGE_BLOCKS 1024u /* limits of version 1 */
#define LS_IMAGE_RANGES 4096u
#define LS_IMAGE_STRINGS 64u
#define LS_IMAGE_NAME 256u /* with its NUL */

enum ls_codec { LS_CODEC_NONE = 0, LS_CODEC_LZ4 = 1, LS_CODEC_ZSTD = 2 };

struct ls_image_block {
    char name[LS_IMAGE_NAME]; /* QEMU's id of the RAMBlock, such as "pc.ram" */
    uint64_t length;          /* used length in bytes, a multiple of LS_PAGE, not 0 */
    uint64_t page_size;       /* of its memory on the host when captured; a power of two */
    uint64_t file_offset;     /* filled by writer and reader; with codec none where it lies */
};

struct ls_image_range {
    uint64_t gpa; /* guest-physical address of `length` bytes of `block` from `offset` on */
    uint64_t offset;
    uint64_t length;
    uint32_t block;
};

struct ls_image_string {
    const char *key;   /* [a-z0-9_]{1,63}, each once */
    const char *value; /* up to 4095 bytes */
};

struct ls_image_spec {
    uint8_t id[16]; /* UUID of the snapshot, in the order of its text */
    enum ls_codec codec;
    int level; /* 0: lz4's own default, zstd 1 */
    uint32_t block_count, range_count, string_count;
    const struct ls_image_block *blocks;
    const struct ls_image_range *ranges;   /* any order; must not overlap */
    const struct ls_image_string *strings; /* "machine", "qemu_version", "arch" by convention */
};

struct ls_image_stats {
    uint64_t ram_bytes;    /* of all blocks */
    uint64_t zero_bytes;   /* pages found to be zero, wherever they went */
    uint64_t stored_bytes; /* data, index and footer, as written; holes not counted */
    uint64_t file_bytes;   /* size of the file, holes counted */
    uint64_t records;
    char checksum[33]; /* of the whole image, hexadecimal */
};

/* ---- codec (codec.c): the scratch memory of one thread ---- */

struct ls_image_codec;

/* NULL when memory is short. One a thread; for writing `codec` and `level` are the image's. */
struct ls_image_codec *ls_image_codec_new(enum ls_codec codec, int level);
void ls_image_codec_free(struct ls_image_codec *c); /* NULL is fine */

/* "none", "lz4", "zstd". */
const char *ls_codec_name(enum ls_codec codec);
int ls_codec_parse(const char *name, enum ls_codec *codec, struct ls_error *err);

/* True if the LS_PAGE bytes are all zero. Any alignment; fast when it is 32. */
bool ls_page_is_zero(const void *page);
/* The same of any length. */
bool ls_is_zero(const void *data, size_t length);

/* ---- writer (writer.c) ---- */

struct ls_image_writer;

/* Creates the file (it must not exist, mode 0600). It opens as an image only after finish. */
int ls_image_create(const char *path, const struct ls_image_spec *spec,
                    struct ls_image_writer **writer, struct ls_error *err);

/*
 * Stores `pages` (1 to LS_IMAGE_RUN) pages of a block. Thread-safe, each thread with a codec of its
 * own; compresses in the calling thread and may wait for the disk. `data` is not kept after return.
 * Zero pages need not be sought before: longer runs of them inside the data become holes.
 * Fastest: long runs, and data aligned to LS_PAGE (with codec none it then goes to the disk as it
 * is, without a copy).
 */
int ls_image_put(struct ls_image_writer *writer, struct ls_image_codec *codec, uint32_t block,
                 uint64_t first_page, uint32_t pages, const void *data, struct ls_error *err);

/* The same for pages that are zero; any number of them. */
int ls_image_put_zero(struct ls_image_writer *writer, uint32_t block, uint64_t first_page,
                      uint64_t pages, struct ls_error *err);

/* Bytes given to the file system so far. Any thread, any time. */
uint64_t ls_image_stored(struct ls_image_writer *writer);

/* Index, footer, fsync (the folder is the caller's). Frees the writer, failed or not; after a
 * failure the file has been removed. No put may be running. `stats` may be NULL. */
int ls_image_finish(struct ls_image_writer *writer, struct ls_image_stats *stats,
                    struct ls_error *err);

/* Removes the file and frees the writer. NULL is fine. No put may be running. */
void ls_image_discard(struct ls_image_writer *writer);

/* ---- reader (reader.c, read.c, verify.c): one thread at a time for each ls_image ---- */

struct ls_image;

struct ls_image_info {
    uint32_t version;
    uint8_t id[16];
    enum ls_codec codec;
    uint32_t block_count, range_count, string_count;
    const struct ls_image_block *blocks;
    const struct ls_image_range *ranges; /* by address */
    const struct ls_image_string *strings;
    uint32_t main_block; /* main RAM; with codec none it lies at file offset 0 */
    uint64_t record_count;
    uint64_t ram_bytes;
    uint64_t zero_bytes;   /* in records of kind zero */
    uint64_t stored_bytes; /* of data records */
    uint64_t file_bytes;
    char checksum[33];
};

/* Checks footer, index and all limits; reads no data. */
int ls_image_open(const char *path, struct ls_image **image, struct ls_error *err);
/* The same of an open file, which stays the caller's; `name` is for messages. */
int ls_image_open_fd(int fd, const char *name, struct ls_image **image, struct ls_error *err);
void ls_image_close(struct ls_image *image); /* NULL is fine */

const struct ls_image_info *ls_image_info(const struct ls_image *image);
/* NULL if there is none. */
const char *ls_image_string(const struct ls_image *image, const char *key);
/* -1 if there is none. */
int ls_image_find_block(const struct ls_image *image, const char *name);

/* Data comes with its checksums checked. The eight pieces that were read last, each of up to
 * LS_IMAGE_RUN pages as they were stored, are kept for reads that go to and fro. */
int ls_image_read(struct ls_image *image, uint32_t block, uint64_t offset, void *buf, size_t length,
                  struct ls_error *err);
/* May span ranges that follow each other; an address without RAM is LS_USAGE, reason "address". */
int ls_image_read_gpa(struct ls_image *image, uint64_t gpa, void *buf, size_t length,
                      struct ls_error *err);
/* How many bytes from `gpa` on are RAM without a gap; 0 if none. */
uint64_t ls_image_gpa_extent(const struct ls_image *image, uint64_t gpa);
/* Reads a range from the file, whatever is kept of it, and gives nothing out. */
int ls_image_verify_range(struct ls_image *image, uint32_t block, uint64_t offset, uint64_t length,
                          struct ls_error *err);

/* One run of pages, in the order of blocks and pages. data is NULL for zero pages. */
struct ls_image_run {
    uint32_t block;
    uint64_t first_page;
    uint64_t pages;
    const void *data;
};
typedef int (*ls_image_run_fn)(const struct ls_image_run *run, void *opaque, struct ls_error *err);

/* Calls fn for each run of a block, all of them together covering it. fn may read the image. */
int ls_image_walk(struct ls_image *image, uint32_t block, ls_image_run_fn fn, void *opaque,
                  struct ls_error *err);

/* Called now and then by long work with bytes done and in all. */
typedef void (*ls_image_progress_fn)(uint64_t done, uint64_t total, void *opaque);

/* Reads everything; LS_TORN names block, guest address and file offset of the first bad place.
 * `progress` may be NULL. */
int ls_image_verify(struct ls_image *image, ls_image_progress_fn progress, void *opaque,
                    struct ls_error *err);

#endif
