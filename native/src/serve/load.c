/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "serve/load.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"

#define EVENTS (UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP)

static void settle(struct ls_load *l, uint64_t page)
{
    l->settled[page / 64] |= 1ull << (page % 64);
}

int ls_load_open(struct ls_load *l, pid_t pid, int uffd, uint64_t host, uint64_t length,
                 struct ls_error *err)
{
    *l = (struct ls_load){.pid = pid, .uffd = uffd, .host = host, .length = length};
    l->settled = calloc(length / LS_SMALL / 64 + 1, 8);
    if (!l->settled)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to serve RAM");
    return 0;
}

void ls_load_close(struct ls_load *l)
{
    free(l->settled);
    l->settled = NULL;
}

int ls_load_register(struct ls_load *l, struct ls_error *err)
{
    const uint64_t needed = 1ull << _UFFDIO_COPY | 1ull << _UFFDIO_ZEROPAGE;
    struct uffdio_api api = {.api = UFFD_API, .features = EVENTS};
    struct uffdio_register arg = {.range = {.start = l->host, .len = l->length},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};

    if (ioctl(l->uffd, UFFDIO_API, &api))
        return ls_fail_errno(err, LS_REFUSED, "userfaultfd",
                             "the kernel refuses to tell of missing pages by userfaultfd");
    if (ioctl(l->uffd, UFFDIO_REGISTER, &arg))
        return ls_uffd_fail(err, errno, "register", l->host, l->length);
    if ((arg.ioctls & needed) != needed)
        return ls_fail(err, LS_REFUSED, "memory-kind",
                       "RAM at %#llx cannot be brought by userfaultfd",
                       (unsigned long long)l->host);
    return 0;
}

struct present {
    struct ls_load *load;
    struct ls_image *image;
    uint32_t block;
    int mem;
    uint8_t *buf;
    struct ls_error *err;
};

static int overwrite(uint64_t start, uint64_t end, unsigned flags, void *opaque)
{
    struct present *p = opaque;

    (void)flags;
    while (start < end) {
        uint64_t most = LS_LOAD_MOST * LS_SMALL;
        size_t n = end - start < most ? (size_t)(end - start) : (size_t)most;
        uint64_t offset = start - p->load->host;

        if (ls_image_read(p->image, p->block, offset, p->buf, n, p->err))
            return 1;
        if (pwrite(p->mem, p->buf, n, (off_t)start) != (ssize_t)n) {
            ls_fail_errno(p->err, LS_GONE, "gone", "cannot write to process %d", (int)p->load->pid);
            return 1;
        }
        for (uint64_t page = offset / LS_SMALL; page < (offset + n) / LS_SMALL; page++)
            settle(p->load, page);
        p->load->loaded_bytes += n;
        start += n;
    }
    return 0;
}

int ls_load_present(struct ls_load *l, struct ls_image *image, uint32_t block, struct ls_error *err)
{
    LS_AUTO_FREE uint8_t *buf = malloc(LS_LOAD_MOST * LS_SMALL);
    LS_AUTO_CLOSE int mem = -1;
    struct ls_pagemap pagemap;
    struct present p = {.load = l, .image = image, .block = block, .buf = buf, .err = err};
    char path[64];
    int ret;

    snprintf(path, sizeof path, "/proc/%d/mem", (int)l->pid);
    mem = p.mem = open(path, O_RDWR | O_CLOEXEC);
    if (!buf || mem < 0)
        return ls_fail_errno(err, LS_REFUSED, "memory", "cannot open '%s'", path);
    /* The old way: the other one passes over mapped zero pages, which are not missing. */
    if (ls_pagemap_open(&pagemap, l->pid, true, err))
        return -1;
    ret = ls_pagemap_scan(&pagemap, l->host, l->host + l->length, overwrite, &p);
    ls_pagemap_close(&pagemap);
    if (ret < 0)
        return ls_fail_errno(err, LS_GONE, "gone", "cannot look at the memory of process %d",
                             (int)l->pid);
    return ret ? -1 : 0;
}

/* One call: bytes that it brought, 0 and errno. */
static uint64_t bring(const struct ls_load *l, uint64_t at, uint64_t length, const uint8_t *data)
{
    if (data) {
        struct uffdio_copy arg = {.dst = at, .src = (uint64_t)(uintptr_t)data, .len = length};

        if (ioctl(l->uffd, UFFDIO_COPY, &arg) == 0)
            return length;
        return arg.copy > 0 ? (uint64_t)arg.copy : 0;
    }
    struct uffdio_zeropage arg = {.range = {.start = at, .len = length}};

    if (ioctl(l->uffd, UFFDIO_ZEROPAGE, &arg) == 0)
        return length;
    return arg.zeropage > 0 ? (uint64_t)arg.zeropage : 0;
}

/* A run of pages none of which is settled. */
static int put_run(struct ls_load *l, uint64_t first, uint64_t count, const uint8_t *data,
                   struct ls_error *err)
{
    while (count > 0) {
        uint64_t at = l->host + first * LS_SMALL;
        uint64_t pages = bring(l, at, count * LS_SMALL, data) / LS_SMALL;

        if (pages == 0) {
            if (errno == EAGAIN)
                return 1;
            if (errno != EEXIST)
                return ls_uffd_fail(err, errno, "bring", at, count * LS_SMALL);
            ls_uffd_wake(l->uffd, at, LS_SMALL);
            pages = 1;
        }
        for (uint64_t i = 0; i < pages; i++)
            settle(l, first + i);
        l->loaded_bytes += pages * LS_SMALL;
        first += pages;
        count -= pages;
        if (data)
            data += pages * LS_SMALL;
    }
    return 0;
}

int ls_load_put(struct ls_load *l, uint64_t first, uint64_t count, const uint8_t *data,
                struct ls_error *err)
{
    for (uint64_t i = 0; i < count;) {
        uint64_t from = i;
        int ret;

        while (i < count && !ls_load_settled(l, first + i))
            i++;
        if (i == from) {
            i++;
            continue;
        }
        ret = put_run(l, first + from, i - from, data ? data + from * LS_SMALL : NULL, err);
        if (ret)
            return ret;
    }
    return 0;
}

int ls_load_again(struct ls_load *l, uint64_t page, struct ls_error *err)
{
    uint64_t at = l->host + page * LS_SMALL;

    if (bring(l, at, LS_SMALL, NULL) > 0)
        return 0;
    if (errno == EAGAIN)
        return 1;
    if (errno != EEXIST)
        return ls_uffd_fail(err, errno, "bring", at, LS_SMALL);
    ls_uffd_wake(l->uffd, at, LS_SMALL);
    return 0;
}

void ls_load_removed(struct ls_load *l, uint64_t start, uint64_t end)
{
    for (uint64_t at = start; at < end; at += LS_SMALL)
        if (at >= l->host && at - l->host < l->length)
            settle(l, (at - l->host) / LS_SMALL);
}
