/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Whatever a file holds, it is refused as device state or kept as bytes. */
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "stream/stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    struct ls_devices devices;
    struct ls_error err = {0};

    if (fd < 0) {
        fd = memfd_create("devices", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (ftruncate(fd, 0) || pwrite(fd, data, size, 0) != (ssize_t)size)
        return 0;
    if (ls_devices_load(path, &devices, &err) == 0)
        ls_devices_free(&devices);
    return 0;
}
