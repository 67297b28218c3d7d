/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "guard/run.h"

#include <errno.h>
#include <fcntl.h>
#include <paths.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "guard/peer.h"

/* What SIGKILL may take, ms; more means a hang in the kernel. */
#define DEATH_MS 500

/* Reading ends of its outputs; -1 once it has closed them. */
struct outlets {
    int out;
    int err;
};

static void close_outlets(const struct outlets *outlets)
{
    ls_close_fd(&outlets->out);
    ls_close_fd(&outlets->err);
}

#define LS_AUTO_OUTLETS __attribute__((cleanup(close_outlets)))

static pid_t *find_room(struct ls_strays *strays)
{
    pid_t *room = NULL;

    for (size_t i = 0; i < LS_RUN_STRAYS_MAX; i++) {
        if (strays->pid[i] && waitpid(strays->pid[i], NULL, WNOHANG) != 0)
            strays->pid[i] = 0;
        if (!strays->pid[i])
            room = &strays->pid[i];
    }
    return room;
}

/* By the system call: signal(2) refuses the two signals that glibc keeps for itself, and its
 * posix_spawn(3), which make uses, hands those on as ignored. */
static void default_signals(void)
{
    const struct {
        unsigned long handler, flags, restorer;
        uint64_t mask;
    } by_default = {0};
    sigset_t none;

    for (int i = 1; i < NSIG; i++)
        syscall(SYS_rt_sigaction, i, &by_default, NULL, sizeof by_default.mask);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Not posix_spawn(): it returns only when the program is executed, and a file system that hangs
 * would hold this process up. */
_Noreturn static void become(const char *const argv[], char *const environment[], int out, int err)
{
    int null = open("/dev/null", O_RDONLY);

    setpgid(0, 0);
    default_signals();
    if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 ||
        dup2(err, STDERR_FILENO) < 0)
        _exit(127);
    close_range(STDERR_FILENO + 1, ~0U, 0);
    execve(argv[0], (char *const *)(uintptr_t)argv, environment);
    dprintf(STDERR_FILENO, "cannot execute '%s': %s\n", argv[0], strerror(errno));
    _exit(127);
}

static int spawn(const char *const argv[], struct outlets *outlets, pid_t *pid,
                 struct ls_error *err)
{
    const char *given = getenv("PATH");
    LS_AUTO_CLOSE int out = -1;
    LS_AUTO_CLOSE int error = -1;
    LS_AUTO_FREE char *path = NULL;
    int ends[2];

    if (asprintf(&path, "PATH=%s", given ? given : _PATH_STDPATH) < 0) {
        path = NULL;
        return ls_fail(err, LS_INTERNAL, "memory", "no memory for an environment");
    }
    if (pipe2(ends, O_CLOEXEC) != 0)
        return ls_fail_errno(err, LS_INTERNAL, "pipe", "cannot make a pipe");
    outlets->out = ends[0];
    out = ends[1];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return ls_fail_errno(err, LS_INTERNAL, "pipe", "cannot make a pipe");
    outlets->err = ends[0];
    error = ends[1];
    fcntl(outlets->out, F_SETFL, O_NONBLOCK);
    fcntl(outlets->err, F_SETFL, O_NONBLOCK);
    *pid = fork();
    if (*pid < 0)
        return ls_fail_errno(err, LS_INTERNAL, "fork", "cannot start '%s'", argv[0]);
    if (*pid == 0) {
        char language[] = "LC_ALL=C", *const environment[] = {path, language, NULL};

        become(argv, environment, out, error);
    }
    setpgid(*pid, *pid); /* here as well: it may be killed before it gets to it */
    return 0;
}

/* All that is there to be read. */
static int take(int *fd, struct ls_run_output *output, struct ls_error *err)
{
    while (*fd >= 0) {
        ssize_t n = read(*fd, output->text + output->size, sizeof output->text - output->size);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n <= 0) {
            close(*fd);
            *fd = -1;
            break;
        }
        output->size += (size_t)n;
        if (output->size > LS_RUN_OUTPUT_MAX) {
            output->text[--output->size] = '\0';
            return ls_fail(err, LS_INTERNAL, "too-long", "it writes more than %d bytes",
                           LS_RUN_OUTPUT_MAX);
        }
    }
    output->text[output->size] = '\0';
    return 0;
}

/* Reads along until it has ended: a child of its own that keeps its outputs open is no reason to
 * wait. */
static int attend(const struct ls_peer *child, struct outlets *outlets, int64_t until,
                  struct ls_run_result *result, struct ls_error *err)
{
    for (;;) {
        struct pollfd all[3] = {{.fd = child->pidfd, .events = POLLIN},
                                {.fd = outlets->out, .events = POLLIN},
                                {.fd = outlets->err, .events = POLLIN}};
        int n = poll(all, 3, ls_left_ms(until));

        if (n == 0)
            return ls_fail(err, LS_INTERNAL, "timeout", "it did not end within the limit");
        if (n < 0 && errno != EINTR)
            return ls_fail_errno(err, LS_INTERNAL, "poll", "cannot wait for it");
        if (n < 0)
            continue;
        if (take(&outlets->out, &result->out, err) != 0 ||
            take(&outlets->err, &result->err, err) != 0)
            return -1;
        if (all[0].revents)
            return 0;
    }
}

/* Kills what there is of its group, before its number is free for others. False: it lives on. */
static bool end(const struct ls_peer *child, int *status)
{
    kill(-child->pid, SIGKILL);
    return ls_peer_wait(child, ls_now_ms() + DEATH_MS) &&
           waitpid(child->pid, status, WNOHANG) == child->pid;
}

int ls_run(const char *const argv[], struct ls_strays *strays, int64_t until,
           struct ls_run_result *result, struct ls_error *err)
{
    LS_AUTO_OUTLETS struct outlets outlets = {-1, -1};
    struct ls_peer child = LS_PEER_NONE;
    pid_t *stray = find_room(strays);
    int outcome;

    memset(result, 0, sizeof *result);
    if (!stray)
        return ls_fail(err, LS_INTERNAL, "stuck",
                       "%d of it hang in the kernel already: no more are started",
                       LS_RUN_STRAYS_MAX);
    if (spawn(argv, &outlets, stray, err) != 0) {
        *stray = 0;
        return -1;
    }
    if (ls_peer_open(&child, *stray, 0, err) != 0) {
        kill(-*stray, SIGKILL);
        return -1;
    }
    outcome = attend(&child, &outlets, until, result, err);
    if (end(&child, &result->status))
        *stray = 0;
    else if (outcome == 0)
        outcome = ls_fail(err, LS_INTERNAL, "wait", "cannot learn how it ended");
    ls_peer_close(&child);
    return outcome;
}
