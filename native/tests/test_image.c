/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Images written and read back: all codecs, orders, threads; what a writer refuses. */
#include "image_dir.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

static void round_trip(const char *parent, enum ls_codec codec, uint64_t pages, uint32_t run)
{
    struct guest *g = guest_new(pages, GUEST_BLOCKS, codec);
    char *own = parent ? scratch_dir(parent) : NULL;
    char *path = in_dir(own ? own : dir, "ram.lsnap");
    struct ls_image_stats stats = guest_write(g, path, run);
    struct ls_image *image = guest_open(path);
    const struct ls_image_info *info = ls_image_info(image);
    uint64_t zero = 0, ram = 0;
    struct stat st;

    for (uint32_t b = 0; b < GUEST_BLOCKS; b++) {
        ram += g->blocks[b].length;
        for (uint64_t p = 0; p < g->blocks[b].length; p += LS_PAGE)
            zero += ls_page_is_zero(g->ram[b] + p) ? LS_PAGE : 0;
    }
    assert_int_equal(stats.ram_bytes, ram);
    assert_int_equal(info->ram_bytes, ram);
    assert_int_equal(stats.zero_bytes, zero);
    assert_true(info->zero_bytes <= zero);
    assert_string_equal(stats.checksum, info->checksum);
    assert_int_equal(stats.records, info->record_count);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_int_equal(st.st_size, stats.file_bytes);
    assert_int_equal(info->main_block, 1);
    assert_string_equal(info->blocks[1].name, "pc.ram");
    assert_int_equal(info->blocks[1].file_offset, 0);
    assert_int_equal(ls_image_find_block(image, "vga.vram"), 2);
    assert_int_equal(ls_image_find_block(image, "none"), -1);
    assert_string_equal(ls_image_string(image, "machine"), "pc-i440fx-7.2");
    assert_null(ls_image_string(image, "none"));
    assert_memory_equal(info->id, g->spec.id, 16);
    ls_image_close(image);
    guest_compare(g, path, 1);
    guest_compare(g, path, 3 * LS_PAGE + 5);
    guest_compare(g, path, 64 * LS_PAGE);
    unlink(path);
    if (own)
        rmdir(own);
    free(own);
    free(path);
    guest_free(g);
}

static void test_round_trips(void **state)
{
    (void)state;
    for (int codec = 0; codec < 3; codec++) {
        round_trip(NULL, (enum ls_codec)codec, 40, 1);
        round_trip(NULL, (enum ls_codec)codec, 40, 7);
        round_trip(NULL, (enum ls_codec)codec, 75, 512);
        round_trip("/dev/shm", (enum ls_codec)codec, 75, 16);
    }
}

static void test_many_chunks(void **state)
{
    (void)state;
    for (int codec = 0; codec < 3; codec++) {
        struct guest *g = guest_new(12000, GUEST_BLOCKS, (enum ls_codec)codec);
        char *path = in_dir(dir, "big");

        guest_write(g, path, 512);
        guest_compare(g, path, 512 * LS_PAGE);
        unlink(path);
        free(path);
        guest_free(g);
    }
}

struct job {
    struct guest *g;
    struct ls_image_writer *w;
    uint64_t *order; /* runs of pages of main RAM */
    uint64_t from, to;
    uint32_t run;
    bool unaligned;
};

static void *put_some(void *opaque)
{
    struct job *j = opaque;
    struct ls_image_codec *c = ls_image_codec_new(j->g->spec.codec, 0);
    uint64_t pages = j->g->blocks[1].length / LS_PAGE;
    uint8_t *copy = malloc(LS_IMAGE_RUN * LS_PAGE + 1);
    struct ls_error err = {0};
    void *failed = NULL;

    for (uint64_t i = j->from; i < j->to; i++) {
        uint64_t first = j->order[i] * j->run;
        uint32_t n = pages - first < j->run ? (uint32_t)(pages - first) : j->run;
        const uint8_t *data = j->g->ram[1] + first * LS_PAGE;

        if (j->unaligned)
            data = memcpy(copy + 1, data, (size_t)n * LS_PAGE);
        if (ls_is_zero(data, (size_t)n * LS_PAGE) ? ls_image_put_zero(j->w, 1, first, n, &err)
                                                  : ls_image_put(j->w, c, 1, first, n, data, &err))
            failed = j;
    }
    free(copy);
    ls_image_codec_free(c);
    return failed;
}

/* Runs in random order from four threads. */
static void threads(enum ls_codec codec, uint32_t run, uint64_t pages)
{
    struct guest *g = guest_new(pages, GUEST_BLOCKS, codec);
    uint64_t runs = (pages + run - 1) / run, random = 7 + run;
    uint64_t *order = calloc(runs, sizeof *order);
    char *path = in_dir(dir, "threads");
    struct ls_image_writer *w;
    struct ls_image_codec *c = ls_image_codec_new(codec, 0);
    struct ls_error err = {0};
    pthread_t t[4];
    struct job jobs[4];

    assert_non_null(order);
    for (uint64_t i = 0; i < runs; i++) {
        uint64_t k = next_random(&random) % (i + 1);

        order[i] = order[k];
        order[k] = i;
    }
    assert_int_equal(ls_image_create(path, &g->spec, &w, &err), 0);
    for (unsigned i = 0; i < 4; i++) {
        jobs[i] = (struct job){g, w, order, runs * i / 4, runs * (i + 1) / 4, run, i % 2 == 0};
        assert_int_equal(pthread_create(&t[i], NULL, put_some, &jobs[i]), 0);
    }
    for (uint32_t b = 0; b < GUEST_BLOCKS; b += 2)
        assert_int_equal(
            ls_image_put(w, c, b, 0, (uint32_t)(g->blocks[b].length / LS_PAGE), g->ram[b], &err),
            0);
    for (unsigned i = 0; i < 4; i++) {
        void *failed;

        pthread_join(t[i], &failed);
        assert_null(failed);
    }
    assert_int_equal(ls_image_finish(w, NULL, &err), 0);
    guest_compare(g, path, 100 * LS_PAGE);
    unlink(path);
    free(path);
    free(order);
    ls_image_codec_free(c);
    guest_free(g);
}

static void test_threads(void **state)
{
    (void)state;
    for (int codec = 0; codec < 3; codec++) {
        threads((enum ls_codec)codec, 512, 9000);
        threads((enum ls_codec)codec, 3, 500);
    }
}

/* Twice and never are refused, and leave no file. */
static void test_coverage(void **state)
{
    struct guest *g = guest_new(40, GUEST_BLOCKS, LS_CODEC_LZ4);
    struct ls_image_codec *c = ls_image_codec_new(LS_CODEC_LZ4, 0);
    char *path = in_dir(dir, "coverage");
    struct ls_image_writer *w;
    struct ls_error err = {0};

    (void)state;
    assert_int_equal(ls_image_create(path, &g->spec, &w, &err), 0);
    assert_int_equal(ls_image_put(w, c, 1, 10, 5, g->ram[1], &err), 0);
    assert_int_equal(ls_image_put(w, c, 1, 14, 2, g->ram[1], &err), -1);
    assert_string_equal(err.reason, "twice");
    assert_int_equal(ls_image_put_zero(w, 1, 0, 11, &err), -1);
    assert_string_equal(err.reason, "twice");
    assert_int_equal(ls_image_put_zero(w, 1, 39, 2, &err), -1);
    assert_string_equal(err.reason, "range");
    assert_int_equal(ls_image_put_zero(w, 3, 0, 1, &err), -1);
    assert_int_equal(ls_image_put(w, c, 1, 20, 513, g->ram[1], &err), -1);
    assert_int_equal(ls_image_put_zero(w, 1, UINT64_MAX, 2, &err), -1);
    assert_int_equal(ls_image_finish(w, NULL, &err), -1);
    assert_string_equal(err.reason, "missing");
    assert_int_equal(access(path, F_OK), -1);

    /* All there but one page. */
    assert_int_equal(ls_image_create(path, &g->spec, &w, &err), 0);
    assert_int_equal(ls_image_put_zero(w, 0, 0, 1, &err), 0);
    assert_int_equal(ls_image_put_zero(w, 1, 0, 39, &err), 0);
    assert_int_equal(ls_image_put_zero(w, 2, 0, 7, &err), 0);
    assert_int_equal(ls_image_finish(w, NULL, &err), -1);
    assert_non_null(strstr(err.message, "page 39 of block 'pc.ram'"));
    assert_int_equal(access(path, F_OK), -1);

    /* One that is there is not written over, and discard removes. */
    assert_int_equal(ls_image_create(path, &g->spec, &w, &err), 0);
    {
        struct ls_image_writer *other;

        assert_int_equal(ls_image_create(path, &g->spec, &other, &err), -1);
        assert_int_equal(err.cls, LS_STORAGE);
    }
    ls_image_discard(w);
    assert_int_equal(access(path, F_OK), -1);
    free(path);
    ls_image_codec_free(c);
    guest_free(g);
}

static void refused(struct guest *g, const char *reason)
{
    char *path = in_dir(dir, "refused");
    struct ls_image_writer *w;
    struct ls_error err = {0};

    assert_int_equal(ls_image_create(path, &g->spec, &w, &err), -1);
    assert_int_equal(err.cls, LS_USAGE);
    assert_string_equal(err.reason, reason);
    assert_int_equal(access(path, F_OK), -1);
    free(path);
}

#define REFUSED(change, reason)                                                                    \
    do {                                                                                           \
        struct guest *g = guest_new(40, GUEST_BLOCKS, LS_CODEC_NONE);                              \
        change;                                                                                    \
        refused(g, reason);                                                                        \
        guest_free(g);                                                                             \
    } while (0)

static void test_bad_specs(void **state)
{
    (void)state;
    REFUSED(g->spec.block_count = 0, "limit");
    REFUSED(g->spec.block_count = LS_IMAGE_BLOCKS + 1, "limit");
    REFUSED(g->spec.codec = (enum ls_codec)3, "codec");
    REFUSED(g->blocks[0].length = 0, "format");
    REFUSED(g->blocks[0].length = 4095, "format");
    REFUSED(g->blocks[0].length = 1ull << 45, "format");
    REFUSED(g->blocks[0].page_size = 5000, "format");
    REFUSED(g->blocks[0].name[0] = 0, "format");
    REFUSED(g->blocks[0].name[0] = '\n', "format");
    REFUSED(strcpy(g->blocks[0].name, "pc.ram"), "format");
    REFUSED(g->ranges[0].block = 3, "format");
    REFUSED(g->ranges[0].gpa = LS_PAGE, "format");
    REFUSED(g->ranges[0].gpa = 17, "format");
    REFUSED(g->ranges[0].length = 0, "format");
    REFUSED(g->ranges[0].offset = 39 * LS_PAGE, "format");
    REFUSED(g->ranges[0].gpa = UINT64_MAX - LS_PAGE + 1, "format");
    REFUSED(g->strings[0].key = "", "format");
    REFUSED(g->strings[0].key = "Upper", "format");
    REFUSED(g->strings[0].key = "arch", "format");
}

/* A full disk: reported as such, by put or by finish, and nothing is left. */
static void test_full(void **state)
{
    struct guest *g = guest_new(9000, GUEST_BLOCKS, LS_CODEC_LZ4);
    char *path = in_dir(dir, "full");
    pid_t child;
    int status;

    (void)state;
    child = fork();
    if (child == 0) {
        struct ls_image_codec *c = ls_image_codec_new(LS_CODEC_LZ4, 0);
        struct ls_image_writer *w;
        struct ls_error err = {0};
        struct rlimit limit = {2 << 20, 2 << 20};
        int ret = 0;

        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &limit);
        if (ls_image_create(path, &g->spec, &w, &err))
            _exit(1);
        for (uint64_t p = 0; p < 9000 && !ret; p += 100)
            ret = ls_image_put(w, c, 1, p, 100, g->ram[1] + p * LS_PAGE, &err);
        if (!ret)
            _exit(2);
        if (ls_image_put(w, c, 2, 0, 7, g->ram[2], &err) == 0 &&
            ls_image_put_zero(w, 0, 0, 1, &err))
            _exit(3);
        if (ls_image_finish(w, NULL, &err) == 0 || err.cls != LS_STORAGE)
            _exit(4);
        _exit(access(path, F_OK) == 0 ? 5 : 0);
    }
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    free(path);
    guest_free(g);
}

/* In a child with mounts of its own: a file system of 3 MiB. 77: not allowed to make one. */
static int fill_up(enum ls_codec codec, const char *at)
{
    struct guest *g = guest_new(9000, 1, codec);
    struct ls_image_codec *c = ls_image_codec_new(codec, 0);
    char *path = in_dir(at, "full");
    struct ls_image_writer *w;
    struct ls_error err = {0};
    int ret = 0;

    if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("full", at, "tmpfs", 0, "size=3m"))
        return 77;
    if (ls_image_create(path, &g->spec, &w, &err))
        return 1;
    for (uint64_t p = 0; p < 9000 && !ret; p += 100)
        ret = ls_image_put(w, c, 0, p, 100, g->ram[0] + p * LS_PAGE, &err);
    if (!ret || err.cls != LS_STORAGE || strcmp(err.reason, "full") != 0)
        return 2;
    for (uint64_t p = 0; p < 9000; p++) /* the rest, so that only the failure is in the way */
        ls_image_put_zero(w, 0, p, 1, &err);
    if (ls_image_finish(w, NULL, &err) == 0 || err.cls != LS_STORAGE)
        return 3;
    return access(path, F_OK) == 0 ? 4 : 0;
}

static void test_full_disk(void **state)
{
    (void)state;
    for (int codec = 0; codec < 3; codec++) {
        int status;
        pid_t child = fork();

        if (child == 0)
            _exit(fill_up((enum ls_codec)codec, dir));
        waitpid(child, &status, 0);
        assert_true(WIFEXITED(status));
        if (WEXITSTATUS(status) == 77) {
            printf("SKIP test_full_disk: mounting needs root\n");
            skip();
        }
        assert_int_equal(WEXITSTATUS(status), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips), cmocka_unit_test(test_many_chunks),
        cmocka_unit_test(test_threads),     cmocka_unit_test(test_coverage),
        cmocka_unit_test(test_bad_specs),   cmocka_unit_test(test_full),
        cmocka_unit_test(test_full_disk),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
