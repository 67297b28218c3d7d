/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Whatever `info ramblock` prints, it is refused, or what comes of it holds together. */
#include <stdlib.h>
#include <string.h>

#include "capture/bits.h"
#include "capture/layout.h"
#include "must.h"
#include "target/ramtext.h"
#include "uffd/uffd.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct ls_ramblock blocks[LS_RAMTEXT_BLOCKS];

static int keep(const struct ls_ramblock *b, bool printed_host, void *opaque, struct ls_error *err)
{
    struct ls_rammap *map = opaque;

    (void)err;
    must(b->id[0] && memchr(b->id, 0, sizeof b->id));
    must(b->page_size > 0 && (b->page_size & (b->page_size - 1)) == 0);
    must(b->used <= b->total && b->total > 0);
    must(b->offset + b->total >= b->total && b->host + b->total >= b->total);
    must(printed_host || b->host == 0);
    must(map->count < LS_RAMTEXT_BLOCKS);
    blocks[map->count++] = *b;
    return 0;
}

static uint64_t page_of(const struct ls_layout *l, const struct ls_block *b, uint64_t address)
{
    uint64_t page = ls_block_page(b, address);

    must(page < l->pages);
    must(ls_layout_of_page(l, page) == b);
    must(ls_layout_find(l, address) == b);
    must(ls_block_address(b, page) == (address & ~(LS_SMALL - 1)));
    return page;
}

/* Blocks do not share an address, nor a page of the bitmaps. */
static void check_layout(const struct ls_layout *l)
{
    uint64_t bytes = 0;

    must(l->count > 0 && l->pages == l->chunks * LS_CHUNK_PAGES);
    for (uint32_t i = 0; i < l->count; i++) {
        const struct ls_block *b = &l->block[i];
        uint64_t first = page_of(l, b, b->host), last = page_of(l, b, b->host + b->length - 1);

        must(b->length > 0 && last - first + 1 == b->length / LS_SMALL);
        bytes += b->length;
        for (uint32_t k = 0; k < i; k++)
            must(l->block[k].base + l->block[k].pad + l->block[k].length / LS_SMALL <= first);
    }
    must(bytes == l->ram_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ls_rammap map = {.blocks = blocks};
    char *text = malloc(size + 1);
    struct ls_layout layout;
    struct ls_error err = {0};

    memcpy(text, data, size);
    text[size] = 0;
    if (ls_ramtext_parse(text, keep, &map, &err) == 0) {
        must(map.count > 0);
        if (ls_layout_make(&layout, &map, &err) == 0) {
            check_layout(&layout);
            ls_layout_free(&layout);
        } else {
            must(err.cls == LS_REFUSED);
        }
    } else {
        must(err.cls == LS_REFUSED && err.message[0]);
    }
    free(text);
    return 0;
}
