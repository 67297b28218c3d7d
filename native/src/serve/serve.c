/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "serve/serve.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/event.h"
#include "serve/load.h"
#include "serve/sentinel.h"
#include "stream/source.h"
#include "target/target.h"
#include "uffd/uffd.h"

#define NEIGHBOURS 16u /* pages that are brought with one that is asked for */
#define BEHIND 64u     /* pages at a time of those that nobody has asked for */
#define WAITING 1024u  /* faults read and not yet answered: more than a QEMU has threads */

struct server {
    struct ls_load load;
    struct ls_image *image;
    uint32_t block;
    int guest; /* pidfd */
    int uffd;
    int theirs;
    struct ls_sentinel sentinel;
    uint64_t waiting[WAITING]; /* pages */
    unsigned count;
    struct ls_meter meter;
    uint64_t total;
    uint8_t buf[NEIGHBOURS * LS_PAGE];
};

/* ---- faults ---- */

static int take_message(struct server *s, const struct uffd_msg *m, struct ls_error *err)
{
    switch (m->event) {
    case UFFD_EVENT_PAGEFAULT:
        s->waiting[s->count++] = (m->arg.pagefault.address - s->load.host) / LS_PAGE;
        return 0;
    case UFFD_EVENT_REMOVE:
        ls_load_removed(&s->load, m->arg.remove.start, m->arg.remove.end);
        return 0;
    default:
        return ls_fail(err, LS_TORN, "unmapped", "RAM was unmapped while it was loaded");
    }
}

static int read_messages(struct server *s, struct ls_error *err)
{
    while (s->count < WAITING) {
        struct uffd_msg m;
        ssize_t n = read(s->uffd, &m, sizeof m);

        if (n < 0 && errno == EINTR)
            continue;
        if (n != (ssize_t)sizeof m)
            return 0;
        if (take_message(s, &m, err))
            return -1;
    }
    return 0;
}

/* 1: an event is to be read first. */
static int answer(struct server *s, uint64_t page, struct ls_error *err)
{
    uint64_t pages = s->load.length / LS_PAGE, first = page / NEIGHBOURS * NEIGHBOURS;
    uint64_t count = pages - first < NEIGHBOURS ? pages - first : NEIGHBOURS;

    if (ls_load_settled(&s->load, page))
        return ls_load_again(&s->load, page, err);
    if (ls_image_read(s->image, s->block, first * LS_PAGE, s->buf, count * LS_PAGE, err))
        return -1;
    return ls_load_put(&s->load, first, count, ls_is_zero(s->buf, count * LS_PAGE) ? NULL : s->buf,
                       err);
}

/* All that wait, but for those that an event is in the way of. */
static int answer_all(struct server *s, struct ls_error *err)
{
    unsigned kept = 0;

    if (read_messages(s, err))
        return -1;
    for (unsigned i = 0; i < s->count; i++) {
        int ret = answer(s, s->waiting[i], err);

        if (ret < 0)
            return -1;
        if (ret > 0)
            s->waiting[kept++] = s->waiting[i];
    }
    s->count = kept;
    return 0;
}

/* ---- the others ---- */

static int keep_sentinel(struct server *s, struct ls_error *err)
{
    ls_sentinel_bury(&s->sentinel);
    return ls_sentinel_start(&s->sentinel, s->guest, err);
}

/* Waits for something to happen, and looks after it. */
static int turn(struct server *s, int ms, struct ls_error *err)
{
    struct pollfd p[3] = {{.fd = s->guest, .events = POLLIN},
                          {.fd = s->sentinel.pidfd, .events = POLLIN},
                          {.fd = s->uffd, .events = POLLIN}};

    if (poll(p, 3, s->count > 0 ? 0 : ms) < 0 && errno != EINTR)
        return ls_fail_errno(err, LS_INTERNAL, "poll", "cannot wait for faults");
    if (p[0].revents)
        return ls_fail(err, LS_GONE, "gone", "the process that was served has ended");
    if (p[1].revents && keep_sentinel(s, err))
        return -1;
    return answer_all(s, err);
}

static int bring_run(const struct ls_image_run *run, void *opaque, struct ls_error *err)
{
    struct server *s = opaque;
    const uint8_t *data = run->data;

    /* What is zero and nobody has asked for is zero when the range is let go. */
    if (!data)
        return turn(s, 0, err);
    for (uint64_t done = 0; done < run->pages;) {
        uint64_t count = run->pages - done < BEHIND ? run->pages - done : BEHIND;
        int ret;

        if (turn(s, 0, err))
            return -1;
        ret = ls_load_put(&s->load, run->first_page + done, count, data + done * LS_PAGE, err);
        if (ret < 0)
            return -1;
        if (ret == 0)
            done += count;
        ls_meter_progress((run->first_page + done) * LS_PAGE, s->total, &s->meter);
    }
    return 0;
}

static int let_go(struct server *s, pid_t pid, struct ls_error *err)
{
    ls_uffd_unregister(s->uffd, s->load.host, s->load.length);
    close(ls_steal_fd(&s->uffd));
    return ls_attach_take_back(pid, s->theirs, err);
}

/* ---- beginning and end ---- */

static int find_block(struct server *s, const struct ls_serve_options *o, uint64_t *host,
                      struct ls_error *err)
{
    const struct ls_image_info *info = ls_image_info(s->image);
    int found = ls_image_find_block(s->image, o->block);
    struct ls_rammap map = {0};
    bool fits = false;

    if (found < 0)
        return ls_fail(err, LS_USAGE, "block", "the image has no RAM block '%s'", o->block);
    s->block = (uint32_t)found;
    s->total = info->blocks[found].length;
    if (ls_rammap_locate(o->pid, o->ramblock, &map, err))
        return -1;
    for (size_t i = 0; i < map.count; i++) {
        const struct ls_ramblock *b = &map.blocks[i];

        if (strcmp(b->id, o->block) != 0)
            continue;
        *host = b->host;
        fits = b->used == s->total && b->page_size == LS_PAGE;
    }
    ls_rammap_free(&map);
    if (!fits)
        return ls_fail(err, LS_REFUSED, "ramblock",
                       "process %d has no RAM block '%s' of %" PRIu64 " bytes in pages of 4 KiB",
                       (int)o->pid, o->block, s->total);
    return 0;
}

static int prepare(struct server *s, const struct ls_serve_options *o, struct ls_error *err)
{
    uint64_t host = 0, started = 0;
    struct ls_error ignored;

    if (ls_source_open(o->source, &s->image, err))
        return -1;
    s->guest = (int)syscall(SYS_pidfd_open, o->pid, 0);
    if (s->guest < 0 || ls_proc_start_time(o->pid, &started, err) || started != o->start_time)
        return ls_fail(err, LS_GONE, "gone", "process %d is not the one to be served", (int)o->pid);
    if (find_block(s, o, &host, err) || ls_attach_lend(o->pid, &s->uffd, &s->theirs, err))
        return -1;
    if (ls_load_open(&s->load, o->pid, s->uffd, host, s->total, err) == 0 &&
        ls_load_register(&s->load, err) == 0 && ls_sentinel_start(&s->sentinel, s->guest, err) == 0)
        return 0;
    let_go(s, o->pid, &ignored);
    return -1;
}

static int serve(struct server *s, const struct ls_serve_options *o, FILE *events,
                 struct ls_error *err)
{
    if (ls_load_present(&s->load, s->image, s->block, err))
        return -1;
    fprintf(events, "{\"event\":\"serving\",\"ram_bytes\":%" PRIu64 ",\"sentinel\":%d}\n", s->total,
            (int)s->sentinel.pid);
    fflush(events);
    ls_meter_start(&s->meter, events);
    if (!o->all)
        while (turn(s, -1, err) == 0)
            ;
    if (!o->all || ls_image_walk(s->image, s->block, bring_run, s, err))
        return -1;
    return let_go(s, o->pid, err);
}

static void close_all(struct server *s)
{
    ls_load_close(&s->load);
    ls_image_close(s->image);
    if (s->uffd >= 0)
        close(s->uffd);
    if (s->guest >= 0)
        close(s->guest);
}

int ls_serve_run(const struct ls_serve_options *options, FILE *events, struct ls_error *err)
{
    LS_AUTO_FREE struct server *s = calloc(1, sizeof *s);
    int ret;

    if (!s)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to serve RAM");
    s->uffd = s->guest = -1;
    ret = prepare(s, options, err);
    if (ret == 0) {
        ret = serve(s, options, events, err);
        if (ret == 0)
            ls_sentinel_dismiss(&s->sentinel);
        else
            /* Its lifeline ends here: the process goes with us. */
            ls_sentinel_bury(&s->sentinel);
    }
    if (ret == 0)
        fprintf(events, "{\"event\":\"loaded\",\"loaded_bytes\":%" PRIu64 "}\n",
                s->load.loaded_bytes);
    close_all(s);
    return ret;
}
