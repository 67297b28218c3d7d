/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * `engines --pid PID --ramblock TEXT [--refuse-ksm] [--stop]`: as one JSON object, for each engine
 * the reasons why it cannot capture the RAM of a process; an empty list: it can, as far as the
 * kernel tells. TEXT is what `info ramblock` printed. Nothing is changed. With --stop the process's
 * main thread stands still for a moment if it has a seccomp filter, which only then can be read.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "capture/layout.h"
#include "commands.h"
#include "common/event.h"
#include "common/ksm.h"
#include "target/attach.h"
#include "target/sharers.h"
#include "uffd/uffd.h"

struct options {
    pid_t pid;
    const char *ramblock;
    bool stop;
    bool refuse_ksm;
};

static void add(json_t *list, const char *reason, const char *message)
{
    json_t *entry = json_pack("{s:s, s:s}", "reason", reason, "message", message);

    /* What quotes bytes that are no UTF-8 cannot be packed. */
    if (!entry)
        entry = json_pack("{s:s, s:s}", "reason", reason, "message",
                          "the reason quotes a name that is not UTF-8");
    json_array_append_new(list, entry);
}

/* An error that is a reason of the engine's; any other is the command's own (-1). */
static int take(json_t *list, const struct ls_error *err)
{
    if (err->cls != LS_REFUSED)
        return -1;
    add(list, err->reason, err->message);
    return 0;
}

static void add_attach(const char *reason, const char *message, void *opaque)
{
    add(opaque, reason, message);
}

/* Whether a userfaultfd of the process could be had, and what it could do. */
static int check_attach(const struct options *o, json_t *list, struct ls_error *err)
{
    uint64_t features;

    if (ls_attach_reasons(o->pid, o->pid, add_attach, list, err))
        return -1;
    if (o->stop && json_array_size(list) == 0 && ls_attach_preflight(o->pid, err) &&
        take(list, err))
        return -1;
    if (ls_uffd_probe(&features, err) || ls_uffd_check_features(features, err))
        return take(list, err);
    return 0;
}

/* One block at a time: each that is refused is named. Nothing is known of others then. */
static int check_blocks(const struct options *o, const struct ls_rammap *map, bool still,
                        json_t *list, bool *mergeable, struct ls_error *err)
{
    for (size_t i = 0; i < map->count; i++) {
        const struct ls_rammap one = {.count = 1, .blocks = &map->blocks[i]};
        struct ls_layout layout;

        if (map->blocks[i].used == 0)
            continue;
        if (ls_layout_make(&layout, &one, err)) {
            if (take(list, err))
                return -1;
            continue;
        }
        layout.still = still;
        if (ls_layout_check(&layout, o->pid, LS_SMAPS, err) && take(list, err)) {
            ls_layout_free(&layout);
            return -1;
        }
        *mergeable |= layout.block[0].mergeable;
        ls_layout_free(&layout);
    }
    return 0;
}

/* Whether RAM is of a kind that can be protected, or, where the guest stands still, read. */
static int check_memory(const struct options *o, const struct ls_rammap *map, bool still,
                        json_t *list, bool *mergeable, struct ls_error *err)
{
    struct ls_layout layout;
    int rc;

    if (ls_layout_make(&layout, map, err))
        return take(list, err);
    layout.still = still;
    rc = ls_layout_check(&layout, o->pid, LS_SMAPS, err);
    for (uint32_t i = 0; i < layout.count; i++)
        *mergeable |= layout.block[i].mergeable;
    ls_layout_free(&layout);
    if (rc && err->cls == LS_REFUSED)
        return check_blocks(o, map, still, list, mergeable, err);
    return rc;
}

struct lists {
    json_t *uffd, *own, *still; /* own: QEMU protects its RAM by a userfaultfd of its own */
};

static void add_sharer(pid_t other, const char *name, const char *block, void *opaque)
{
    const struct lists *lists = opaque;
    char message[400];

    snprintf(message, sizeof message,
             "process %d (%s) maps RAM block '%s' as well; what it writes there passes the "
             "protection by",
             (int)other, name, block);
    add(lists->uffd, "shared_ram", message);
    add(lists->own, "shared_ram", message);
}

/* What keeps QEMU from it as well; what kinds of memory it can protect is for QEMU to say. */
static void copy_in_use(const struct lists *lists)
{
    json_t *entry;
    size_t i;

    json_array_foreach(lists->uffd, i, entry)
    {
        const char *reason = json_string_value(json_object_get(entry, "reason"));

        if (strcmp(reason, "userfaultfd-in-use") == 0)
            json_array_append(lists->own, entry);
    }
}

static void check_ksm(const struct options *o, const struct lists *lists)
{
    if (!ls_ksm_runs())
        return;
    if (o->refuse_ksm)
        add(lists->uffd, "ksm",
            "KSM is running and may merge the guest's RAM; switch it off, or allow it to be "
            "paused (ksm: pause)");
    add(lists->own, "ksm", "KSM is running and may merge the guest's RAM; switch it off");
}

static int check_all(const struct options *o, struct lists *lists, struct ls_error *err)
{
    struct ls_rammap map = {0};
    bool mergeable = false;
    int rc;

    if (check_attach(o, lists->uffd, err) ||
        (ls_target_check_read(o->pid, err) && take(lists->still, err)))
        return -1;
    if (ls_rammap_locate(o->pid, o->ramblock, &map, err))
        return take(lists->uffd, err) || take(lists->still, err) ? -1 : 0;
    rc = check_memory(o, &map, false, lists->uffd, &mergeable, err) ||
                 check_memory(o, &map, true, lists->still, &mergeable, err) ||
                 ls_target_sharers(o->pid, &map, add_sharer, lists, err)
             ? -1
             : 0;
    ls_rammap_free(&map);
    copy_in_use(lists);
    if (rc == 0 && mergeable)
        check_ksm(o, lists);
    return rc;
}

static bool read_options(int argc, char **argv, struct options *o)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--pid") == 0 && i + 1 < argc)
            o->pid = atoi(argv[++i]);
        else if (strcmp(argv[i], "--ramblock") == 0 && i + 1 < argc)
            o->ramblock = argv[++i];
        else if (strcmp(argv[i], "--stop") == 0)
            o->stop = true;
        else if (strcmp(argv[i], "--refuse-ksm") == 0)
            o->refuse_ksm = true;
        else
            return false;
    }
    return o->pid > 0 && o->ramblock;
}

int ls_cmd_engines(int argc, char **argv)
{
    struct lists lists = {json_array(), json_array(), json_array()};
    json_t *all;
    struct options o = {0};
    struct ls_error err;

    if (!read_options(argc, argv, &o)) {
        fprintf(stderr, "usage: livesnap-helper engines --pid PID --ramblock TEXT [--refuse-ksm] "
                        "[--stop]\n");
        return LS_USAGE;
    }
    if (check_all(&o, &lists, &err)) {
        json_decref(lists.uffd);
        json_decref(lists.own);
        json_decref(lists.still);
        return ls_event_error(stdout, &err);
    }
    all = json_pack("{s:o, s:o, s:o}", "uffd", lists.uffd, "qemu", lists.own, "pause", lists.still);
    json_dumpf(all, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(all);
    return LS_OK;
}
