/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The migration stream that QEMU writes, taken apart; and what is none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "commands.h"
#include "image/image.h"
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

struct places {
    char folder[64], stream[96], image[96], devices[96];
};

static void make_places(struct places *p)
{
    int fd;

    strcpy(p->folder, "/tmp/livesnap-test-XXXXXX");
    assert_non_null(mkdtemp(p->folder));
    snprintf(p->stream, sizeof p->stream, "%s/stream", p->folder);
    snprintf(p->image, sizeof p->image, "%s/ram.lsnap", p->folder);
    snprintf(p->devices, sizeof p->devices, "%s/devices", p->folder);
    fd = open(p->stream, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, stream, size), size);
    /* what was reserved and not used */
    assert_int_equal(ftruncate(fd, (off_t)size + 65536), 0);
    close(fd);
}

/* Runs it; its exit code. `leave`: the owner closes its end at once. */
static int convert(const struct places *p, const char *machine, bool leave)
{
    json_t *request = json_pack(
        "{s:s, s:s, s:s, s:i, s:i, s:s, s:[{s:i, s:s, s:i, s:i}], s:s, s:s, s:s, s:I, s:s}",
        "request", "start", "id", "01234567-89ab-cdef-0123-456789abcdef", "guest", "web1", "pid", 1,
        "start_time", 1, "ramblock",
        "Block Name PSize Offset Used Total\n pc.ram 2 MiB 0x0 0x3000 "
        "0x3000\n",
        "gpa", "gpa", 0, "block", "pc.ram", "offset", 0, "length", 3 * LS_PAGE, "machine", machine,
        "image", p->image, "spool", p->stream, "spool_bytes", (json_int_t)size, "devices",
        p->devices);
    char *line = json_dumps(request, JSON_COMPACT), *argv[] = {(char[]){"convert"}, NULL};
    int in[2], status, null = open("/dev/null", O_RDWR | O_CLOEXEC);
    pid_t child;

    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    child = fork();
    if (child == 0) {
        dup2(in[0], STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        exit(ls_cmd_convert(1, argv));
    }
    close(in[0]);
    close(null);
    assert_int_equal(write(in[1], line, strlen(line)), strlen(line));
    assert_int_equal(write(in[1], "\n", 1), 1);
    if (leave)
        close(in[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!leave)
        close(in[1]);
    free(line);
    json_decref(request);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void remove_places(const struct places *p)
{
    unlink(p->stream);
    unlink(p->image);
    unlink(p->devices);
    assert_int_equal(rmdir(p->folder), 0);
}

static void becomes_a_snapshot(void **state)
{
    static uint8_t page_of[LS_PAGE];
    struct ls_devices devices_of;
    struct ls_image *image;
    struct ls_error err;
    struct places p;

    (void)state;
    whole("{}");
    make_places(&p);
    assert_int_equal(convert(&p, "pc-i440fx-7.2", false), LS_OK);
    if (ls_image_open(p.image, &image, &err) || ls_image_verify(image, NULL, NULL, &err) ||
        ls_devices_load(p.devices, &devices_of, &err))
        fail_msg("%s", err.message);
    assert_int_equal(ls_image_info(image)->block_count, 2);
    assert_int_equal(ls_image_info(image)->blocks[0].page_size, 2 << 20);
    assert_string_equal(ls_image_string(image, "machine"), "pc-i440fx-7.2");
    assert_int_equal(ls_image_read_gpa(image, 2 * LS_PAGE, page_of, LS_PAGE, &err), 0);
    assert_int_equal(page_of[0], 0x33);
    assert_int_equal(ls_image_read(image, 1, LS_PAGE, page_of, LS_PAGE, &err), 0);
    assert_int_equal(page_of[LS_PAGE - 1], 0x22);
    ls_devices_free(&devices_of);
    ls_image_close(image);
    remove_places(&p);
}

static void leaves_nothing(void **state)
{
    struct places p;

    (void)state;
    whole("{}");
    make_places(&p);
    assert_int_equal(convert(&p, "pc-q35-7.2", false), LS_TORN);
    assert_int_equal(access(p.image, F_OK) & access(p.devices, F_OK), -1);
    remove_places(&p);
    size -= 100;
    make_places(&p);
    assert_int_equal(convert(&p, "pc-i440fx-7.2", false), LS_TORN);
    assert_int_equal(access(p.image, F_OK) & access(p.devices, F_OK), -1);
    remove_places(&p);
    /* The owner leaves: whole, if that was too late, or nothing. */
    whole("{}");
    make_places(&p);
    if (convert(&p, "pc-i440fx-7.2", true) != LS_OK)
        assert_int_equal(access(p.image, F_OK) & access(p.devices, F_OK), -1);
    remove_places(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_taken_apart), cmocka_unit_test(cut),
        cmocka_unit_test(what_is_none),   cmocka_unit_test(becomes_a_snapshot),
        cmocka_unit_test(leaves_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
