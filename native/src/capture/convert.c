/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture/convert.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "capture/events.h"
#include "capture/kind.h"
#include "capture/request.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "guard/log.h"
#include "stream/incoming.h"
#include "target/ramtext.h"

#define THREADS_MAX 32u
#define LOOK_MS 100
#define PROGRESS_S 0.25

struct convert {
    struct ls_request request;
    struct ls_events out;
    const uint8_t *stream;
    struct ls_incoming in;
    struct ls_image_writer *image;
    struct timespec began, reported;
    pthread_t thread[THREADS_MAX];
    unsigned threads;
    _Atomic uint64_t next_page; /* relaxed: each number is given out once */
    _Atomic uint64_t done;      /* pages; release, acquire: the last one ends it */
    _Atomic uint32_t stop;      /* relaxed: a thread failed; the lock orders its error */
    pthread_mutex_t lock;       /* protects error */
    bool has_error;
    struct ls_error error;
};

static int read_request(struct convert *c, int fd, struct ls_error *err)
{
    struct ls_lines lines = {.fd = fd};
    char *line = NULL;
    size_t length;
    int rc = -1;

    while (!line && !lines.end) {
        struct pollfd p = {.fd = fd, .events = POLLIN};

        if ((poll(&p, 1, -1) < 0 && errno != EINTR) || ls_lines_fill(&lines, err))
            break;
        line = ls_lines_next(&lines, &length);
    }
    if (!line)
        ls_fail(err, LS_USAGE, "request", "no request came");
    else if (ls_request_parse(line, length, &c->request, err) == 0)
        rc = c->request.kind == LS_REQUEST_START && c->request.spool && c->request.devices
                 ? 0
                 : ls_fail(err, LS_USAGE, "request",
                           "the request must be 'start', with 'spool' and 'devices'");
    free(line);
    ls_lines_free(&lines);
    return rc;
}

static int map_stream(struct convert *c, struct ls_error *err)
{
    const char *path = c->request.spool;
    LS_AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    uint64_t size = c->request.spool_bytes;
    struct stat st;
    void *at;

    if (fd < 0 || fstat(fd, &st) < 0)
        return ls_fail_errno(err, LS_STORAGE, "open", "cannot open the stream '%s'", path);
    if (size == 0 || (uint64_t)st.st_size < size)
        return ls_fail(err, LS_TORN, "stream", "the stream '%s' has not %llu bytes", path,
                       (unsigned long long)size);
    at = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return ls_fail_errno(err, LS_STORAGE, "map", "cannot map the stream '%s'", path);
    c->stream = at;
    if (ls_incoming_read(c->stream, size, &c->in, err))
        return -1;
    if (strcmp(c->in.machine, c->request.machine) != 0)
        return ls_fail(err, LS_TORN, "stream", "the stream is of machine type '%s', not '%s'",
                       c->in.machine, c->request.machine);
    return 0;
}

/* ---- the image ---- */

struct page_sizes {
    const struct ls_incoming *in;
    struct ls_image_block *block;
};

static int take_page_size(const struct ls_ramblock *b, bool printed_host, void *opaque,
                          struct ls_error *err)
{
    struct page_sizes *s = opaque;

    (void)printed_host;
    (void)err;
    for (uint32_t i = 0; i < s->in->block_count; i++)
        if (strcmp(s->block[i].name, b->id) == 0)
            s->block[i].page_size = b->page_size;
    return 0;
}

static int describe_blocks(struct convert *c, struct ls_image_block *block, struct ls_error *err)
{
    struct page_sizes sizes = {&c->in, block};

    for (uint32_t i = 0; i < c->in.block_count; i++) {
        memcpy(block[i].name, c->in.blocks[i].name, sizeof block[i].name);
        block[i].length = c->in.blocks[i].length;
        block[i].page_size = LS_PAGE;
    }
    return ls_ramtext_parse(c->request.ramblock, take_page_size, &sizes, err);
}

static int describe_ranges(struct convert *c, struct ls_image_range *range, struct ls_error *err)
{
    for (size_t g = 0; g < c->request.gpa_count; g++) {
        const struct ls_gpa_range *r = &c->request.gpa[g];
        uint32_t b = 0;

        while (b < c->in.block_count && strcmp(c->in.blocks[b].name, r->block) != 0)
            b++;
        if (b == c->in.block_count)
            return ls_fail(err, LS_TORN, "stream", "the stream has no RAM block '%s'", r->block);
        range[g] = (struct ls_image_range){
            .gpa = r->gpa, .offset = r->offset, .length = r->length, .block = b};
    }
    return 0;
}

static int create(struct convert *c, struct ls_error *err)
{
    LS_AUTO_FREE struct ls_image_block *blocks = calloc(c->in.block_count, sizeof *blocks);
    LS_AUTO_FREE struct ls_image_range *ranges = calloc(c->request.gpa_count + 1, sizeof *ranges);
    struct ls_image_string strings[LS_REQUEST_STRINGS];
    struct ls_image_spec spec = {
        .codec = c->request.codec,
        .level = c->request.level,
        .block_count = c->in.block_count,
        .range_count = (uint32_t)c->request.gpa_count,
        .string_count = ls_request_strings(&c->request, strings),
        .blocks = blocks,
        .ranges = ranges,
        .strings = strings,
    };

    memcpy(spec.id, c->request.id, sizeof spec.id);
    if (!blocks || !ranges)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to describe the image");
    if (describe_blocks(c, blocks, err) || describe_ranges(c, ranges, err))
        return -1;
    return ls_image_create(c->request.image, &spec, &c->image, err);
}

/* ---- the pages ---- */

static void keep_pace(struct convert *c)
{
    static const struct timespec step = {.tv_nsec = 10000000};
    uint64_t limit = c->request.bandwidth;

    while (limit && !atomic_load_explicit(&c->stop, memory_order_relaxed) &&
           (double)ls_image_stored(c->image) / (double)limit > ls_seconds_since(&c->began))
        nanosleep(&step, NULL);
}

/* So many pages of a block from a page on, all zero or all with data; at most a run. */
static uint32_t alike(const struct ls_incoming *in, uint64_t page, uint64_t end)
{
    bool zero = in->page[page] == LS_INCOMING_ZERO;
    uint32_t n = 1;

    while (page + n < end && n < LS_IMAGE_RUN && (in->page[page + n] == LS_INCOMING_ZERO) == zero)
        n++;
    return n;
}

static int put_pages(struct convert *c, struct ls_image_codec *codec, uint8_t *run, uint32_t block,
                     uint64_t from, uint64_t end, struct ls_error *err)
{
    const struct ls_incoming *in = &c->in;
    uint64_t first = in->blocks[block].first;

    for (uint32_t n; from < end; from += n) {
        int rc;

        n = alike(in, from, end);
        if (in->page[from] == LS_INCOMING_ZERO) {
            rc = ls_image_put_zero(c->image, block, from - first, n, err);
        } else {
            for (uint32_t i = 0; i < n; i++)
                memcpy(run + (size_t)i * LS_PAGE, in->data + in->page[from + i], LS_PAGE);
            rc = ls_image_put(c->image, codec, block, from - first, n, run, err);
        }
        if (rc)
            return -1;
    }
    return 0;
}

/* Pages [from, end) of the list, across blocks. */
static int convert_range(struct convert *c, struct ls_image_codec *codec, uint8_t *run,
                         uint64_t from, uint64_t end, struct ls_error *err)
{
    for (uint32_t b = 0; b < c->in.block_count; b++) {
        uint64_t first = c->in.blocks[b].first, last = first + c->in.blocks[b].length / LS_PAGE;
        uint64_t low = from > first ? from : first, high = end < last ? end : last;

        if (low < high && put_pages(c, codec, run, b, low, high, err))
            return -1;
    }
    return 0;
}

static void fail(struct convert *c, const struct ls_error *err)
{
    pthread_mutex_lock(&c->lock);
    if (!c->has_error)
        c->error = *err;
    c->has_error = true;
    pthread_mutex_unlock(&c->lock);
    atomic_store_explicit(&c->stop, 1, memory_order_relaxed);
}

static void *work(void *arg)
{
    struct convert *c = arg;
    struct ls_image_codec *codec = ls_image_codec_new(c->request.codec, c->request.level);
    uint8_t *run = aligned_alloc(LS_PAGE, (size_t)LS_IMAGE_RUN * LS_PAGE);
    struct ls_error err;

    ls_kind_thread(LS_KIND);
    if (!codec || !run) {
        ls_fail(&err, LS_INTERNAL, "memory", "out of memory for compression");
        fail(c, &err);
    }
    while (!atomic_load_explicit(&c->stop, memory_order_relaxed)) {
        uint64_t from =
            atomic_fetch_add_explicit(&c->next_page, LS_IMAGE_RUN, memory_order_relaxed);
        uint64_t end = from + LS_IMAGE_RUN < c->in.pages ? from + LS_IMAGE_RUN : c->in.pages;

        if (from >= c->in.pages)
            break;
        if (convert_range(c, codec, run, from, end, &err)) {
            fail(c, &err);
            break;
        }
        atomic_fetch_add_explicit(&c->done, end - from, memory_order_release);
        keep_pace(c);
    }
    free(run);
    ls_image_codec_free(codec);
    return NULL;
}

static void report(struct convert *c)
{
    if (ls_seconds_since(&c->reported) < PROGRESS_S)
        return;
    clock_gettime(CLOCK_MONOTONIC, &c->reported);
    ls_events_send(
        &c->out,
        json_pack("{s:s, s:I, s:I, s:I}", "event", "progress", "done_bytes",
                  (json_int_t)(atomic_load_explicit(&c->done, memory_order_relaxed) * LS_PAGE),
                  "total_bytes", (json_int_t)(c->in.pages * LS_PAGE), "stored_bytes",
                  (json_int_t)ls_image_stored(c->image)),
        false);
}

/* Waits for the threads; ends them when the owner has left, who alone would want the image. */
static int convert_all(struct convert *c, int in, struct ls_error *err)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned wanted = c->request.workers ? c->request.workers : cpus < 1 ? 1 : (unsigned)cpus;
    bool left = false;

    for (; c->threads < wanted && c->threads < THREADS_MAX; c->threads++)
        if (pthread_create(&c->thread[c->threads], NULL, work, c)) {
            atomic_store_explicit(&c->stop, 1, memory_order_relaxed);
            break;
        }
    /* acquire: pairs with the release after the last put */
    while (!left && !atomic_load_explicit(&c->stop, memory_order_relaxed) &&
           atomic_load_explicit(&c->done, memory_order_acquire) < c->in.pages) {
        struct pollfd p = {.fd = in, .events = 0};

        left = poll(&p, 1, LOOK_MS) > 0 && p.revents & (POLLHUP | POLLERR | POLLNVAL);
        ls_events_flush(&c->out);
        report(c);
    }
    if (left)
        atomic_store_explicit(&c->stop, 1, memory_order_relaxed);
    for (unsigned i = 0; i < c->threads; i++)
        pthread_join(c->thread[i], NULL);
    if (left)
        return ls_fail(err, LS_ABORTED, "owner", "the owner left before the image was whole");
    if (c->has_error) {
        *err = c->error;
        return -1;
    }
    return c->threads ? 0 : ls_fail(err, LS_INTERNAL, "thread", "cannot start a thread");
}

static int finish(struct convert *c, struct ls_error *err)
{
    struct ls_image_writer *image = c->image;
    struct ls_image_stats s;

    c->image = NULL;
    if (ls_image_finish(image, &s, err))
        return -1;
    ls_events_send(&c->out,
                   json_pack("{s:s, s:f, s:I, s:I, s:I, s:s, s:[]}", "event", "done", "sweep_s",
                             ls_seconds_since(&c->began), "bytes", (json_int_t)s.ram_bytes,
                             "zero_bytes", (json_int_t)s.zero_bytes, "stored_bytes",
                             (json_int_t)s.stored_bytes, "checksum", s.checksum, "warnings"),
                   true);
    return 0;
}

static int run(struct convert *c, int in, struct ls_error *err)
{
    if (read_request(c, in, err))
        return -1;
    ls_log_subject(c->request.guest, c->request.id_text);
    clock_gettime(CLOCK_MONOTONIC, &c->began);
    c->reported = c->began;
    ls_kind_group(LS_KIND);
    if (map_stream(c, err))
        return -1;
    if (ls_incoming_write_devices(&c->in, c->request.devices, err))
        return -1;
    if (create(c, err) || convert_all(c, in, err) || finish(c, err)) {
        ls_image_discard(c->image);
        c->image = NULL;
        unlink(c->request.devices);
        return -1;
    }
    return 0;
}

int ls_convert_run(int in, int out)
{
    struct convert *c = calloc(1, sizeof *c);
    struct ls_error err;
    int code = LS_OK;

    if (!c)
        return LS_INTERNAL;
    ls_log_part("convert");
    c->out.fd = out;
    pthread_mutex_init(&c->lock, NULL);
    if (run(c, in, &err)) {
        code = (int)err.cls;
        ls_log(LOG_ERR, "no image (%s): %s", err.reason, err.message);
        ls_events_error(&c->out, &err);
    }
    ls_events_finish(&c->out, 1000);
    ls_incoming_free(&c->in);
    if (c->stream)
        munmap((void *)(uintptr_t)c->stream, c->request.spool_bytes);
    ls_request_free(&c->request);
    pthread_mutex_destroy(&c->lock);
    free(c);
    return code;
}
