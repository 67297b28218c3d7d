/* SPDX-License-Identifier: GPL-3.0-or-later */
/* What the attacher does in the target: one way or the other to a userfaultfd. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "target/attach.h"
#include "target/attacher.h"

#define UFFD_FLAGS (O_CLOEXEC | O_NONBLOCK)
#define MAX_OPENED 8

/* Where things lie in the scratch area of the target's stack. */
enum { AT_PAIR = 0, AT_MSGHDR = 16, AT_IOVEC = 80, AT_DATA = 96, AT_CONTROL = 112 };

/* Descriptors that were opened in the target, newest last. */
struct opened {
    int fds[MAX_OPENED];
    size_t count;
};

unsigned ls_attach_refused_calls(const struct ls_tracee *t, enum ls_attach_how how,
                                 bool have_device)
{
    unsigned needed = 1u << LS_CALL_CLOSE | 1u << LS_CALL_SIGRETURN;
    unsigned refused = 0;

    needed |= 1u << (have_device ? LS_CALL_IOCTL : LS_CALL_USERFAULTFD);
    if (how == LS_ATTACH_INJECT && have_device)
        needed |= 1u << LS_CALL_SOCKETPAIR | 1u << LS_CALL_RECVMSG;
    for (unsigned call = 0; call < LS_CALL_COUNT; call++) {
        /* as they will be made; descriptor numbers and addresses are not known yet */
        const uint64_t args[LS_CALL_COUNT][6] = {
            [LS_CALL_IOCTL] = {3, USERFAULTFD_IOC_NEW, UFFD_FLAGS},
            [LS_CALL_CLOSE] = {3},
            [LS_CALL_SOCKETPAIR] = {AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK},
            [LS_CALL_RECVMSG] = {3, 0, MSG_DONTWAIT | MSG_CMSG_CLOEXEC},
            [LS_CALL_USERFAULTFD] = {UFFD_FLAGS},
        };
        struct seccomp_data data;

        if (!(needed & 1u << call))
            continue;
        ls_arch_seccomp_data((enum ls_arch_call)call, args[call], &t->code, &data);
        if (ls_seccomp_verdict(&t->filters, &data) != SECCOMP_RET_ALLOW)
            refused |= 1u << call;
    }
    return refused;
}

int ls_attach_refuse_calls(pid_t pid, unsigned refused, struct ls_error *err)
{
    char names[128] = "";

    if (!refused)
        return 0;
    for (unsigned call = 0; call < LS_CALL_COUNT; call++) {
        if (!(refused & 1u << call))
            continue;
        if (names[0])
            strcat(names, ", ");
        strcat(names, ls_arch_call_names[call]);
    }
    return ls_fail(err, LS_REFUSED, "seccomp",
                   "cannot attach to process %d: its seccomp filter does not allow %s", (int)pid,
                   names);
}

int ls_attach_check_filters(const struct ls_tracee *t, enum ls_attach_how how, bool have_device,
                            struct ls_error *err)
{
    return ls_attach_refuse_calls(t->pid, ls_attach_refused_calls(t, how, have_device), err);
}

/* The result of a call that returns a descriptor: remembers it. */
static int keep(struct opened *opened, int64_t result, const char *what, struct ls_error *err)
{
    if (result < 0) {
        errno = (int)-result;
        return ls_fail_errno(err, LS_REFUSED, errno == EPERM ? "permission" : "call",
                             "%s, called from the target, failed", what);
    }
    opened->fds[opened->count++] = (int)result;
    return (int)result;
}

static int close_in_target(struct ls_tracee *t, int fd, struct ls_error *err)
{
    int64_t result;

    return LS_TRACEE_CALL(t, "close", LS_CALL_CLOSE, ((uint64_t[6]){(uint64_t)fd}), &result, err);
}

int ls_attach_tidy(struct ls_tracee *t, struct ls_error *err)
{
    int strays[32];
    size_t count = ls_target_strays(t->pid, strays, sizeof strays / sizeof *strays);

    for (size_t i = 0; i < count; i++)
        if (close_in_target(t, strays[i], err) != 0)
            return -1;
    return 0;
}

/* A pair of sockets in the target, of which we take one end: our copy, or -1. */
static int make_pair(struct ls_tracee *t, int pidfd, struct opened *opened, int *theirs,
                     struct ls_error *err)
{
    const uint64_t args[6] = {AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
                              t->scratch + AT_PAIR};
    int64_t result;
    int pair[2];
    int ours;

    if (LS_TRACEE_CALL(t, "socketpair", LS_CALL_SOCKETPAIR, args, &result, err) != 0)
        return -1;
    if (result < 0)
        return keep(opened, result, "socketpair", err);
    if (ls_tracee_read(t, t->scratch + AT_PAIR, pair, sizeof pair, err) != 0)
        return -1;
    keep(opened, pair[0], "", err);
    keep(opened, pair[1], "", err);
    ours = ls_pidfd_getfd(pidfd, pair[0]);
    if (ours < 0)
        return ls_fail_errno(err, LS_REFUSED, "pidfd_getfd",
                             "cannot take a descriptor of process %d", (int)t->pid);
    *theirs = pair[1];
    return ours;
}

static int send_fd(int sock, int fd, struct ls_error *err)
{
    char byte = 0;
    struct iovec iov = {&byte, 1};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = sizeof control.bytes};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(cmsg), &fd, sizeof fd);
    if (sendmsg(sock, &msg, MSG_NOSIGNAL) == 1)
        return 0;
    return ls_fail_errno(err, LS_REFUSED, "call", "cannot send a descriptor to the target");
}

/* The target receives what was sent: the number that it has there, or -1. */
static int receive_in_target(struct ls_tracee *t, int sock, struct opened *opened,
                             struct ls_error *err)
{
    struct iovec iov = {(void *)(uintptr_t)(t->scratch + AT_DATA), 1};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr msg = {.msg_iov = (void *)(uintptr_t)(t->scratch + AT_IOVEC),
                         .msg_iovlen = 1,
                         .msg_control = (void *)(uintptr_t)(t->scratch + AT_CONTROL),
                         .msg_controllen = sizeof control.bytes};
    const uint64_t args[6] = {(uint64_t)sock, t->scratch + AT_MSGHDR,
                              MSG_DONTWAIT | MSG_CMSG_CLOEXEC};
    int64_t result;
    int fd;

    if (ls_tracee_write(t, t->scratch + AT_IOVEC, &iov, sizeof iov, err) != 0 ||
        ls_tracee_write(t, t->scratch + AT_CONTROL, &control, sizeof control, err) != 0 ||
        ls_tracee_write(t, t->scratch + AT_MSGHDR, &msg, sizeof msg, err) != 0)
        return -1;
    if (LS_TRACEE_CALL(t, "recvmsg", LS_CALL_RECVMSG, args, &result, err) != 0)
        return -1;
    if (result < 0)
        return keep(opened, result, "recvmsg", err);
    if (ls_tracee_read(t, t->scratch + AT_CONTROL, &control, sizeof control, err) != 0)
        return -1;
    if (control.header.cmsg_type != SCM_RIGHTS || control.header.cmsg_len != CMSG_LEN(sizeof fd))
        return ls_fail(err, LS_REFUSED, "call",
                       "process %d got no descriptor: has it reached its limit of open files?",
                       (int)t->pid);
    memcpy(&fd, CMSG_DATA(&control.header), sizeof fd);
    return keep(opened, fd, "", err);
}

/* /dev/userfaultfd in the target, handed over through a pair of sockets. */
static int hand_over(struct ls_tracee *t, int pidfd, struct opened *opened, struct ls_error *err)
{
    LS_AUTO_CLOSE int device = ls_uffd_device_open();
    LS_AUTO_CLOSE int ours = -1;
    int theirs = -1;

    if (device < 0)
        return ls_fail_errno(err, LS_REFUSED, "permission",
                             "cannot open /dev/userfaultfd; run the helper as root");
    ours = make_pair(t, pidfd, opened, &theirs, err);
    if (ours < 0 || send_fd(ours, device, err) != 0)
        return -1;
    if (LS_FAULT("attach.sent"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    return receive_in_target(t, theirs, opened, err);
}

/* Makes a userfaultfd in the target and takes a copy: -1 or the copy. */
static int make_uffd(struct ls_tracee *t, int pidfd, enum ls_attach_how how, struct opened *opened,
                     struct ls_error *err)
{
    dev_t device = ls_uffd_device();
    int64_t result;
    int fd;
    int copy;

    if (!device) {
        if (LS_TRACEE_CALL(t, "userfaultfd", LS_CALL_USERFAULTFD, ((uint64_t[6]){UFFD_FLAGS}),
                           &result, err) != 0)
            return -1;
    } else {
        fd = how == LS_ATTACH_INJECT ? hand_over(t, pidfd, opened, err)
                                     : ls_target_find_device(t->pid, device);
        if (fd < 0 && how == LS_ATTACH_DEVICE)
            return ls_fail(err, LS_REFUSED, "device",
                           "process %d holds no descriptor of /dev/userfaultfd: it was not passed "
                           "by getfd, or closed again",
                           (int)t->pid);
        if (fd < 0 || LS_TRACEE_CALL(t, "ioctl", LS_CALL_IOCTL,
                                     ((uint64_t[6]){(uint64_t)fd, USERFAULTFD_IOC_NEW, UFFD_FLAGS}),
                                     &result, err) != 0)
            return -1;
    }
    fd = keep(opened, result, device ? "USERFAULTFD_IOC_NEW" : "userfaultfd", err);
    if (fd < 0)
        return -1;
    copy = ls_pidfd_getfd(pidfd, fd);
    if (copy < 0)
        return ls_fail_errno(err, LS_REFUSED, "pidfd_getfd",
                             "cannot take the userfaultfd out of process %d", (int)t->pid);
    if (LS_FAULT("attach.copied")) {
        close(copy);
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    }
    return copy;
}

int ls_attach_return(struct ls_tracee *t, int theirs, struct ls_error *err)
{
    return ls_target_has_uffd(t->pid, theirs) ? close_in_target(t, theirs, err) : 0;
}

int ls_attach_in_target(struct ls_tracee *t, enum ls_attach_how how, int *uffd, int *theirs,
                        struct ls_error *err)
{
    LS_AUTO_CLOSE int pidfd = ls_pidfd_open(t->pid);
    LS_AUTO_CLOSE int copy = -1;
    struct opened opened = {.count = 0};
    struct ls_error second;

    if (pidfd < 0)
        return ls_fail_errno(err, LS_GONE, "gone", "cannot open process %d", (int)t->pid);
    if (ls_attach_tidy(t, err) != 0)
        return -1;
    copy = make_uffd(t, pidfd, how, &opened, err);
    if (copy >= 0 && theirs)
        *theirs = opened.fds[--opened.count]; /* the last that was opened */
    /* close what was opened there, also after a failure, as long as the target can be asked */
    while (opened.count > 0 && t->stopped)
        if (close_in_target(t, opened.fds[--opened.count], copy < 0 ? &second : err) != 0)
            return -1;
    if (copy < 0 || !t->stopped)
        return -1;
    *uffd = ls_steal_fd(&copy);
    return 0;
}
