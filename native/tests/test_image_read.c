/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Images read: by guest address, mapped, walked, to and fro. */
#include "image_dir.h"

#include <sys/mman.h>

static void test_by_address(void **state)
{
    struct guest *g = guest_new(40, GUEST_BLOCKS, LS_CODEC_ZSTD);
    char *path = in_dir(dir, "address");
    uint8_t buf[40 * LS_PAGE];
    struct ls_image *image;
    struct ls_error err = {0};

    (void)state;
    g->ranges[2] = (struct ls_image_range){
        .gpa = 20 * LS_PAGE, .offset = 0, .length = 7 * LS_PAGE, .block = 2};
    g->spec.range_count = 3;
    guest_write(g, path, 16);
    image = guest_open(path);
    assert_int_equal(ls_image_read_gpa(image, 0x100000000 + 100, buf, 5000, &err), 0);
    assert_memory_equal(buf, g->ram[1] + 20 * LS_PAGE + 100, 5000);
    /* From one range into the next, which is of another block. */
    assert_int_equal(ls_image_read_gpa(image, 19 * LS_PAGE, buf, 3 * LS_PAGE, &err), 0);
    assert_memory_equal(buf, g->ram[1] + 19 * LS_PAGE, LS_PAGE);
    assert_memory_equal(buf + LS_PAGE, g->ram[2], 2 * LS_PAGE);
    assert_int_equal(ls_image_gpa_extent(image, LS_PAGE), 26 * LS_PAGE);
    assert_int_equal(ls_image_gpa_extent(image, 27 * LS_PAGE), 0);
    assert_int_equal(ls_image_read_gpa(image, 26 * LS_PAGE, buf, LS_PAGE + 1, &err), -1);
    assert_string_equal(err.reason, "address");
    assert_non_null(strstr(err.message, "0x1b000"));
    assert_int_equal(ls_image_read(image, 1, 40 * LS_PAGE, buf, 1, &err), -1);
    assert_int_equal(ls_image_read(image, 9, 0, buf, 1, &err), -1);
    ls_image_close(image);
    unlink(path);
    free(path);
    guest_free(g);
}

/* What docs/image-format.md says of mapping: each block at its file offset, zero pages as holes. */
static void test_mapping(void **state)
{
    struct guest *g = guest_new(700, GUEST_BLOCKS, LS_CODEC_NONE);
    char *path = in_dir(dir, "mapped");
    struct ls_image_stats stats;
    struct ls_image *image;
    struct stat st;
    int fd;

    (void)state;
    memset(g->ram[1], 0, 600 * LS_PAGE);
    stats = guest_write(g, path, 512);
    image = guest_open(path);
    fd = open(path, O_RDONLY);
    assert_int_equal(fstat(fd, &st), 0);
    assert_true((uint64_t)st.st_blocks * 512 < 200 * LS_PAGE);
    assert_true(stats.stored_bytes < 200 * LS_PAGE);
    for (uint32_t b = 0; b < GUEST_BLOCKS; b++) {
        const struct ls_image_block *block = &ls_image_info(image)->blocks[b];
        void *map;

        assert_int_equal(block->file_offset % (2u << 20), 0);
        map = mmap(NULL, block->length, PROT_READ, MAP_PRIVATE, fd, (off_t)block->file_offset);
        assert_true(map != MAP_FAILED);
        assert_memory_equal(map, g->ram[b], block->length);
        munmap(map, block->length);
    }
    close(fd);
    ls_image_close(image);
    unlink(path);
    free(path);
    guest_free(g);
}

static int count_run(const struct ls_image_run *run, void *opaque, struct ls_error *err)
{
    struct guest *g = opaque;
    uint64_t at = run->first_page * LS_PAGE, length = run->pages * LS_PAGE;

    (void)err;
    if (run->data)
        assert_memory_equal(run->data, g->ram[run->block] + at, length);
    else
        assert_true(ls_is_zero(g->ram[run->block] + at, length));
    g->ranges[3].length += length;
    return 0;
}

static void test_walk(void **state)
{
    struct guest *g = guest_new(90, GUEST_BLOCKS, LS_CODEC_LZ4);
    char *path = in_dir(dir, "walk");
    struct ls_image *image;
    struct ls_error err = {0};

    (void)state;
    guest_write(g, path, 5);
    image = guest_open(path);
    for (uint32_t b = 0; b < GUEST_BLOCKS; b++)
        assert_int_equal(ls_image_walk(image, b, count_run, g, &err), 0);
    assert_int_equal(g->ranges[3].length, ls_image_info(image)->ram_bytes);
    ls_image_close(image);
    unlink(path);
    free(path);
    guest_free(g);
}

/* One page of each run of `RUN_OF` pages, from the last run to the first. */
#define RUN_OF 5u

static void read_backwards(struct guest *g, struct ls_image *image, uint64_t runs)
{
    uint8_t page[LS_PAGE];
    struct ls_error err = {0};

    for (uint64_t run = runs; run-- > 0;) {
        uint64_t at = run * RUN_OF * LS_PAGE;

        if (ls_image_read(image, 1, at, page, LS_PAGE, &err))
            fail_msg("%s", err.message);
        assert_memory_equal(page, g->ram[1] + at, LS_PAGE);
    }
}

static int read_meanwhile(const struct ls_image_run *run, void *opaque, struct ls_error *err)
{
    void **both = opaque;
    struct guest *g = both[0];

    read_backwards(g, both[1], g->blocks[1].length / LS_PAGE / RUN_OF);
    return count_run(run, g, err);
}

/* Each page of main RAM has something in it, so that each run is one record. */
static struct guest *guest_of_runs(uint64_t runs)
{
    struct guest *g = guest_new(runs * RUN_OF, GUEST_BLOCKS, LS_CODEC_LZ4);

    for (uint64_t at = 0; at < g->blocks[1].length; at += LS_PAGE)
        g->ram[1][at] = 1;
    return g;
}

static void test_reads_within_a_walk(void **state)
{
    struct guest *g = guest_of_runs(40);
    char *path = in_dir(dir, "within");
    struct ls_error err = {0};

    (void)state;
    guest_write(g, path, RUN_OF);
    void *both[] = {g, guest_open(path)};

    assert_int_equal(ls_image_walk(both[1], 1, read_meanwhile, both, &err), 0);
    assert_int_equal(g->ranges[3].length, g->blocks[1].length);
    ls_image_close(both[1]);
    unlink(path);
    free(path);
    guest_free(g);
}

/* What was read last comes from memory, what was read before that from the file. */
static void test_kept(void **state)
{
    struct guest *g = guest_of_runs(9);
    char *path = in_dir(dir, "kept");
    struct ls_image *image;
    struct ls_error err = {0};
    uint8_t page[LS_PAGE];

    (void)state;
    guest_write(g, path, RUN_OF);
    image = guest_open(path);
    read_backwards(g, image, 8);
    assert_int_equal(truncate(path, 0), 0);
    read_backwards(g, image, 8);
    assert_int_equal(ls_image_verify_range(image, 1, 0, LS_PAGE, &err), -1);
    assert_int_equal(ls_image_read(image, 1, 8 * RUN_OF * LS_PAGE, page, LS_PAGE, &err), -1);
    /* Its place was that of the eighth, which had not been asked for the longest. */
    read_backwards(g, image, 7);
    assert_int_equal(ls_image_read(image, 1, 7 * RUN_OF * LS_PAGE, page, LS_PAGE, &err), -1);
    ls_image_close(image);
    unlink(path);
    free(path);
    guest_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_address), cmocka_unit_test(test_mapping),
        cmocka_unit_test(test_walk),       cmocka_unit_test(test_reads_within_a_walk),
        cmocka_unit_test(test_kept),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
