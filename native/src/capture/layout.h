/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The RAM of a guest as the capture sees it: blocks, each cut into chunks of 2 MiB at addresses
 * that are multiples of 2 MiB, and one numbering of pages for all bitmaps. Page number p of a block
 * is at base + p; `pad` pages before its first byte complete the first chunk and belong to nobody.
 */
#ifndef LS_CAPTURE_LAYOUT_H
#define LS_CAPTURE_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#include "target/target.h"

#define LS_LAYOUT_BLOCKS 1024u

struct ls_block {
    char id[256];
    uint64_t host;      /* address in the target */
    uint64_t length;    /* used bytes */
    uint64_t page_size; /* of its memory */
    uint64_t base;      /* number of its first chunk's first page; a multiple of 512 */
    uint64_t pad;       /* pages of the first chunk before the block */
    bool shared;        /* a shared mapping of a file: in memory, or anywhere if it is only read */
    bool own_or_file;   /* a private mapping of a file: what it has no page for is the file's */
    bool hugetlb;   /* of a hugetlbfs with pages of 2 MiB, shared or private: a chunk is a page */
    bool mergeable; /* KSM may merge it */
    uint64_t
        content; /* bytes that are in memory or swapped out, of LS_SMAPS; all if it is not known */
    int fd;      /* shared, own_or_file or hugetlb: the file; -1 otherwise */
    uint64_t file_offset;
};

struct ls_layout {
    bool still; /* it is only read, while the guest stands still: set before ls_layout_check() */
    uint32_t count;
    struct ls_block *block; /* in the order of the map; bases ascend */
    uint32_t *by_host;      /* block numbers by address */
    uint64_t pages;         /* of all bitmaps, pads included */
    uint64_t chunks;
    uint64_t ram_bytes;
};

/* Takes the blocks of a map. LS_REFUSED for a block that is not of whole pages, overlaps another,
 * or if there are too many. Blocks of length 0 are left out. */
int ls_layout_make(struct ls_layout *layout, const struct ls_rammap *map, struct ls_error *err);

/*
 * Looks at the target's mappings under each block and fills shared, hugetlb, mergeable, fd.
 * LS_REFUSED with reason "memory-kind" or "userfaultfd-in-use" names the block and why it cannot be
 * protected, or read where nothing is to be protected.
 * `source` LS_SMAPS checks everything and is slow; LS_MAPS only that the blocks are mapped.
 */
int ls_layout_check(struct ls_layout *layout, pid_t pid, enum ls_vma_source source,
                    struct ls_error *err);

/* Whether both have the same blocks at the same addresses with the same lengths. */
bool ls_layout_same(const struct ls_layout *a, const struct ls_layout *b);

/* The block that holds the target's address, or NULL. */
const struct ls_block *ls_layout_find(const struct ls_layout *layout, uint64_t address);

/* The block that holds a page number. */
const struct ls_block *ls_layout_of_page(const struct ls_layout *layout, uint64_t page);

void ls_layout_free(struct ls_layout *layout);

static inline uint64_t ls_block_page(const struct ls_block *b, uint64_t address)
{
    return b->base + b->pad + (address - b->host) / 4096;
}

static inline uint64_t ls_block_address(const struct ls_block *b, uint64_t page)
{
    return b->host + (page - b->base - b->pad) * 4096;
}

#endif
