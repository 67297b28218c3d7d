/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Where QEMU's RAM blocks lie in its memory.
 *
 * `info ramblock` prints offset, used and total length of each block, from 8.0 on its address too.
 * Older ones keep the address to themselves: those three numbers stand side by side in QEMU's
 * struct RAMBlock, so it is searched for in its heap. Layout of 6.2 to 10.0, by distance from the
 * offset field: host address -16, flags +32, name +36.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "target/ramtext.h"

#define CHUNK (1u << 20)
/* Heaps beyond this are not searched: a block that is not found by then refuses the capture. */
#define SEARCH_LIMIT (4ull << 30)
#define RAM_MIGRATABLE (1u << 4)

/* struct RAMBlock from its host field on. */
struct descriptor {
    uint64_t host;
    uint64_t colo_cache;
    uint64_t offset;
    uint64_t used;
    uint64_t total;
    uint64_t resized;
    uint32_t flags;
    char id[256];
};

struct candidate {
    struct ls_ramblock block;
    bool printed_host;
    bool migratable;
    unsigned hits;
    uint64_t hits_host; /* of the last hit */
    uint64_t hits_at;
    uint32_t hits_flags;
};

struct search {
    pid_t pid;
    int mem;
    size_t count, room;
    struct candidate *candidates;
    uint64_t searched;
};

static int add(const struct ls_ramblock *block, bool printed_host, void *opaque,
               struct ls_error *err)
{
    struct search *s = opaque;

    if (s->count == s->room) {
        size_t room = s->room ? s->room * 2 : 16;
        void *more = realloc(s->candidates, room * sizeof *s->candidates);

        if (!more)
            return ls_fail_errno(err, LS_INTERNAL, "memory", "cannot read 'info ramblock'");
        s->candidates = more;
        s->room = room;
    }
    s->candidates[s->count++] =
        (struct candidate){.block = *block, .printed_host = printed_host, .migratable = true};
    return 0;
}

/* ---- the heap ---- */

static bool fits(const struct candidate *c, const struct descriptor *d)
{
    return d->offset == c->block.offset && d->used == c->block.used && d->total == c->block.total &&
           d->host != 0 && d->host % 4096 == 0 && strncmp(d->id, c->block.id, sizeof d->id) == 0 &&
           (!c->printed_host || c->block.host == d->host);
}

static void hit(struct candidate *c, const struct descriptor *d, uint64_t at)
{
    c->hits++;
    c->hits_host = d->host;
    c->hits_at = at;
    c->hits_flags = d->flags;
}

static void search_bytes(struct search *s, const uint8_t *bytes, size_t size, uint64_t address)
{
    struct descriptor d;

    for (size_t i = 0; i + sizeof d <= size && i < CHUNK; i += 8) {
        uint64_t used;

        /* most words are ruled out by this one: a length, so a multiple of the page size */
        memcpy(&used, bytes + i + offsetof(struct descriptor, used), sizeof used);
        if (used == 0 || used & 4095)
            continue;
        for (size_t n = 0; n < s->count; n++) {
            if (s->candidates[n].block.used != used)
                continue;
            memcpy(&d, bytes + i, sizeof d);
            if (fits(&s->candidates[n], &d))
                hit(&s->candidates[n], &d, address + i);
        }
    }
}

static int search_range(struct search *s, uint64_t start, uint64_t end)
{
    const size_t extra = sizeof(struct descriptor);
    LS_AUTO_FREE uint8_t *buf = malloc(CHUNK + extra);

    if (!buf)
        return -1;
    for (uint64_t at = start; at < end && s->searched < SEARCH_LIMIT; at += CHUNK) {
        size_t want = end - at < CHUNK + extra ? (size_t)(end - at) : CHUNK + extra;
        ssize_t got = pread(s->mem, buf, want, (off_t)at);

        if (got > 0)
            search_bytes(s, buf, (size_t)got, at);
        s->searched += CHUNK;
    }
    return 0;
}

static bool anything_missing(const struct search *s)
{
    for (size_t i = 0; i < s->count; i++)
        if (s->candidates[i].hits == 0)
            return true;
    return false;
}

static int search_heap(const struct ls_vma *vma, void *opaque)
{
    if (strcmp(vma->name, "[heap]") == 0)
        search_range(opaque, vma->start, vma->end);
    return 0;
}

/* Other arenas of malloc; big mappings are guest RAM or buffers, not where small structs live. */
static int search_arena(const struct ls_vma *vma, void *opaque)
{
    if (vma->readable && vma->writable && !vma->shared && !vma->executable && vma->inode == 0 &&
        strcmp(vma->name, "[heap]") != 0 && strncmp(vma->name, "[stack", 6) != 0 &&
        vma->end - vma->start <= 64u << 20)
        search_range(opaque, vma->start, vma->end);
    return 0;
}

/* Looks where each block was found before. */
static void look_again(struct search *s, const struct ls_rammap *before)
{
    for (size_t i = 0; i < s->count; i++) {
        struct candidate *c = &s->candidates[i];

        for (size_t k = 0; k < before->count; k++) {
            const struct ls_ramblock *b = &before->blocks[k];
            struct descriptor d;

            if (b->descriptor && strcmp(b->id, c->block.id) == 0 && b->offset == c->block.offset &&
                pread(s->mem, &d, sizeof d, (off_t)b->descriptor) == (ssize_t)sizeof d &&
                fits(c, &d))
                hit(c, &d, b->descriptor);
        }
    }
}

/* ---- checks ---- */

struct coverage {
    struct candidate *candidates;
    size_t count;
    uint64_t *reached; /* by block: how far its memory is mapped without a gap */
};

static int cover(const struct ls_vma *vma, void *opaque)
{
    struct coverage *c = opaque;

    for (size_t i = 0; i < c->count; i++) {
        const struct ls_ramblock *b = &c->candidates[i].block;

        if (!vma->readable || vma->end <= b->host || vma->start >= b->host + b->total)
            continue;
        if (vma->start <= c->reached[i])
            c->reached[i] = vma->end;
    }
    return 0;
}

static int check_mapped(struct search *s, struct ls_error *err)
{
    LS_AUTO_FREE uint64_t *reached = calloc(s->count + 1, sizeof *reached);
    struct coverage c = {s->candidates, s->count, reached};

    if (!reached)
        return ls_fail_errno(err, LS_INTERNAL, "memory", "cannot check the RAM blocks");
    for (size_t i = 0; i < s->count; i++)
        reached[i] = s->candidates[i].block.host;
    if (ls_proc_maps(s->pid, LS_MAPS, cover, &c, err) != 0)
        return -1;
    for (size_t i = 0; i < s->count; i++) {
        const struct ls_ramblock *b = &s->candidates[i].block;

        /* compared by lengths: what stands in the heap may be anything, and their sum wrap around
         */
        if (s->candidates[i].migratable && reached[i] - b->host < b->total)
            return ls_fail(err, LS_REFUSED, "ramblock",
                           "RAM block '%s' was found at %#" PRIx64 ", but %" PRIu64
                           " bytes are not mapped there",
                           b->id, b->host, b->total);
    }
    return 0;
}

/* Takes over what the search found; or names the block that it did not find exactly once. */
static int settle(struct search *s, struct ls_error *err)
{
    for (size_t i = 0; i < s->count; i++) {
        struct candidate *c = &s->candidates[i];

        if (c->hits == 1) {
            c->block.host = c->hits_host;
            c->block.descriptor = c->hits_at;
            c->migratable = c->hits_flags & RAM_MIGRATABLE;
        } else if (!c->printed_host) {
            return ls_fail(err, LS_REFUSED, "ramblock",
                           "cannot learn where RAM block '%s' lies: its description was found %u "
                           "times in the memory of process %d, not once",
                           c->block.id, c->hits, (int)s->pid);
        }
    }
    return check_mapped(s, err);
}

static int keep_migratable(const struct search *s, struct ls_rammap *map, struct ls_error *err)
{
    map->count = 0;
    map->blocks = calloc(s->count + 1, sizeof *map->blocks);
    if (!map->blocks)
        return ls_fail_errno(err, LS_INTERNAL, "memory", "cannot keep the RAM blocks");
    for (size_t i = 0; i < s->count; i++)
        if (s->candidates[i].migratable)
            map->blocks[map->count++] = s->candidates[i].block;
    return 0;
}

static bool is_listed(const struct ls_rammap *map, const char *id)
{
    for (size_t i = 0; i < map->count; i++)
        if (strcmp(map->blocks[i].id, id) == 0)
            return true;
    return false;
}

static int search(struct search *s, const struct ls_rammap *before, struct ls_error *err)
{
    bool all_printed = true;

    for (size_t i = 0; i < s->count; i++)
        all_printed &= s->candidates[i].printed_host;
    if (before && all_printed) {
        /* the addresses are known; whether a block migrates does not change, and no time is to be
         * lost while the guest stands still */
        for (size_t i = 0; i < s->count; i++)
            s->candidates[i].migratable = is_listed(before, s->candidates[i].block.id);
        return 0;
    }
    if (!anything_missing(s))
        return 0;
    for (size_t i = 0; i < s->count; i++)
        s->candidates[i].hits = 0;
    if (ls_proc_maps(s->pid, LS_MAPS, search_heap, s, err) != 0)
        return -1;
    if (anything_missing(s) && !all_printed)
        return ls_proc_maps(s->pid, LS_MAPS, search_arena, s, err);
    return 0;
}

static int locate(struct search *s, const char *text, const struct ls_rammap *before,
                  struct ls_rammap *map, struct ls_error *err)
{
    char path[64];

    if (ls_ramtext_parse(text, add, s, err) != 0)
        return -1;
    snprintf(path, sizeof path, "/proc/%d/mem", (int)s->pid);
    s->mem = open(path, O_RDONLY | O_CLOEXEC);
    if (s->mem < 0 && errno == ENOENT)
        return ls_fail(err, LS_GONE, "gone", "process %d does not exist", (int)s->pid);
    if (s->mem < 0)
        return ls_fail_errno(err, LS_REFUSED, "permission", "cannot read the memory of process %d",
                             (int)s->pid);
    if (before)
        look_again(s, before);
    if (search(s, before, err) != 0)
        return -1;
    if (settle(s, err) != 0)
        return -1;
    return keep_migratable(s, map, err);
}

int ls_rammap_refresh(pid_t pid, const char *info_ramblock, const struct ls_rammap *before,
                      struct ls_rammap *map, struct ls_error *err)
{
    struct search s = {.pid = pid, .mem = -1};
    int result = locate(&s, info_ramblock, before, map, err);

    if (s.mem >= 0)
        close(s.mem);
    free(s.candidates);
    return result;
}

int ls_rammap_locate(pid_t pid, const char *info_ramblock, struct ls_rammap *map,
                     struct ls_error *err)
{
    return ls_rammap_refresh(pid, info_ramblock, NULL, map, err);
}

void ls_rammap_free(struct ls_rammap *map)
{
    free(map->blocks);
    *map = (struct ls_rammap){0};
}
