/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * No damage goes unseen. Small images, so that every position is tried: each byte flipped, the
 * file cut at each length. Then files whose checksums are right and whose contents are not.
 */
#define XXH_STATIC_LINKING_ONLY
#include "image_dir.h"

#include <xxhash.h>

#include "image/format.h"

/* Sanitizers make each opening slow; the plain build tries every byte. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FLIP_STEP 7
#else
#define FLIP_STEP 1
#endif

/* Neither opens nor verifies; the message says something. */
static bool rejected(int fd, struct ls_error *err)
{
    struct ls_image *image;
    int ret;

    err->message[0] = 0;
    if (ls_image_open_fd(fd, "damaged", &image, err))
        return err->cls == LS_TORN && err->message[0];
    ret = ls_image_verify(image, NULL, NULL, err);
    ls_image_close(image);
    return ret && err->cls == LS_TORN && err->message[0];
}

static void flip(int fd, uint64_t at, uint8_t mask)
{
    uint8_t byte;
    struct ls_error err;

    assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
    byte ^= mask;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    if (!rejected(fd, &err))
        fail_msg("byte %llu with mask %x flipped: not seen", (unsigned long long)at, mask);
    byte ^= mask;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
}

static void flip_all(enum ls_codec codec)
{
    struct guest *g = guest_new(7, 1, codec);
    char *path = in_dir(dir, "flip");
    struct ls_image_stats stats;
    uint64_t random = 99;
    struct ls_error err;
    int fd;

    memset(g->ram[0] + 2 * LS_PAGE, 0, LS_PAGE); /* alone: stored; four of them: a hole */
    if (codec == LS_CODEC_NONE)
        memset(g->ram[0] + 3 * LS_PAGE, 0, 4 * LS_PAGE);
    stats = guest_write(g, path, 3);
    fd = open(path, O_RDWR);
    assert_true(fd >= 0 && stats.file_bytes < 64 << 10);
    for (uint64_t at = 0; at < stats.file_bytes; at += FLIP_STEP)
        flip(fd, at, (uint8_t)(1u << next_random(&random) % 8));
    /* The footer's fields and the index, each bit. */
    for (uint64_t at = stats.file_bytes - 2 * LS_PAGE; at < stats.file_bytes; at++)
        if ((at % LS_PAGE < 512 || at % LS_PAGE >= LS_PAGE - 8) && at % 3 == 0)
            for (int bit = 0; bit < 8; bit++)
                flip(fd, at, (uint8_t)(1u << bit));
    guest_compare(g, path, LS_PAGE); /* as it was */
    for (uint64_t size = stats.file_bytes; size >= FLIP_STEP;) {
        struct ls_image *image;

        size -= FLIP_STEP;
        assert_int_equal(ftruncate(fd, (off_t)size), 0);
        if (ls_image_open_fd(fd, "cut", &image, &err) == 0)
            fail_msg("cut to %llu bytes: opened", (unsigned long long)size);
        assert_int_equal(err.cls, LS_TORN);
        assert_string_equal(err.reason, "cut");
    }
    close(fd);
    unlink(path);
    free(path);
    guest_free(g);
}

static void test_every_position_none(void **state)
{
    (void)state;
    flip_all(LS_CODEC_NONE);
}

static void test_every_position_lz4(void **state)
{
    (void)state;
    flip_all(LS_CODEC_LZ4);
}

static void test_every_position_zstd(void **state)
{
    (void)state;
    flip_all(LS_CODEC_ZSTD);
}

/* Holes between the areas of blocks, which are large: some positions. */
static void test_holes(void **state)
{
    struct guest *g = guest_new(40, GUEST_BLOCKS, LS_CODEC_NONE);
    char *path = in_dir(dir, "holes");
    struct ls_image_stats stats = guest_write(g, path, 512);
    uint64_t random = 5;
    int fd = open(path, O_RDWR);

    (void)state;
    assert_true(stats.file_bytes > 4u << 20);
    flip(fd, 40 * LS_PAGE, 1);
    flip(fd, (2u << 20) - 1, 0x80);
    for (int i = 0; i < 500; i++)
        flip(fd, next_random(&random) % stats.file_bytes, (uint8_t)(1u << i % 8));
    assert_int_equal(ftruncate(fd, (off_t)stats.file_bytes + LS_PAGE), 0);
    assert_true(rejected(fd, &(struct ls_error){0}));
    close(fd);
    unlink(path);
    free(path);
    guest_free(g);
}

/* Block, guest address and file offset are named. */
static void test_names_the_place(void **state)
{
    struct guest *g = guest_new(40, GUEST_BLOCKS, LS_CODEC_NONE);
    char *path = in_dir(dir, "place");
    struct ls_error err = {0};
    uint64_t page = 0;
    uint8_t byte;
    int fd;

    (void)state;
    guest_write(g, path, 1);
    for (page = 20; ls_page_is_zero(g->ram[1] + page * LS_PAGE); page++)
        ;
    fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, (off_t)(page * LS_PAGE + 9)), 1);
    byte ^= 4;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)(page * LS_PAGE + 9)), 1);
    assert_true(rejected(fd, &err));
    assert_string_equal(err.reason, "checksum");
    assert_non_null(strstr(err.message, "block 'pc.ram'"));
    assert_non_null(strstr(err.message, "guest address 0x10000"));
    assert_non_null(strstr(err.message, "file offset "));
    close(fd);
    unlink(path);
    free(path);
    guest_free(g);
}

/* ---- forged: the checksums are right ---- */

struct forge {
    uint8_t *file;
    size_t size;
    struct ls_fmt_footer *footer;
    struct ls_fmt_head *head;
    struct ls_fmt_block *blocks;
    struct ls_fmt_range *ranges;
    uint8_t *strings;
    struct ls_fmt_record *records;
};

static struct forge forge_open(const char *path)
{
    struct forge f;
    struct stat st;
    int fd = open(path, O_RDONLY);

    assert_int_equal(fstat(fd, &st), 0);
    f.size = (size_t)st.st_size;
    f.file = aligned_alloc(LS_PAGE, f.size);
    assert_int_equal(read(fd, f.file, f.size), f.size);
    close(fd);
    f.footer = (void *)(f.file + f.size - sizeof *f.footer);
    f.head = (void *)(f.file + f.footer->index_offset);
    f.blocks = (void *)(f.head + 1);
    f.ranges = (void *)(f.blocks + f.head->block_count);
    f.strings = (void *)(f.ranges + f.head->range_count);
    f.records = (void *)(f.strings + f.head->strings_length);
    return f;
}

/* Checksums made right, the file written; it must be refused for this reason. */
static void forge_refused(struct forge *f, const char *path, const char *reason, int line)
{
    XXH128_canonical_t c;
    struct ls_error err = {0};
    int fd = open(path, O_RDWR | O_TRUNC);

    XXH128_canonicalFromHash(&c, XXH3_128bits(f->head, f->footer->index_length));
    memcpy(f->footer->checksum, c.digest, sizeof c.digest);
    f->footer->footer_checksum =
        XXH3_64bits(f->footer, offsetof(struct ls_fmt_footer, footer_checksum));
    assert_int_equal(write(fd, f->file, f->size), f->size);
    if (!rejected(fd, &err))
        fail_msg("line %d: not refused", line);
    if (strcmp(err.reason, reason) != 0)
        fail_msg("line %d: refused for '%s' (%s)", line, err.reason, err.message);
    close(fd);
    free(f->file);
}

#define FORGED(change, reason)                                                                     \
    do {                                                                                           \
        struct forge f;                                                                            \
        guest_write(g, path, 8);                                                                   \
        f = forge_open(path);                                                                      \
        change;                                                                                    \
        forge_refused(&f, path, reason, __LINE__);                                                 \
    } while (0)

static uint64_t data_record(const struct forge *f, unsigned nth)
{
    for (uint64_t i = 0; i < f->head->record_count; i++)
        if (f->records[i].kind == LS_FMT_DATA && nth-- == 0)
            return i;
    fail();
    return 0;
}

static void test_forged(void **state)
{
    struct guest *g = guest_new(40, GUEST_BLOCKS, LS_CODEC_LZ4);
    char *path = in_dir(dir, "forged");

    (void)state;
    FORGED(f.footer->version = 2, "version");
    FORGED(f.footer->footer_length = 8192, "reserved");
    FORGED(f.footer->reserved[17] = 1, "reserved");
    FORGED(f.footer->file_size += LS_PAGE, "cut");
    FORGED(f.footer->index_offset = 1ull << 63, "format");
    FORGED(f.footer->index_length = 100, "format");
    FORGED(f.head->magic[0] = 'x', "format");
    FORGED(f.head->version = 2, "version");
    FORGED(f.head->parent_id[3] = 1, "reserved");
    FORGED(f.head->parent_checksum[3] = 1, "reserved");
    FORGED(f.head->encryption[79] = 1, "reserved");
    FORGED(f.head->reserved[63] = 1, "reserved");
    FORGED(f.head->codec = 3, "codec");
    FORGED(f.head->page_size = 8192, "format");
    FORGED(f.head->block_count = 0xffffffff, "limit");
    FORGED(f.head->block_count = 0, "limit");
    FORGED(f.head->block_count = 4, "format");
    FORGED(f.head->range_count = 5000, "limit");
    FORGED(f.head->string_count = 65, "limit");
    FORGED(f.head->strings_length = 1ull << 40, "limit");
    FORGED(f.head->strings_length = 4, "limit");
    FORGED(f.head->string_count = 2, "format");
    FORGED(f.head->string_count = 4, "format");
    FORGED(f.head->main_block = 3, "limit");
    FORGED(f.head->record_count = 0, "limit");
    FORGED(f.head->record_count = 1ull << 60, "limit");
    FORGED(f.head->record_count += 1, "format");
    FORGED(f.head->data_length += LS_PAGE, "format");
    FORGED(f.head->data_length -= 1, "format");
    FORGED(f.blocks[0].length += 1, "format");
    FORGED(f.blocks[0].length += LS_PAGE, "format");
    FORGED(f.blocks[0].length = 1ull << 50, "format");
    FORGED(f.blocks[0].file_offset = 2u << 20, "format");
    FORGED(f.blocks[0].page_size = 0, "format");
    FORGED(f.blocks[0].reserved = 1, "format");
    FORGED(f.blocks[0].name_length = 256, "format");
    FORGED(f.blocks[0].name_length -= 1, "format");
    FORGED(f.blocks[0].name[255] = 'x', "format");
    FORGED(f.blocks[1] = f.blocks[0], "format");
    FORGED(f.ranges[0].block = 3, "format");
    FORGED(f.ranges[0].reserved = 1, "format");
    FORGED(f.ranges[1].gpa = LS_PAGE, "format");
    FORGED(f.ranges[0].length = UINT64_MAX - LS_PAGE + 1, "format");
    FORGED(memcpy(f.strings, "\xff\xff\xff\xff", 4), "format");
    FORGED(f.strings[4] = 'M', "format");
    FORGED(f.strings[4 + 7] = 0, "format");
    FORGED(f.records[1].block = 7, "format");
    FORGED(f.records[1].first_page += 1, "format");
    FORGED(f.records[0].pages = 0, "format");
    FORGED(f.records[0].reserved = 1, "format");
    FORGED(f.records[data_record(&f, 1)].kind = 2, "format");
    FORGED(f.records[data_record(&f, 1)].kind = LS_FMT_ZERO, "format");
    FORGED(f.records[data_record(&f, 1)].codec = LS_CODEC_ZSTD, "format");
    FORGED(f.records[data_record(&f, 1)].stored = 1u << 31, "format");
    FORGED(f.records[data_record(&f, 1)].stored = 0, "format");
    FORGED(f.records[data_record(&f, 1)].file_offset = f.head->data_length, "format");
    FORGED(f.records[data_record(&f, 1)].file_offset = UINT64_MAX - 8, "format");
    FORGED(f.records[data_record(&f, 1)].pages -= 1, "format");
    /* Two records of the same frame: seen when what lies between is. */
    FORGED(f.records[data_record(&f, 1)].file_offset = f.records[data_record(&f, 0)].file_offset,
           "checksum");
    unlink(path);
    free(path);
    guest_free(g);
}

/* A frame with a right checksum that is none, or is too much: caught by what it gives. */
static void test_forged_frames(void **state)
{
    (void)state;
    for (int codec = LS_CODEC_LZ4; codec <= LS_CODEC_ZSTD; codec++) {
        struct guest *g = guest_new(40, 1, (enum ls_codec)codec);
        char *path = in_dir(dir, "frames");
        uint64_t random = 3;

        memset(g->ram[0], 'z', 40 * LS_PAGE);
        for (int i = 0; i < 300; i++) {
            struct forge f;
            struct ls_fmt_record *r;
            uint8_t *frame;

            guest_write(g, path, 40);
            f = forge_open(path);
            r = &f.records[data_record(&f, 0)];
            frame = f.file + r->file_offset;
            /* The magic and header first, then anywhere; the content itself may change. */
            if (i < 6)
                frame[i] ^= 1;
            else if (i == 6)
                frame[r->stored - 1] ^= 0xff;
            else
                frame[next_random(&random) % r->stored] ^= (uint8_t)(1u << i % 8);
            r->checksum = XXH3_64bits(frame, r->stored);
            if (i < 6) {
                forge_refused(&f, path, "checksum", __LINE__);
            } else {
                /* Whatever it gives, nothing may break (sanitizers watch). */
                struct ls_error err;
                XXH128_canonical_t c;
                int fd = open(path, O_RDWR | O_TRUNC);

                XXH128_canonicalFromHash(&c, XXH3_128bits(f.head, f.footer->index_length));
                memcpy(f.footer->checksum, c.digest, sizeof c.digest);
                f.footer->footer_checksum =
                    XXH3_64bits(f.footer, offsetof(struct ls_fmt_footer, footer_checksum));
                assert_int_equal(write(fd, f.file, f.size), f.size);
                rejected(fd, &err);
                close(fd);
                free(f.file);
            }
        }
        unlink(path);
        free(path);
        guest_free(g);
    }
}

static void test_not_images(void **state)
{
    struct ls_image *image;
    struct ls_error err = {0};

    (void)state;
    assert_int_equal(ls_image_open("/nonexistent/image", &image, &err), -1);
    assert_int_equal(err.cls, LS_STORAGE);
    assert_int_equal(ls_image_open("/dev/zero", &image, &err), -1);
    assert_string_equal(err.reason, "not-image");
    assert_int_equal(ls_image_open("/", &image, &err), -1);
    assert_string_equal(err.reason, "not-image");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_position_none), cmocka_unit_test(test_every_position_lz4),
        cmocka_unit_test(test_every_position_zstd), cmocka_unit_test(test_holes),
        cmocka_unit_test(test_names_the_place),     cmocka_unit_test(test_forged),
        cmocka_unit_test(test_forged_frames),       cmocka_unit_test(test_not_images),
    };

    return cmocka_run_group_tests(tests, make_dir_in_memory, remove_dir);
}
