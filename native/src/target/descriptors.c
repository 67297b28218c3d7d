/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Descriptors of the target: those that it was given, and those that were left behind in it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "target/attach.h"

#define DEVICE "/dev/userfaultfd"
#define UFFD_LINK "anon_inode:[userfaultfd]"
/* Flags without a meaning for this device, which stay with the open file and can be read from
 * fdinfo in every process that holds it. */
#define MARK (O_NOATIME | O_DSYNC)

int ls_pidfd_open(pid_t pid)
{
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

int ls_pidfd_getfd(int pidfd, int fd)
{
    return (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
}

dev_t ls_uffd_device(void)
{
    struct stat st;

    return stat(DEVICE, &st) == 0 && S_ISCHR(st.st_mode) ? st.st_rdev : 0;
}

int ls_uffd_device_open(void)
{
    return open(DEVICE, O_RDWR | O_CLOEXEC | MARK);
}

/* Calls `each` with every descriptor number of the process; stops when it returns true. */
static void each_fd(pid_t pid, bool (*each)(pid_t pid, int fd, void *opaque), void *opaque)
{
    char path[64];
    struct dirent *entry;
    DIR *dir;

    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    dir = opendir(path);
    if (!dir)
        return;
    while ((entry = readdir(dir)))
        if (entry->d_name[0] != '.' && each(pid, atoi(entry->d_name), opaque))
            break;
    closedir(dir);
}

static bool is_device(pid_t pid, int fd, dev_t device)
{
    char path[64];
    struct stat st;

    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)pid, fd);
    return device && stat(path, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == device;
}

/* Flags of the open file, and for a userfaultfd its features; false if it is gone. */
static bool read_fdinfo(pid_t pid, int fd, unsigned *flags, unsigned *features)
{
    char path[64];
    char line[256];
    FILE *file;

    snprintf(path, sizeof path, "/proc/%d/fdinfo/%d", (int)pid, fd);
    file = fopen(path, "re");
    if (!file)
        return false;
    *flags = 0;
    *features = ~0u;
    while (fgets(line, sizeof line, file)) {
        sscanf(line, "flags: %o", flags);
        sscanf(line, "API: %*x:%x:", features);
    }
    fclose(file);
    return true;
}

struct search {
    pid_t pid;
    dev_t device;
    int pidfd;
    int *fds;
    size_t max;
    size_t count;
};

static bool take_device(pid_t pid, int fd, void *opaque)
{
    struct search *s = opaque;
    unsigned flags;
    unsigned features;

    if (!is_device(pid, fd, s->device) || !read_fdinfo(pid, fd, &flags, &features) ||
        (flags & MARK) == MARK)
        return false;
    s->fds[0] = fd;
    s->count = 1;
    return true;
}

int ls_target_find_device(pid_t pid, dev_t device)
{
    int fd = -1;
    struct search s = {.device = device, .fds = &fd};

    each_fd(pid, take_device, &s);
    return fd;
}

/* Half of a pair that the process made for itself, of the kind that an attacher asks for: without a
 * name, of a type that QEMU and its libraries have no pair of. */
static bool is_our_socket(const struct search *s, int fd)
{
    LS_AUTO_CLOSE int copy = ls_pidfd_getfd(s->pidfd, fd);
    struct sockaddr_un name;
    struct ucred peer;
    int type;
    int domain;
    socklen_t type_size = sizeof type;
    socklen_t domain_size = sizeof domain;
    socklen_t name_size = sizeof name;
    socklen_t peer_size = sizeof peer;

    return copy >= 0 && getsockopt(copy, SOL_SOCKET, SO_TYPE, &type, &type_size) == 0 &&
           type == SOCK_SEQPACKET &&
           getsockopt(copy, SOL_SOCKET, SO_DOMAIN, &domain, &domain_size) == 0 &&
           domain == AF_UNIX && getsockname(copy, (struct sockaddr *)&name, &name_size) == 0 &&
           name_size == sizeof(sa_family_t) &&
           getsockopt(copy, SOL_SOCKET, SO_PEERCRED, &peer, &peer_size) == 0 && peer.pid == s->pid;
}

static bool read_link(pid_t pid, int fd, char link[64])
{
    char path[64];
    ssize_t n;

    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)pid, fd);
    n = readlink(path, link, 63);
    link[n < 0 ? 0 : n] = 0;
    return n >= 0;
}

bool ls_target_has_uffd(pid_t pid, int fd)
{
    char link[64];

    return read_link(pid, fd, link) && strcmp(link, UFFD_LINK) == 0;
}

static bool take_stray(pid_t pid, int fd, void *opaque)
{
    struct search *s = opaque;
    char link[64];
    unsigned flags;
    unsigned features;
    bool ours;

    if (!read_link(pid, fd, link) || !read_fdinfo(pid, fd, &flags, &features))
        return false;
    if (strcmp(link, UFFD_LINK) == 0)
        ours = features == 0; /* nobody has said UFFDIO_API to it: it was left half-way */
    else if (strncmp(link, "socket:", 7) == 0)
        ours =
            (flags & (O_NONBLOCK | O_CLOEXEC)) == (O_NONBLOCK | O_CLOEXEC) && is_our_socket(s, fd);
    else
        ours = (flags & MARK) == MARK && is_device(pid, fd, s->device);
    if (ours)
        s->fds[s->count++] = fd;
    return s->count == s->max;
}

size_t ls_target_strays(pid_t pid, int *fds, size_t max)
{
    LS_AUTO_CLOSE int pidfd = ls_pidfd_open(pid);
    struct search s = {
        .pid = pid, .device = ls_uffd_device(), .pidfd = pidfd, .fds = fds, .max = max};

    each_fd(pid, take_stray, &s);
    return s.count;
}
