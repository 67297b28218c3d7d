/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "target/sharers.h"

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "common/cleanup.h"

/* Part of a file that is RAM of the target. */
struct part {
    dev_t device;
    ino_t inode;
    uint64_t start, end; /* in the file */
    const char *block;
};

struct parts {
    const struct ls_rammap *map;
    struct part *part;
    size_t count, room;
    const char *hit; /* the block that the process at hand maps, too */
};

static int add_part(struct parts *p, const struct part *part)
{
    if (p->count == p->room) {
        size_t room = p->room ? p->room * 2 : 16;
        void *more = realloc(p->part, room * sizeof *p->part);

        if (!more)
            return -1;
        p->part = more;
        p->room = room;
    }
    p->part[p->count++] = *part;
    return 0;
}

static int own_mapping(const struct ls_vma *v, void *opaque)
{
    struct parts *p = opaque;

    for (size_t i = 0; v->shared && v->inode != 0 && i < p->map->count; i++) {
        const struct ls_ramblock *b = &p->map->blocks[i];
        uint64_t from = v->start > b->host ? v->start : b->host;
        uint64_t to = v->end < b->host + b->used ? v->end : b->host + b->used;
        struct part part = {.device = v->device, .inode = v->inode, .block = b->id};

        if (from >= to)
            continue;
        part.start = v->file_offset + (from - v->start);
        part.end = part.start + (to - from);
        if (add_part(p, &part))
            return -1;
    }
    return 0;
}

static int others_mapping(const struct ls_vma *v, void *opaque)
{
    struct parts *p = opaque;
    uint64_t end = v->file_offset + (v->end - v->start);

    if (!v->shared || !v->writable || v->inode == 0)
        return 0;
    for (size_t i = 0; i < p->count; i++) {
        const struct part *part = &p->part[i];

        if (part->device == v->device && part->inode == v->inode && v->file_offset < part->end &&
            end > part->start) {
            p->hit = part->block;
            return 1;
        }
    }
    return 0;
}

static void read_name(pid_t pid, char *name, size_t size)
{
    char path[64];
    FILE *file;

    snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
    file = fopen(path, "re");
    name[0] = '\0';
    if (!file)
        return;
    if (fgets(name, (int)size, file))
        name[strcspn(name, "\n")] = '\0';
    fclose(file);
}

int ls_target_sharers(pid_t pid, const struct ls_rammap *map,
                      void (*each)(pid_t other, const char *name, const char *block, void *opaque),
                      void *opaque, struct ls_error *err)
{
    struct parts p = {.map = map};
    struct dirent *entry;
    DIR *proc = NULL;
    int rc = ls_proc_maps(pid, LS_MAPS, own_mapping, &p, err);

    if (rc == 0 && p.count > 0 && !(proc = opendir("/proc")))
        rc = ls_fail_errno(err, LS_INTERNAL, "proc", "cannot list '/proc'");
    while (rc == 0 && proc && (entry = readdir(proc))) {
        pid_t other = isdigit((unsigned char)entry->d_name[0]) ? atoi(entry->d_name) : 0;
        struct ls_error gone;
        char name[32];

        p.hit = NULL;
        if (other <= 0 || other == pid ||
            ls_proc_maps(other, LS_MAPS, others_mapping, &p, &gone) != 0 || !p.hit)
            continue;
        read_name(other, name, sizeof name);
        each(other, name, p.hit, opaque);
    }
    if (proc)
        closedir(proc);
    free(p.part);
    return rc;
}

static int first_readable(const struct ls_vma *v, void *opaque)
{
    if (!v->readable || v->inode == 0)
        return 0;
    *(uint64_t *)opaque = v->start;
    return 1;
}

int ls_target_check_read(pid_t pid, struct ls_error *err)
{
    uint64_t at = 0;
    char byte;
    struct iovec local = {.iov_base = &byte, .iov_len = 1}, remote = {.iov_len = 1};

    if (ls_proc_maps(pid, LS_MAPS, first_readable, &at, err) != 0)
        return -1;
    remote.iov_base = (void *)(uintptr_t)at;
    if (at == 0 || process_vm_readv(pid, &local, 1, &remote, 1, 0) != 1)
        return ls_fail_errno(err, LS_REFUSED, "read", "the memory of process %d cannot be read",
                             (int)pid);
    return 0;
}
