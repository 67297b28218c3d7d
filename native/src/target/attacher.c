/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The attacher: a short-lived child that stops the target, and its parent, which waits with a
 * limit and tidies up after one that died. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "target/attacher.h"

/* The longest that a healthy target takes is 50 ms and a call; one that needs longer is stuck. */
#define LIMIT_MS 5000

struct answer {
    int ok;
    unsigned stood_still_us;
    unsigned refused; /* LS_JOB_CHECK: calls, by bit */
    int theirs;
    struct ls_error err;
};

/* ---- child ---- */

static int in_target(struct ls_tracee *t, enum ls_attach_job job, enum ls_attach_how how, int *uffd,
                     int *theirs, struct ls_error *err)
{
    switch (job) {
    case LS_JOB_TIDY:
        return ls_attach_tidy(t, err);
    case LS_JOB_RETURN:
        return ls_attach_return(t, *theirs, err);
    case LS_JOB_LEND:
        return ls_attach_in_target(t, how, uffd, theirs, err);
    default:
        return ls_attach_in_target(t, how, uffd, NULL, err);
    }
}

static int work(pid_t pid, pid_t tid, enum ls_attach_job job, enum ls_attach_how how, int *uffd,
                struct answer *answer, struct ls_error *err)
{
    __attribute__((cleanup(ls_tracee_close))) struct ls_tracee t = {.mem = -1};
    int failed;

    if (ls_tracee_open(&t, pid, tid, err) != 0)
        return -1;
    if (LS_FAULT("attach.opened"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point");
    if (ls_tracee_stop(&t, err) != 0)
        return -1;
    if (job == LS_JOB_CHECK) {
        answer->refused = ls_attach_refused_calls(&t, how, ls_uffd_device() != 0);
        ls_tracee_leave(&t, &answer->stood_still_us);
        return 0;
    }
    if (ls_attach_check_filters(&t, how, ls_uffd_device() != 0, err) != 0)
        return -1;
    if (ls_tracee_park(&t, err) != 0)
        return -1;
    failed = in_target(&t, job, how, uffd, &answer->theirs, err);
    ls_tracee_leave(&t, &answer->stood_still_us);
    return failed;
}

static void answer_parent(int sock, const struct answer *answer, int uffd)
{
    struct iovec iov = {(void *)(uintptr_t)answer, sizeof *answer};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (uffd >= 0) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof control.bytes;
        CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(sizeof uffd);
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &uffd, sizeof uffd);
    }
    while (sendmsg(sock, &msg, MSG_NOSIGNAL) < 0 && errno == EINTR)
        ;
}

static void child(int sock, pid_t pid, pid_t tid, enum ls_attach_job job, enum ls_attach_how how,
                  int theirs)
{
    struct answer answer = {.theirs = theirs};
    int uffd = -1;

    /* the target stands still while this process waits for a turn; short-lived, so no harm */
    setpriority(PRIO_PROCESS, 0, -20);
    answer.ok = work(pid, tid, job, how, &uffd, &answer, &answer.err) == 0;
    if (LS_FAULT("attach.answer"))
        _exit(1);
    answer_parent(sock, &answer, uffd);
    _exit(0);
}

/* ---- parent ---- */

/* What the child said, and the userfaultfd or -1; false if it died without a word. */
static bool receive(int sock, struct answer *answer, int *uffd)
{
    struct iovec iov = {answer, sizeof *answer};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = sizeof control.bytes};
    struct cmsghdr *cmsg;

    *uffd = -1;
    if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != (ssize_t)sizeof *answer)
        return false;
    cmsg = CMSG_FIRSTHDR(&msg);
    if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
        memcpy(uffd, CMSG_DATA(cmsg), sizeof *uffd);
    return true;
}

static int poll_once(int fd)
{
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    int ready;

    do {
        ready = poll(&pfd, 1, LIMIT_MS);
    } while (ready < 0 && errno == EINTR);
    return ready;
}

/* One child: 0, -1 with the error that it told, or -2 if it died or had to be killed. */
static int run_child(pid_t pid, pid_t tid, enum ls_attach_job job, enum ls_attach_how how,
                     struct ls_attach_outcome *out, struct ls_error *err)
{
    LS_AUTO_CLOSE int ours = -1;
    LS_AUTO_CLOSE int theirs = -1;
    LS_AUTO_CLOSE int uffd = -1;
    struct answer answer;
    bool in_time;
    bool told;
    int pair[2];
    pid_t worker;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        return ls_fail_errno(err, LS_INTERNAL, "socket", "cannot make a pair of sockets");
    ours = pair[0];
    theirs = pair[1];
    worker = fork();
    if (worker < 0)
        return ls_fail_errno(err, LS_INTERNAL, "fork", "cannot start the attaching process");
    if (worker == 0) {
        close(ls_steal_fd(&ours));
        child(theirs, pid, tid, job, how, out ? out->theirs : -1);
    }
    close(ls_steal_fd(&theirs));
    in_time = poll_once(ours) > 0;
    told = in_time && receive(ours, &answer, &uffd);
    /* one that hangs lets its tracee go by dying: the thread heals by itself */
    if (!in_time)
        kill(worker, SIGKILL);
    while (waitpid(worker, NULL, 0) < 0 && errno == EINTR)
        ;
    if (!in_time)
        return ls_fail(err, LS_REFUSED, "unresponsive",
                       "cannot attach to process %d: its thread %d did not stop within %d s (is it "
                       "blocked in uninterruptible I/O?)",
                       (int)pid, (int)tid, LIMIT_MS / 1000);
    if (!told) {
        ls_fail(err, LS_INTERNAL, "attacher",
                "the process that attaches to process %d died half-way; the target goes on",
                (int)pid);
        return -2;
    }
    if (!answer.ok) {
        *err = answer.err;
        return -1;
    }
    if ((job == LS_JOB_ATTACH || job == LS_JOB_LEND) && uffd < 0)
        return ls_fail(err, LS_INTERNAL, "attacher",
                       "the userfaultfd did not arrive: too many open files?");
    if (out)
        *out = (struct ls_attach_outcome){ls_steal_fd(&uffd), answer.theirs, answer.stood_still_us,
                                          answer.refused};
    return 0;
}

int ls_attach_run(pid_t pid, pid_t tid, enum ls_attach_job job, enum ls_attach_how how,
                  struct ls_attach_outcome *out, struct ls_error *err)
{
    int result = run_child(pid, tid, job, how, out, err);
    struct ls_error ignored;
    int stray;

    /* after a death the thread may still be about to make a call, so nothing is to be seen yet */
    if (job != LS_JOB_TIDY &&
        (result == -2 || (result == -1 && ls_target_strays(pid, &stray, 1) > 0)))
        run_child(pid, tid, LS_JOB_TIDY, how, NULL, &ignored);
    return result == 0 ? 0 : -1;
}
