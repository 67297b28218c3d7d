/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "stream/source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"

static bool is_folder(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int ls_source_open(const char *path, struct ls_image **image, struct ls_error *err)
{
    LS_AUTO_FREE char *inside = NULL;

    if (!is_folder(path))
        return ls_image_open(path, image, err);
    if (asprintf(&inside, "%s/ram.lsnap", path) < 0)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to open '%s'", path);
    return ls_image_open(inside, image, err);
}

static char *beside(const char *path, const char *name)
{
    const char *slash = strrchr(path, '/');
    char *found;
    int ret;

    if (is_folder(path))
        ret = asprintf(&found, "%s/%s", path, name);
    else
        ret = asprintf(&found, "%.*s%s", slash ? (int)(slash - path + 1) : 0, path, name);
    return ret < 0 ? NULL : found;
}

char *ls_source_devices(const char *path)
{
    return beside(path, "devices");
}

char *ls_source_domain(const char *path)
{
    return beside(path, "domain.xml");
}

int ls_source_number(const char *option, const char *text, uint64_t *value, struct ls_error *err)
{
    char *end;

    errno = 0;
    *value = strtoull(text, &end, strncmp(text, "0x", 2) == 0 ? 16 : 10);
    if (errno || *end || *text < '0' || *text > '9')
        return ls_fail(err, LS_USAGE, "usage", "%s is not a number: '%s'", option, text);
    return 0;
}
