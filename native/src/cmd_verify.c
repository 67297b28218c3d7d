/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `livesnap-helper verify IMAGE`: reads all of it; exit code 6 names the first bad place. */
#include <stdio.h>

#include "commands.h"
#include "common/clock.h"
#include "common/event.h"
#include "stream/source.h"

int ls_cmd_verify(int argc, char **argv)
{
    struct ls_image *image;
    struct ls_error err = {0};
    struct ls_meter meter;
    int ret;

    if (argc != 2) {
        fprintf(stderr, "usage: livesnap-helper verify IMAGE|SNAPSHOT_DIR\n");
        return LS_USAGE;
    }
    ls_meter_start(&meter, stdout);
    if (ls_source_open(argv[1], &image, &err))
        return ls_event_error(stdout, &err);
    ret = ls_image_verify(image, ls_meter_progress, &meter, &err);
    if (ret)
        ret = ls_event_error(stdout, &err);
    else
        printf("{\"event\":\"done\",\"ram_bytes\":%llu,\"file_bytes\":%llu,\"checksum\":\"%s\","
               "\"seconds\":%.3f}\n",
               (unsigned long long)ls_image_info(image)->ram_bytes,
               (unsigned long long)ls_image_info(image)->file_bytes, ls_image_info(image)->checksum,
               ls_seconds() - meter.started);
    ls_image_close(image);
    return fflush(stdout) && !ret ? LS_STORAGE : ret;
}
