/* SPDX-License-Identifier: GPL-3.0-or-later */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "stream/beside.h"
#include "stream/stream.h"

struct raw {
    struct ls_beside out;
    void *bounce;
    ls_image_progress_fn progress;
    void *opaque;
    uint64_t done, total;
};

void ls_raw_name(const char *block, char *name)
{
    static const char safe[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                               "._@:+-";

    for (const char *p = block; *p; p++) {
        if (strchr(safe, *p) && !(*p == '.' && p == block))
            *name++ = *p;
        else
            name += sprintf(name, "%%%02X", (unsigned char)*p);
    }
    *name = 0;
}

static int write_run(const struct ls_image_run *run, void *opaque, struct ls_error *err)
{
    struct raw *r = opaque;
    uint64_t length = run->pages * LS_PAGE;

    if (run->data &&
        ls_append_place(&r->out.file, run->data, length, run->first_page * LS_PAGE, r->bounce, err))
        return -1;
    r->done += length;
    if (r->progress)
        r->progress(r->done, r->total, r->opaque);
    return 0;
}

static int write_block(struct ls_image *image, uint32_t block, struct raw *r, const char *path,
                       struct ls_error *err)
{
    if (ls_beside_begin(&r->out, path, ls_image_info(image)->blocks[block].length, err))
        return -1;
    return ls_beside_end(&r->out, ls_image_walk(image, block, write_run, r, err), err);
}

int ls_raw_write(struct ls_image *image, const char *dir, ls_image_progress_fn progress,
                 void *opaque, struct ls_error *err)
{
    const struct ls_image_info *info = ls_image_info(image);
    struct raw r = {.progress = progress, .opaque = opaque, .total = info->ram_bytes};
    char name[3 * LS_IMAGE_NAME];
    int ret = 0;

    if (mkdir(dir, 0700) && errno != EEXIST)
        return ls_fail_errno(err, LS_STORAGE, "create", "cannot create folder '%s'", dir);
    r.bounce = aligned_alloc(LS_PAGE, LS_IMAGE_RUN * LS_PAGE);
    if (!r.bounce)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to write blocks");
    for (uint32_t b = 0; b < info->block_count && !ret; b++) {
        LS_AUTO_FREE char *path = NULL;

        ls_raw_name(info->blocks[b].name, name);
        if (asprintf(&path, "%s/%s", dir, name) < 0)
            ret = ls_fail(err, LS_INTERNAL, "memory", "no memory to write blocks");
        else
            ret = write_block(image, b, &r, path, err);
    }
    free(r.bounce);
    return ret;
}
