/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Images that earlier versions wrote (tests/golden) are read for ever. Never write them anew: a
 * change of the format gets a new version, and a new file beside these. */
#include "image_lib.h"

static const char *golden_dir(void)
{
    static const char *const places[] = {"../tests/golden", "tests/golden"};

    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (access(places[i], R_OK) == 0)
            return places[i];
    return NULL;
}

static void golden(const char *dir, enum ls_codec codec)
{
    struct guest *g = guest_new(7, codec == LS_CODEC_NONE ? 1 : GUEST_BLOCKS, codec);
    char *name, *path;
    struct ls_image *image;

    assert_true(asprintf(&name, "image-v1-%s.lsnap", ls_codec_name(codec)) > 0);
    path = in_dir(dir, name);
    guest_compare(g, path, 100);
    image = guest_open(path);
    assert_int_equal(ls_image_info(image)->version, 1);
    assert_int_equal(ls_image_info(image)->codec, codec);
    assert_memory_equal(ls_image_info(image)->id, g->spec.id, 16);
    assert_string_equal(ls_image_string(image, "machine"), "pc-i440fx-7.2");
    assert_int_equal(ls_image_info(image)->range_count, 2);
    assert_int_equal(ls_image_info(image)->ranges[1].gpa, 0x100000000);
    ls_image_close(image);
    free(name);
    free(path);
    guest_free(g);
}

static void test_golden(void **state)
{
    const char *dir = golden_dir();

    (void)state;
    if (!dir) {
        printf("SKIP test_golden: tests/golden is not here\n");
        skip();
    }
    golden(dir, LS_CODEC_NONE);
    golden(dir, LS_CODEC_LZ4);
    golden(dir, LS_CODEC_ZSTD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
