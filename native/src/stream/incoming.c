/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "stream/incoming.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "stream/format.h"

#define MAX_DESCRIPTION (64u << 20)
#define ZERO_PAGE 9u /* bytes that a page takes in the stream at least */

struct cursor {
    struct ls_incoming *in;
    size_t at;
    uint32_t ram_id; /* of the section */
    uint32_t block;  /* of the page before */
    bool any_page, started;
    struct ls_error *err;
};

__attribute__((format(printf, 2, 3))) static int torn(struct cursor *c, const char *format, ...)
{
    char what[256];
    va_list ap;

    va_start(ap, format);
    vsnprintf(what, sizeof what, format, ap);
    va_end(ap);
    return ls_fail(c->err, LS_TORN, "stream", "QEMU's stream is not understood at byte %zu: %s",
                   c->at, what);
}

static bool have(const struct cursor *c, size_t n)
{
    return c->in->size - c->at >= n;
}

static int number(struct cursor *c, unsigned bytes, uint64_t *value)
{
    *value = 0;
    if (!have(c, bytes))
        return torn(c, "it ends there");
    for (unsigned i = 0; i < bytes; i++)
        *value = *value << 8 | c->in->data[c->at++];
    return 0;
}

/* A length byte and so many of printable characters. */
static int name(struct cursor *c, char *to)
{
    uint64_t n;

    if (number(c, 1, &n))
        return -1;
    if (n == 0 || !have(c, n))
        return torn(c, "a name of %u bytes", (unsigned)n);
    for (uint64_t i = 0; i < n; i++) {
        if (c->in->data[c->at] < 0x20 || c->in->data[c->at] > 0x7e)
            return torn(c, "a name that is not printable");
        to[i] = (char)c->in->data[c->at++];
    }
    to[n] = '\0';
    return 0;
}

static int read_head(struct cursor *c)
{
    uint64_t magic, version, kind, n;

    if (number(c, 4, &magic) || number(c, 4, &version) || number(c, 1, &kind) || number(c, 4, &n))
        return -1;
    if (magic != LS_QEMU_MAGIC || version != LS_QEMU_VERSION)
        return torn(c, "it has no header of version %u", LS_QEMU_VERSION);
    if (kind != LS_QEMU_CONFIGURATION || n == 0 || n >= sizeof c->in->machine || !have(c, n))
        return torn(c, "it has no configuration section");
    memcpy(c->in->machine, c->in->data + c->at, n);
    if (strlen(c->in->machine) != n)
        return torn(c, "the machine type has a zero in it");
    c->at += n;
    return 0;
}

static int footer(struct cursor *c)
{
    uint64_t kind, id;

    if (number(c, 1, &kind) || number(c, 4, &id))
        return -1;
    return kind == LS_QEMU_FOOTER && id == c->ram_id ? 0 : torn(c, "section 'ram' has no footer");
}

static int find_block(const struct cursor *c, const char *id, uint32_t *block)
{
    for (uint32_t b = 0; b < c->in->block_count; b++)
        if (strcmp(c->in->blocks[b].name, id) == 0) {
            *block = b;
            return 0;
        }
    return -1;
}

/* A block, as the first record of RAM lists it. */
static int read_block(struct cursor *c)
{
    struct ls_incoming *in = c->in;
    struct ls_incoming_block *b = &in->blocks[in->block_count];
    uint32_t other;

    if (in->block_count == LS_IMAGE_BLOCKS)
        return torn(c, "more than %u RAM blocks", LS_IMAGE_BLOCKS);
    if (name(c, b->name) || number(c, 8, &b->length))
        return -1;
    if (find_block(c, b->name, &other) == 0)
        return torn(c, "RAM block '%s' comes twice", b->name);
    if (b->length % LS_PAGE || b->length / LS_PAGE > in->size / ZERO_PAGE - in->pages)
        return torn(c, "RAM block '%s' of %llu bytes has more pages than the stream", b->name,
                    (unsigned long long)b->length);
    b->first = in->pages;
    in->pages += b->length / LS_PAGE;
    in->block_count++;
    return 0;
}

static int read_sizes(struct cursor *c, uint64_t total)
{
    struct ls_incoming *in = c->in;

    if (in->page)
        return torn(c, "the RAM blocks are listed twice");
    while (in->pages * LS_PAGE < total)
        if (read_block(c))
            return -1;
    if (in->pages * LS_PAGE != total || in->pages == 0)
        return torn(c, "the RAM blocks are not of %llu bytes", (unsigned long long)total);
    in->page = calloc(in->pages, sizeof *in->page);
    if (!in->page)
        return ls_fail(c->err, LS_INTERNAL, "memory", "no memory for a list of all pages");
    return 0;
}

static int read_page(struct cursor *c, uint64_t head)
{
    struct ls_incoming *in = c->in;
    uint64_t number_in_block = head / LS_PAGE, fill = 0, *page;
    char id[256];

    if (!in->page)
        return torn(c, "a page comes before the RAM blocks");
    if (!(head & LS_RAM_SAME_BLOCK)) {
        if (name(c, id))
            return -1;
        if (find_block(c, id, &c->block))
            return torn(c, "a page of block '%s', which is not listed", id);
    } else if (!c->any_page) {
        return torn(c, "the first page names no block");
    }
    c->any_page = true;
    if (number_in_block >= in->blocks[c->block].length / LS_PAGE)
        return torn(c, "page %llu of block '%s' is beyond its end",
                    (unsigned long long)number_in_block, in->blocks[c->block].name);
    page = &in->page[in->blocks[c->block].first + number_in_block];
    if (*page != LS_INCOMING_NONE)
        return torn(c, "page %llu of block '%s' comes twice", (unsigned long long)number_in_block,
                    in->blocks[c->block].name);
    if (head & LS_RAM_ZERO) {
        if (number(c, 1, &fill))
            return -1;
        if (fill != 0)
            return torn(c, "a page is filled with another byte than zero");
        *page = LS_INCOMING_ZERO;
        return 0;
    }
    if (!have(c, LS_PAGE))
        return torn(c, "it ends in a page");
    *page = c->at;
    c->at += LS_PAGE;
    return 0;
}

/* The records of one section `ram`, up to its end mark. */
static int read_records(struct cursor *c)
{
    for (;;) {
        uint64_t head, kind;

        if (number(c, 8, &head))
            return -1;
        kind = head & (LS_PAGE - 1) & ~(uint64_t)LS_RAM_SAME_BLOCK;
        if (head == LS_RAM_END)
            return footer(c);
        if (kind == LS_RAM_SIZES ? read_sizes(c, head & ~(uint64_t)(LS_PAGE - 1))
            : kind == LS_RAM_PAGE || kind == LS_RAM_ZERO
                ? read_page(c, head)
                : torn(c, "a record of RAM of kind %#llx", (unsigned long long)kind))
            return -1;
    }
}

static int read_ram_start(struct cursor *c)
{
    uint64_t id, instance, version;
    char what[256];

    if (number(c, 4, &id) || name(c, what) || number(c, 4, &instance) || number(c, 4, &version))
        return -1;
    if (c->started || strcmp(what, "ram") != 0 || instance != 0 || version != LS_QEMU_RAM_VERSION)
        return torn(c, "section '%s', version %u: only one 'ram', version %u, is known", what,
                    (unsigned)version, LS_QEMU_RAM_VERSION);
    c->started = true;
    c->ram_id = (uint32_t)id;
    return read_records(c);
}

static int read_ram_part(struct cursor *c)
{
    uint64_t id;

    if (number(c, 4, &id))
        return -1;
    if (!c->started || id != c->ram_id)
        return torn(c, "a part of section %u, which is not known", (unsigned)id);
    return read_records(c);
}

/* Everything up to the first device section, which does not tell its length. */
static int read_ram(struct cursor *c)
{
    for (;;) {
        uint64_t kind;

        if (number(c, 1, &kind))
            return -1;
        if (kind == LS_QEMU_SECTION_FULL) {
            c->at--;
            return c->in->page ? 0 : torn(c, "it has no RAM");
        }
        if (kind == LS_QEMU_SECTION_START ? read_ram_start(c)
            : kind == LS_QEMU_SECTION_PART || kind == LS_QEMU_SECTION_END
                ? read_ram_part(c)
                : torn(c, "a section of kind %#x", (unsigned)kind))
            return -1;
    }
}

/* The length of the description of the devices, JSON of printable characters, that may come after
 * the end mark: the first byte before it that is its head. */
static size_t description(const struct ls_incoming *in, size_t from)
{
    size_t limit = in->size - from < MAX_DESCRIPTION ? in->size - from : MAX_DESCRIPTION;

    for (size_t n = 5; n < limit; n++) {
        const uint8_t *p = in->data + in->size - n;

        if (p[0] == LS_QEMU_VMDESCRIPTION && p[-1] == LS_QEMU_EOF &&
            ((uint64_t)p[1] << 24 | p[2] << 16 | p[3] << 8 | p[4]) == n - 5)
            return n;
    }
    return 0;
}

static int read_devices(struct cursor *c)
{
    struct ls_incoming *in = c->in;
    size_t end = in->size - description(in, c->at);

    /* a head, a footer and the end mark */
    if (end - c->at < 5 + 2 + 8 + 5 + 1 || in->data[end - 1] != LS_QEMU_EOF ||
        in->data[end - 6] != LS_QEMU_FOOTER)
        return torn(c, "the device sections have no end");
    in->sections = c->at;
    in->sections_length = end - 1 - c->at;
    return 0;
}

static int check_pages(struct cursor *c)
{
    for (uint32_t b = 0; b < c->in->block_count; b++)
        for (uint64_t p = 0; p < c->in->blocks[b].length / LS_PAGE; p++)
            if (c->in->page[c->in->blocks[b].first + p] == LS_INCOMING_NONE)
                return torn(c, "page %llu of block '%s' did not come", (unsigned long long)p,
                            c->in->blocks[b].name);
    return 0;
}

int ls_incoming_read(const uint8_t *data, size_t size, struct ls_incoming *in, struct ls_error *err)
{
    struct cursor c = {.in = in, .err = err};

    *in = (struct ls_incoming){.data = data, .size = size};
    in->blocks = calloc(LS_IMAGE_BLOCKS, sizeof *in->blocks);
    if (!in->blocks)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory for a list of RAM blocks");
    if (read_head(&c) || read_ram(&c) || read_devices(&c) || check_pages(&c)) {
        ls_incoming_free(in);
        return -1;
    }
    return 0;
}

void ls_incoming_free(struct ls_incoming *in)
{
    free(in->blocks);
    free(in->page);
    *in = (struct ls_incoming){0};
}

int ls_incoming_write_devices(const struct ls_incoming *in, const char *path, struct ls_error *err)
{
    static const uint8_t head[] = {'Q', 'E', 'V', 'M', 0, 0, 0, LS_QEMU_VERSION};
    static const uint8_t end[] = {LS_QEMU_EOF};
    LS_AUTO_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);

    if (fd < 0)
        return ls_fail_errno(err, LS_STORAGE, "create", "cannot create '%s'", path);
    if (ls_write_full(fd, head, sizeof head, err) ||
        ls_write_full(fd, in->data + in->sections, in->sections_length, err) ||
        ls_write_full(fd, end, sizeof end, err))
        return -1;
    return fsync(fd) == 0 ? 0 : ls_fail_errno(err, LS_STORAGE, "sync", "cannot sync '%s'", path);
}
