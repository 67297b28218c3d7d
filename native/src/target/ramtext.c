/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "target/ramtext.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

/* "4 KiB", as one word after the name: the number and its unit stand apart. */
static bool parse_size(const char *number, const char *unit, uint64_t *bytes)
{
    static const char units[] = "BKMGT";
    char *end;
    unsigned long long value = strtoull(number, &end, 10);
    const char *at = unit[0] ? strchr(units, unit[0]) : NULL;

    /* strtoull takes signs and more digits than there is room for */
    if (number[0] < '0' || number[0] > '9' || *end || value == 0 || value > 1u << 20)
        return false;
    if (!at || strcmp(unit + 1, at == units ? "" : "iB") != 0)
        return false;
    *bytes = value << (10 * (at - units));
    return true;
}

/* "0x" and up to 16 digits. */
static bool parse_hex(const char *word, uint64_t *value)
{
    size_t digits;

    if (strncmp(word, "0x", 2) != 0)
        return false;
    digits = strspn(word + 2, "0123456789abcdefABCDEF");
    if (digits == 0 || digits > 16 || word[2 + digits])
        return false;
    *value = strtoull(word + 2, NULL, 16);
    return true;
}

static bool fits(uint64_t start, uint64_t length)
{
    return start <= UINT64_MAX - length;
}

/* 1: a block, 0: a line that is none (the heading), -1: a line that should be one and is not. */
static int parse_line(const char *line, struct ls_ramblock *b, bool *printed_host)
{
    char number[16];
    char unit[8];
    char hex[4][20];
    char mode[8] = "";
    int n;

    memset(b, 0, sizeof *b);
    n = sscanf(line, " %255s %15s %7s %19s %19s %19s %19s %7s", b->id, number, unit, hex[0], hex[1],
               hex[2], hex[3], mode);
    if (n <= 0 || strcmp(b->id, "Block") == 0)
        return 0;
    /* a block without a name does not migrate, so neither stream nor image can hold it */
    if (n >= 2 && parse_size(b->id, number, &b->page_size))
        return 0;
    if (n < 6 || !parse_size(number, unit, &b->page_size) || b->page_size & (b->page_size - 1) ||
        !parse_hex(hex[0], &b->offset) || !parse_hex(hex[1], &b->used) ||
        !parse_hex(hex[2], &b->total) || (n >= 7 && !parse_hex(hex[3], &b->host)))
        return -1;
    if (b->used > b->total || b->total == 0 || !fits(b->offset, b->total) ||
        !fits(b->host, b->total))
        return -1;
    *printed_host = n >= 7;
    b->readonly = strcmp(mode, "ro") == 0;
    return 1;
}

int ls_ramtext_parse(const char *text, ls_ramtext_fn each, void *opaque, struct ls_error *err)
{
    LS_AUTO_FREE char *copy = strdup(text);
    unsigned count = 0;
    char *save = NULL;

    if (!copy)
        return ls_fail_errno(err, LS_INTERNAL, "memory", "cannot read 'info ramblock'");
    for (char *line = strtok_r(copy, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save)) {
        struct ls_ramblock block;
        bool printed_host;
        int kind = parse_line(line, &block, &printed_host);

        if (kind < 0)
            return ls_fail(err, LS_REFUSED, "ramblock",
                           "cannot make out this line of 'info ramblock': '%.200s'", line);
        if (kind == 0)
            continue;
        if (count++ == LS_RAMTEXT_BLOCKS)
            return ls_fail(err, LS_REFUSED, "ramblock", "'info ramblock' lists too many blocks");
        if (each(&block, printed_host, opaque, err))
            return -1;
    }
    if (count == 0)
        return ls_fail(err, LS_REFUSED, "ramblock", "'info ramblock' lists no block");
    return 0;
}
