/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "ksm_on.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"

#define PLACE "/sys/kernel/mm/ksm/"

/* `run` is the last to be set and the first to be put back. */
static struct {
    const char *name, *hurried;
    char was[32];
} switches[] = {
    {"smart_scan", "0", ""}, /* pages that were not merged before are looked at each time */
    {"sleep_millisecs", "0", ""},
    {"pages_to_scan", "20000", ""},
    {"run", "1", ""},
};
#define SWITCHES (sizeof switches / sizeof *switches)

static pid_t keeper;
static uint64_t scans_before;
static int lifeline = -1;

static bool get(const char *name, char *text, size_t room)
{
    LS_AUTO_CLOSE int fd = -1;
    char path[128];
    ssize_t n;

    snprintf(path, sizeof path, PLACE "%s", name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? -1 : read(fd, text, room - 1);
    text[n < 0 ? 0 : n] = 0;
    return n > 0;
}

static bool set(const char *name, const char *text)
{
    LS_AUTO_CLOSE int fd = -1;
    char path[128];

    snprintf(path, sizeof path, PLACE "%s", name);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
}

static uint64_t full_scans(void)
{
    char text[32];

    return get("full_scans", text, sizeof text) ? strtoull(text, NULL, 10) : 0;
}

static void put_back(void)
{
    set("run", "2"); /* merged pages are parted: pages of others, too, were merged only by us */
    for (size_t i = SWITCHES; i-- > 0;)
        if (switches[i].was[0])
            set(switches[i].name, switches[i].was);
}

const char *ksm_on(void)
{
    int ends[2];
    char c;

    if (geteuid() != 0)
        return "only root may switch KSM";
    if (!get("run", switches[SWITCHES - 1].was, sizeof switches[0].was))
        return "this kernel has no KSM";
    if (switches[SWITCHES - 1].was[0] != '0' || access("/run/livesnap/ksm", F_OK) == 0)
        return "KSM of this machine is in use";
    for (size_t i = 0; i < SWITCHES; i++)
        get(switches[i].name, switches[i].was, sizeof switches[i].was);
    scans_before = full_scans();
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    keeper = fork();
    assert_true(keeper >= 0);
    if (keeper == 0) {
        /* In a session of its own, so that what ends the test's group does not end it. */
        setsid();
        for (int s = 1; s < 32; s++)
            signal(s, SIG_IGN);
        close(ends[1]);
        (void)!read(ends[0], &c, 1); /* a byte, or the end of the test */
        put_back();
        _exit(0);
    }
    close(ends[0]);
    lifeline = ends[1];
    for (size_t i = 0; i < SWITCHES; i++)
        if (switches[i].was[0] && !set(switches[i].name, switches[i].hurried))
            fail_msg("cannot set " PLACE "%s", switches[i].name);
    return NULL;
}

void ksm_off(void)
{
    char text[32];

    if (lifeline < 0)
        return;
    assert_int_equal(write(lifeline, "x", 1), 1);
    close(lifeline);
    lifeline = -1;
    assert_int_equal(waitpid(keeper, NULL, 0), keeper);
    for (size_t i = 0; i < SWITCHES; i++)
        if (switches[i].was[0]) {
            assert_true(get(switches[i].name, text, sizeof text));
            assert_string_equal(text, switches[i].was);
        }
}

const char *ksm_at_work(void)
{
    char text[32];

    if (!get("run", text, sizeof text) || text[0] != '1')
        return "KSM was paused by another capture on this machine";
    /* One round to see a page, the next to find it unchanged; and the first may be half a one. */
    if (full_scans() - scans_before < 4)
        return "ksmd has not come round on this busy machine";
    return NULL;
}

uint64_t ksm_merged(pid_t pid)
{
    char path[64], line[128];
    uint64_t pages = 0;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%d/ksm_merging_pages", (int)pid);
    f = fopen(path, "re");
    if (f && fgets(line, sizeof line, f))
        pages = strtoull(line, NULL, 10);
    if (f)
        fclose(f);
    return pages;
}
