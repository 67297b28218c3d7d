/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A guest whose keeper hangs: real write protection, held by a process that is stopped, that became
 * a zombie with a thread left, that lives, that was killed.
 */
#include "guard_lab.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "guard/keeper.h"

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

static int open_userfaultfd(void)
{
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd;

    if (device < 0)
        return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    close(device);
    return fd;
}

static void await(_Atomic int *flag, int value)
{
    int64_t until = ls_now_ms() + 5000;

    /* Sequentially consistent, as all of these: order between processes is what is tested. */
    while (atomic_load(flag) < value) {
        if (ls_now_ms() > until)
            _exit(9);
        ls_sleep_ms(1);
    }
}

static void be_guest(void)
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

/* `leader_ends`: its main thread ends, another stays. */
static void be_keeper(int leader_ends)
{
    int pidfd = (int)syscall(SYS_pidfd_open, guest, 0);
    int uffd = (int)syscall(SYS_pidfd_getfd, pidfd, atomic_load(&stage->uffd), 0);
    pthread_t thread;

    if (uffd < 0)
        _exit(3);
    atomic_store(&stage->uffd, uffd);
    atomic_store(&stage->progress.state, LS_PROGRESS_COPYING);
    atomic_store(&stage->taken, 1);
    pthread_create(&thread, NULL, leader_ends ? idle : beat, NULL);
    atomic_store(&stage->keeper_ready, 1);
    if (leader_ends) {
        ls_sleep_ms(200); /* the test opens its progress meanwhile */
        syscall(SYS_exit, 0);
    }
    for (;;)
        pause();
}

static void set_stage(int leader_ends)
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
        be_keeper(leader_ends);
    await(&stage->keeper_ready, 1);
}

static void clear_stage(void)
{
    lab_end(keeper_pid);
    lab_end(guest);
    munmap(stage, sizeof *stage);
    close(stage_fd);
}

static void look_up(struct ls_keeper *keeper)
{
    struct ls_error err = {0};

    /* The descriptor of the progress memory has the same number in the child. */
    if (ls_keeper_open(keeper, keeper_pid, 0, atomic_load(&stage->uffd), stage_fd, &err) != 0)
        fail_msg("%s", err.message);
}

/* Looks as the guard does, until the keeper is found hung; how long that took. */
static int watch(struct ls_keeper *keeper, int limit_ms)
{
    int64_t began = ls_now_ms();

    while (ls_now_ms() - began < limit_ms) {
        if (ls_keeper_look(keeper, ls_now_ms()) == LS_KEEPER_HUNG)
            return (int)(ls_now_ms() - began);
        ls_sleep_ms(LS_KEEPER_LOOK_MS);
    }
    return -1;
}

static void expect_blocked(void)
{
    atomic_store(&stage->guest_go, 1);
    ls_sleep_ms(150);
    assert_int_equal(atomic_load(&stage->written), 0);
}

static void expect_free(void)
{
    int64_t until = ls_now_ms() + 1000;

    while (!atomic_load(&stage->removed) && ls_now_ms() < until)
        ls_sleep_ms(5);
    assert_int_equal(atomic_load(&stage->written), RAM / 4096);
    assert_int_equal(atomic_load(&stage->removed), 1);
}

static void release(struct ls_keeper *keeper)
{
    struct ls_error err = {0};

    if (ls_keeper_release(keeper, &err) != 0)
        fail_msg("%s", err.message);
}

static void one_that_is_stopped(void **state)
{
    struct ls_keeper keeper;
    struct ls_peer peer;
    struct ls_error err;
    int witness, took;

    (void)state;
    set_stage(0);
    look_up(&keeper);
    /* A third holder: so it is the release that frees the guest, not the keeper's death. */
    assert_int_equal(ls_peer_open(&peer, keeper_pid, 0, &err), 0);
    witness = ls_peer_take(&peer, atomic_load(&stage->uffd), &err);
    assert_true(witness >= 0);
    expect_blocked();
    assert_int_equal(watch(&keeper, 500), -1); /* it beats: waiting alone is no reason */
    kill(keeper_pid, SIGSTOP);
    took = watch(&keeper, 4000);
    assert_in_range(took, LS_KEEPER_STALL_MS - LS_KEEPER_LOOK_MS, 2800);
    release(&keeper);
    expect_free();
    assert_int_equal(lab_wait(keeper_pid, 1000), -1);
    close(witness);
    ls_peer_close(&peer);
    ls_keeper_close(&keeper);
    clear_stage();
}

static void one_that_is_a_zombie_with_a_thread_left(void **state)
{
    struct ls_keeper keeper;

    (void)state;
    {
        int self = (int)syscall(SYS_pidfd_open, getpid(), O_EXCL /* PIDFD_THREAD */);

        if (self < 0) {
            printf("SKIP %s: no pidfd of a thread here (Linux 6.9)\n", __func__);
            skip();
        }
        close(self);
    }
    set_stage(1);
    look_up(&keeper);
    expect_blocked();
    ls_sleep_ms(200);
    if (ls_peer_state(&keeper.peer) != 'Z')
        fail_msg("the main thread is in '%c'", ls_peer_state(&keeper.peer));
    assert_false(ls_peer_ended(&keeper.peer));
    assert_in_range(watch(&keeper, 1000), 0, 300);
    release(&keeper);
    expect_free();
    ls_keeper_close(&keeper);
    clear_stage();
}

static void an_event_that_nobody_reads(void **state)
{
    struct ls_keeper keeper;
    struct ls_peer peer;
    struct ls_error err;
    int witness;

    (void)state;
    set_stage(0);
    look_up(&keeper);
    assert_int_equal(ls_peer_open(&peer, keeper_pid, 0, &err), 0);
    witness = ls_peer_take(&peer, atomic_load(&stage->uffd), &err);
    assert_true(witness >= 0);
    /* Lets the guest write all, so that it waits in its madvise. */
    {
        struct uffdio_writeprotect off = {
            .range = {stage->progress.ranges[0].start, stage->progress.ranges[0].length}};

        assert_int_equal(ioctl(witness, UFFDIO_WRITEPROTECT, &off), 0);
    }
    atomic_store(&stage->guest_go, 1);
    ls_sleep_ms(200);
    assert_int_equal(atomic_load(&stage->written), RAM / 4096);
    assert_int_equal(atomic_load(&stage->removed), 0);
    release(&keeper);
    expect_free();
    close(witness);
    ls_peer_close(&peer);
    ls_keeper_close(&keeper);
    clear_stage();
}

static void one_that_was_killed(void **state)
{
    struct ls_keeper keeper;

    (void)state;
    set_stage(0);
    look_up(&keeper);
    expect_blocked();
    kill(keeper_pid, SIGKILL);
    expect_free();
    assert_int_equal(ls_keeper_look(&keeper, ls_now_ms()), LS_KEEPER_ENDED);
    release(&keeper);
    ls_keeper_close(&keeper);
    clear_stage();
}

static void one_that_lives_is_let_be(void **state)
{
    struct ls_keeper keeper;

    (void)state;
    set_stage(0);
    look_up(&keeper);
    /* Nothing is protected (any more): a heart that stands still is of no concern. */
    atomic_store(&stage->progress.state, LS_PROGRESS_RELEASED);
    kill(keeper_pid, SIGSTOP);
    for (int i = 0; i < 100; i++)
        assert_int_equal(ls_keeper_look(&keeper, keeper.looked + LS_KEEPER_LOOK_MS),
                         LS_KEEPER_LIVES);
    /* One look after a long sleep of this very process is no evidence. */
    atomic_store(&stage->progress.state, LS_PROGRESS_COPYING);
    assert_int_equal(ls_keeper_look(&keeper, keeper.looked + 3600000), LS_KEEPER_LIVES);
    ls_keeper_close(&keeper);
    clear_stage();
}

static void what_is_no_keeper_is_refused(void **state)
{
    struct ls_keeper keeper;
    struct ls_error err = {0};

    (void)state;
    set_stage(0);
    assert_int_equal(ls_keeper_open(&keeper, keeper_pid, 12345, 3, stage_fd, &err), -1);
    assert_int_equal(err.cls, LS_GONE);
    assert_int_equal(ls_keeper_open(&keeper, keeper_pid, 0, 3, 999, &err), -1);
    assert_string_equal(err.reason, "progress");
    stage->progress.magic++;
    assert_int_equal(ls_keeper_open(&keeper, keeper_pid, 0, 3, stage_fd, &err), -1);
    assert_string_equal(err.reason, "progress");
    clear_stage();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_that_is_stopped),
        cmocka_unit_test(one_that_is_a_zombie_with_a_thread_left),
        cmocka_unit_test(an_event_that_nobody_reads),
        cmocka_unit_test(one_that_was_killed),
        cmocka_unit_test(one_that_lives_is_let_be),
        cmocka_unit_test(what_is_no_keeper_is_refused),
    };
    int fd = open_userfaultfd();

    if (fd < 0) {
        printf("SKIP test_guard_keeper: no userfaultfd here: %s\n", strerror(errno));
        return 0;
    }
    close(fd);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
