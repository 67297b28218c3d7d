/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "hugepages.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/"

static pid_t watcher;
static int taken = -1; /* closed: given back */
static long before;

static long number(const char *path)
{
    long n = -1;
    FILE *f = fopen(path, "re");

    if (f && fscanf(f, "%ld", &n) != 1)
        n = -1;
    if (f)
        fclose(f);
    return n;
}

static void set(long n)
{
    FILE *f = fopen(POOL "nr_hugepages", "we");

    if (!f)
        return;
    fprintf(f, "%ld", n);
    fclose(f);
}

long hugepages_free(void)
{
    return number(POOL "free_hugepages");
}

/* Waits in a process of its own until whoever took them has given back, or died. */
static void watch(int end)
{
    char byte;

    setsid(); /* signals for the test are not for this */
    while (read(end, &byte, 1) > 0)
        ;
    set(before);
    _exit(0);
}

bool hugepages_take(unsigned pages, const char **why)
{
    int lock = open(POOL "nr_hugepages", O_RDONLY | O_CLOEXEC);
    int ends[2];

    if (lock < 0 || pipe2(ends, O_CLOEXEC) < 0) {
        *why = "the kernel has no huge pages of 2 MiB";
        return false;
    }
    /* The lock of the pool: tests that run side by side would undo each other's number. */
    flock(lock, LOCK_EX);
    before = number(POOL "nr_hugepages");
    watcher = fork();
    if (watcher == 0) {
        close(ends[1]);
        watch(ends[0]);
    }
    close(ends[0]);
    close(lock); /* the watcher has it */
    taken = ends[1];
    set(before + pages);
    if (watcher > 0 && hugepages_free() >= (long)pages)
        return true;
    hugepages_give_back();
    *why = "the kernel does not give huge pages";
    return false;
}

void hugepages_give_back(void)
{
    close(taken);
    waitpid(watcher, NULL, 0);
}
