/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Whatever comes on standard input, in pieces of any size, it is refused or is a request. */
#include <ctype.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "capture/request.h"
#include "must.h"
#include "target/ramtext.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define TERMINATED(text) must(memchr(text, 0, sizeof text))

static void check_start(const struct ls_request *r)
{
    unsigned digits = 0;

    TERMINATED(r->id_text);
    TERMINATED(r->guest);
    TERMINATED(r->machine);
    TERMINATED(r->qemu_version);
    for (const char *c = r->id_text; *c; c++) {
        must(*c == '-' || isxdigit((unsigned char)*c));
        digits += *c != '-';
    }
    must(digits == 32);
    must(r->pid > 0 && r->image && r->image[0] && r->gpa_count <= LS_IMAGE_RANGES);
    must(r->level >= 0 && r->level <= 22 && r->workers <= 1024);
    must(r->codec == LS_CODEC_NONE || r->codec == LS_CODEC_LZ4 || r->codec == LS_CODEC_ZSTD);
    for (size_t i = 0; i < r->gpa_count; i++) {
        TERMINATED(r->gpa[i].block);
        must((r->gpa[i].gpa | r->gpa[i].offset | r->gpa[i].length) >> 63 == 0);
    }
}

static int pass(const struct ls_ramblock *block, bool printed_host, void *opaque,
                struct ls_error *err)
{
    (void)block;
    (void)printed_host;
    (void)opaque;
    (void)err;
    return 0;
}

static void use(const char *line, size_t length)
{
    struct ls_request r;
    struct ls_error err = {0};

    if (ls_request_parse(line, length, &r, &err)) {
        must(err.cls == LS_USAGE && err.message[0]);
        must(!r.ramblock && !r.gpa && !r.image); /* nothing is left to be freed */
        return;
    }
    must((r.kind == LS_REQUEST_START || r.kind == LS_REQUEST_PROTECT) == (r.ramblock != NULL));
    if (r.kind == LS_REQUEST_START)
        check_start(&r);
    if (r.ramblock)
        ls_ramtext_parse(r.ramblock, pass, NULL, &err);
    ls_request_free(&r);
}

/* Takes out what is whole; returns how many lines that were. */
static size_t take(struct ls_lines *lines)
{
    size_t n = 0, length;

    for (char *line; (line = ls_lines_next(lines, &length)); n++) {
        must(memchr(line, '\n', length) == NULL && line[length] == 0);
        use(line, length);
        free(line);
    }
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ls_lines lines = {0};
    struct ls_error err = {0};
    size_t newlines = 0, seen = 0, piece;
    int end[2];

    if (size == 0 || pipe2(end, O_CLOEXEC | O_NONBLOCK))
        return 0;
    lines.fd = end[0];
    piece = 1 + data[0] * 17u;
    for (size_t at = 1; at < size; at += piece) {
        size_t n = size - at < piece ? size - at : piece;

        must(write(end[1], data + at, n) == (ssize_t)n);
        must(ls_lines_fill(&lines, &err) == 0 && !lines.end);
        seen += take(&lines);
    }
    for (size_t i = 1; i < size; i++)
        newlines += data[i] == '\n';
    close(end[1]);
    while (!lines.end) {
        must(ls_lines_fill(&lines, &err) == 0);
        seen += take(&lines);
    }
    must(seen == newlines);
    close(end[0]);
    ls_lines_free(&lines);
    return 0;
}
