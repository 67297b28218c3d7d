/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "guard/peer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "common/cleanup.h"
#include "common/clock.h"

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

static void close_folder(DIR *const *folder)
{
    if (*folder)
        closedir(*folder);
}

#define LS_AUTO_FOLDER __attribute__((cleanup(close_folder)))

/* State letter and start time of /proc/PID/stat. The name in it may hold anything, ')' as well. */
static int read_stat(pid_t pid, char *state, uint64_t *start_time)
{
    char path[48], text[1024], *at;
    LS_AUTO_CLOSE int fd = -1;
    unsigned long long ticks;
    ssize_t n;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    n = read(fd, text, sizeof text - 1);
    if (n <= 0)
        return -1;
    text[n] = '\0';
    at = strrchr(text, ')');
    if (!at || sscanf(at + 1,
                      " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d "
                      "%llu",
                      state, &ticks) != 2)
        return -1;
    *start_time = ticks;
    return 0;
}

int ls_peer_open(struct ls_peer *peer, pid_t pid, uint64_t start_time, struct ls_error *err)
{
    LS_AUTO_CLOSE int fd = -1;
    uint64_t found = 0;
    char state;

    if (pid <= 1)
        return ls_fail(err, LS_USAGE, "usage", "%d is not a process to watch", (int)pid);
    fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0 && errno != ESRCH)
        return ls_fail_errno(err, LS_INTERNAL, "pidfd", "cannot open process %d", (int)pid);
    /* Read after the pidfd is open: what is read then is of the process that the pidfd holds, or
     * that process has ended, which the pidfd says. */
    if (fd < 0 || read_stat(pid, &state, &found) != 0)
        return ls_fail(err, LS_GONE, "gone", "process %d has ended", (int)pid);
    if (start_time && found != start_time)
        return ls_fail(err, LS_GONE, "gone",
                       "process %d is not the one meant: it started at tick %llu, not %llu",
                       (int)pid, (unsigned long long)found, (unsigned long long)start_time);
    *peer = (struct ls_peer){.pid = pid, .pidfd = ls_steal_fd(&fd), .start_time = found};
    return 0;
}

bool ls_peer_ended(const struct ls_peer *peer)
{
    return ls_peer_wait(peer, 0);
}

bool ls_peer_wait(const struct ls_peer *peer, int64_t until)
{
    for (;;) {
        struct pollfd one = {.fd = peer->pidfd, .events = POLLIN};
        int n = poll(&one, 1, ls_left_ms(until));

        if (n >= 0 || errno != EINTR)
            return n > 0;
    }
}

char ls_peer_state(const struct ls_peer *peer)
{
    uint64_t found;
    char state;

    if (read_stat(peer->pid, &state, &found) != 0 || found != peer->start_time)
        return 'X';
    return state;
}

int ls_peer_kill(const struct ls_peer *peer, struct ls_error *err)
{
    if (syscall(SYS_pidfd_send_signal, peer->pidfd, SIGKILL, NULL, 0) == 0 || errno == ESRCH)
        return 0;
    return ls_fail_errno(err, LS_INTERNAL, "kill", "cannot kill process %d", (int)peer->pid);
}

static DIR *open_threads(const struct ls_peer *peer)
{
    char path[48];

    snprintf(path, sizeof path, "/proc/%d/task", (int)peer->pid);
    return opendir(path);
}

/* The next entry that is a number, -1 at the end. */
static int next_number(DIR *folder)
{
    const struct dirent *entry;

    while ((entry = readdir(folder)))
        if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9')
            return (int)strtol(entry->d_name, NULL, 10);
    return -1;
}

static int take_from_thread(const struct ls_peer *peer, int fd)
{
    LS_AUTO_FOLDER DIR *threads = open_threads(peer);
    int tid;

    if (!threads || ls_peer_state(peer) == 'X')
        return -1;
    while ((tid = next_number(threads)) >= 0) {
        LS_AUTO_CLOSE int thread = (int)syscall(SYS_pidfd_open, tid, PIDFD_THREAD);
        int copy = thread < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, thread, fd, 0);

        if (copy >= 0)
            return copy;
    }
    return -1;
}

int ls_peer_take(const struct ls_peer *peer, int fd, struct ls_error *err)
{
    int copy = (int)syscall(SYS_pidfd_getfd, peer->pidfd, fd, 0);
    int why = errno;

    if (copy < 0)
        copy = take_from_thread(peer, fd);
    if (copy >= 0)
        return copy;
    errno = why;
    return ls_fail_errno(err, why == ESRCH || why == EBADF ? LS_GONE : LS_INTERNAL, "getfd",
                         "cannot take descriptor %d of process %d", fd, (int)peer->pid);
}

static bool leads_to(int fd, pid_t other, const char *const paths[2])
{
    struct sockaddr_un address = {0};
    struct ucred cred;
    socklen_t size = sizeof address - 1; /* keeps a NUL behind the longest path */

    if (getpeername(fd, (struct sockaddr *)&address, &size) != 0 || address.sun_family != AF_UNIX)
        return false;
    for (int i = 0; i < 2; i++)
        if (paths[i] && address.sun_path[0] && strcmp(address.sun_path, paths[i]) == 0)
            return true;
    size = sizeof cred;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) == 0 && cred.pid == other;
}

size_t ls_peer_take_sockets(const struct ls_peer *peer, pid_t other, const char *const paths[2],
                            int *fds, size_t room)
{
    LS_AUTO_FOLDER DIR *folder = NULL;
    char path[48];
    size_t count = 0;
    int fd;

    snprintf(path, sizeof path, "/proc/%d/fd", (int)peer->pid);
    folder = opendir(path);
    while (folder && count < room && (fd = next_number(folder)) >= 0) {
        char name[16], kind[8] = "";
        int copy;

        snprintf(name, sizeof name, "%d", fd);
        if (readlinkat(dirfd(folder), name, kind, sizeof kind - 1) < 0 ||
            strcmp(kind, "socket:") != 0)
            continue;
        copy = (int)syscall(SYS_pidfd_getfd, peer->pidfd, fd, 0);
        if (copy >= 0 && leads_to(copy, other, paths))
            fds[count++] = copy;
        else if (copy >= 0)
            close(copy);
    }
    return count;
}

void ls_peer_close(struct ls_peer *peer)
{
    if (peer->pidfd >= 0)
        close(peer->pidfd);
    *peer = (struct ls_peer)LS_PEER_NONE;
}
