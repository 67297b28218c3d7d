/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The folder of a test program's files, from make_dir() to remove_dir(), which are for
 * cmocka_run_group_tests(). */
#ifndef LS_TESTS_IMAGE_DIR_H
#define LS_TESTS_IMAGE_DIR_H

#include "image_lib.h"

static char *dir;

static inline int make_dir(void **state)
{
    (void)state;
    dir = scratch_dir(NULL);
    return 0;
}

/* For tens of thousands of small writes: in memory where there is such a place. */
static inline int make_dir_in_memory(void **state)
{
    (void)state;
    dir = scratch_dir(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : NULL);
    return 0;
}

static inline int remove_dir(void **state)
{
    (void)state;
    assert_int_equal(rmdir(dir), 0); /* every test has cleaned up */
    free(dir);
    return 0;
}

#endif
