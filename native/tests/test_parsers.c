/* SPDX-License-Identifier: GPL-3.0-or-later */
/* What others wrote is made out or refused: the text of `info ramblock`, /proc/PID/maps, requests.
 * The fuzzers go further; here is what they found, and what is easy to lose. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "capture/request.h"
#include "target/ramtext.h"

/* ---- info ramblock ---- */

static int keep(const struct ls_ramblock *block, bool printed_host, void *opaque,
                struct ls_error *err)
{
    (void)printed_host;
    (void)err;
    *(struct ls_ramblock *)opaque = *block;
    return 0;
}

static void expect_line(const char *line, bool good)
{
    struct ls_ramblock block;
    struct ls_error err;
    int rc = ls_ramtext_parse(line, keep, &block, &err);

    if (rc != (good ? 0 : -1))
        fail_msg("'%s' is %s", line, good ? "refused" : "made out");
    if (!good)
        assert_int_equal(err.cls, LS_REFUSED);
}

static void ramblock_lines(void **state)
{
    (void)state;
    expect_line("pc.ram 4 KiB 0x0 0x1000 0x1000", true);
    expect_line("pc.ram 1 GiB 0x0 0x1000 0x1000 0x7f0000000000 rw", true);
    expect_line("pc.ram 4 KiB 0x0 0x2000 0x1000", false); /* more used than there is */
    expect_line("pc.ram 4 KiB 0x0 0x0 0x0", false);
    expect_line("pc.ram 3 KiB 0x0 0x1000 0x1000", false); /* no page is as large as that */
    expect_line("pc.ram -4 KiB 0x0 0x1000 0x1000", false);
    expect_line("pc.ram 9999999999 TiB 0x0 0x1000 0x1000", false);
    expect_line("pc.ram 4 KIB 0x0 0x1000 0x1000", false);
    expect_line("pc.ram 4 KiB 0x-1 0x1000 0x1000", false);
    expect_line("pc.ram 4 KiB 0x0x0 0x1000 0x1000", false);
    expect_line("pc.ram 4 KiB 0x0 0x1000 0x10000000000001000", false); /* 17 digits */
    /* they end beyond the end of all addresses */
    expect_line("pc.ram 4 KiB 0xfffffffffffff000 0x1000 0x2000", false);
    expect_line("pc.ram 4 KiB 0x0 0x1000 0x2000 0xfffffffffffff000 rw", false);
}

/* ---- maps ---- */

struct seen {
    unsigned count;
    struct ls_vma last;
};

static int see(const struct ls_vma *vma, void *opaque)
{
    struct seen *s = opaque;

    s->count++;
    s->last = *vma;
    return 0;
}

static struct seen read_maps(const char *text)
{
    struct seen s = {0};
    FILE *f = fmemopen((void *)(uintptr_t)text, strlen(text), "r");
    int found;

    assert_non_null(f);
    found = ls_proc_read_maps(f, see, &s);
    assert_int_equal(found, s.count > 0);
    fclose(f);
    return s;
}

static void maps_lines(void **state)
{
    static char text[20000];
    struct seen s;

    (void)state;
    /* smaps from its middle on: there is no mapping yet that the lines could belong to */
    s = read_maps("VmFlags: mg um\nKernelPageSize: 4 kB\n");
    assert_int_equal(s.count, 0);
    s = read_maps("VmFlags: mg um\n1000-3000 rw-p 0 00:00 0 \nVmFlags: rd wr\n");
    assert_int_equal(s.count, 1);
    assert_false(s.last.mergeable || s.last.uffd_missing);
    assert_string_equal(s.last.name, "");
    s = read_maps("3000-1000 rw-p 0 00:00 0 \n");
    assert_int_equal(s.count, 0);
    s = read_maps("1000-3000 r 0 00:00 0 \n");
    assert_int_equal(s.count, 0);
    /* a path so long, with newlines escaped, that its end looks like a mapping where it is cut */
    memset(text, 'x', sizeof text - 1);
    memcpy(text, "1000-3000 rw-s 0 00:05 7 /", 26);
    memcpy(text + 4999, "8000-9000 rw-p 0 00:00 0 \n", 27);
    s = read_maps(text);
    assert_int_equal(s.count, 1);
    assert_int_equal(s.last.start, 0x1000);
}

/* ---- requests ---- */

static void expect_id(const char *id, bool good)
{
    struct ls_request request;
    struct ls_error err;
    char line[512];
    int n = snprintf(line, sizeof line,
                     "{\"request\":\"start\",\"id\":\"%s\",\"guest\":\"g\",\"pid\":1,"
                     "\"start_time\":1,\"image\":\"/x\",\"ramblock\":\"x\"}",
                     id);

    assert_int_equal(ls_request_parse(line, (size_t)n, &request, &err), good ? 0 : -1);
    if (good)
        ls_request_free(&request);
    else
        assert_non_null(strstr(err.message, "'id'"));
}

static void request_ids(void **state)
{
    (void)state;
    expect_id("01234567-89ab-cdef-0123-456789abcdef", true);
    expect_id("0123456789ABCDEF0123456789abcdef", true);
    expect_id("01234567-89ab-cdef-0123-456789abcde", false);
    expect_id("01234567-89ab-cdef-0123-456789abcdef0", false);
    expect_id("01234567-89ab-cdef-0123-456789abcdeg", false);
    /* what strtoul makes a number of */
    expect_id(" 1234567-89ab-cdef-0123-456789abcdef", false);
    expect_id("+1234567-89ab-cdef-0123-456789abcdef", false);
    expect_id("0x000000-0000-0000-0000-000000000000", false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ramblock_lines),
        cmocka_unit_test(maps_lines),
        cmocka_unit_test(request_ids),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
