/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The file under a writer: bytes appended by several threads, and bytes put at their place.
 *
 * Both go past the page cache (O_DIRECT) where the file system allows it: a host whose dirty pages
 * pile up stalls everybody who writes. Where it does not, pages are pushed out and dropped as we
 * go. Appended bytes are gathered in a few large aligned buffers; whoever fills one writes it.
 */
#ifndef LS_IMAGE_APPEND_H
#define LS_IMAGE_APPEND_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

#define LS_APPEND_BUFFERS 4u
#define LS_APPEND_CHUNK (4u << 20) /* twice the longest piece appended at once, or more */

struct ls_append_buffer {
    uint8_t *data;
    uint64_t chunk; /* which LS_APPEND_CHUNK after `base` it holds */
    size_t filled;  /* bytes copied in, by all threads */
};

struct ls_append {
    int fd;
    bool direct; /* O_DIRECT is set; cleared once, by whoever the file system refuses */
    /* Protects what follows, not the buffers' bytes: these belong to who reserved them. */
    pthread_mutex_t lock;
    pthread_cond_t written; /* a buffer has moved on to its next chunk, or `failed` */
    bool failed;
    struct ls_error error; /* of the first failure, if failed */
    uint64_t base;         /* file offset of chunk 0, a multiple of 4096 */
    uint64_t reserved;     /* bytes reserved after base */
    uint64_t stored;       /* bytes written to the file */
    struct ls_append_buffer buffers[LS_APPEND_BUFFERS];
};

/* Creates `path` anew. */
int ls_append_open(struct ls_append *a, const char *path, uint64_t base, struct ls_error *err);

/* Appends up to LS_APPEND_CHUNK / 2 bytes; *offset is where in the file they will lie. */
int ls_append(struct ls_append *a, const void *data, size_t length, uint64_t *offset,
              struct ls_error *err);

/* Puts bytes at a place of their own below `base`. Offset and length are multiples of 4096; data
 * that is aligned to 4096 goes out as it is. `bounce` is an aligned buffer of at least that length,
 * used for other data. */
int ls_append_place(struct ls_append *a, const void *data, size_t length, uint64_t offset,
                    void *bounce, struct ls_error *err);

/* Fills up with zeros to a multiple of 4096 and writes out what is gathered, then fsync. Only while
 * nobody appends. */
int ls_append_flush(struct ls_append *a, struct ls_error *err);

/* Where the next byte would lie. Only while nobody appends. */
uint64_t ls_append_offset(const struct ls_append *a);

uint64_t ls_append_stored(struct ls_append *a);

/* Closes; the first failure of anything above stays in `error`. */
void ls_append_close(struct ls_append *a);

#endif
