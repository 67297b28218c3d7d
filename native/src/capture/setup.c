/* SPDX-License-Identifier: GPL-3.0-or-later */
/* What the keeper makes ready while the guest runs undisturbed: everything that may take long. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "capture/keeper.h"
#include "capture/kind.h"
#include "common/fault.h"
#include "common/ksm.h"
#include "guard/log.h"
#include "uffd/uffd.h"

#define GROWTH (64ull << 20) /* blocks such as /rom@ may grow until the guest is stopped */
/* Protecting small pages takes 22 to 24 ms a GiB, asking whether they are protected 1. Below this
 * it is not worth what the guest's faults cost until the pause. */
#define PREARM_BYTES (512ull << 20)
#define SPARE (256ull << 20) /* RAM that a guest may fill until the instant */
#define SWEEPERS 4u          /* at most: memory is the limit */
#define READY_TRIES 100      /* of 100 ms: how long the writer may take to try the image's place */

static unsigned cpus(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);

    return n < 1 ? 1 : n > 64 ? 64 : (unsigned)n;
}

/* First to die when memory is short, unreadable for others, and quick to die: no core dump. */
static void be_expendable(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    if (fd >= 0) {
        if (write(fd, "1000", 4) < 0)
            errno = 0; /* not permitted: then we are as any other process */
        close(fd);
    }
    prctl(PR_SET_DUMPABLE, 0);
}

/* Whether the owner has left or sent `abort`-like haste: only the end of the stream is looked at,
 * requests stay where they are. */
static bool owner_left(void *arg)
{
    struct ls_keeper *k = arg;
    struct pollfd p = {.fd = k->in.fd, .events = 0};

    return poll(&p, 1, 0) > 0 && p.revents & (POLLHUP | POLLERR | POLLNVAL);
}

static int check_target(struct ls_keeper *k, struct ls_error *err)
{
    uint64_t start_time;

    k->target_pidfd = (int)syscall(SYS_pidfd_open, k->start.pid, 0);
    if (k->target_pidfd < 0 || ls_proc_start_time(k->start.pid, &start_time, err))
        return ls_fail(err, LS_GONE, "gone", "the guest's process %d does not exist",
                       (int)k->start.pid);
    if (start_time != k->start.start_time)
        return ls_fail(err, LS_GONE, "gone",
                       "process %d is not the guest's: it was started at %llu, not at %llu",
                       (int)k->start.pid, (unsigned long long)start_time,
                       (unsigned long long)k->start.start_time);
    return k->start.still ? 0 : ls_attach_preflight(k->start.pid, err);
}

static int find_ram(struct ls_keeper *k, struct ls_error *err)
{
    if (ls_rammap_locate(k->start.pid, k->start.ramblock, &k->map, err) ||
        ls_layout_make(&k->first, &k->map, err))
        return -1;
    k->first.still = k->start.still;
    if (ls_layout_check(&k->first, k->start.pid, LS_SMAPS, err))
        return -1;
    for (size_t i = 0; i < k->start.gpa_count; i++) {
        bool found = false;

        for (uint32_t b = 0; b < k->first.count; b++)
            found |= strcmp(k->first.block[b].id, k->start.gpa[i].block) == 0;
        if (!found)
            return ls_fail(err, LS_USAGE, "request",
                           "guest addresses name the block '%s', which "
                           "does not exist",
                           k->start.gpa[i].block);
    }
    return 0;
}

static int hold_ksm(struct ls_keeper *k, struct ls_error *err)
{
    struct ls_error ignored;
    bool mergeable = false;

    ls_ksm_tidy(&ignored);
    for (uint32_t i = 0; i < k->first.count; i++)
        mergeable |= k->first.block[i].mergeable;
    /* What is merged while the guest stands still is the same. */
    if (!mergeable || k->start.still)
        return 0;
    if (!k->start.ksm_pause && ls_ksm_runs())
        return ls_fail(err, LS_REFUSED, "ksm",
                       "KSM is running and may merge the guest's RAM; switch it off, or allow it "
                       "to be paused (ksm: pause)");
    /* Also where it rests already: another capture that paused it must not wake it under us. */
    return ls_ksm_pause(getpid(), &k->ksm_held, err);
}

static int make_progress(struct ls_keeper *k, struct ls_error *err)
{
    k->progress_fd = memfd_create("livesnap-progress", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (k->progress_fd < 0 || ftruncate(k->progress_fd, sizeof *k->progress) < 0)
        return ls_fail_errno(err, LS_INTERNAL, "progress", "cannot make the progress memory");
    k->progress =
        mmap(NULL, sizeof *k->progress, PROT_READ | PROT_WRITE, MAP_SHARED, k->progress_fd, 0);
    if (k->progress == MAP_FAILED) {
        k->progress = NULL;
        return ls_fail_errno(err, LS_INTERNAL, "progress", "cannot map the progress memory");
    }
    fcntl(k->progress_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    k->progress->magic = LS_PROGRESS_MAGIC;
    k->progress->version = LS_PROGRESS_VERSION;
    k->progress->size = sizeof *k->progress;
    atomic_store_explicit(&k->progress->state, LS_PROGRESS_ATTACHED, memory_order_release);
    return 0;
}

/* What may have to be staged: RAM that has content, and what may get some until the instant. */
static uint64_t content(const struct ls_keeper *k)
{
    uint64_t bytes = SPARE;

    for (uint32_t i = 0; i < k->first.count; i++)
        bytes += k->first.block[i].content;
    return bytes < k->first.ram_bytes ? bytes : k->first.ram_bytes;
}

static int make_stage(struct ls_keeper *k, struct ls_error *err)
{
    uint64_t bytes;

    ls_budget_open(&k->budget, k->start.staging, content(k), &bytes);
    k->stage =
        ls_stage_new(bytes, k->budget.most, k->first.pages + GROWTH / LS_SMALL, owner_left, k, err);
    return k->stage ? 0 : -1;
}

static int start_writer(struct ls_keeper *k, struct ls_error *err)
{
    struct ls_writer_options *o = &k->writer_options;
    *o = (struct ls_writer_options){
        .path = k->start.image,
        .codec = k->start.codec,
        .level = k->start.level,
        .threads = k->start.workers ? k->start.workers : cpus(),
        .bandwidth = k->start.bandwidth,
        .strings = k->strings,
        .string_count = ls_request_strings(&k->start, k->strings),
    };
    memcpy(o->id, k->start.id, sizeof o->id);
    if (o->threads > LS_WRITER_THREADS_MAX)
        o->threads = LS_WRITER_THREADS_MAX;
    if (ls_writer_start(k->stage, o, &k->writer, &k->writer_pidfd, err))
        return -1;
    for (int i = 0; i < READY_TRIES; i++) {
        struct pollfd p[2] = {{.fd = k->stage->notify, .events = POLLIN},
                              {.fd = k->writer_pidfd, .events = POLLIN}};
        uint32_t state = atomic_load_explicit(&k->stage->state, memory_order_acquire);

        if (state == LS_WRITER_READY)
            return 0;
        if (state == LS_WRITER_FAILED) {
            *err = k->stage->error;
            return -1;
        }
        if (owner_left(k))
            return ls_fail(err, LS_ABORTED, "aborted", "the owner left");
        if (poll(p, 2, 100) > 0 && p[1].revents &&
            atomic_load_explicit(&k->stage->state, memory_order_acquire) == LS_WRITER_NEW)
            return ls_fail(err, LS_STORAGE, "writer", "the writer died");
    }
    return ls_fail(err, LS_STORAGE, "writer",
                   "the store does not answer: cannot create '%s' in "
                   "%d s",
                   k->start.image, READY_TRIES / 10);
}

/* Nothing to be attached to, where the guest is going to stand still. */
static int get_userfaultfd(struct ls_keeper *k, struct ls_attach_result *got, struct ls_error *err)
{
    *got = (struct ls_attach_result){.uffd = -1};
    if (k->start.still)
        return 0;
    if (ls_attach_userfaultfd(k->start.pid, k->start.attach, got, err))
        return -1;
    if (ls_uffd_handshake(got->uffd, err)) {
        close(got->uffd);
        return -1;
    }
    return 0;
}

static int attach(struct ls_keeper *k, struct ls_error *err)
{
    struct ls_attach_result got;
    unsigned workers = k->start.workers ? k->start.workers : cpus();
    unsigned all = workers > SWEEPERS ? SWEEPERS : workers;
    unsigned sweep = k->start.workers ? all : (all + 1) / 2;
    struct ls_engine_options o = {
        .pid = k->start.pid,
        .fault_threads = cpus() >= 8 ? 2 : 1,
        .sweep_threads = sweep,
        .sweep_helpers = all - sweep,
        .prearm_bytes = PREARM_BYTES,
        .still = k->start.still,
        .stage = k->stage,
        .progress = k->progress,
    };

    if (get_userfaultfd(k, &got, err))
        return -1;
    o.uffd = got.uffd;
    if (ls_engine_new(&k->engine, &o, err))
        return -1;
    ls_log(LOG_INFO, "attached to process %d (%u us), RAM %llu bytes, staging %llu bytes",
           (int)k->start.pid, got.stood_still_us, (unsigned long long)k->first.ram_bytes,
           (unsigned long long)ls_stage_bytes(k->stage));
    ls_events_send(
        &k->out,
        json_pack("{s:s, s:i, s:i, s:i, s:i, s:I, s:I, s:i}", "event", "attached", "keeper",
                  (int)getpid(), "writer", (int)k->writer, "uffd", o.uffd, "progress",
                  k->progress_fd, "ram_bytes", (json_int_t)k->first.ram_bytes, "staging_bytes",
                  (json_int_t)ls_stage_bytes(k->stage), "stood_still_us", (int)got.stood_still_us),
        true);
    return 0;
}

int ls_keeper_setup(struct ls_keeper *k, struct ls_error *err)
{
    be_expendable();
    if (check_target(k, err) || find_ram(k, err) || hold_ksm(k, err) || make_progress(k, err) ||
        make_stage(k, err))
        return -1;
    if (LS_FAULT("capture.setup"))
        return ls_fail(err, LS_INTERNAL, "fault", "fault point capture.setup");
    /* The writer before the userfaultfd: it must never have it. */
    return start_writer(k, err) || attach(k, err) ? -1 : 0;
}

int ls_keeper_describe(struct ls_keeper *k, const struct ls_layout *layout, struct ls_error *err)
{
    struct ls_stage *s = k->stage;

    if (layout->count > LS_IMAGE_BLOCKS)
        return ls_fail(err, LS_REFUSED, "ramblock", "the guest has too many RAM blocks");
    s->block_count = layout->count;
    for (uint32_t i = 0; i < layout->count; i++) {
        const struct ls_block *b = &layout->block[i];

        s->block[i].first_page = b->base + b->pad;
        s->block[i].pages = b->length / LS_SMALL;
        memset(&s->image_block[i], 0, sizeof s->image_block[i]);
        snprintf(s->image_block[i].name, sizeof s->image_block[i].name, "%s", b->id);
        s->image_block[i].length = b->length;
        s->image_block[i].page_size = b->page_size ? b->page_size : LS_SMALL;
    }
    s->range_count = 0;
    for (size_t g = 0; g < k->start.gpa_count; g++) {
        const struct ls_gpa_range *r = &k->start.gpa[g];

        for (uint32_t i = 0; i < layout->count; i++)
            if (strcmp(layout->block[i].id, r->block) == 0)
                s->image_range[s->range_count++] = (struct ls_image_range){
                    .gpa = r->gpa, .offset = r->offset, .length = r->length, .block = i};
    }
    return 0;
}
