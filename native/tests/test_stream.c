/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The migration stream, read back as QEMU reads it; device states that are none; raw blocks. */
#include "image_dir.h"

#include <signal.h>

#include "stream/format.h"
#include "stream/stream.h"

/* magic, version, a full section `timer`, a footer, the end mark */
static const uint8_t devices[] = {'Q',
                                  'E',
                                  'V',
                                  'M',
                                  0,
                                  0,
                                  0,
                                  3,
                                  LS_QEMU_SECTION_FULL,
                                  0,
                                  0,
                                  0,
                                  0,
                                  5,
                                  't',
                                  'i',
                                  'm',
                                  'e',
                                  'r',
                                  0,
                                  0,
                                  0,
                                  0,
                                  0,
                                  0,
                                  0,
                                  2,
                                  0xaa,
                                  0xbb,
                                  0xcc,
                                  LS_QEMU_FOOTER,
                                  0,
                                  0,
                                  0,
                                  0,
                                  LS_QEMU_EOF};
#define SECTIONS (sizeof devices - 9)

static void write_file(const char *path, const void *data, size_t length)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_int_equal(write(fd, data, length), length);
    close(fd);
}

struct in {
    const uint8_t *at, *end;
};

static uint64_t take(struct in *in, unsigned bytes)
{
    uint64_t value = 0;

    assert_true(in->at + bytes <= in->end);
    while (bytes-- > 0)
        value = value << 8 | *in->at++;
    return value;
}

static void take_text(struct in *in, const char *text)
{
    assert_true(in->at + strlen(text) <= in->end);
    assert_memory_equal(in->at, text, strlen(text));
    in->at += strlen(text);
}

static void take_footer(struct in *in)
{
    assert_int_equal(take(in, 1), LS_QEMU_FOOTER);
    assert_int_equal(take(in, 4), LS_QEMU_RAM_SECTION);
}

/* As design of QEMU's loadvm: fills `ram` of a destination whose memory is zero. */
static uint64_t load(const uint8_t *stream, size_t length, struct guest *g,
                     uint8_t *ram[GUEST_BLOCKS])
{
    struct in in = {stream, stream + length};
    uint64_t total = 0, pages = 0;
    int block = -1;

    assert_int_equal(take(&in, 4), LS_QEMU_MAGIC);
    assert_int_equal(take(&in, 4), 3);
    assert_int_equal(take(&in, 1), LS_QEMU_CONFIGURATION);
    assert_int_equal(take(&in, 4), strlen("pc-i440fx-7.2"));
    take_text(&in, "pc-i440fx-7.2");
    assert_int_equal(take(&in, 1), LS_QEMU_SECTION_START);
    assert_int_equal(take(&in, 4), LS_QEMU_RAM_SECTION);
    take_text(&in, "\003ram");
    assert_int_equal(take(&in, 4), 0);
    assert_int_equal(take(&in, 4), 4);
    for (uint32_t b = 0; b < g->spec.block_count; b++)
        total += g->blocks[b].length;
    assert_int_equal(take(&in, 8), total | LS_RAM_SIZES);
    for (uint32_t b = 0; b < g->spec.block_count; b++) {
        assert_int_equal(take(&in, 1), strlen(g->blocks[b].name));
        take_text(&in, g->blocks[b].name);
        assert_int_equal(take(&in, 8), g->blocks[b].length);
    }
    assert_int_equal(take(&in, 8), LS_RAM_END);
    take_footer(&in);
    assert_int_equal(take(&in, 1), LS_QEMU_SECTION_END);
    assert_int_equal(take(&in, 4), LS_QEMU_RAM_SECTION);
    for (;;) {
        uint64_t head = take(&in, 8), offset = head & ~(uint64_t)(LS_PAGE - 1);

        if (head == LS_RAM_END)
            break;
        if (!(head & LS_RAM_SAME_BLOCK)) {
            uint64_t n = take(&in, 1);

            for (block = 0; block < (int)g->spec.block_count; block++)
                if (strlen(g->blocks[block].name) == n &&
                    memcmp(g->blocks[block].name, in.at, n) == 0)
                    break;
            assert_true(block < (int)g->spec.block_count);
            in.at += n;
        }
        assert_true(block >= 0 && offset < g->blocks[block].length);
        head &= LS_RAM_PAGE | LS_RAM_ZERO;
        if (head == LS_RAM_ZERO) {
            assert_int_equal(take(&in, 1), 0);
        } else {
            assert_int_equal(head, LS_RAM_PAGE);
            assert_true(in.at + LS_PAGE <= in.end);
            memcpy(ram[block] + offset, in.at, LS_PAGE);
            in.at += LS_PAGE;
        }
        pages++;
    }
    take_footer(&in);
    assert_memory_equal(in.at, devices + 8, SECTIONS);
    in.at += SECTIONS;
    assert_int_equal(take(&in, 1), LS_QEMU_EOF);
    assert_int_equal(take(&in, 1), LS_QEMU_VMDESCRIPTION);
    assert_int_equal(take(&in, 4), 2);
    take_text(&in, "{}");
    assert_ptr_equal(in.at, in.end);
    return pages;
}

static uint8_t *read_all(int fd, size_t *length)
{
    struct stat st;
    uint8_t *data;

    assert_int_equal(fstat(fd, &st), 0);
    *length = (size_t)st.st_size;
    data = malloc(*length + 1);
    assert_int_equal(pread(fd, data, *length, 0), *length);
    return data;
}

static void export_and_load(enum ls_codec codec, bool main_pages)
{
    struct guest *g = guest_new(700, GUEST_BLOCKS, codec);
    char *path = in_dir(dir, "image"), *file = in_dir(dir, "devices"), *to = in_dir(dir, "stream");
    int fd = open(to, O_RDWR | O_CREAT | O_TRUNC, 0600);
    uint8_t *ram[GUEST_BLOCKS], *stream;
    struct ls_devices d;
    struct ls_image *image;
    struct ls_error err = {0};
    size_t length;
    uint64_t pages;

    guest_write(g, path, 64);
    write_file(file, devices, sizeof devices);
    image = guest_open(path);
    assert_int_equal(ls_devices_load(file, &d, &err), 0);
    assert_int_equal(ls_stream_write(image, &d, main_pages, fd, NULL, NULL, &err), 0);
    stream = read_all(fd, &length);
    for (uint32_t b = 0; b < GUEST_BLOCKS; b++)
        ram[b] = calloc(1, g->blocks[b].length);
    pages = load(stream, length, g, ram);
    assert_int_equal(pages, main_pages ? 708 : 8);
    for (uint32_t b = 0; b < GUEST_BLOCKS; b++) {
        if (main_pages || strcmp(g->blocks[b].name, "pc.ram") != 0)
            assert_memory_equal(ram[b], g->ram[b], g->blocks[b].length);
        free(ram[b]);
    }
    ls_devices_free(&d);
    ls_image_close(image);
    close(fd);
    unlink(path);
    unlink(file);
    unlink(to);
    free(path);
    free(file);
    free(to);
    free(stream);
    guest_free(g);
}

static void test_stream(void **state)
{
    (void)state;
    for (int codec = 0; codec < 3; codec++) {
        export_and_load((enum ls_codec)codec, true);
        export_and_load((enum ls_codec)codec, false);
    }
}

static void check_header(const char *xml, bool running, const char *reason)
{
    char *file = in_dir(dir, "domain.xml"), *to = in_dir(dir, "save");
    int fd = open(to, O_RDWR | O_CREAT | O_TRUNC, 0600);
    struct ls_error err = {0};
    uint8_t *save;
    uint32_t number[4];
    size_t length;

    write_file(file, xml, strlen(xml));
    assert_int_equal(ls_libvirt_header_write(file, running, fd, &err), reason ? -1 : 0);
    save = read_all(fd, &length);
    if (reason) {
        assert_string_equal(err.reason, reason);
        assert_int_equal(length, 0);
    } else {
        assert_int_equal(length, 92 + strlen(xml) + 1);
        assert_memory_equal(save, "LibvirtQemudSave", 16);
        memcpy(number, save + 16, sizeof number);
        assert_int_equal(number[0], 2);
        assert_int_equal(number[1], strlen(xml) + 1);
        assert_int_equal(number[2], running);
        assert_int_equal(number[3], 0);
        assert_memory_equal(save + 92, xml, strlen(xml) + 1);
    }
    free(save);
    close(fd);
    unlink(file);
    unlink(to);
    free(file);
    free(to);
}

static void test_libvirt_header(void **state)
{
    struct ls_error err = {0};

    (void)state;
    check_header("<domain type='qemu'/>", true, NULL);
    check_header("<domain type='qemu'/>", false, NULL);
    check_header("", true, "xml");
    check_header("no XML", true, "xml");
    assert_int_equal(ls_libvirt_header_write("/nonexistent", true, 1, &err), -1);
    assert_string_equal(err.reason, "open");
}

static void test_needs_machine(void **state)
{
    struct guest *g = guest_new(40, GUEST_BLOCKS, LS_CODEC_LZ4);
    char *path = in_dir(dir, "image");
    struct ls_devices d = {0};
    struct ls_image *image;
    struct ls_error err = {0};

    (void)state;
    g->strings[0].key = "other";
    guest_write(g, path, 64);
    image = guest_open(path);
    assert_int_equal(ls_stream_write(image, &d, true, 1, NULL, NULL, &err), -1);
    assert_string_equal(err.reason, "machine");
    ls_image_close(image);
    unlink(path);
    free(path);
    guest_free(g);
}

/* A reader that goes away, and a damaged page on the way: errors, not a short stream. */
static void test_broken_output(void **state)
{
    struct guest *g = guest_new(700, GUEST_BLOCKS, LS_CODEC_NONE);
    char *path = in_dir(dir, "image");
    const struct ls_devices d = {.sections = devices + 8, .length = SECTIONS};
    struct ls_image *image;
    struct ls_error err = {0};
    int pipes[2], fd;

    (void)state;
    signal(SIGPIPE, SIG_IGN);
    memset(g->ram[1], 'x', LS_PAGE);
    guest_write(g, path, 64);
    image = guest_open(path);
    assert_int_equal(pipe(pipes), 0);
    close(pipes[0]);
    assert_int_equal(ls_stream_write(image, &d, true, pipes[1], NULL, NULL, &err), -1);
    assert_int_equal(err.cls, LS_STORAGE);
    close(pipes[1]);
    fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "y", 1, 77), 1);
    close(fd);
    fd = open("/dev/null", O_WRONLY);
    assert_int_equal(ls_stream_write(image, &d, true, fd, NULL, NULL, &err), -1);
    assert_int_equal(err.cls, LS_TORN);
    close(fd);
    ls_image_close(image);
    unlink(path);
    free(path);
    guest_free(g);
}

static void not_devices(const void *data, size_t length)
{
    char *path = in_dir(dir, "devices");
    struct ls_devices d;
    struct ls_error err = {0};

    write_file(path, data, length);
    assert_int_equal(ls_devices_load(path, &d, &err), -1);
    assert_int_equal(err.cls, LS_TORN);
    assert_null(d.file);
    unlink(path);
    free(path);
}

static void test_bad_devices(void **state)
{
    uint8_t copy[sizeof devices];
    struct ls_devices d;
    struct ls_error err = {0};
    static const size_t checked[] = {
        0, 1, 2, 3, 4, 5, 6, 7, 8, sizeof devices - 6, sizeof devices - 1};

    (void)state;
    assert_int_equal(ls_devices_load("/nonexistent", &d, &err), -1);
    assert_int_equal(err.cls, LS_STORAGE);
    for (size_t cut = 0; cut < sizeof devices; cut++)
        not_devices(devices, cut);
    for (size_t i = 0; i < sizeof checked / sizeof *checked; i++) {
        memcpy(copy, devices, sizeof copy);
        copy[checked[i]] ^= 1;
        not_devices(copy, sizeof copy);
    }
    memcpy(copy, devices, sizeof copy);
    copy[8] = LS_QEMU_CONFIGURATION; /* a whole stream */
    not_devices(copy, sizeof copy);
    memcpy(copy, devices, sizeof copy);
    copy[13] = 200; /* a name longer than the file */
    not_devices(copy, sizeof copy);
    memcpy(copy, devices, sizeof copy);
    memcpy(copy + 9, "lsnp", 4); /* the id that is for RAM */
    not_devices(copy, sizeof copy);
}

static void test_raw(void **state)
{
    struct guest *g = guest_new(700, GUEST_BLOCKS, LS_CODEC_ZSTD);
    char *path = in_dir(dir, "image"), *out = in_dir(dir, "raw");
    struct ls_image *image;
    struct ls_error err = {0};

    (void)state;
    guest_write(g, path, 64);
    image = guest_open(path);
    for (int again = 0; again < 2; again++) /* the second time over the first */
        assert_int_equal(ls_raw_write(image, out, NULL, NULL, &err), 0);
    for (uint32_t b = 0; b < GUEST_BLOCKS; b++) {
        char name[3 * LS_IMAGE_NAME], *file;
        uint8_t *data;
        size_t length;
        int fd;

        ls_raw_name(g->blocks[b].name, name);
        file = in_dir(out, name);
        fd = open(file, O_RDONLY);
        data = read_all(fd, &length);
        assert_int_equal(length, g->blocks[b].length);
        assert_memory_equal(data, g->ram[b], length);
        close(fd);
        unlink(file);
        free(file);
        free(data);
    }
    assert_int_equal(rmdir(out), 0); /* nothing else in it */
    ls_image_close(image);
    unlink(path);
    free(path);
    free(out);
    guest_free(g);
}

static void test_raw_names(void **state)
{
    char name[3 * LS_IMAGE_NAME];

    (void)state;
    ls_raw_name("/rom@etc/acpi/tables", name);
    assert_string_equal(name, "%2From@etc%2Facpi%2Ftables");
    ls_raw_name("..", name);
    assert_string_equal(name, "%2E.");
    ls_raw_name("a%2F b", name);
    assert_string_equal(name, "a%252F%20b");
    ls_raw_name("0000:00:02.0/vga.vram", name);
    assert_string_equal(name, "0000:00:02.0%2Fvga.vram");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_needs_machine),
        cmocka_unit_test(test_broken_output),
        cmocka_unit_test(test_bad_devices),
        cmocka_unit_test(test_raw),
        cmocka_unit_test(test_raw_names),
        cmocka_unit_test(test_libvirt_header),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
