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
#include <unistd.h>

#include <cmocka.h>

#include "support/points.h"
#include "support/rounds.h"
#include "support/victim.h"
#include "target/attach.h"

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
            for (unsigned i = 0; i < 5 * rounds(1, 3); i++) {
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
    for (unsigned i = 0; i < 40 * rounds(1, 3); i++) {
        victim_start(&v, VICTIM_PPOLL, 1);
        sender = fork();
        if (sender == 0) {
            usleep(i % 40 * 50);
            _exit(kill(v.pid, SIGSTOP) != 0);
        }
        if (ls_attach_userfaultfd(v.pid, LS_ATTACH_DEVICE, &result, &err) == 0)
            close(result.uffd);
        else
            assert_string_equal(err.reason, "stopped");
        waitpid(sender, NULL, 0);
        for (int wait = 0; wait < 1000 && status.state != 'T'; wait++) {
            usleep(1000);
            assert_int_equal(ls_proc_status(v.pid, v.pid, &status, &err), 0);
        }
        assert_int_equal(status.state, 'T');
        status.state = 0;
        kill(v.pid, SIGCONT);
        victim_goes_on(&v, 3);
        victim_stop(&v);
    }
}

#ifdef LS_FAULTS

struct scene {
    struct victim v;
    enum way way;
    const char *action;
    const char *before; /* its descriptors */
    bool helper_lives;
};

static void try_point(const char *point, void *opaque)
{
    struct scene *s = opaque;
    int status = points_attach(s->v.pid, s->way, point, s->action);
    char *after;

    /* while the thread is let go nothing fails any more; everywhere else it must */
    if (status == 0 && strncmp(point, "attach.leave.", 13) != 0)
        fail_msg("%s, %s: %s had no effect", way_names[s->way], point, s->action);
    victim_goes_on(&s->v, 2);
    after = descriptors_of(s->v.pid);
    if (s->helper_lives && strcmp(s->before, after) != 0)
        fail_msg("%s: descriptors were '%s' and are '%s'", point, s->before, after);
    free(after);
    attach_well(&s->v, s->way == WAY_INJECT ? LS_ATTACH_INJECT : LS_ATTACH_DEVICE, s->before);
    victim_goes_on(&s->v, 2);
}

/* One that waits for ever, one whose call is made again with the time that is left, one that makes
 * none: all that the kernel has to do with it differs. */
#define KINDS_EMULATED (1u << VICTIM_PPOLL | 1u << VICTIM_NANOSLEEP | 1u << VICTIM_BUSY_AVX)

/* `kinds`: which threads when the time is short. */
static void everywhere(const char *action, bool helper_lives, unsigned kinds)
{
    if (rounds_are_emulated())
        kinds &= KINDS_EMULATED;
    for (unsigned i = 0; i < rounds(1, 3) * VICTIM_KINDS * WAYS; i++) {
        struct scene s = {.way = i % WAYS, .action = action, .helper_lives = helper_lives};
        enum victim_kind kind = i / WAYS % VICTIM_KINDS;
        char *before;

        if (rounds_are_few() && !(kinds & 1u << kind))
            continue;
        /* Every way for one kind, and every kind for one way. */
        if (rounds_are_few() && kind != VICTIM_PPOLL && s.way != kind % WAY_SYSCALL)
            continue;
        /* Emulated, all that only where it is for the kernel to put things right, and not for us:
         * the helper's own code is the same as on the host. */
        if (rounds_are_emulated() && helper_lives &&
            (kind != VICTIM_PPOLL || s.way != kind % WAY_SYSCALL))
            continue;
        victim_start(&s.v, kind, s.way != WAY_INJECT);
        s.before = before = descriptors_of(s.v.pid);
        points_each(s.way, try_point, &s);
        free(before);
        victim_stop(&s.v);
    }
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

static void every_point_has_a_test(void **opaque)
{
    (void)opaque;
    points_all_tested();
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
        cmocka_unit_test(every_point_has_a_test),
#endif
    };

    if (geteuid() != 0) {
        printf("SKIP test_attach: needs root\n");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
