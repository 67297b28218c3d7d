/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * write_golden FOLDER [PAGES]: one image of each codec. With 7 pages (the default) these are the
 * files of tests/golden, written once by the version that introduced the format and kept as they
 * are; with fewer, they are what the fuzzer starts from.
 */
#include "../image_lib.h"

int main(int argc, char **argv)
{
    uint64_t pages = argc > 2 ? strtoull(argv[2], NULL, 10) : 7;

    if (argc < 2)
        return 2;
    for (int codec = 0; codec < 3; codec++) {
        /* One block: a second one of codec none would lie at 2 MiB. */
        uint32_t blocks = codec == LS_CODEC_NONE ? 1 : GUEST_BLOCKS;
        struct guest *g = guest_new(pages, blocks, (enum ls_codec)codec);
        char *name, *path;

        if (asprintf(&name, "image-v1-%s.lsnap", ls_codec_name((enum ls_codec)codec)) < 0)
            return 1;
        path = in_dir(argv[1], name);
        guest_write(g, path, 3);
        free(name);
        free(path);
        guest_free(g);
    }
    return 0;
}
