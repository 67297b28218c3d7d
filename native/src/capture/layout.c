/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture/layout.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "capture/bits.h"
#include "common/cleanup.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"

static const struct ls_layout *sorting; /* qsort has no argument; layouts are made by one thread */

static int by_host(const void *a, const void *b)
{
    uint64_t x = sorting->block[*(const uint32_t *)a].host;
    uint64_t y = sorting->block[*(const uint32_t *)b].host;

    return x < y ? -1 : x > y;
}

static int check_block(const struct ls_ramblock *r, struct ls_error *err)
{
    if (r->host % LS_SMALL || r->used % LS_SMALL || r->used > r->total ||
        r->host + r->used < r->host)
        return ls_fail(err, LS_REFUSED, "ramblock",
                       "RAM block '%s' (%#llx, %llu bytes) is not made of whole pages", r->id,
                       (unsigned long long)r->host, (unsigned long long)r->used);
    return 0;
}

int ls_layout_make(struct ls_layout *layout, const struct ls_rammap *map, struct ls_error *err)
{
    struct ls_layout l = {0};

    if (map->count > LS_LAYOUT_BLOCKS)
        return ls_fail(err, LS_REFUSED, "ramblock", "the guest has %zu RAM blocks; %u is the limit",
                       map->count, LS_LAYOUT_BLOCKS);
    l.block = calloc(map->count + 1, sizeof *l.block);
    l.by_host = calloc(map->count + 1, sizeof *l.by_host);
    if (!l.block || !l.by_host) {
        ls_layout_free(&l);
        return ls_fail(err, LS_INTERNAL, "memory", "out of memory");
    }
    for (size_t i = 0; i < map->count; i++) {
        const struct ls_ramblock *r = &map->blocks[i];
        struct ls_block *b = &l.block[l.count];

        if (r->used == 0)
            continue;
        if (check_block(r, err)) {
            ls_layout_free(&l);
            return -1;
        }
        memcpy(b->id, r->id, sizeof b->id);
        b->id[sizeof b->id - 1] = 0;
        b->host = r->host;
        b->length = r->used;
        b->page_size = r->page_size;
        b->fd = -1;
        b->base = l.pages;
        b->pad = r->host % LS_HUGE / LS_SMALL;
        l.pages +=
            (b->pad + b->length / LS_SMALL + LS_CHUNK_PAGES - 1) / LS_CHUNK_PAGES * LS_CHUNK_PAGES;
        l.ram_bytes += b->length;
        l.by_host[l.count] = l.count;
        l.count++;
    }
    l.chunks = l.pages / LS_CHUNK_PAGES;
    sorting = &l;
    qsort(l.by_host, l.count, sizeof *l.by_host, by_host);
    for (uint32_t i = 1; i < l.count; i++) {
        const struct ls_block *a = &l.block[l.by_host[i - 1]], *b = &l.block[l.by_host[i]];

        if (a->host + a->length > b->host) {
            ls_fail(err, LS_REFUSED, "ramblock", "RAM blocks '%s' and '%s' overlap", a->id, b->id);
            ls_layout_free(&l);
            return -1;
        }
    }
    if (l.count == 0) {
        ls_layout_free(&l);
        return ls_fail(err, LS_REFUSED, "ramblock", "the guest has no RAM block that migrates");
    }
    *layout = l;
    return 0;
}

struct check {
    struct ls_layout *layout;
    pid_t pid;
    enum ls_vma_source source;
    uint64_t covered[LS_LAYOUT_BLOCKS];
    struct ls_error *err;
    int rc;
};

static int refuse(struct check *c, const struct ls_block *b, const struct ls_vma *v,
                  const char *reason, const char *why)
{
    return c->rc = ls_fail(c->err, LS_REFUSED, reason,
                           "RAM block '%s' at %#llx cannot be %s: %s (mapping '%s')", b->id,
                           (unsigned long long)v->start,
                           c->layout->still ? "read" : "write-protected", why, v->name);
}

static const char private_file[] =
    "it is a private mapping of a file; it needs anonymous or shared memory";

/*
 * A page of hugetlbfs is released and saved as a whole, and what is read of a block's file or page
 * tables says all of its content only under these conditions. Only read, it may be of any size.
 */
static int check_hugetlb(struct check *c, struct ls_block *b, const struct ls_vma *v,
                         uint64_t page_size, const struct stat *st)
{
    if (page_size != LS_HUGE && !c->layout->still)
        return refuse(
            c, b, v, "memory-kind",
            "its huge pages are not of 2 MiB; only such pages of hugetlbfs are supported");
    if ((b->host % LS_HUGE || b->length % LS_HUGE) && !c->layout->still)
        return refuse(c, b, v, "memory-kind",
                      "it is not made of whole huge pages; give the guest a multiple of 2 MiB");
    b->hugetlb = true;
    if (v->shared)
        return 0;
    /* Where the mapping has no page of its own, the guest sees the file's. */
    if (st->st_blocks > 0)
        return refuse(c, b, v, "memory-kind",
                      "it is a private mapping of a file that has content; it needs share=on");
    /* /proc/PID/pagemap shows a page that the kernel moves just now as it shows a hole. */
    if (c->source == LS_SMAPS && !ls_pagemap_have_scan() && v->hugetlb_bytes < v->end - v->start)
        return refuse(c, b, v, "memory-kind",
                      "it is private, of hugetlbfs and not all in memory, which needs Linux 6.7; "
                      "it needs prealloc=on or share=on");
    return 0;
}

/* Shared memory is only protected where its file has data, and for that the file is needed; of
 * private memory it is needed for hugetlbfs, whose file must have none, and to be only read. */
static int open_file(struct check *c, struct ls_block *b, const struct ls_vma *v)
{
    uint64_t offset = v->file_offset + (b->host > v->start ? b->host - v->start : 0);
    char path[96];
    struct statfs fs;
    struct stat st;

    if (b->fd >= 0) {
        if (fstat(b->fd, &st) < 0 || st.st_ino != v->inode ||
            v->file_offset != b->file_offset + (v->start - b->host))
            return refuse(c, b, v, "memory-kind", "it is made of several files");
        return b->hugetlb ? check_hugetlb(c, b, v, LS_HUGE, &st) : 0;
    }
    snprintf(path, sizeof path, "/proc/%d/map_files/%llx-%llx", (int)c->pid,
             (unsigned long long)v->start, (unsigned long long)v->end);
    b->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (b->fd < 0 || fstatfs(b->fd, &fs) < 0 || fstat(b->fd, &st) < 0)
        return refuse(c, b, v, "memory-kind", "its file cannot be opened");
    b->file_offset = offset;
    if (fs.f_type == HUGETLBFS_MAGIC)
        return check_hugetlb(c, b, v, (uint64_t)fs.f_bsize, &st);
    b->own_or_file = !v->shared;
    if (c->layout->still)
        return 0;
    if (!v->shared)
        return refuse(c, b, v, "memory-kind", private_file);
    if (fs.f_type != TMPFS_MAGIC)
        return refuse(c, b, v, "memory-kind",
                      "it is a file on a disk; it needs anonymous memory, memfd, tmpfs or "
                      "hugetlbfs");
    return 0;
}

static int check_vma(struct check *c, struct ls_block *b, const struct ls_vma *v, bool first)
{
    if (!v->readable)
        return refuse(c, b, v, "memory-kind", "it is not readable");
    if (c->source == LS_SMAPS) {
        if ((v->uffd_missing || v->uffd_wp) && !c->layout->still)
            return refuse(c, b, v, "userfaultfd-in-use", "it has a userfaultfd already");
        if (v->io)
            return refuse(c, b, v, "memory-kind", "it is memory of a device");
        b->mergeable |= v->mergeable;
    }
    if (!first && (b->shared != v->shared || (b->fd >= 0) != (v->inode != 0)))
        return refuse(c, b, v, "memory-kind", "part of it is of another kind than the rest");
    b->shared = v->shared;
    /* To be protected, only what QEMU says has huge pages is opened: a file on a disk or a network
     * may block. */
    if (v->shared || (v->inode != 0 && (b->page_size > LS_SMALL || c->layout->still)))
        return open_file(c, b, v);
    return v->inode == 0 ? 0 : refuse(c, b, v, "memory-kind", private_file);
}

static int each_vma(const struct ls_vma *v, void *opaque)
{
    struct check *c = opaque;

    for (uint32_t i = 0; i < c->layout->count; i++) {
        struct ls_block *b = &c->layout->block[i];
        uint64_t from = v->start > b->host ? v->start : b->host;
        uint64_t to = v->end < b->host + b->length ? v->end : b->host + b->length;

        if (from >= to)
            continue;
        if (check_vma(c, b, v, c->covered[i] == 0))
            return -1;
        c->covered[i] += to - from;
        b->content += v->shared || v->inode || v->rss_bytes > to - from ? to - from : v->rss_bytes;
    }
    return 0;
}

int ls_layout_check(struct ls_layout *layout, pid_t pid, enum ls_vma_source source,
                    struct ls_error *err)
{
    LS_AUTO_FREE struct check *c = calloc(1, sizeof *c);

    if (!c)
        return ls_fail(err, LS_INTERNAL, "memory", "out of memory");
    c->layout = layout;
    c->pid = pid;
    c->source = source;
    c->err = err;
    for (uint32_t i = 0; i < layout->count; i++) {
        if (layout->block[i].fd >= 0)
            close(layout->block[i].fd);
        layout->block[i].fd = -1;
        layout->block[i].shared = layout->block[i].hugetlb = layout->block[i].own_or_file = false;
        layout->block[i].content = 0;
    }
    if (ls_proc_maps(pid, source, each_vma, c, err) < 0)
        return -1;
    if (c->rc)
        return -1;
    for (uint32_t i = 0; i < layout->count; i++)
        if (c->covered[i] != layout->block[i].length)
            return ls_fail(err, LS_REFUSED, "ramblock",
                           "RAM block '%s' at %#llx is not mapped as a whole", layout->block[i].id,
                           (unsigned long long)layout->block[i].host);
    return 0;
}

bool ls_layout_same(const struct ls_layout *a, const struct ls_layout *b)
{
    if (a->count != b->count)
        return false;
    for (uint32_t i = 0; i < a->count; i++)
        if (a->block[i].host != b->block[i].host || a->block[i].length != b->block[i].length ||
            strcmp(a->block[i].id, b->block[i].id) != 0)
            return false;
    return true;
}

const struct ls_block *ls_layout_find(const struct ls_layout *layout, uint64_t address)
{
    uint32_t low = 0, high = layout->count;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        const struct ls_block *b = &layout->block[layout->by_host[mid]];

        if (address < b->host)
            high = mid;
        else if (address >= b->host + b->length)
            low = mid + 1;
        else
            return b;
    }
    return NULL;
}

const struct ls_block *ls_layout_of_page(const struct ls_layout *layout, uint64_t page)
{
    uint32_t low = 0, high = layout->count;

    while (high - low > 1) {
        uint32_t mid = low + (high - low) / 2;

        if (page < layout->block[mid].base)
            high = mid;
        else
            low = mid;
    }
    return &layout->block[low];
}

void ls_layout_free(struct ls_layout *layout)
{
    for (uint32_t i = 0; i < layout->count; i++)
        if (layout->block[i].fd >= 0)
            close(layout->block[i].fd);
    free(layout->block);
    free(layout->by_host);
    memset(layout, 0, sizeof *layout);
}
