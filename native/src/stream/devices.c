/* SPDX-License-Identifier: GPL-3.0-or-later */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "stream/format.h"
#include "stream/stream.h"

#define MAX_DEVICES (1u << 30) /* a few MiB with a large TPM; this is far above */

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Header, head of the first section, footer of the last, end mark. */
static int check(const uint8_t *p, size_t size, const char *path, struct ls_error *err)
{
    size_t name;

    if (size < 8 || be32(p) != LS_QEMU_MAGIC)
        return ls_fail(err, LS_TORN, "devices", "'%s' is not a device state of QEMU", path);
    if (be32(p + 4) != LS_QEMU_VERSION)
        return ls_fail(err, LS_TORN, "devices", "device state '%s' has version %u; 3 is known",
                       path, be32(p + 4));
    if (size < 8 + 5 + 2 + 8 + 5 + 1 || p[size - 1] != LS_QEMU_EOF)
        return ls_fail(err, LS_TORN, "devices", "device state '%s' was cut", path);
    if (p[8] == LS_QEMU_CONFIGURATION)
        return ls_fail(err, LS_TORN, "devices",
                       "'%s' is a whole migration stream, not a device state", path);
    name = p[13];
    if (p[8] != LS_QEMU_SECTION_FULL || name == 0 || 8 + 5 + 1 + name + 8 > size)
        return ls_fail(err, LS_TORN, "devices", "device state '%s' does not begin with a section",
                       path);
    if (p[size - 6] != LS_QEMU_FOOTER)
        return ls_fail(err, LS_TORN, "devices",
                       "device state '%s' does not end with the footer of a section", path);
    /* QEMU numbers sections from 0 on as devices are made: ours is out of their reach. Even then
     * it would do no harm, as ours ends before the first of theirs. */
    if (be32(p + 9) == LS_QEMU_RAM_SECTION || be32(p + size - 5) == LS_QEMU_RAM_SECTION)
        return ls_fail(err, LS_TORN, "devices",
                       "device state '%s' uses section id %u, which is for RAM", path,
                       LS_QEMU_RAM_SECTION);
    return 0;
}

int ls_devices_load(const char *path, struct ls_devices *d, struct ls_error *err)
{
    LS_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    size_t size;

    *d = (struct ls_devices){0};
    if (fd < 0 || fstat(fd, &st))
        return ls_fail_errno(err, LS_STORAGE, "open", "cannot open device state '%s'", path);
    if (!S_ISREG(st.st_mode) || st.st_size > MAX_DEVICES)
        return ls_fail(err, LS_TORN, "devices", "'%s' is not a device state of QEMU", path);
    size = (size_t)st.st_size;
    d->file = malloc(size + 1);
    if (!d->file)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory for device state '%s'", path);
    if (ls_pread_full(fd, d->file, size, 0, err) || check(d->file, size, path, err)) {
        ls_devices_free(d);
        return -1;
    }
    d->sections = d->file + 8;
    d->length = size - 9;
    return 0;
}

void ls_devices_free(struct ls_devices *d)
{
    free(d->file);
    *d = (struct ls_devices){0};
}
