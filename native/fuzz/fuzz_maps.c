/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Whatever /proc/PID/maps or smaps seem to say, mappings come out that can be. */
#include <stdlib.h>
#include <string.h>

#include "must.h"
#include "target/target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct seen {
    unsigned count, stop;
};

static int see(const struct ls_vma *vma, void *opaque)
{
    struct seen *s = opaque;

    must(vma->start < vma->end);
    must(memchr(vma->name, 0, sizeof vma->name) && !strchr(vma->name, '\n'));
    return ++s->count == s->stop;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    FILE *f = size ? fmemopen((void *)(uintptr_t)data, size, "r") : NULL;
    struct seen all = {0}, some = {0};
    int found;

    if (!f)
        return 0;
    found = ls_proc_read_maps(f, see, &all);
    must(found == (all.count > 0));
    /* Who has seen enough is not called again. */
    rewind(f);
    some.stop = 1 + all.count / 2;
    ls_proc_read_maps(f, see, &some);
    must(some.count == (all.count ? some.stop : 0));
    fclose(f);
    return 0;
}
