/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The requests of `capture`: JSON objects, one a line. docs/helper.md describes them. */
#ifndef LS_CAPTURE_REQUEST_H
#define LS_CAPTURE_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"
#include "image/image.h"
#include "target/target.h"

#define LS_REQUEST_MAX (4u << 20) /* bytes of one line */

enum ls_request_kind {
    LS_REQUEST_START,
    LS_REQUEST_PREARM,
    LS_REQUEST_PROTECT,
    LS_REQUEST_ARM,
    LS_REQUEST_ABORT,
};

struct ls_gpa_range {
    uint64_t gpa, offset, length;
    char block[256];
};

struct ls_request {
    enum ls_request_kind kind;
    char *ramblock; /* start, protect */

    /* start only */
    char id_text[40];
    uint8_t id[16];
    char guest[256];
    pid_t pid;
    uint64_t start_time;
    struct ls_gpa_range *gpa;
    size_t gpa_count;
    char machine[256];
    char qemu_version[64];
    char *image;
    enum ls_codec codec;
    int level;
    uint64_t staging;
    uint64_t bandwidth;
    unsigned workers;
    enum ls_attach_how attach;
    bool ksm_pause;
    bool still;  /* the guest stands still from `protect` until `released`: no userfaultfd */
    char *spool; /* NULL, or of `convert`: the stream that QEMU has written, */
    uint64_t spool_bytes; /* its length, */
    char *devices;        /* and where its device state goes */
};

/* LS_USAGE, reason "request", names the field that is missing or wrong. */
int ls_request_parse(const char *line, size_t length, struct ls_request *request,
                     struct ls_error *err);
void ls_request_free(struct ls_request *request);

#define LS_REQUEST_STRINGS 4u
/* What an image keeps of it; returns how many. Their values are the request's. */
unsigned ls_request_strings(const struct ls_request *request,
                            struct ls_image_string strings[LS_REQUEST_STRINGS]);

/* Reads lines from a descriptor without ever waiting. */
struct ls_lines {
    int fd;
    char *buf;
    size_t used, room;
    bool end; /* end of file, or an error */
};

/* After poll() said that there is something. LS_USAGE if a line is too long. */
int ls_lines_fill(struct ls_lines *lines, struct ls_error *err);
/* Takes the next whole line out (to be freed), NULL if there is none yet. */
char *ls_lines_next(struct ls_lines *lines, size_t *length);
void ls_lines_free(struct ls_lines *lines);

#endif
