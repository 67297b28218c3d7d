/* SPDX-License-Identifier: GPL-3.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "stream/stream.h"

#define XML_MAX (16u << 20)
#define SAVE_VERSION 2

/* In front of the XML and the stream, in the byte order of the machine: libvirt's
 * src/qemu/qemu_saveimage.h. */
struct save_header {
    char magic[16];
    uint32_t version;
    uint32_t data_length; /* of the XML with its NUL */
    uint32_t was_running;
    uint32_t compressed;
    uint32_t cookie_offset;
    uint32_t unused[14];
};

_Static_assert(sizeof(struct save_header) == 92, "libvirt's header has 92 bytes");

static int read_whole(int fd, char *data, size_t length)
{
    size_t done = 0;

    while (done < length) {
        ssize_t n = read(fd, data + done, length - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        done += (size_t)n;
    }
    return 0;
}

/* The file, and a NUL behind it. */
static int load_xml(const char *path, char **xml, size_t *length, struct ls_error *err)
{
    LS_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    LS_AUTO_FREE char *data = NULL;
    struct stat st;

    if (fd < 0 || fstat(fd, &st))
        return ls_fail_errno(err, LS_STORAGE, "open", "cannot open '%s'", path);
    if (!S_ISREG(st.st_mode) || st.st_size <= 0 || st.st_size > XML_MAX)
        return ls_fail(err, LS_TORN, "xml", "'%s' is no file of 1 byte to 16 MiB", path);
    *length = (size_t)st.st_size;
    data = calloc(1, *length + 1);
    if (!data)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory for '%s'", path);
    if (read_whole(fd, data, *length))
        return ls_fail_errno(err, LS_STORAGE, "read", "cannot read '%s'", path);
    if (strlen(data) != *length || !strstr(data, "<domain"))
        return ls_fail(err, LS_TORN, "xml", "'%s' is no XML of a libvirt domain", path);
    *xml = data;
    data = NULL;
    return 0;
}

int ls_libvirt_header_write(const char *path, bool running, int fd, struct ls_error *err)
{
    LS_AUTO_FREE char *xml = NULL;
    struct save_header header = {.version = SAVE_VERSION, .was_running = running};
    size_t length = 0;

    if (load_xml(path, &xml, &length, err))
        return -1;
    memcpy(header.magic, "LibvirtQemudSave", sizeof header.magic);
    header.data_length = (uint32_t)length + 1;
    return ls_write_full(fd, &header, sizeof header, err) || ls_write_full(fd, xml, length + 1, err)
               ? -1
               : 0;
}
