/* SPDX-License-Identifier: GPL-3.0-or-later */
#ifdef LS_FAULTS

#include "points.h"

#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/fault.h"
#include "target/attach.h"

const char *const way_names[WAYS] = {"device", "inject", "syscall"};

static bool starts_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

static bool on_the_way(const char *point, enum way way)
{
    if (!starts_with(point, "attach."))
        return false;
    if (starts_with(point, "attach.userfaultfd."))
        return way == WAY_SYSCALL;
    if (starts_with(point, "attach.ioctl."))
        return way != WAY_SYSCALL;
    if (starts_with(point, "attach.socketpair.") || starts_with(point, "attach.recvmsg.") ||
        strcmp(point, "attach.sent") == 0)
        return way == WAY_INJECT;
    return true;
}

struct filter {
    enum way way;
    void (*each)(const char *point, void *opaque);
    void *opaque;
};

static void pass_on(const char *name, void *opaque)
{
    const struct filter *f = opaque;

    if (on_the_way(name, f->way))
        f->each(name, f->opaque);
}

void points_each(enum way way, void (*each)(const char *point, void *opaque), void *opaque)
{
    struct filter f = {way, each, opaque};

    /* a kernel without the device has one way only */
    if (ls_uffd_device() != 0 || way == WAY_SYSCALL)
        ls_fault_list(pass_on, &f);
}

#define MAX_POINTS 100
static char tested[MAX_POINTS][64];
static int tested_count;
static int attempts;

static bool was_tested(const char *point)
{
    for (int i = 0; i < tested_count; i++)
        if (strcmp(tested[i], point) == 0)
            return true;
    return false;
}

static void hide_device(void)
{
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", "/dev", "tmpfs", 0, NULL) != 0 || ls_uffd_device() != 0)
        _exit(99);
}

int points_attach(pid_t pid, enum way way, const char *point, const char *action)
{
    char spec[128];
    int status;
    pid_t helper;

    snprintf(spec, sizeof spec, "%s:%s", point, action);
    helper = fork();
    assert_true(helper >= 0);
    if (helper == 0) {
        struct ls_attach_result result = {.uffd = -1};
        struct ls_error err;

        if (way == WAY_SYSCALL)
            hide_device();
        ls_fault_choose(spec);
        _exit(ls_attach_userfaultfd(pid, way == WAY_INJECT ? LS_ATTACH_INJECT : LS_ATTACH_DEVICE,
                                    &result, &err) == 0
                  ? 0
                  : 1);
    }
    assert_int_equal(waitpid(helper, &status, 0), helper);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 99)
        fail_msg("cannot hide /dev/userfaultfd");
    attempts++;
    if (!was_tested(point) && tested_count < MAX_POINTS)
        snprintf(tested[tested_count++], sizeof tested[0], "%s", point);
    return status;
}

static void check_tested(const char *name, void *opaque)
{
    (void)opaque;
    if (starts_with(name, "attach.") && !was_tested(name) &&
        (ls_uffd_device() != 0 || on_the_way(name, WAY_SYSCALL)))
        fail_msg("fault point %s has no test", name);
}

void points_all_tested(void)
{
    ls_fault_list(check_tested, NULL);
    printf("%d points, %d attempts\n", tested_count, attempts);
}

#endif
