/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture/writer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "capture/kind.h"
#include "common/clock.h"
#include "common/fault.h"

#define LOOK_MS 200 /* how often waiting threads look whether the keeper lives */

struct writer {
    struct ls_stage *stage;
    const struct ls_writer_options *options;
    struct ls_image_writer *image;
    int keeper; /* pidfd */
    struct timespec began;
    pthread_t thread[LS_WRITER_THREADS_MAX];
    unsigned threads;
    _Atomic uint32_t stop; /* 1: some thread failed, or the keeper wants no image */
    pthread_mutex_t lock;  /* protects error */
    bool has_error;
    struct ls_error error;
};

static enum ls_stage_order order_of(const struct ls_stage *s)
{
    /* acquire: pairs with ls_stage_give_order() */
    return (enum ls_stage_order)atomic_load_explicit(&s->order, memory_order_acquire);
}

static bool keeper_lives(const struct writer *w)
{
    struct pollfd p = {.fd = w->keeper, .events = POLLIN};

    return poll(&p, 1, 0) == 0;
}

static void tell(struct writer *w, enum ls_stage_state state)
{
    uint64_t one = 1;

    /* release: publishes error or stats */
    atomic_store_explicit(&w->stage->state, state, memory_order_release);
    while (write(w->stage->notify, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static void fail(struct writer *w, const struct ls_error *err)
{
    pthread_mutex_lock(&w->lock);
    if (!w->has_error)
        w->error = *err;
    w->has_error = true;
    pthread_mutex_unlock(&w->lock);
    /* relaxed: the mutex orders the error */
    atomic_store_explicit(&w->stop, 1, memory_order_relaxed);
    ls_stage_wake_all(w->stage);
}

static bool stopping(struct writer *w)
{
    return atomic_load_explicit(&w->stop, memory_order_relaxed) ||
           order_of(w->stage) == LS_ORDER_DISCARD;
}

/* Waits until the bytes stored so far fit the bandwidth. */
static void keep_pace(struct writer *w)
{
    static const struct timespec step = {.tv_nsec = 10000000};
    uint64_t limit = w->options->bandwidth;

    while (limit && !stopping(w) &&
           (double)ls_image_stored(w->image) / (double)limit > ls_seconds_since(&w->began))
        nanosleep(&step, NULL);
}

static uint32_t block_of(const struct ls_stage *s, uint64_t page)
{
    uint32_t low = 0, high = s->block_count;

    while (high - low > 1) {
        uint32_t mid = low + (high - low) / 2;

        if (page < s->block[mid].first_page)
            high = mid;
        else
            low = mid;
    }
    return low;
}

static int store_slot(struct writer *w, struct ls_image_codec *codec, uint32_t slot,
                      struct ls_error *err)
{
    struct ls_stage *s = w->stage;
    const uint8_t *data = ls_slot_data(s, slot);

    if (LS_FAULT("capture.store"))
        return ls_fail(err, LS_STORAGE, "fault", "fault point capture.store");
    for (uint32_t i = 0; i < s->slot[slot].extents; i++) {
        const struct ls_extent *x = &s->slot[slot].extent[i];
        uint32_t b = block_of(s, x->page);

        if (ls_image_put(w->image, codec, b, x->page - s->block[b].first_page, x->count,
                         data + (size_t)x->offset * LS_PAGE, err))
            return -1;
    }
    atomic_store_explicit(&s->stored_bytes, ls_image_stored(w->image), memory_order_relaxed);
    return 0;
}

/*
 * Guests come first: compression has what they and the sweep leave. But where staging does not hold
 * all of RAM, guests wait for this very thread. Raising it again needs CAP_SYS_NICE; without it, it
 * stays kind.
 */
static void choose_priority(struct writer *w, enum ls_stage_order order, int *nice)
{
    bool urgent = order != LS_ORDER_FINISH && ls_stage_short(w->stage);
    int wanted = urgent ? 0 : LS_KIND;

    if (wanted == *nice)
        return;
    *nice = wanted;
    ls_kind_thread(wanted);
}

static void *work(void *arg)
{
    struct writer *w = arg;
    struct ls_stage *s = w->stage;
    struct ls_image_codec *codec = ls_image_codec_new(w->options->codec, w->options->level);
    struct ls_error err;
    uint32_t slot;
    int nice = 0;

    if (!codec) {
        ls_fail(&err, LS_INTERNAL, "memory", "out of memory for compression");
        fail(w, &err);
        return NULL;
    }
    while (!stopping(w)) {
        /* acquire: both are seen before the queue is looked at, so that no push between is lost */
        uint32_t seen = atomic_load_explicit(&s->filled_news, memory_order_acquire);
        enum ls_stage_order order = order_of(s);

        choose_priority(w, order, &nice);
        if (ls_stage_fetch(s, &slot)) {
            if (store_slot(w, codec, slot, &err)) {
                fail(w, &err);
                break;
            }
            ls_stage_give(s, slot);
            keep_pace(w);
        } else if (order == LS_ORDER_FINISH) {
            break;
        } else {
            ls_stage_wait_filled(s, seen, LOOK_MS);
        }
    }
    ls_image_codec_free(codec);
    return NULL;
}

static int store_zeros(struct writer *w, struct ls_error *err)
{
    const struct ls_stage *s = w->stage;

    for (uint32_t b = 0; b < s->block_count; b++) {
        uint64_t first = s->block[b].first_page, end = first + s->block[b].pages;

        for (uint64_t p = first; p < end;) {
            /* relaxed: LS_ORDER_FINISH has published them */
            uint64_t word = atomic_load_explicit(&s->zero[p / 64], memory_order_relaxed);
            uint64_t from = p;

            if (p % 64 == 0 && word == 0) {
                p += 64;
                continue;
            }
            while (p < end &&
                   atomic_load_explicit(&s->zero[p / 64], memory_order_relaxed) >> (p % 64) & 1)
                p++;
            if (p == from)
                p++;
            else if (ls_image_put_zero(w->image, b, from - first, p - from, err))
                return -1;
        }
    }
    return 0;
}

/* The place must take a file; better known before the guest is stopped than after. */
static int try_place(const char *path, struct ls_error *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        return ls_fail_errno(err, LS_STORAGE, "create", "cannot create the image '%s'", path);
    close(fd);
    if (unlink(path) < 0)
        return ls_fail_errno(err, LS_STORAGE, "create", "cannot remove '%s' again", path);
    return 0;
}

static int create(struct writer *w, struct ls_error *err)
{
    struct ls_stage *s = w->stage;
    struct ls_image_spec spec = {
        .codec = w->options->codec,
        .level = w->options->level,
        .block_count = s->block_count,
        .range_count = s->range_count,
        .string_count = w->options->string_count,
        .blocks = s->image_block,
        .ranges = s->image_range,
        .strings = w->options->strings,
    };

    memcpy(spec.id, w->options->id, sizeof spec.id);
    if (LS_FAULT("capture.create"))
        return ls_fail(err, LS_STORAGE, "fault", "fault point capture.create");
    if (ls_image_create(w->options->path, &spec, &w->image, err))
        return -1;
    clock_gettime(CLOCK_MONOTONIC, &w->began);
    tell(w, LS_WRITER_CREATED);
    for (; w->threads < w->options->threads; w->threads++)
        if (pthread_create(&w->thread[w->threads], NULL, work, w))
            return ls_fail(err, LS_INTERNAL, "thread", "cannot start a thread");
    return 0;
}

/* Until the keeper says how it ends, or ends itself. Returns 0 for FINISH. */
static int wait_for_end(struct writer *w, struct ls_error *err)
{
    for (;;) {
        uint32_t seen = atomic_load_explicit(&w->stage->filled_news, memory_order_acquire);

        if (!keeper_lives(w))
            return ls_fail(err, LS_ABORTED, "keeper", "the keeper died");
        if (stopping(w))
            return ls_fail(err, LS_ABORTED, "aborted", "aborted");
        if (order_of(w->stage) == LS_ORDER_FINISH) {
            ls_kind_group(LS_KIND);
            return 0;
        }
        ls_stage_wait_filled(w->stage, seen, LOOK_MS);
    }
}

/* While the threads work off the queue the keeper may still die or change its mind. */
static int join(struct writer *w)
{
    unsigned next = 0;

    while (next < w->threads) {
        struct timespec limit;

        clock_gettime(CLOCK_REALTIME, &limit);
        limit.tv_nsec += LOOK_MS * 1000000;
        limit.tv_sec += limit.tv_nsec / 1000000000;
        limit.tv_nsec %= 1000000000;
        if (pthread_timedjoin_np(w->thread[next], NULL, &limit) == 0)
            next++;
        else if (!keeper_lives(w))
            atomic_store_explicit(&w->stop, 1, memory_order_relaxed);
    }
    w->threads = 0;
    return atomic_load_explicit(&w->stop, memory_order_relaxed) ? -1 : 0;
}

static int run(struct writer *w, struct ls_error *err)
{
    if (ls_stage_read_only(w->stage, err) || try_place(w->options->path, err))
        return -1;
    tell(w, LS_WRITER_READY);
    for (;;) {
        uint32_t seen = atomic_load_explicit(&w->stage->filled_news, memory_order_acquire);
        enum ls_stage_order order = order_of(w->stage);

        if (order == LS_ORDER_CREATE || order == LS_ORDER_FINISH)
            break;
        if (order == LS_ORDER_DISCARD || !keeper_lives(w))
            return ls_fail(err, LS_ABORTED, "aborted", "aborted");
        ls_stage_wait_filled(w->stage, seen, LOOK_MS);
    }
    if (create(w, err) || wait_for_end(w, err))
        return -1;
    if (join(w))
        return ls_fail(err, LS_ABORTED, "aborted", "aborted");
    if (store_zeros(w, err))
        return -1;
    if (LS_FAULT("capture.finish"))
        return ls_fail(err, LS_STORAGE, "fault", "fault point capture.finish");
    return 0;
}

static void writer_main(struct writer *w)
{
    struct ls_stage *s = w->stage;
    struct ls_error err;
    int rc = run(w, &err);

    if (rc) {
        atomic_store_explicit(&w->stop, 1, memory_order_relaxed);
        ls_stage_wake_all(s);
        join(w);
        ls_image_discard(w->image);
    } else if ((rc = ls_image_finish(w->image, &s->stats, &err)) == 0 && !keeper_lives(w)) {
        unlink(w->options->path); /* nobody is left to say that it is whole */
        rc = ls_fail(&err, LS_ABORTED, "keeper", "the keeper died");
    }
    s->error = w->has_error ? w->error : err;
    if (rc == 0)
        atomic_store_explicit(&s->stored_bytes, s->stats.stored_bytes, memory_order_relaxed);
    tell(w, rc ? LS_WRITER_FAILED : LS_WRITER_DONE);
    _exit(rc ? 1 : 0);
}

int ls_writer_start(struct ls_stage *stage, const struct ls_writer_options *options, pid_t *pid,
                    int *pidfd, struct ls_error *err)
{
    int keeper = (int)syscall(SYS_pidfd_open, getpid(), 0);
    int null;

    if (keeper < 0)
        return ls_fail_errno(err, LS_INTERNAL, "pidfd", "cannot open a pidfd");
    *pid = fork();
    if (*pid < 0) {
        ls_fail_errno(err, LS_INTERNAL, "fork", "cannot start the writer");
        close(keeper);
        return -1;
    }
    if (*pid == 0) {
        struct writer w = {.stage = stage,
                           .options = options,
                           .keeper = keeper,
                           .lock = PTHREAD_MUTEX_INITIALIZER};

        /* The owner must see the end of the keeper's streams when the keeper ends. */
        null = open("/dev/null", O_RDWR | O_CLOEXEC);
        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        prctl(PR_SET_NAME, "livesnap-writer");
        writer_main(&w);
    }
    close(keeper);
    *pidfd = (int)syscall(SYS_pidfd_open, *pid, 0);
    if (*pidfd < 0)
        return ls_fail_errno(err, LS_INTERNAL, "pidfd", "cannot open a pidfd of the writer");
    return 0;
}
