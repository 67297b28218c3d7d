/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * `features [--pid PID [--stop]]`: what this host offers, and whether a process could be attached
 * to, as one JSON object. Nothing is changed. A seccomp filter can only be read while its thread is
 * stopped, so that needs --stop; without it `seccomp.allowed` is null where there is a filter.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "commands.h"
#include "target/attach.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"

static const struct {
    uint64_t bit;
    const char *name;
} uffd_features[] = {
    {1ull << 0, "pagefault-flag-wp"},
    {1ull << 1, "event-fork"},
    {1ull << 2, "event-remap"},
    {1ull << 3, "event-remove"},
    {1ull << 4, "missing-hugetlbfs"},
    {1ull << 5, "missing-shmem"},
    {1ull << 6, "event-unmap"},
    {1ull << 7, "sigbus"},
    {1ull << 8, "thread-id"},
    {1ull << 9, "minor-hugetlbfs"},
    {1ull << 10, "minor-shmem"},
    {1ull << 11, "exact-address"},
    {1ull << 12, "wp-hugetlbfs-shmem"},
    {1ull << 13, "wp-unpopulated"},
    {1ull << 14, "poison"},
    {1ull << 15, "wp-async"},
    {1ull << 16, "move"},
};

static bool have_syscall(void)
{
    long fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    if (fd >= 0)
        close((int)fd);
    return fd >= 0;
}

static bool have_device(void)
{
    int fd = ls_uffd_device_open();

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static json_t *userfaultfd(void)
{
    json_t *names = json_array();
    struct ls_error err;
    uint64_t features;

    if (ls_uffd_probe(&features, &err) == 0)
        for (size_t i = 0; i < sizeof uffd_features / sizeof *uffd_features; i++)
            if (features & uffd_features[i].bit)
                json_array_append_new(names, json_string(uffd_features[i].name));
    return json_pack("{s:b, s:b, s:o}", "device", have_device(), "syscall", have_syscall(),
                     "features", names);
}

/* The number in a file of one; -1 if there is none. */
static int read_number(const char *path)
{
    FILE *file = fopen(path, "re");
    int number;

    if (!file)
        return -1;
    if (fscanf(file, "%d", &number) != 1)
        number = -1;
    fclose(file);
    return number;
}

/* The word in brackets, such as "madvise"; "" if there is none. */
static void read_choice(const char *path, char *word, size_t size)
{
    FILE *file = fopen(path, "re");
    char line[128] = "";
    char *open;

    word[0] = '\0';
    if (!file)
        return;
    if (fgets(line, sizeof line, file) && (open = strchr(line, '[')))
        snprintf(word, size, "%.*s", (int)strcspn(open + 1, "]"), open + 1);
    fclose(file);
}

static void add_reason(const char *reason, const char *message, void *opaque)
{
    json_array_append_new(opaque, json_pack("{s:s, s:s}", "reason", reason, "message", message));
}

/* What the filters say; null for what is not known because the target may not be stopped. */
static json_t *seccomp(pid_t pid, int mode, bool stop, json_t *reasons)
{
    json_t *refused = json_array();
    struct ls_attach_outcome outcome = {0};
    struct ls_error err;

    if (mode == 0)
        return json_pack("{s:i, s:b, s:o}", "mode", mode, "allowed", 1, "refused", refused);
    if (mode == 2 && (!stop || json_array_size(reasons) > 0))
        return json_pack("{s:i, s:n, s:o}", "mode", mode, "allowed", "refused", refused);
    if (mode == 2 &&
        (ls_attach_run(pid, pid, LS_JOB_CHECK, LS_ATTACH_DEVICE, &outcome, &err) != 0 ||
         ls_attach_refuse_calls(pid, outcome.refused, &err) != 0))
        add_reason(err.reason, err.message, reasons);
    for (unsigned call = 0; call < LS_CALL_COUNT; call++)
        if (outcome.refused & 1u << call)
            json_array_append_new(refused, json_string(ls_arch_call_names[call]));
    return json_pack("{s:i, s:b, s:o}", "mode", mode, "allowed",
                     json_array_size(reasons) == 0 && mode == 2, "refused", refused);
}

static int target(pid_t pid, bool stop, json_t **object, struct ls_error *err)
{
    json_t *reasons = json_array();
    struct ls_proc_status status;
    json_t *filters;
    char state[2] = "";

    if (ls_attach_reasons(pid, pid, add_reason, reasons, err) != 0 ||
        ls_proc_status(pid, pid, &status, err) != 0) {
        json_decref(reasons);
        return -1;
    }
    state[0] = status.state;
    filters = seccomp(pid, status.seccomp, stop, reasons);
    *object =
        json_pack("{s:i, s:o, s:b, s:b, s:s, s:{s:b, s:o}}", "pid", (int)pid, "seccomp", filters,
                  "shadow_stack", status.shadow_stack, "traced", status.tracer != 0, "state", state,
                  "attach", "possible", json_array_size(reasons) == 0, "reasons", reasons);
    return 0;
}

int ls_cmd_features(int argc, char **argv)
{
    struct utsname uts;
    struct ls_error err;
    json_t *all;
    json_t *one = NULL;
    char thp[32];
    pid_t pid = 0;
    bool stop = false;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--pid") == 0 && i + 1 < argc)
            pid = atoi(argv[++i]);
        else if (strcmp(argv[i], "--stop") == 0)
            stop = true;
        else
            pid = -1;
    }
    if (pid < 0 || (stop && pid == 0)) {
        fprintf(stderr, "usage: livesnap-helper features [--pid PID [--stop]]\n");
        return LS_USAGE;
    }
    if (pid > 0 && target(pid, stop, &one, &err) != 0) {
        all = json_pack("{s:s, s:s, s:s, s:s, s:i}", "event", "error", "class",
                        err.cls == LS_GONE ? "gone" : "refused", "reason", err.reason, "message",
                        err.message, "errno", err.sys);
        json_dumpf(all, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(all);
        return (int)err.cls;
    }
    uname(&uts);
    read_choice("/sys/kernel/mm/transparent_hugepage/enabled", thp, sizeof thp);
    all = json_pack("{s:s, s:s, s:o, s:b, s:b, s:i, s:b, s:{s:i}, s:s}", "kernel", uts.release,
                    "arch", uts.machine, "userfaultfd", userfaultfd(), "pagemap_scan",
                    ls_pagemap_have_scan(), "pidfd_getfd", ls_have_pidfd_getfd(), "yama",
                    ls_yama_scope(), "cap_sys_ptrace", ls_have_cap_sys_ptrace(), "ksm", "run",
                    read_number("/sys/kernel/mm/ksm/run"), "thp", thp);
    if (one)
        json_object_set_new(all, "target", one);
    json_dumpf(all, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(all);
    return LS_OK;
}
