/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Staging memory that grows and shrinks, and how much of it there may be. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "capture/budget.h"
#include "capture/stage_memory.h"

#define MIB (1ull << 20)

static struct ls_stage *stage_of(uint64_t bytes, uint64_t most)
{
    struct ls_error err;
    struct ls_stage *s = ls_stage_new(bytes, most, 4096, NULL, NULL, &err);

    if (!s)
        fail_msg("%s", err.message);
    return s;
}

/* Bytes of shared memory that this process has in RAM. */
static uint64_t shared_bytes(void)
{
    unsigned long kib = 0;
    char line[128];
    FILE *f = fopen("/proc/self/status", "re");

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "RssShmem: %lu kB", &kib) == 1)
            break;
    fclose(f);
    return (uint64_t)kib << 10;
}

static void slots_get_memory_and_lose_it(void **state)
{
    struct ls_stage *s = stage_of(32 * MIB, 128 * MIB);
    uint64_t begun = shared_bytes();
    uint32_t slot;

    (void)state;
    assert_int_equal(ls_stage_bytes(s), 32 * MIB);
    assert_int_equal(ls_stage_grow(s, 16), 16);
    assert_true(shared_bytes() >= begun + 32 * MIB);
    assert_int_equal(ls_stage_grow(s, 100), 32); /* no more than there is room for */
    assert_int_equal(ls_stage_bytes(s), 128 * MIB);
    assert_true(ls_stage_take(s, 0, &slot));
    memset(ls_slot_data(s, slot), 7, LS_SLOT_BYTES);
    assert_int_equal(ls_stage_shrink(s, UINT32_MAX, 0), 63); /* not the one that is in use */
    assert_int_equal(*((uint8_t *)ls_slot_data(s, slot) + LS_SLOT_BYTES - 1), 7);
    assert_true(shared_bytes() < begun);
    ls_stage_give(s, slot);
    assert_int_equal(ls_stage_grow(s, 1), 1);
    assert_int_equal(ls_stage_shrink(s, UINT32_MAX, 2), 0);
    assert_int_equal(atomic_load(&s->most_usable), 64);
    ls_stage_free(s);
}

static void it_is_short_of_what_is_to_come(void **state)
{
    struct ls_stage *s = stage_of(32 * MIB, 32 * MIB);
    uint32_t slot;

    (void)state;
    assert_false(ls_stage_short(s));
    atomic_store(&s->to_come, 32 * MIB / 4096);
    assert_false(ls_stage_short(s));
    assert_true(ls_stage_take(s, 0, &slot));
    assert_true(ls_stage_short(s));
    atomic_store(&s->to_come, 30 * MIB / 4096);
    assert_false(ls_stage_short(s));
    ls_stage_free(s);
}

static void what_is_asked_for_is_taken(void **state)
{
    struct ls_budget b;
    struct ls_stage *s;
    uint64_t bytes;

    (void)state;
    ls_budget_open(&b, 48 * MIB, 1024 * MIB, &bytes);
    assert_int_equal(bytes, 48 * MIB);
    assert_true(b.pressure < 0);
    s = stage_of(bytes, b.most);
    b.looked_at.tv_sec -= 10;
    ls_budget_look(&b, s, true);
    assert_int_equal(ls_stage_bytes(s), 48 * MIB);
    ls_budget_look(&b, s, false); /* the guest is free */
    assert_int_equal(ls_stage_bytes(s), 0);
    ls_stage_free(s);
    ls_budget_close(&b);
}

static void auto_grows_to_what_ram_needs(void **state)
{
    struct ls_budget b;
    struct ls_stage *s;
    uint64_t bytes;

    (void)state;
    ls_budget_open(&b, 0, 96 * MIB, &bytes);
    assert_int_equal(bytes, 128 * MIB); /* this machine has more than that */
    s = stage_of(32 * MIB, b.most);
    for (int i = 0; i < 20; i++) {
        b.looked_at.tv_sec -= 10;
        ls_budget_look(&b, s, true);
    }
    assert_true(ls_stage_bytes(s) > 128 * MIB - 64 * MIB);
    assert_true(ls_stage_bytes(s) <= 128 * MIB);
    ls_stage_free(s);
    ls_budget_close(&b);
}

static void auto_never_takes_more_than_half(void **state)
{
    struct ls_budget b;
    uint64_t bytes, kib = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "re");

    (void)state;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %lu kB", &kib) == 1)
            break;
    fclose(f);
    ls_budget_open(&b, 0, 1ull << 44, &bytes);
    assert_true(bytes > 0);
    assert_true(bytes < (kib << 10) / 2 + 512 * MIB); /* others take and give memory meanwhile */
    ls_budget_close(&b);
}

/* ---- real pressure: a process that may have less memory than the file that it reads ---- */

static int write_text(const char *folder, const char *name, const char *text)
{
    char path[256];
    int fd, rc;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    rc = write(fd, text, strlen(text)) < 0 ? -1 : 0;
    close(fd);
    return rc;
}

/* A group of 24 MiB; false where this machine lets nobody make one. */
static bool make_group(char *folder, size_t size)
{
    static const struct {
        const char *root, *limit;
    } kind[] = {{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"},
                {"/sys/fs/cgroup", "memory.max"}};

    for (unsigned i = 0; i < 2; i++) {
        snprintf(folder, size, "%s/livesnap-test-%d", kind[i].root, (int)getpid());
        if (mkdir(folder, 0755) < 0)
            continue;
        if (write_text(folder, kind[i].limit, "25165824") == 0)
            return true;
        rmdir(folder);
    }
    return false;
}

static void read_for_ever(const char *group, int fd)
{
    static char buffer[1 << 20];
    char pid[16];

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    if (write_text(group, "cgroup.procs", pid))
        _exit(1);
    for (;;)
        if (read(fd, buffer, sizeof buffer) <= 0)
            lseek(fd, 0, SEEK_SET);
}

static void auto_gives_back_under_pressure(void **state)
{
    char group[128], file[] = "/var/tmp/livesnap-test-XXXXXX";
    static char block[1 << 20];
    struct ls_budget b;
    struct ls_stage *s;
    struct pollfd p;
    uint64_t bytes;
    pid_t hog;
    int fd;

    (void)state;
    ls_budget_open(&b, 0, 96 * MIB, &bytes);
    if (b.pressure < 0 || !make_group(group, sizeof group)) {
        printf("SKIP auto_gives_back_under_pressure: %s\n",
               b.pressure < 0 ? "the kernel has no PSI" : "no memory cgroup can be made");
        ls_budget_close(&b);
        skip();
    }
    fd = mkstemp(file);
    assert_true(fd >= 0);
    unlink(file);
    memset(block, 1, sizeof block);
    for (int i = 0; i < 64; i++)
        assert_int_equal(write(fd, block, sizeof block), sizeof block);
    /* Whoever reads it into the page cache is who pays for it. */
    assert_int_equal(fdatasync(fd), 0);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    s = stage_of(bytes, b.most);
    hog = fork();
    if (hog == 0)
        read_for_ever(group, fd);
    p = (struct pollfd){.fd = b.pressure, .events = POLLPRI};
    assert_int_equal(poll(&p, 1, 60000), 1);
    assert_true(p.revents & POLLPRI);
    ls_budget_press(&b, s);
    kill(hog, SIGKILL);
    waitpid(hog, NULL, 0);
    for (int i = 0; i < 100 && rmdir(group) < 0; i++)
        usleep(50000);
    close(fd);
    assert_int_equal(ls_stage_bytes(s), 64 * MIB); /* half of what was free */
    b.looked_at.tv_sec -= 10;
    ls_budget_look(&b, s, true); /* too early to take any again */
    assert_int_equal(ls_stage_bytes(s), 64 * MIB);
    ls_stage_free(s);
    ls_budget_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slots_get_memory_and_lose_it),
        cmocka_unit_test(it_is_short_of_what_is_to_come),
        cmocka_unit_test(what_is_asked_for_is_taken),
        cmocka_unit_test(auto_grows_to_what_ram_needs),
        cmocka_unit_test(auto_never_takes_more_than_half),
        cmocka_unit_test(auto_gives_back_under_pressure),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
