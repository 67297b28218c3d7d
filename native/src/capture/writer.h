/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The process that compresses and stores. It has no userfaultfd, may hang in the storage without
 * harm to the guest, and removes the image if the keeper dies before it is whole.
 */
#ifndef LS_CAPTURE_WRITER_H
#define LS_CAPTURE_WRITER_H

#include <stdint.h>
#include <sys/types.h>

#include "capture/stage.h"
#include "common/error.h"
#include "image/image.h"

#define LS_WRITER_THREADS_MAX 32u

struct ls_writer_options {
    const char *path;
    uint8_t id[16];
    enum ls_codec codec;
    int level;
    unsigned threads;
    uint64_t bandwidth; /* bytes stored a second; 0: no limit */
    const struct ls_image_string *strings;
    uint32_t string_count;
};

/* Forks it; must be called before the caller has a userfaultfd or threads. *pidfd tells its end. */
int ls_writer_start(struct ls_stage *stage, const struct ls_writer_options *options, pid_t *pid,
                    int *pidfd, struct ls_error *err);

#endif
