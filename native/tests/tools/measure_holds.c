/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * How long a capture keeps another thread of its target from mmap(): protecting, looking, releasing
 * and unregistering hold the target's mmap_lock. The target is this process; one thread of it maps
 * and unmaps a page all the time. Prints JSON, milliseconds.
 *
 * usage: measure_holds MIB small|huge
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "capture/engine.h"
#include "uffd/uffd.h"

enum phase { IDLE, PROTECT, ARM, SWEEP, RELEASE, PHASES };

static const char *const name[PHASES] = {"idle", "protect", "arm", "sweep", "release"};
static _Atomic uint32_t phase;
static _Atomic uint64_t longest_us[PHASES];
static _Atomic uint32_t over;

static uint64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void die(const struct ls_error *err)
{
    fprintf(stderr, "measure_holds: %s\n", err->message);
    exit(1);
}

static void *map_all_the_time(void *unused)
{
    (void)unused;
    while (!atomic_load(&over)) {
        uint32_t in = atomic_load(&phase);
        uint64_t began = now_us();
        char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (page == MAP_FAILED)
            abort();
        *page = 1;
        munmap(page, 4096);
        began = now_us() - began;
        if (began > atomic_load(&longest_us[in]))
            atomic_store(&longest_us[in], began);
        usleep(50);
    }
    return NULL;
}

static void *throw_away(void *arg)
{
    struct ls_stage *stage = arg;
    uint32_t slot;

    while (!atomic_load(&over)) {
        uint32_t seen = atomic_load(&stage->filled_news);

        if (ls_stage_fetch(stage, &slot))
            ls_stage_give(stage, slot);
        else
            ls_stage_wait_filled(stage, seen, 20);
    }
    return NULL;
}

static uint8_t *memory(size_t size, bool huge)
{
    uint8_t *room =
        mmap(NULL, size + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *at = (uint8_t *)(((uintptr_t)room + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));

    if (room == MAP_FAILED)
        exit(1);
    madvise(at, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    memset(at, 1, size);
    return at;
}

static void capture(struct ls_engine *e)
{
    struct ls_protect_result got;
    struct ls_error err;
    uint64_t written;

    atomic_store(&phase, PROTECT);
    if (ls_engine_protect(e, &got, &err))
        die(&err);
    atomic_store(&phase, ARM);
    if (ls_engine_arm(e, &written, &err))
        die(&err);
    atomic_store(&phase, SWEEP);
    while (!ls_engine_complete(e)) {
        if (ls_engine_failed(e, &err))
            die(&err);
        usleep(1000);
    }
    atomic_store(&phase, RELEASE);
    ls_engine_release(e);
}

int main(int argc, char **argv)
{
    static struct ls_progress progress;
    struct ls_ramblock block = {.id = "ram"};
    struct ls_rammap map = {.blocks = &block, .count = 1};
    struct ls_layout layout;
    struct ls_error err;
    struct ls_engine *e;
    struct ls_engine_options o = {
        .pid = getpid(),
        .fault_threads = 1,
        .sweep_threads = 1,
        .progress = &progress,
    };
    pthread_t mapper, thrower;

    if (argc != 3) {
        fprintf(stderr, "usage: measure_holds MIB small|huge\n");
        return 2;
    }
    block.used = block.total = strtoull(argv[1], NULL, 10) << 20;
    block.host = (uintptr_t)memory(block.used, strcmp(argv[2], "huge") == 0);
    o.stage = ls_stage_new(64 << 20, 64 << 20, block.used / 4096 + 1024, NULL, NULL, &err);
    o.uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (!o.stage || o.uffd < 0 || ls_uffd_handshake(o.uffd, &err) || ls_engine_new(&e, &o, &err) ||
        ls_layout_make(&layout, &map, &err) || ls_layout_check(&layout, getpid(), LS_SMAPS, &err) ||
        ls_engine_set_layout(e, &layout, &err))
        die(&err);
    pthread_create(&thrower, NULL, throw_away, o.stage);
    pthread_create(&mapper, NULL, map_all_the_time, NULL);
    usleep(500000);
    capture(e);
    atomic_store(&over, 1);
    pthread_join(mapper, NULL);
    pthread_join(thrower, NULL);
    printf("{");
    for (unsigned i = 0; i < PHASES; i++)
        printf("%s\"%s_ms\": %.2f", i ? ", " : "", name[i],
               (double)atomic_load(&longest_us[i]) / 1e3);
    printf("}\n");
    return 0;
}
