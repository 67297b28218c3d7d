/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `engines`: why the RAM of a process cannot be captured by which engine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <jansson.h>

#include "capture_lab.h"
#include "commands.h"
#include "uffd/uffd.h"

static json_t *ask(const struct lab *l, bool stop)
{
    char pid[16], ramblock[2048] = "Block Name PSize Offset Used Total HVA RO\n", out[4096] = "";
    char *argv[] = {(char[]){"engines"},
                    (char[]){"--pid"},
                    pid,
                    (char[]){"--ramblock"},
                    ramblock,
                    (char[]){"--stop"},
                    NULL};
    int pipe_fd[2], status;
    size_t used = 0;
    json_t *said;
    ssize_t n;
    pid_t child;

    snprintf(pid, sizeof pid, "%d", (int)l->pid);
    for (unsigned b = 0; b < l->blocks; b++) {
        size_t at = strlen(ramblock);

        snprintf(ramblock + at, sizeof ramblock - at,
                 "block%u 4 KiB 0x%016llx 0x%016zx 0x%016zx 0x%016llx rw\n", b, b * 0x10000000ull,
                 l->block[b].size, l->block[b].size, (unsigned long long)(uintptr_t)l->block[b].at);
    }
    assert_int_equal(pipe2(pipe_fd, O_CLOEXEC), 0);
    child = fork();
    if (child == 0) {
        dup2(pipe_fd[1], STDOUT_FILENO);
        exit(ls_cmd_engines(stop ? 6 : 5, argv));
    }
    close(pipe_fd[1]);
    while ((n = read(pipe_fd[0], out + used, sizeof out - used)) > 0)
        used += (size_t)n;
    close(pipe_fd[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    said = json_loadb(out, used, 0, NULL);
    assert_non_null(said);
    print_message("%.*s", (int)used, out);
    return said;
}

/* How often an engine gives a reason, and all that it gives. */
static unsigned count(const json_t *said, const char *engine, const char *reason)
{
    json_t *list = json_object_get(said, engine), *entry;
    unsigned found = 0;
    size_t i;

    assert_true(json_is_array(list));
    json_array_foreach(list, i, entry)
    {
        assert_true(strlen(json_string_value(json_object_get(entry, "message"))) > 10);
        found +=
            !reason || strcmp(json_string_value(json_object_get(entry, "reason")), reason) == 0;
    }
    return found;
}

static void nothing_against_it(void **state)
{
    struct lab l = {0};
    json_t *said;

    (void)state;
    lab_add(&l, 4 << 20, false, false);
    lab_start(&l, false);
    for (int stop = 0; stop < 2; stop++) {
        said = ask(&l, stop);
        assert_int_equal(count(said, "uffd", NULL), 0);
        assert_int_equal(count(said, "qemu", NULL), 0);
        assert_int_equal(count(said, "pause", NULL), 0);
        json_decref(said);
    }
    lab_stop(&l);
}

/* Each block has a reason of its own, and each is given. */
static void every_reason_is_given(void **state)
{
    char path[] = "/var/tmp/livesnap-test-XXXXXX";
    struct lab l = {0};
    struct ls_error err;
    json_t *said;
    int fd, uffd;

    (void)state;
    lab_add(&l, 4 << 20, false, false);
    lab_add(&l, 4 << 20, true, false); /* which this process maps as well */
    fd = mkstemp(path);
    assert_true(fd >= 0);
    unlink(path);
    assert_int_equal(ftruncate(fd, 4 << 20), 0);
    l.block[2] = (struct lab_block){
        .at = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0), .size = 4 << 20};
    l.blocks = 3;
    lab_start(&l, false);
    uffd = lab_uffd(&l);
    assert_int_equal(ls_uffd_handshake(uffd, &err), 0);
    assert_int_equal(ls_uffd_register(uffd, (uintptr_t)l.block[0].at, l.block[0].size, &err), 0);
    said = ask(&l, true);
    assert_int_equal(count(said, "uffd", "userfaultfd-in-use"), 1);
    assert_int_equal(count(said, "uffd", "memory-kind"), 1);
    assert_int_equal(count(said, "uffd", "shared_ram"), 2); /* this one, and the child that asks */
    assert_int_equal(count(said, "uffd", NULL), 4);
    assert_int_equal(count(said, "qemu", "userfaultfd-in-use"), 1);
    assert_int_equal(count(said, "qemu", "shared_ram"), 2);
    assert_int_equal(count(said, "qemu", NULL), 3);
    assert_int_equal(count(said, "pause", NULL), 0);
    json_decref(said);
    close(uffd);
    close(fd);
    lab_stop(&l);
}

/* What only reads the same memory does no harm. */
static void one_that_only_reads_is_no_reason(void **state)
{
    struct lab l = {0};
    json_t *said;

    (void)state;
    lab_add(&l, 4 << 20, true, false);
    lab_start(&l, false);
    assert_int_equal(mprotect(l.block[0].at, l.block[0].size, PROT_READ), 0);
    said = ask(&l, false);
    assert_int_equal(count(said, "uffd", NULL), 0);
    json_decref(said);
    lab_stop(&l);
}

static void not_mapped(void **state)
{
    struct lab l = {0};
    json_t *said;

    (void)state;
    lab_add(&l, 4 << 20, false, false);
    lab_start(&l, false);
    l.block[0].at -= 64 << 20;
    said = ask(&l, false);
    assert_int_equal(count(said, "uffd", "ramblock"), 1);
    assert_int_equal(count(said, "pause", "ramblock"), 1);
    json_decref(said);
    l.block[0].at += 64 << 20;
    lab_stop(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_against_it),
        cmocka_unit_test(every_reason_is_given),
        cmocka_unit_test(one_that_only_reads_is_no_reason),
        cmocka_unit_test(not_mapped),
    };

    /* Without root and userfaultfd there are more reasons. */
    return cmocka_run_group_tests(tests, lab_setup, NULL);
}
