/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "serve/sentinel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Where the two descriptors of the sentinel are put. */
enum { AT_GUEST = STDERR_FILENO + 1, AT_LIFELINE, AT_REST };

static void watch(void)
{
    struct pollfd p[2] = {{.fd = AT_GUEST, .events = POLLIN},
                          {.fd = AT_LIFELINE, .events = POLLIN}};
    char word;

    while (poll(p, 2, -1) < 0 && errno == EINTR)
        ;
    if (p[0].revents)
        _exit(0);
    if (read(AT_LIFELINE, &word, 1) == 1)
        _exit(0);
    syscall(SYS_pidfd_send_signal, AT_GUEST, SIGKILL, NULL, 0);
    _exit(1);
}

/* Nothing of the server's stays with it: what the server dies with has to be gone then. */
static void be_sentinel(int guest, int lifeline)
{
    int high = fcntl(guest, F_DUPFD, AT_REST), higher = fcntl(lifeline, F_DUPFD, AT_REST);

    signal(SIGTERM, SIG_IGN);
    setsid();
    prctl(PR_SET_NAME, "livesnap-watch");
    if (high < 0 || higher < 0 || dup2(high, AT_GUEST) < 0 || dup2(higher, AT_LIFELINE) < 0)
        _exit(1);
    close_range(AT_REST, ~0U, 0);
    watch();
}

int ls_sentinel_start(struct ls_sentinel *s, int guest, struct ls_error *err)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC))
        return ls_fail_errno(err, LS_INTERNAL, "pipe", "cannot make a pipe");
    s->pid = fork();
    if (s->pid == 0)
        be_sentinel(guest, ends[0]);
    close(ends[0]);
    s->lifeline = ends[1];
    s->pidfd = s->pid < 0 ? -1 : (int)syscall(SYS_pidfd_open, s->pid, 0);
    if (s->pidfd >= 0)
        return 0;
    close(s->lifeline);
    return ls_fail_errno(err, LS_INTERNAL, "fork", "cannot start the sentinel");
}

void ls_sentinel_bury(struct ls_sentinel *s)
{
    close(s->lifeline);
    close(s->pidfd);
    while (waitpid(s->pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

void ls_sentinel_dismiss(struct ls_sentinel *s)
{
    while (write(s->lifeline, "", 1) < 0 && errno == EINTR)
        ;
    ls_sentinel_bury(s);
}
