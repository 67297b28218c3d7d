/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The capture of RAM that cannot be protected, while its owner stands still. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "capture_run.h"
#include "support/hugepages.h"

#define SIZE (8ul << 20)
#define HUGE (2ul << 20)
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif

/* A file on a disk: a quarter with content, and a hole. */
static int disk_file(const char *test)
{
    static uint8_t page[LAB_PAGE];
    char path[] = "/var/tmp/livesnap-test-XXXXXX";
    int fd = mkstemp(path);
    struct statfs fs;

    assert_true(fd >= 0);
    unlink(path);
    assert_int_equal(fstatfs(fd, &fs), 0);
    if (fs.f_type == TMPFS_MAGIC) {
        close(fd);
        print_message("SKIP %s: /var/tmp is not on a disk\n", test);
        skip();
    }
    assert_int_equal(ftruncate(fd, SIZE), 0);
    for (size_t at = 0; at < SIZE / 4; at += LAB_PAGE) {
        memset(page, (int)(at / LAB_PAGE % 255) + 1, sizeof page);
        assert_int_equal(pwrite(fd, page, sizeof page, (off_t)at), sizeof page);
    }
    return fd;
}

/* Written to by the target, but for some pages, which stay what the file has there. */
static int add_disk(struct lab *l, bool shared, const char *test)
{
    struct lab_block *b = &l->block[l->blocks++];
    int fd = disk_file(test);

    b->at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE, fd, 0);
    assert_ptr_not_equal(b->at, MAP_FAILED);
    b->size = SIZE;
    b->shared = true; /* for the laboratory: only the first half is touched */
    return fd;
}

/* Another userfaultfd that protects the first block already. */
static int add_userfaultfd(struct lab *l)
{
    int uffd = lab_uffd(l);
    struct ls_error err;

    if (ls_uffd_handshake(uffd, &err) ||
        ls_uffd_register(uffd, (uintptr_t)l->block[0].at, l->block[0].size, &err) ||
        ls_uffd_protect(uffd, (uintptr_t)l->block[0].at, l->block[0].size, true, NULL))
        fail_msg("%s", err.message);
    return uffd;
}

static uint64_t blocks_of(int fd)
{
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    return (uint64_t)st.st_blocks;
}

static void whatever_it_is_made_of(bool old_pagemap, const char *test)
{
    struct lab l = {0};
    uint64_t in_file, rounds;
    struct run r;
    int own, file, uffd;

    lab_add(&l, 24 << 20, false, false);
    lab_add(&l, 8 << 20, true, false);
    own = add_disk(&l, false, test);
    file = add_disk(&l, true, test);
    lab_start(&l, true);
    while (atomic_load(&l.words->rounds) < LAB_WRITERS)
        usleep(100);
    run_new(&r, &l, 32 << 20);
    lab_park(&l);
    uffd = add_userfaultfd(&l);
    in_file = blocks_of(own);
    begin_as(&r, old_pagemap, 2, true);
    if (ls_engine_copy_still(r.engine, &r.err) || wait_end(&r) != 0)
        fail_msg("%s", r.err.message);
    assert_int_equal(blocks_of(own), in_file);
    /* Only now: a look at a page would have mapped it before the capture. */
    for (unsigned i = 0; i < l.blocks; i++)
        lab_read(&l, i, r.truth[i]);
    end(&r);
    compare(&r);
    assert_int_equal(atomic_load(&r.engine->proof_scans), 0);
    ls_engine_free(r.engine);
    free(r.count);
    close(uffd);
    lab_go(&l);
    rounds = atomic_load(&l.words->rounds);
    while (atomic_load(&l.words->rounds) < rounds + 2)
        usleep(100); /* it goes on */
    run_free(&r);
    lab_stop(&l);
    close(own);
    close(file);
}

static void every_kind(void **state)
{
    (void)state;
    whatever_it_is_made_of(false, __func__);
}

static void every_kind_by_the_old_pagemap(void **state)
{
    (void)state;
    whatever_it_is_made_of(true, __func__);
}

/* Without a reservation, which would be the parent's and not the target's own. */
static void add_hugetlb(struct lab *l, bool shared)
{
    struct lab_block *b = &l->block[l->blocks++];
    int fd = memfd_create("lab", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, SIZE), 0);
    b->at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
                 MAP_NORESERVE | (shared ? MAP_SHARED : MAP_PRIVATE), fd, 0);
    assert_ptr_not_equal(b->at, MAP_FAILED);
    close(fd);
    b->size = SIZE;
    b->shared = true; /* for the laboratory: only the first half is touched */
    b->hugetlb = true;
}

/* Also a block that is no multiple of them, which could not be protected; no hole takes one. */
static void huge_pages(void **state)
{
    struct lab l = {0};
    const char *why = NULL;
    struct run r;
    long before;

    (void)state;
    hugepages_take(8, &why);
    if (!why && !ls_pagemap_have_scan())
        why = "before Linux 6.7 private ones must be in memory as a whole";
    if (why) {
        print_message("SKIP %s: %s\n", __func__, why);
        skip();
    }
    add_hugetlb(&l, true);
    add_hugetlb(&l, false);
    lab_start(&l, true);
    while (atomic_load(&l.words->rounds) < LAB_WRITERS)
        usleep(100);
    run_new(&r, &l, 32 << 20);
    lab_park(&l);
    before = hugepages_free();
    l.block[0].size -= LAB_PAGE;
    begin_as(&r, false, 1, true);
    l.block[0].size += LAB_PAGE;
    if (ls_engine_copy_still(r.engine, &r.err) || wait_end(&r) != 0)
        fail_msg("%s", r.err.message);
    assert_int_equal(hugepages_free(), before);
    for (unsigned i = 0; i < l.blocks; i++)
        lab_read(&l, i, r.truth[i]);
    end(&r);
    compare(&r);
    ls_engine_free(r.engine);
    free(r.count);
    run_free(&r);
    lab_stop(&l);
    hugepages_give_back();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind),
        cmocka_unit_test(every_kind_by_the_old_pagemap),
        cmocka_unit_test(huge_pages),
    };

    return cmocka_run_group_tests(tests, lab_setup, NULL);
}
