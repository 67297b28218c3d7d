/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A guest, its keeper and real write protection, for tests of how the guard frees the guest. The
 * guest writes to each page of its RAM, then gives one back; the keeper never handles a fault.
 */
#ifndef LS_TESTS_GUARD_STAGE_H
#define LS_TESTS_GUARD_STAGE_H

#include "guard_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "guard/watch.h"

#define RAM ((size_t)8 << 20)

/* What the three processes share. */
struct stage {
    struct ls_progress progress;
    _Atomic int uffd;    /* of the guest, then of the keeper */
    _Atomic int taken;   /* by the keeper */
    _Atomic int written; /* pages that the guest has written */
    _Atomic int removed; /* the guest's madvise has returned */
    _Atomic int keeper_ready;
    _Atomic int guest_go;
};

static struct stage *stage;
static int stage_fd;
static pid_t guest, keeper_pid;
static char hang_at[160]; /* a file on a frozen file system */

static inline int open_userfaultfd(void)
{
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd;

    if (device < 0)
        return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    close(device);
    return fd;
}

static inline void await(_Atomic int *flag, int value)
{
    int64_t until = ls_now_ms() + 5000;

    /* Sequentially consistent, as all of these: order between processes is what is tested. */
    while (atomic_load(flag) < value) {
        if (ls_now_ms() > until)
            _exit(9);
        ls_sleep_ms(1);
    }
}

static inline void be_guest(void)
{
    char *ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_api api = {
        .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMOVE};
    struct uffdio_register reg = {.range = {(uintptr_t)ram, RAM}, .mode = UFFDIO_REGISTER_MODE_WP};
    struct uffdio_writeprotect wp = {.range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
    int uffd = open_userfaultfd();

    madvise(ram, RAM, MADV_NOHUGEPAGE);
    memset(ram, 1, RAM);
    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) != 0 || ioctl(uffd, UFFDIO_REGISTER, &reg) != 0 ||
        ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) != 0)
        _exit(2);
    stage->progress.ranges[0] = (struct ls_progress_range){(uintptr_t)ram, RAM};
    atomic_store(&stage->progress.range_count, 1);
    atomic_store(&stage->uffd, uffd);
    await(&stage->taken, 1);
    close(uffd);
    await(&stage->guest_go, 1);
    for (size_t at = 0; at < RAM; at += 4096) {
        ram[at] = 2;
        atomic_fetch_add(&stage->written, 1);
    }
    madvise(ram, 4096, MADV_DONTNEED);
    atomic_store(&stage->removed, 1);
    for (;;)
        pause();
}

_Noreturn static void *beat(void *unused)
{
    (void)unused;
    for (;;) {
        atomic_fetch_add(&stage->progress.heartbeat, 1);
        ls_sleep_ms(20);
    }
}

_Noreturn static void *idle(void *unused)
{
    (void)unused;
    for (;;)
        pause();
}

/* Linux 6.9: a descriptor can be taken from a process whose main thread has ended. */
static inline bool threads_have_pidfds(void)
{
    int self = (int)syscall(SYS_pidfd_open, getpid(), O_EXCL /* PIDFD_THREAD */);

    if (self < 0) {
        printf("SKIP zombie keepers: no pidfd of a thread here (Linux 6.9)\n");
        return false;
    }
    close(self);
    return true;
}

enum keeper_kind {
    BEATS,        /* shows progress, whatever waits */
    LEADER_ENDS,  /* its main thread ends, another stays */
    LEADER_HANGS, /* its main thread hangs in the kernel, and nothing shows progress */
    OTHER_HANGS,  /* another thread hangs in the kernel */
};

/* Hangs in the kernel: writes to a frozen file system. */
_Noreturn static void *hang(void *unused)
{
    int fd = open(hang_at, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    (void)unused;
    atomic_store(&stage->keeper_ready, 1);
    (void)!write(fd, "x", 1);
    for (;;)
        pause();
}

static inline void be_keeper(enum keeper_kind kind)
{
    int pidfd = (int)syscall(SYS_pidfd_open, guest, 0);
    int uffd = (int)syscall(SYS_pidfd_getfd, pidfd, atomic_load(&stage->uffd), 0);
    pthread_t thread;

    if (uffd < 0)
        _exit(3);
    atomic_store(&stage->uffd, uffd);
    atomic_store(&stage->progress.state, LS_PROGRESS_COPYING);
    atomic_store(&stage->taken, 1);
    pthread_create(&thread, NULL, kind == BEATS ? beat : kind == OTHER_HANGS ? hang : idle, NULL);
    if (kind == LEADER_HANGS)
        hang(NULL);
    if (kind != OTHER_HANGS)
        atomic_store(&stage->keeper_ready, 1);
    if (kind == LEADER_ENDS) {
        ls_sleep_ms(200); /* the test opens its progress meanwhile */
        syscall(SYS_exit, 0);
    }
    for (;;)
        pause();
}

static inline void set_stage(enum keeper_kind kind)
{
    stage_fd = (int)syscall(SYS_memfd_create, "progress", MFD_CLOEXEC);
    assert_int_equal(ftruncate(stage_fd, sizeof *stage), 0);
    stage = mmap(NULL, sizeof *stage, PROT_READ | PROT_WRITE, MAP_SHARED, stage_fd, 0);
    assert_ptr_not_equal(stage, MAP_FAILED);
    stage->progress.magic = LS_PROGRESS_MAGIC;
    stage->progress.version = LS_PROGRESS_VERSION;
    stage->uffd = -1;
    guest = lab_fork();
    if (guest == 0)
        be_guest();
    await(&stage->uffd, 0);
    keeper_pid = lab_fork();
    if (keeper_pid == 0)
        be_keeper(kind);
    await(&stage->keeper_ready, 1);
}

static inline void clear_stage(void)
{
    lab_end(keeper_pid);
    lab_end(guest);
    munmap(stage, sizeof *stage);
    close(stage_fd);
}

static inline void look_up(struct ls_watch *keeper)
{
    struct ls_error err = {0};

    /* The descriptor of the progress memory has the same number in the child. */
    if (ls_watch_open(keeper, keeper_pid, 0, atomic_load(&stage->uffd), stage_fd, &err) != 0)
        fail_msg("%s", err.message);
}

/* Looks as the guard does, until the keeper is found hung; how long that took. */
static inline int watch(struct ls_watch *keeper, int limit_ms)
{
    int64_t began = ls_now_ms();

    while (ls_now_ms() - began < limit_ms) {
        if (ls_watch_look(keeper, ls_now_ms()) == LS_WATCH_HUNG)
            return (int)(ls_now_ms() - began);
        ls_sleep_ms(LS_WATCH_LOOK_MS);
    }
    return -1;
}

static inline void expect_blocked(void)
{
    atomic_store(&stage->guest_go, 1);
    ls_sleep_ms(150);
    assert_int_equal(atomic_load(&stage->written), 0);
}

static inline void expect_free(void)
{
    int64_t until = ls_now_ms() + 1000;

    while (!atomic_load(&stage->removed) && ls_now_ms() < until)
        ls_sleep_ms(5);
    assert_int_equal(atomic_load(&stage->written), RAM / 4096);
    assert_int_equal(atomic_load(&stage->removed), 1);
}

static inline void release(struct ls_watch *keeper)
{
    struct ls_error err = {0};

    if (ls_watch_release(keeper, &err) != 0)
        fail_msg("%s", err.message);
}

#endif
