/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "ksm_on.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"

#define PLACE "/sys/kernel/mm/ksm/"
#define PAUSED "/run/livesnap/ksm" /* is there while captures have KSM paused */

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

static pid_t restorer;
static uint64_t scans_before;
static bool disturbed;
static int lifeline = -1;
/* There is one KSM for the whole machine, and tests of several checkouts may run on it. The
 * restorer holds this lock, too, until it is through. */
static int lock = -1;

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
    /* A capture that has paused KSM switches it on again when it ends: ours is the last word. */
    for (int i = 0; i < 300 && access(PAUSED, F_OK) == 0; i++)
        usleep(100000);
    /* Pages of others were merged by us, too, where it was off: part them. */
    if (switches[SWITCHES - 1].was[0] == '0')
        set("run", "2");
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
    if (access(PAUSED, F_OK) == 0)
        return "a capture on this machine has paused KSM";
    lock = open(PLACE "run", O_RDONLY | O_CLOEXEC);
    if (lock < 0 || flock(lock, LOCK_EX | LOCK_NB) < 0) {
        ls_close_fd(&lock);
        lock = -1;
        return "another test on this machine has borrowed KSM";
    }
    for (size_t i = 0; i < SWITCHES; i++)
        get(switches[i].name, switches[i].was, sizeof switches[i].was);
    scans_before = full_scans();
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    restorer = fork();
    assert_true(restorer >= 0);
    if (restorer == 0) {
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

void ksm_rest(bool rest)
{
    /* The write waits until ksmd is out of its scan. */
    if (access(PAUSED, F_OK) != 0 && !set("run", rest ? "0" : "1"))
        fail_msg("cannot switch KSM");
}

void ksm_off(void)
{
    char text[32];

    if (lifeline < 0)
        return;
    assert_int_equal(write(lifeline, "x", 1), 1);
    close(lifeline);
    lifeline = -1;
    assert_int_equal(waitpid(restorer, NULL, 0), restorer);
    for (size_t i = 0; i < SWITCHES; i++)
        /* `run` belongs to a capture that has paused it in the meantime */
        if (switches[i].was[0] && (i < SWITCHES - 1 || access(PAUSED, F_OK) != 0)) {
            assert_true(get(switches[i].name, text, sizeof text));
            assert_string_equal(text, switches[i].was);
        }
    ls_close_fd(&lock);
    lock = -1;
}

const char *ksm_at_work(void)
{
    uint64_t scans = full_scans();
    char text[32];

    disturbed |= !get("run", text, sizeof text) || text[0] != '1' || scans < scans_before;
    if (disturbed)
        return "KSM was switched by somebody else on this machine";
    /* One round to see a page, the next to find it unchanged, and some to spare. */
    return scans - scans_before < 10 ? "ksmd has not come round on this busy machine" : NULL;
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
