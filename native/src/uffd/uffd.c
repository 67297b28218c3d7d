/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "uffd/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"

/* Not in Debian 12's header; numbers of the kernel's interface. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC 0xAA
#define USERFAULTFD_IOC_NEW _IO(USERFAULTFD_IOC, 0x00)
#endif

static const struct {
    uint64_t bit;
    const char *name;
} needed[] = {
    {UFFD_FEATURE_PAGEFAULT_FLAG_WP, "PAGEFAULT_FLAG_WP"},
    {UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "WP_HUGETLBFS_SHMEM"},
    {UFFD_FEATURE_EVENT_REMOVE, "EVENT_REMOVE"},
    {UFFD_FEATURE_EVENT_UNMAP, "EVENT_UNMAP"},
    {UFFD_FEATURE_EVENT_REMAP, "EVENT_REMAP"},
};

#define NEEDED (sizeof needed / sizeof *needed)

enum ls_uffd_class ls_uffd_errno(int sys)
{
    switch (sys) {
    case EAGAIN:
    case EINTR:
        return LS_UFFD_AGAIN;
    case ENOENT:
    case EINVAL: /* a range that is partly unmapped */
    case EFAULT:
        return LS_UFFD_LOST;
    case ESRCH:
        return LS_UFFD_DEAD;
    default:
        return LS_UFFD_FATAL;
    }
}

int ls_uffd_fail(struct ls_error *err, int sys, const char *what, uint64_t start, uint64_t length)
{
    errno = sys;
    switch (ls_uffd_errno(sys)) {
    case LS_UFFD_DEAD:
        return ls_fail_errno(err, LS_GONE, "gone", "the guest's process ended during the capture");
    case LS_UFFD_LOST:
        return ls_fail_errno(err, LS_TORN, "unmapped",
                             "cannot %s RAM at %#llx, %llu bytes: it is not mapped as it was", what,
                             (unsigned long long)start, (unsigned long long)length);
    default:
        return ls_fail_errno(err, LS_INTERNAL, "userfaultfd", "cannot %s RAM at %#llx, %llu bytes",
                             what, (unsigned long long)start, (unsigned long long)length);
    }
}

int ls_uffd_check_features(uint64_t have, struct ls_error *err)
{
    for (size_t i = 0; i < NEEDED; i++)
        if (!(have & needed[i].bit))
            return ls_fail(err, LS_REFUSED, "userfaultfd",
                           "the kernel's userfaultfd lacks %s; Linux 5.19 or newer has it",
                           needed[i].name);
    return 0;
}

int ls_uffd_handshake(int uffd, struct ls_error *err)
{
    struct uffdio_api api = {.api = UFFD_API};

    for (size_t i = 0; i < NEEDED; i++)
        api.features |= needed[i].bit;
    if (ioctl(uffd, UFFDIO_API, &api) == 0)
        return 0;
    if (errno == EINVAL) {
        uint64_t have = 0;
        struct ls_error ignored;

        if (ls_uffd_probe(&have, &ignored) == 0 && ls_uffd_check_features(have, err))
            return -1;
        errno = EINVAL;
    }
    if (errno == ESRCH)
        return ls_uffd_fail(err, errno, "protect", 0, 0);
    return ls_fail_errno(err, LS_REFUSED, "userfaultfd",
                         "the kernel refuses write protection by userfaultfd");
}

int ls_uffd_probe(uint64_t *features, struct ls_error *err)
{
    struct uffdio_api api = {.api = UFFD_API};
    LS_AUTO_CLOSE int fd = -1;
    LS_AUTO_CLOSE int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

    if (device >= 0)
        fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return ls_fail_errno(err, LS_REFUSED, "userfaultfd",
                             "cannot make a userfaultfd; run the helper as root");
    if (ioctl(fd, UFFDIO_API, &api) < 0)
        return ls_fail_errno(err, LS_REFUSED, "userfaultfd", "the kernel refuses UFFDIO_API");
    *features = api.features;
    return 0;
}

int ls_uffd_register(int uffd, uint64_t start, uint64_t length, struct ls_error *err)
{
    struct uffdio_register arg = {
        .range = {.start = start, .len = length},
        .mode = UFFDIO_REGISTER_MODE_WP,
    };

    if (ioctl(uffd, UFFDIO_REGISTER, &arg) < 0) {
        if (errno == EBUSY)
            return ls_fail_errno(err, LS_REFUSED, "userfaultfd-in-use",
                                 "RAM at %#llx has a userfaultfd already",
                                 (unsigned long long)start);
        return ls_uffd_fail(err, errno, "register", start, length);
    }
    if (!(arg.ioctls & (1ull << _UFFDIO_WRITEPROTECT)))
        return ls_fail(err, LS_REFUSED, "memory-kind",
                       "RAM at %#llx cannot be write-protected by userfaultfd",
                       (unsigned long long)start);
    return 0;
}

void ls_turn_begin(struct ls_turn *turn)
{
    turn->since_ns = ls_now_ns();
}

void ls_turn_give(struct ls_turn *turn)
{
    static const struct timespec moment = {.tv_nsec = 20000};

    if (ls_now_ns() - turn->since_ns < 1000000)
        return;
    nanosleep(&moment, NULL);
    turn->since_ns = ls_now_ns();
}

void ls_uffd_unregister_whole(int uffd, uint64_t start, uint64_t length)
{
    struct uffdio_range range = {.start = start, .len = length};

    while (ioctl(uffd, UFFDIO_UNREGISTER, &range) < 0 && errno == EINTR)
        ;
    (void)ls_uffd_wake(uffd, start, length);
}

void ls_uffd_unregister(int uffd, uint64_t start, uint64_t length)
{
    struct ls_turn turn;

    ls_turn_begin(&turn);
    for (uint64_t at = start; at < start + length; at += LS_UFFD_PIECE) {
        uint64_t left = start + length - at;

        ls_uffd_unregister_whole(uffd, at, left < LS_UFFD_PIECE ? left : LS_UFFD_PIECE);
        ls_turn_give(&turn);
    }
}

int ls_uffd_protect(int uffd, uint64_t start, uint64_t length, bool on, uint64_t *done)
{
    uint64_t end = start + length;
    struct ls_turn turn;

    ls_turn_begin(&turn);
    for (uint64_t at = start; at < end;) {
        /* Pieces end at multiples of their size, so that no huge page is cut in two. */
        uint64_t stop = (at / LS_UFFD_PIECE + 1) * LS_UFFD_PIECE;
        struct uffdio_writeprotect arg = {.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};

        if (stop > end)
            stop = end;
        arg.range.start = at;
        arg.range.len = stop - at;
        if (ioctl(uffd, UFFDIO_WRITEPROTECT, &arg) < 0) {
            if (errno == EINTR)
                continue;
            if (done)
                *done = at;
            return -1;
        }
        at = stop;
        if (at < end)
            ls_turn_give(&turn);
    }
    if (done)
        *done = end;
    return 0;
}

int ls_uffd_wake(int uffd, uint64_t start, uint64_t length)
{
    struct uffdio_range range = {.start = start, .len = length};

    return ioctl(uffd, UFFDIO_WAKE, &range);
}
