/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "common/ksm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

#include "common/cleanup.h"

#define LOCK_TRIES 2000 /* of 1 ms */

static const char *state_folder = "/run/livesnap/ksm";
static const char *run_file = "/sys/kernel/mm/ksm/run";

void ls_ksm_places(const char *folder, const char *run)
{
    state_folder = folder ? folder : "/run/livesnap/ksm";
    run_file = run ? run : "/sys/kernel/mm/ksm/run";
}

static void make_folders(void)
{
    char parent[256];

    snprintf(parent, sizeof parent, "%s", state_folder);
    *strrchr(parent, '/') = '\0';
    (void)mkdir(parent, 0711);
    (void)mkdir(state_folder, 0700);
}

/* Whether the folder is still what its path leads to: whoever is the last removes it. */
static bool is_current(int folder)
{
    struct stat held, found;

    return fstat(folder, &held) == 0 && stat(state_folder, &found) == 0 &&
           held.st_ino == found.st_ino && held.st_dev == found.st_dev;
}

/* 1: locked. 0: held by another. */
static int try_lock(int folder)
{
    if (flock(folder, LOCK_EX | LOCK_NB) == 0)
        return 1;
    return errno == EWOULDBLOCK || errno == EINTR ? 0 : -1;
}

/* The folder, locked until it is closed. With `make` it is made. 0: there is none. */
static int open_state(bool make, int *state, struct ls_error *err)
{
    /* Held for microseconds by others, but the guard must not hang on one that is stopped. */
    for (int tries = 0; tries < LOCK_TRIES; tries++) {
        const struct timespec step = {.tv_nsec = 1000000};
        LS_AUTO_CLOSE int folder = -1;
        int locked;

        if (make)
            make_folders();
        folder = open(state_folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (folder < 0 && errno == ENOENT) {
            if (!make)
                return 0;
            continue; /* removed between the two */
        }
        locked = folder < 0 ? -1 : try_lock(folder);
        if (locked < 0)
            return ls_fail_errno(err, LS_INTERNAL, "ksm", "cannot lock '%s'", state_folder);
        if (locked > 0 && is_current(folder)) {
            *state = ls_steal_fd(&folder);
            return 1;
        }
        nanosleep(&step, NULL);
    }
    return ls_fail(err, LS_INTERNAL, "ksm", "cannot lock '%s': it is held", state_folder);
}

/* The first number in a file; -1 where there is none. */
static int read_number(int folder, const char *name)
{
    LS_AUTO_CLOSE int fd = openat(folder, name, O_RDONLY | O_CLOEXEC);
    char text[16] = "";

    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0 || text[0] < '0' || text[0] > '9')
        return -1;
    return (int)strtol(text, NULL, 10);
}

static int write_number(int folder, const char *name, int value, struct ls_error *err)
{
    LS_AUTO_CLOSE int fd = openat(folder, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    char text[16];
    int size = snprintf(text, sizeof text, "%d\n", value);

    if (fd < 0 || write(fd, text, (size_t)size) != size)
        return ls_fail_errno(err, LS_INTERNAL, "ksm", "cannot write %d to '%s'", value, name);
    return 0;
}

/* Start time of a process, 0 when it has ended (a zombie has). */
static unsigned long long start_of(pid_t pid)
{
    char path[48], text[1024], state, *at;
    LS_AUTO_CLOSE int fd = -1;
    unsigned long long ticks;
    ssize_t n;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n <= 0)
        return 0;
    text[n] = '\0';
    at = strrchr(text, ')');
    if (!at || sscanf(at + 1,
                      " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d "
                      "%llu",
                      &state, &ticks) != 2)
        return 0;
    return state == 'Z' || state == 'X' ? 0 : ticks;
}

/* Counts the holders that live; removes the files of the dead, and of `leaving`. */
static int count_holders(int folder, pid_t leaving)
{
    int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = copy < 0 ? NULL : fdopendir(copy);
    const struct dirent *entry;
    int count = 0;

    while (entries && (entry = readdir(entries))) {
        unsigned long long start;
        int pid;

        if (sscanf(entry->d_name, "%d-%llu", &pid, &start) != 2)
            continue;
        if (pid != leaving && start_of(pid) == start)
            count++;
        else
            unlinkat(folder, entry->d_name, 0);
    }
    if (entries)
        closedir(entries);
    else if (copy >= 0)
        close(copy);
    return count;
}

static int put_back(int folder, struct ls_error *err)
{
    int was = read_number(folder, "was");

    /* 0 is what we left there: another value is somebody else's will. */
    if (was > 0 && read_number(AT_FDCWD, run_file) == 0 &&
        write_number(AT_FDCWD, run_file, was, err) != 0)
        return -1;
    unlinkat(folder, "was", 0);
    (void)rmdir(state_folder);
    return 0;
}

bool ls_ksm_runs(void)
{
    return read_number(AT_FDCWD, run_file) == 1;
}

int ls_ksm_pause(pid_t holder, bool *paused, struct ls_error *err)
{
    LS_AUTO_CLOSE int folder = -1;
    int now, held;
    char name[64];

    *paused = false;
    if (access(run_file, F_OK) != 0)
        return 0; /* a kernel without KSM */
    if (open_state(true, &folder, err) < 0)
        return -1;
    now = read_number(AT_FDCWD, run_file);
    held = count_holders(folder, 0) > 0 || read_number(folder, "was") > 0;
    if (now == 0 && !held) {
        (void)rmdir(state_folder);
        return 0;
    }
    snprintf(name, sizeof name, "%d-%llu", (int)holder, start_of(holder));
    /* What was goes down before the switch: death in between is then put right by the next one. */
    if (now > 0 && write_number(folder, "was", now, err) != 0)
        return -1;
    if (write_number(folder, name, 0, err) != 0)
        return -1;
    /* The write waits until ksmd is out of its scan. */
    if (now > 0 && write_number(AT_FDCWD, run_file, 0, err) != 0) {
        unlinkat(folder, name, 0);
        return -1;
    }
    *paused = true;
    return 0;
}

static int let_go(pid_t holder, struct ls_error *err)
{
    LS_AUTO_CLOSE int folder = -1;
    int found = open_state(false, &folder, err);

    if (found <= 0)
        return found;
    return count_holders(folder, holder) > 0 ? 0 : put_back(folder, err);
}

int ls_ksm_resume(pid_t holder, struct ls_error *err)
{
    return let_go(holder, err);
}

int ls_ksm_tidy(struct ls_error *err)
{
    return let_go(0, err);
}
