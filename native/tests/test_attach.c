/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Attaching to threads that do all sorts of things, and dying at every point of it: the victim must
 * not notice, and the next attempt must work and leave nothing behind. The points come from the
 * program's own list; ROUNDS repeats everything.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/fault.h"
#include "support/victim.h"
#include "target/attach.h"

#ifdef LS_FAULTS
static const char *const how_names[] = {"device", "inject"};
#endif

static int rounds(void)
{
    const char *text = getenv("ROUNDS");

    return text && atoi(text) > 0 ? atoi(text) : 1;
}

/* The userfaultfd is one of the victim's address space: the region exists only there. */
static void assert_uffd_of(const struct victim *v, int uffd)
{
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
    struct uffdio_register reg = {.range = {(uint64_t)(uintptr_t)v->region, 65536},
                                  .mode = UFFDIO_REGISTER_MODE_WP};

    assert_int_equal(ioctl(uffd, UFFDIO_API, &api), 0);
    assert_int_equal(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);
    assert_int_equal(ioctl(uffd, UFFDIO_UNREGISTER, &reg.range), 0);
}

static void attach_well(struct victim *v, enum ls_attach_how how, const char *descriptors)
{
    struct ls_attach_result result = {.uffd = -1};
    struct ls_error err = {0};
    char *after;

    if (ls_attach_userfaultfd(v->pid, how, &result, &err) != 0)
        fail_msg("%s: %s", err.reason, err.message);
    assert_uffd_of(v, result.uffd);
    close(result.uffd);
    after = descriptors_of(v->pid);
    assert_string_equal(after, descriptors);
    free(after);
}

static void without_faults(void **opaque)
{
    (void)opaque;
    for (int kind = 0; kind < VICTIM_KINDS; kind++) {
        for (int how = 0; how < 2; how++) {
            struct victim v;
            char *before;

            victim_start(&v, kind, how == LS_ATTACH_DEVICE);
            before = descriptors_of(v.pid);
            for (int i = 0; i < 5 * rounds(); i++) {
                attach_well(&v, how, before);
                victim_goes_on(&v, 3);
            }
            free(before);
            victim_stop(&v);
        }
    }
}

/* Signals that arrive while the thread is ours are queued, none is lost. */
static void signals_are_kept(void **opaque)
{
    struct victim v;
    char *before;
    pid_t sender;
    int status;
    int want = 3000;

    (void)opaque;
#ifdef __SANITIZE_THREAD__
    printf("SKIP signals_are_kept: TSan itself merges signals of one number\n");
    skip();
#endif
    victim_start(&v, VICTIM_NANOSLEEP, 1);
    before = descriptors_of(v.pid);
    sender = fork();
    if (sender == 0) {
        for (int i = 0; i < want; i++) {
            while (sigqueue(v.pid, SIGRTMIN, (union sigval){.sival_int = i}) != 0)
                usleep(100);
            usleep(50);
        }
        _exit(0);
    }
    while (waitpid(sender, &status, WNOHANG) == 0)
        attach_well(&v, LS_ATTACH_DEVICE, before);
    victim_goes_on(&v, 3);
    for (int i = 0; i < 1000 && atomic_load(&v.state->signals) < want; i++)
        usleep(1000);
    assert_int_equal(atomic_load(&v.state->signals), want);
    free(before);
    victim_stop(&v);
}

/* SIGSTOP in the middle takes effect, and SIGCONT ends it. */
static void stop_is_kept(void **opaque)
{
    struct ls_proc_status status = {0};
    struct ls_error err = {0};
    struct ls_attach_result result;
    struct victim v;
    pid_t sender;

    (void)opaque;
    for (int i = 0; i < 40 * rounds(); i++) {
        victim_start(&v, VICTIM_PPOLL, 1);
        sender = fork();
        if (sender == 0) {
            usleep((useconds_t)(i % 40) * 50);
            _exit(kill(v.pid, SIGSTOP) != 0);
        }
        if (ls_attach_userfaultfd(v.pid, LS_ATTACH_DEVICE, &result, &err) == 0)
            close(result.uffd);
        else
            assert_string_equal(err.reason, "stopped");
        waitpid(sender, NULL, 0);
        usleep(2000);
        assert_int_equal(ls_proc_status(v.pid, v.pid, &status, &err), 0);
        assert_int_equal(status.state, 'T');
        kill(v.pid, SIGCONT);
        victim_goes_on(&v, 3);
        victim_stop(&v);
    }
}

#ifdef LS_FAULTS

#define MAX_POINTS 100
static char points[MAX_POINTS][64];
static int point_count;

static void add_point(const char *name, void *opaque)
{
    (void)opaque;
    if (strncmp(name, "attach.", 7) != 0)
        return;
    assert_true(point_count < MAX_POINTS);
    snprintf(points[point_count++], sizeof points[0], "%s", name);
}

/* Whether a point is on the way at all: calls of the other way, or of kernels without the device.
 */
static bool on_the_way(const char *point, int how)
{
    if (strncmp(point, "attach.userfaultfd.", 19) == 0)
        return ls_uffd_device() == 0;
    if (ls_uffd_device() == 0 && strncmp(point, "attach.ioctl.", 13) == 0)
        return false;
    if (strncmp(point, "attach.socketpair.", 18) == 0 ||
        strncmp(point, "attach.recvmsg.", 15) == 0 || strcmp(point, "attach.sent") == 0)
        return how == LS_ATTACH_INJECT && ls_uffd_device() != 0;
    return true;
}

static int passed_points;

/* Attaches with one fault in a process of its own, which plays the helper. */
static void attach_with(struct victim *v, int how, const char *point, const char *action, bool *ok)
{
    char spec[128];
    int status;
    pid_t helper;

    snprintf(spec, sizeof spec, "%s:%s", point, action);
    helper = fork();
    if (helper == 0) {
        struct ls_attach_result result = {.uffd = -1};
        struct ls_error err;

        ls_fault_choose(spec);
        _exit(ls_attach_userfaultfd(v->pid, how, &result, &err) == 0 ? 0 : 1);
    }
    assert_int_equal(waitpid(helper, &status, 0), helper);
    *ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void at_every_point(int kind, int how, const char *action, bool helper_lives)
{
    struct victim v;
    char *before;

    victim_start(&v, kind, how == LS_ATTACH_DEVICE);
    before = descriptors_of(v.pid);
    for (int i = 0; i < point_count; i++) {
        bool ok;
        char *after;

        if (!on_the_way(points[i], how))
            continue;
        attach_with(&v, how, points[i], action, &ok);
        /* the points after the thread was let go do not fail by "error", all others must */
        if (ok && strncmp(points[i], "attach.leave.", 13) != 0)
            fail_msg("%s, %s: %s had no effect", how_names[how], points[i], action);
        passed_points++;
        victim_goes_on(&v, 2);
        after = descriptors_of(v.pid);
        if (helper_lives && strcmp(before, after) != 0)
            fail_msg("%s: descriptors were '%s' and are '%s'", points[i], before, after);
        free(after);
        attach_well(&v, how, before);
        victim_goes_on(&v, 2);
    }
    free(before);
    victim_stop(&v);
}

/* `kinds`: which threads when the time is short. */
static void everywhere(const char *action, bool helper_lives, unsigned kinds)
{
    struct timespec t0;
    struct timespec t1;

    clock_gettime(CLOCK_MONOTONIC, &t0);
    passed_points = point_count = 0;
    ls_fault_list(add_point, NULL);
    assert_true(point_count > 20);
    for (int r = 0; r < rounds(); r++)
        for (int kind = 0; kind < VICTIM_KINDS; kind++)
            for (int how = 0; how < 2 && (rounds() > 1 || kinds & 1u << kind); how++)
                at_every_point(kind, how, action, helper_lives);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    printf("%s: %d points, %d attempts, %ld s\n", action, point_count, passed_points,
           (long)(t1.tv_sec - t0.tv_sec));
}

static void attacher_dies_everywhere(void **opaque)
{
    (void)opaque;
    everywhere("kill", true, ~0u);
}

static void helper_dies_everywhere(void **opaque)
{
    (void)opaque;
    everywhere("killboth", false,
               1u << VICTIM_PPOLL | 1u << VICTIM_NANOSLEEP | 1u << VICTIM_BUSY_AVX);
}

static void attacher_fails_everywhere(void **opaque)
{
    (void)opaque;
    everywhere("error", true, 1u << VICTIM_PPOLL | 1u << VICTIM_BUSY);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_faults),
        cmocka_unit_test(signals_are_kept),
        cmocka_unit_test(stop_is_kept),
#ifdef LS_FAULTS
        cmocka_unit_test(attacher_dies_everywhere),
        cmocka_unit_test(helper_dies_everywhere),
        cmocka_unit_test(attacher_fails_everywhere),
#endif
    };

    if (geteuid() != 0) {
        printf("SKIP test_attach: needs root\n");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
