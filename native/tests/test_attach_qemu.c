/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The same as test_attach, on a real QEMU: as root, and as an ordinary user inside QEMU's sandbox;
 * on its main thread and on a vCPU thread. And where its RAM blocks lie.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/points.h"
#include "support/qemu.h"
#include "support/rounds.h"
#include "support/victim.h"
#include "target/attach.h"

static unsigned slowest;

static void hand_over_device(struct qemu *q)
{
    int fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

    if (fd < 0)
        return; /* older kernels: the call userfaultfd is injected */
    qemu_getfd(q, "livesnap-test-uffd", fd);
    close(fd);
}

/* A QEMU that has done what it opens and closes at the start. */
static bool start(struct qemu *q, bool sandboxed)
{
    if (!qemu_start(q, sandboxed)) {
        printf("SKIP test_attach_qemu: there is no qemu-system-x86_64\n");
        return false;
    }
    hand_over_device(q);
    usleep(300000);
    return true;
}

static struct ls_rammap locate(struct qemu *q)
{
    char *text = qemu_hmp(q, "info ramblock");
    struct ls_rammap map = {0};
    struct ls_error err;

    if (ls_rammap_locate(q->pid, text, &map, &err) != 0)
        fail_msg("%s: %s\n%s", err.reason, err.message, text);
    free(text);
    return map;
}

/* The userfaultfd can write-protect the guest's RAM, and lets it go again. */
static void assert_protects(struct qemu *q, int uffd)
{
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
    struct ls_rammap map = locate(q);
    struct uffdio_register reg = {.range = {map.blocks[0].host, map.blocks[0].total},
                                  .mode = UFFDIO_REGISTER_MODE_WP};

    assert_string_equal(map.blocks[0].id, "pc.ram");
    assert_int_equal(ioctl(uffd, UFFDIO_API, &api), 0);
    assert_int_equal(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);
    ls_rammap_free(&map);
}

static void attach_well(struct qemu *q, enum ls_attach_how how)
{
    struct ls_attach_result result = {.uffd = -1};
    struct ls_error err;

    if (ls_attach_userfaultfd(q->pid, how, &result, &err) != 0)
        fail_msg("%s: %s", err.reason, err.message);
    if (result.stood_still_us > slowest)
        slowest = result.stood_still_us;
    assert_protects(q, result.uffd);
    close(result.uffd);
    qemu_goes_on(q);
}

static void attach_both_ways(void **opaque)
{
    (void)opaque;
    for (int sandboxed = 0; sandboxed < 2; sandboxed++) {
        struct ls_proc_status status;
        struct ls_error err;
        struct qemu q;
        char *before;
        char *after;

        if (!start(&q, sandboxed))
            skip();
        assert_int_equal(ls_proc_status(q.pid, q.pid, &status, &err), 0);
        assert_int_equal(status.seccomp, sandboxed ? 2 : 0);
        if (ls_attach_preflight(q.pid, &err) != 0)
            fail_msg("%s: %s", err.reason, err.message);
        before = descriptors_of(q.pid);
        for (int i = 0; i < 10; i++)
            attach_well(&q, i % 2 ? LS_ATTACH_DEVICE : LS_ATTACH_INJECT);
        after = descriptors_of(q.pid);
        assert_string_equal(before, after);
        free(before);
        free(after);
        qemu_stop(&q);
    }
    printf("the main thread stood still for at most %u us\n", slowest);
}

/* What gpa2hva says of main RAM; and all blocks of a reset guest, read again. */
static void rammap(void **opaque)
{
    struct ls_rammap map;
    struct ls_rammap again = {0};
    struct ls_error err;
    unsigned long long host = 0;
    struct qemu q;
    char *text;
    bool bios = false;
    bool acpi = false;

    (void)opaque;
    if (!start(&q, true))
        skip();
    map = locate(&q);
    text = qemu_hmp(&q, "gpa2hva 0x1000");
    assert_non_null(strstr(text, "is 0x"));
    sscanf(strstr(text, "is 0x"), "is %llx", &host);
    free(text);
    assert_string_equal(map.blocks[0].id, "pc.ram");
    assert_int_equal(map.blocks[0].host + 0x1000, host);
    assert_int_equal(map.blocks[0].total, 64 << 20);
    assert_int_equal(map.blocks[0].page_size, 4096);
    for (size_t i = 0; i < map.count; i++) {
        bios |= strcmp(map.blocks[i].id, "pc.bios") == 0;
        acpi |= strcmp(map.blocks[i].id, "/rom@etc/acpi/tables") == 0;
    }
    assert_true(bios && acpi);
    text = qemu_hmp(&q, "info ramblock");
    assert_int_equal(ls_rammap_refresh(q.pid, text, &map, &again, &err), 0);
    assert_int_equal(map.count, again.count);
    assert_memory_equal(map.blocks, again.blocks, map.count * sizeof *map.blocks);
    free(text);
    ls_rammap_free(&again);
    /* a block that is not there refuses, by name */
    assert_int_equal(ls_rammap_locate(q.pid, " ghost.ram 4 KiB 0x0 0x0000000001230000 0x1230000\n",
                                      &again, &err),
                     -1);
    assert_string_equal(err.reason, "ramblock");
    assert_non_null(strstr(err.message, "ghost.ram"));
    ls_rammap_free(&map);
    qemu_stop(&q);
}

#ifdef LS_FAULTS

static enum way way_now;

static void die_at(const char *point, void *opaque)
{
    struct qemu *q = opaque;
    int status = points_attach(q->pid, way_now, point, "killboth");

    if (!WIFSIGNALED(status))
        fail_msg("%s was not passed", point);
    qemu_goes_on(q);
}

static void dies_everywhere(void **opaque)
{
    (void)opaque;
    for (int sandboxed = 0; sandboxed < 2; sandboxed++) {
        struct qemu q;
        char *before;
        char *after;
        pid_t threads[2];

        if (!start(&q, sandboxed))
            skip();
        threads[0] = q.pid;
        threads[1] = qemu_vcpu_thread(&q);
        before = descriptors_of(q.pid);
        for (unsigned i = 0; i < 2 * WAYS * rounds(1, 10); i++) {
            char tid[16];

            way_now = i % WAYS;
            /* userfaultfd(2) is not for an ordinary user, so nothing beyond it would be passed */
            if (way_now == WAY_SYSCALL && sandboxed)
                continue;
            snprintf(tid, sizeof tid, "%d", (int)threads[i / WAYS % 2]);
            setenv("LIVESNAP_ATTACH_THREAD", tid, 1);
            points_each(way_now, die_at, &q);
            attach_well(&q, way_now == WAY_INJECT ? LS_ATTACH_INJECT : LS_ATTACH_DEVICE);
            unsetenv("LIVESNAP_ATTACH_THREAD");
            after = descriptors_of(q.pid);
            assert_string_equal(before, after);
            free(after);
        }
        free(before);
        qemu_stop(&q);
    }
    points_all_tested();
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attach_both_ways),
        cmocka_unit_test(rammap),
#ifdef LS_FAULTS
        cmocka_unit_test(dies_everywhere),
#endif
    };

    if (geteuid() != 0) {
        printf("SKIP test_attach_qemu: needs root\n");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
