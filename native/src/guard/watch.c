/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "guard/watch.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/clock.h"

/* A larger range in one ioctl would hold the guest's mmap_lock for too long. */
#define PIECE (64ull << 20)

static int map_progress(struct ls_watch *keeper, int fd, struct ls_error *err)
{
    const size_t size = sizeof(struct ls_progress);
    const struct ls_progress *found;
    LS_AUTO_CLOSE int own = -1;
    struct stat about;
    char path[64];
    void *at;

    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)keeper->peer.pid, fd);
    own = open(path, O_RDONLY | O_CLOEXEC);
    if (own < 0)
        return ls_fail_errno(err, LS_INTERNAL, "progress", "cannot open the progress memory '%s'",
                             path);
    if (fstat(own, &about) != 0 || about.st_size < (off_t)size)
        return ls_fail(err, LS_INTERNAL, "progress", "'%s' is not a keeper's progress memory",
                       path);
    at = mmap(NULL, size, PROT_READ, MAP_SHARED, own, 0);
    if (at == MAP_FAILED)
        return ls_fail_errno(err, LS_INTERNAL, "progress", "cannot map the progress memory '%s'",
                             path);
    found = at;
    if (found->magic != LS_PROGRESS_MAGIC || found->version != LS_PROGRESS_VERSION) {
        munmap(at, size);
        return ls_fail(err, LS_INTERNAL, "progress", "'%s' is not a keeper's progress memory",
                       path);
    }
    keeper->progress = found;
    return 0;
}

int ls_watch_open(struct ls_watch *keeper, pid_t pid, uint64_t start_time, int uffd, int progress,
                  struct ls_error *err)
{
    struct ls_watch made = LS_WATCH_NONE;

    if (ls_peer_open(&made.peer, pid, start_time, err) != 0)
        return ls_context(err, "the keeper");
    made.uffd = uffd;
    if (map_progress(&made, progress, err) != 0) {
        ls_watch_close(&made);
        return -1;
    }
    made.looked = ls_now_ms();
    *keeper = made;
    return 0;
}

bool ls_watch_holds_ram(const struct ls_watch *keeper)
{
    /* Acquire: pairs with the keeper's release store. */
    uint32_t state = atomic_load_explicit(&keeper->progress->state, memory_order_acquire);

    return state == LS_PROGRESS_PROTECTING || state == LS_PROGRESS_COPYING;
}

/* Threads that wait, as the kernel counts them: a stopped keeper does not read its faults. */
static unsigned long count_waiters(const struct ls_watch *keeper)
{
    char path[64], text[256] = "", *total;
    LS_AUTO_CLOSE int fd = -1;

    snprintf(path, sizeof path, "/proc/%d/fdinfo/%d", (int)keeper->peer.pid, keeper->uffd);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
        return 0;
    total = strstr(text, "total:");
    return total ? strtoul(total + strlen("total:"), NULL, 10) : 0;
}

static bool guest_waits(const struct ls_watch *keeper)
{
    /* Relaxed: a hint, looked at again and again. */
    return atomic_load_explicit(&keeper->progress->faults_pending, memory_order_relaxed) > 0 ||
           count_waiters(keeper) > 0;
}

enum ls_watch_sight ls_watch_look(struct ls_watch *keeper, int64_t now)
{
    /* Relaxed: only whether it changed matters. */
    uint64_t beat = atomic_load_explicit(&keeper->progress->heartbeat, memory_order_relaxed);
    int64_t passed = now - keeper->looked;
    char state;

    keeper->looked = now;
    if (ls_peer_ended(&keeper->peer))
        return LS_WATCH_ENDED;
    if (!ls_watch_holds_ram(keeper) || beat != keeper->beat) {
        keeper->beat = beat;
        keeper->stalled_ms = 0;
        return LS_WATCH_LIVES;
    }
    state = ls_peer_state(&keeper->peer);
    /* Its main thread was killed, but another hangs in the kernel: it will not come back. */
    if (state == 'Z' || state == 'X')
        return LS_WATCH_HUNG;
    /* When this process, or the whole host, stood still as well, that says nothing of the keeper.
     */
    keeper->stalled_ms += passed < 3 * LS_WATCH_LOOK_MS ? (int)passed : 3 * LS_WATCH_LOOK_MS;
    if (keeper->stalled_ms < LS_WATCH_STALL_MS)
        return LS_WATCH_LIVES;
    if (keeper->stalled_ms >= LS_WATCH_IDLE_STALL_MS || strchr("TtD", state) || guest_waits(keeper))
        return LS_WATCH_HUNG;
    return LS_WATCH_LIVES;
}

static void unregister(int uffd, uint64_t start, uint64_t length)
{
    const uint64_t end = start + length;
    bool whole = false;

    for (uint64_t at = start; at < end; at += PIECE) {
        struct uffdio_range piece = {at, end - at < PIECE ? end - at : PIECE};

        if (ioctl(uffd, UFFDIO_UNREGISTER, &piece) != 0 && errno == EINVAL)
            whole = true; /* pages larger than a piece */
    }
    if (whole) {
        struct uffdio_range all = {start, length};

        (void)ioctl(uffd, UFFDIO_UNREGISTER, &all);
    }
}

/* Those who wait for an event (a range removed or moved) go on when it is read. */
static void drain(int uffd)
{
    for (int i = 0; i < 4096; i++) {
        struct pollfd one = {.fd = uffd, .events = POLLIN};
        struct uffd_msg messages[16];

        if (poll(&one, 1, 0) != 1 || !(one.revents & POLLIN) ||
            read(uffd, messages, sizeof messages) <= 0)
            return;
    }
}

static void lift(const struct ls_watch *keeper, int uffd)
{
    /* Acquire: the ranges were filled before the count was stored. */
    uint32_t count = atomic_load_explicit(&keeper->progress->range_count, memory_order_acquire);

    if (count > LS_PROGRESS_MAX_RANGES)
        count = LS_PROGRESS_MAX_RANGES;
    for (uint32_t i = 0; i < count; i++)
        unregister(uffd, keeper->progress->ranges[i].start, keeper->progress->ranges[i].length);
    drain(uffd);
    /* Unregistering does not wake those who wait for write protection. */
    for (uint32_t i = 0; i < count; i++) {
        struct uffdio_range range = {keeper->progress->ranges[i].start,
                                     keeper->progress->ranges[i].length};

        (void)ioctl(uffd, UFFDIO_WAKE, &range);
    }
}

/* Whether the descriptor is a userfaultfd: a reused number must not get these ioctls. */
static bool is_userfaultfd(int fd)
{
    char path[32], target[64] = "";

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return readlink(path, target, sizeof target - 1) > 0 && strstr(target, "[userfaultfd]");
}

int ls_watch_release(struct ls_watch *keeper, struct ls_error *err)
{
    struct ls_error why = {0}, killed = {0};
    LS_AUTO_CLOSE int uffd = -1;
    int died;

    if (ls_peer_ended(&keeper->peer))
        return 0;
    /* First take it, then kill: a main thread that has ended gives no descriptors away. */
    uffd = ls_peer_take(&keeper->peer, keeper->uffd, &why);
    died = ls_peer_kill(&keeper->peer, &killed);
    if (uffd >= 0 && is_userfaultfd(uffd)) {
        lift(keeper, uffd);
        return 0;
    }
    /* Closed by the keeper already, or the keeper is about to end and closes it so. */
    if (died == 0 && ls_peer_wait(&keeper->peer, ls_now_ms() + 1000))
        return 0;
    if (!ls_watch_holds_ram(keeper))
        return 0;
    if (uffd >= 0)
        return ls_fail(err, LS_INTERNAL, "uffd", "descriptor %d of keeper %d is not a userfaultfd",
                       keeper->uffd, (int)keeper->peer.pid);
    *err = died == 0 ? why : killed;
    return -1;
}

void ls_watch_close(struct ls_watch *keeper)
{
    if (keeper->progress)
        munmap((void *)(uintptr_t)keeper->progress, sizeof *keeper->progress);
    ls_peer_close(&keeper->peer);
    *keeper = (struct ls_watch)LS_WATCH_NONE;
}
