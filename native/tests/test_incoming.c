/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The migration stream that QEMU writes, taken apart; and what is none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stream/format.h"
#include "stream/incoming.h"
#include "stream/stream.h"

#define RAM_ID 2u

static uint8_t stream[64 * 1024];
static size_t size;

static void put(const void *data, size_t n)
{
    assert_true(size + n <= sizeof stream);
    memcpy(stream + size, data, n);
    size += n;
}

static void number(uint64_t value, unsigned bytes)
{
    for (unsigned i = bytes; i > 0; i--)
        put(&(uint8_t){(uint8_t)(value >> 8 * (i - 1))}, 1);
}

static void name(const char *text)
{
    number(strlen(text), 1);
    put(text, strlen(text));
}

static void footer(void)
{
    number(LS_RAM_END, 8);
    number(LS_QEMU_FOOTER, 1);
    number(RAM_ID, 4);
}

static void part(uint8_t kind)
{
    number(kind, 1);
    number(RAM_ID, 4);
}

static void page(const char *block, uint64_t at, uint8_t fill)
{
    static uint8_t data[LS_PAGE];

    number(at * LS_PAGE | (fill ? LS_RAM_PAGE : LS_RAM_ZERO) | (block ? 0 : LS_RAM_SAME_BLOCK), 8);
    if (block)
        name(block);
    memset(data, fill, sizeof data);
    put(data, fill ? sizeof data : 1);
}

static void head(uint64_t pages)
{
    size = 0;
    put("QEVM", 4);
    number(LS_QEMU_VERSION, 4);
    number(LS_QEMU_CONFIGURATION, 1);
    number(13, 4);
    put("pc-i440fx-7.2", 13);
    number(LS_QEMU_SECTION_START, 1);
    number(RAM_ID, 4);
    name("ram");
    number(0, 4);
    number(LS_QEMU_RAM_VERSION, 4);
    number(pages * LS_PAGE | LS_RAM_SIZES, 8);
}

static void blocks(void)
{
    head(5);
    name("pc.ram");
    number(3 * LS_PAGE, 8);
    name("/rom@etc/acpi/tables");
    number(2 * LS_PAGE, 8);
    footer();
}

static void devices(const char *description)
{
    number(LS_QEMU_SECTION_FULL, 1);
    number(0, 4);
    name("timer");
    number(0, 4);
    number(2, 4);
    put("\xaa\x06\x00\x00\x00\x01\xcc", 7); /* looks like the head of a description */
    number(LS_QEMU_FOOTER, 1);
    number(0, 4);
    number(LS_QEMU_EOF, 1);
    if (!description)
        return;
    number(LS_QEMU_VMDESCRIPTION, 1);
    number(strlen(description), 4);
    put(description, strlen(description));
}

static void whole(const char *description)
{
    blocks();
    part(LS_QEMU_SECTION_PART);
    page("pc.ram", 1, 0x11);
    page(NULL, 0, 0);
    footer();
    part(LS_QEMU_SECTION_PART);
    page("/rom@etc/acpi/tables", 1, 0x22);
    page("pc.ram", 2, 0x33);
    footer();
    part(LS_QEMU_SECTION_END);
    page("/rom@etc/acpi/tables", 0, 0);
    footer();
    devices(description);
}

static void expect_page(const struct ls_incoming *in, uint64_t at, uint8_t fill)
{
    if (fill == 0) {
        assert_int_equal(in->page[at], LS_INCOMING_ZERO);
        return;
    }
    for (unsigned i = 0; i < LS_PAGE; i++)
        assert_int_equal(in->data[in->page[at] + i], fill);
}

static void is_taken_apart(void **state)
{
    static const char *const descriptions[] = {NULL, "", "{\"devices\": []}"};
    static const uint8_t fills[] = {0, 0x11, 0x33, 0, 0x22};
    char path[] = "/tmp/livesnap-test-XXXXXX";

    (void)state;
    for (unsigned d = 0; d < 3; d++) {
        struct ls_devices back;
        struct ls_incoming in;
        struct ls_error err;

        whole(descriptions[d]);
        if (ls_incoming_read(stream, size, &in, &err))
            fail_msg("%s", err.message);
        assert_string_equal(in.machine, "pc-i440fx-7.2");
        assert_int_equal(in.block_count, 2);
        assert_string_equal(in.blocks[1].name, "/rom@etc/acpi/tables");
        assert_int_equal(in.blocks[1].length, 2 * LS_PAGE);
        for (unsigned p = 0; p < 5; p++)
            expect_page(&in, p, fills[p]);
        close(mkstemp(path));
        assert_int_equal(ls_incoming_write_devices(&in, path, &err), -1); /* it is there */
        unlink(path);
        assert_int_equal(ls_incoming_write_devices(&in, path, &err), 0);
        if (ls_devices_load(path, &back, &err))
            fail_msg("%s", err.message);
        assert_int_equal(back.length, in.sections_length);
        assert_memory_equal(back.sections, stream + in.sections, back.length);
        ls_devices_free(&back);
        ls_incoming_free(&in);
        unlink(path);
        strcpy(path, "/tmp/livesnap-test-XXXXXX");
    }
}

static void refused(const char *why)
{
    struct ls_incoming in;
    struct ls_error err;

    assert_int_equal(ls_incoming_read(stream, size, &in, &err), -1);
    assert_int_equal(err.cls, LS_TORN);
    assert_string_equal(err.reason, "stream");
    if (!strstr(err.message, why))
        fail_msg("'%s' does not say '%s'", err.message, why);
}

/* Cut anywhere, it is no stream any more: the description alone may be missing as a whole. */
static void cut(void **state)
{
    struct ls_incoming in;
    struct ls_error err;
    size_t all, plain;

    (void)state;
    whole(NULL);
    plain = size;
    whole("{}");
    all = size;
    for (size = 0; size < all; size++) {
        if (size == plain)
            continue;
        if (ls_incoming_read(stream, size, &in, &err) == 0)
            fail_msg("cut at %zu of %zu it is taken", size, all);
    }
}

static void what_is_none(void **state)
{
    (void)state;
    whole(NULL);
    stream[0] = 'X';
    refused("no header");
    whole(NULL);
    stream[8] = LS_QEMU_SECTION_FULL;
    refused("no configuration");
    head(1);
    name("a");
    number(LS_PAGE + 1, 8);
    refused("more pages than the stream");
    head(1ull << 40);
    name("a");
    number(1ull << 52, 8);
    refused("more pages than the stream");
    head(2);
    name("a");
    number(LS_PAGE, 8);
    name("a");
    number(LS_PAGE, 8);
    devices("{\"\": \"                                        \"}");
    refused("comes twice");
    blocks();
    part(LS_QEMU_SECTION_PART);
    page(NULL, 0, 0);
    refused("names no block");
    blocks();
    part(LS_QEMU_SECTION_PART);
    page("pc.ram", 3, 0);
    refused("beyond its end");
    blocks();
    part(LS_QEMU_SECTION_PART);
    page("vga", 0, 0);
    refused("not listed");
    blocks();
    part(LS_QEMU_SECTION_PART);
    page("pc.ram", 0, 1);
    page(NULL, 0, 0);
    refused("comes twice");
    blocks();
    part(LS_QEMU_SECTION_PART);
    page("pc.ram", 0, 1);
    footer();
    devices("{}");
    refused("did not come");
    blocks();
    part(LS_QEMU_SECTION_PART);
    number(0x100, 8); /* a compressed page */
    refused("a record of RAM of kind 0x100");
    blocks();
    number(0x08, 1); /* a command */
    refused("a section of kind 0x8");
    blocks();
    number(LS_QEMU_SECTION_START, 1);
    number(3, 4);
    name("vfio");
    number(0, 4);
    number(1, 4);
    refused("'vfio'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_taken_apart),
        cmocka_unit_test(cut),
        cmocka_unit_test(what_is_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
