/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Writers whose memory tells by itself whether a copy of it is of one instant.
 *
 * RAM is dealt out to lanes, eight pages at a time. Each lane is a thread that writes the counter k
 * into its pages, word by word, from the first to the last; when all lanes are through, they go on
 * with k + 1. So at any instant each lane is a prefix that holds k and a rest that holds k - 1,
 * with the same k for all. Lanes write by themselves, or let the kernel do it, by read(2).
 *
 * The target is stopped by SIGSTOP: anywhere, also in the middle of a page.
 */
#ifndef LS_TESTS_LANES_H
#define LS_TESTS_LANES_H

#include "capture_run.h"

#define LANES_MAX 4
#define LANE_GROUP 8ul /* pages */
#define LANE_WORDS (LAB_PAGE / 8)

enum lane_kind {
    LANE_STORES,
    LANE_PIPE, /* read(2) of a pipe */
    LANE_FILE, /* pread(2) of a file */
};

/* Set before the target is started, which inherits it. */
static struct {
    unsigned count;
    enum lane_kind kind[LANES_MAX];
    bool alike;   /* one page of four is the same as the others of these, and only written when
                     `tide` has changed: KSM likes it */
    bool discard; /* another thread discards pages while it is asked to */
} lanes;

/* In memory that both see. */
static struct lanes_words {
    _Atomic uint64_t tide;  /* relaxed: a lane sees it at its next step or the one after */
    _Atomic uint32_t asked; /* to discard: odd */
    _Atomic uint32_t heard; /* the last that the discarding thread follows: release, acquire */
    _Atomic uint64_t discarded;
} * lanes_words;

static pthread_barrier_t lanes_through;

/* ---- what is to be there ---- */

/* Pages of a block that are written: all; of a shared one the first half. */
static inline size_t lane_pages(const struct lab_block *b)
{
    return b->size / LAB_PAGE / (b->shared ? 2 : 1);
}

static inline uint64_t lane_mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static inline bool lane_alike(uint64_t page)
{
    return lanes.alike && lane_mix(page) % 4 == 0;
}

static inline bool lane_discards(const struct lab_block *b, uint64_t page)
{
    return lanes.discard && !b->shared && lane_mix(page) % 4 == 1;
}

/* The first word of a page at step k; word w has w more. Step 0: nothing was written yet. */
static inline uint64_t lane_word(uint64_t k, uint64_t page)
{
    return k == 0 ? 0 : k << 32 | page << 9;
}

static inline uint64_t lane_expected(uint64_t first, unsigned w)
{
    return first == 0 ? 0 : first + w;
}

/* ---- the target ---- */

static void lane_store(uint8_t *at, uint64_t first)
{
    volatile uint64_t *words = (uint64_t *)(void *)at;

    for (unsigned w = 0; w < LANE_WORDS; w++)
        words[w] = lane_expected(first, w);
}

/* What a lane does at present. `fd`: both ends of the pipe, or the file. */
struct lane_step {
    enum lane_kind kind;
    int fd[2];
    uint64_t k, tide;
    bool turned; /* the tide */
};

/* Writes eight pages, as this kind of lane does. */
static void lane_group(const struct lane_step *s, const struct lab_block *b, size_t p,
                       uint64_t page)
{
    static _Thread_local uint8_t scratch[LANE_GROUP * LAB_PAGE];
    uint8_t *at = b->at + p * LAB_PAGE;
    const enum lane_kind kind = s->kind;

    for (unsigned i = 0; i < LANE_GROUP; i++) {
        bool alike = lane_alike(page + i);
        uint64_t first = alike ? s->tide << 32 : lane_word(s->k, page + i);

        if (kind != LANE_STORES)
            lane_store(scratch + i * LAB_PAGE, first);
        else if (!alike || s->turned)
            lane_store(at + i * LAB_PAGE, first);
    }
    if (kind == LANE_STORES)
        return;
    if (kind == LANE_PIPE ? write(s->fd[1], scratch, sizeof scratch) != sizeof scratch
                          : pwrite(s->fd[0], scratch, sizeof scratch, 0) != sizeof scratch)
        _exit(4);
    for (size_t done = 0; done < sizeof scratch;) {
        size_t left = sizeof scratch - done;
        ssize_t n = kind == LANE_PIPE ? read(s->fd[0], at + done, left)
                                      : pread(s->fd[0], at + done, left, (off_t)done);

        if (n <= 0)
            _exit(5);
        done += (size_t)n;
    }
}

static void *lane_main(void *arg)
{
    unsigned me = (unsigned)(uintptr_t)arg;
    struct lane_step s = {.kind = lanes.kind[me], .fd = {-1, -1}};
    struct lab *l = lab_self;

    if (s.kind == LANE_PIPE ? pipe2(s.fd, O_CLOEXEC)
                            : (s.fd[0] = memfd_create("lane", MFD_CLOEXEC)) < 0)
        _exit(6);
    for (s.k = 1;; s.k++) {
        uint64_t page = 0, tide = atomic_load_explicit(&lanes_words->tide, memory_order_relaxed);

        s.turned = s.k == 1 || tide != s.tide;
        s.tide = tide;
        for (unsigned b = 0; b < l->blocks; b++)
            for (size_t p = 0; p < lane_pages(&l->block[b]); p += LANE_GROUP, page += LANE_GROUP)
                if (page / LANE_GROUP % lanes.count == me)
                    lane_group(&s, &l->block[b], p, page);
        if (pthread_barrier_wait(&lanes_through) == PTHREAD_BARRIER_SERIAL_THREAD)
            atomic_fetch_add_explicit(&l->words->rounds, 1, memory_order_relaxed);
    }
    return NULL;
}

/* Discards pages at random, whoever is writing to them. */
static void *lane_discard(void *arg)
{
    struct lab *l = arg;
    uint64_t random = 1;

    for (;;) {
        uint32_t asked = atomic_load_explicit(&lanes_words->asked, memory_order_relaxed);
        uint64_t page = 0;

        /* release: nothing of what was asked before goes on */
        atomic_store_explicit(&lanes_words->heard, asked, memory_order_release);
        if (asked % 2 == 0) {
            usleep(100);
            continue;
        }
        random = lane_mix(random + 1);
        for (unsigned b = 0; b < l->blocks; page += lane_pages(&l->block[b++])) {
            size_t p = random % lane_pages(&l->block[b]);

            if (!lane_discards(&l->block[b], page + p))
                continue;
            madvise(l->block[b].at + p * LAB_PAGE, LAB_PAGE, MADV_DONTNEED);
            atomic_fetch_add_explicit(&lanes_words->discarded, 1, memory_order_relaxed);
        }
    }
    return NULL;
}

static void lanes_write(struct lab *l)
{
    pthread_t t;

    pthread_barrier_init(&lanes_through, NULL, lanes.count);
    for (uintptr_t i = 0; i < lanes.count; i++)
        pthread_create(&t, NULL, lane_main, (void *)i);
    if (lanes.discard)
        pthread_create(&t, NULL, lane_discard, l);
}

/* Waits until all lanes have gone through `steps` steps, whole ones, from now on. */
static inline void lanes_pass(struct lab *l, uint64_t steps)
{
    uint64_t until = atomic_load_explicit(&l->words->rounds, memory_order_relaxed) + steps + 1;

    while (atomic_load_explicit(&l->words->rounds, memory_order_relaxed) < until)
        usleep(100);
}

static inline void lanes_start(struct lab *l)
{
    lanes_words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(lanes_words, MAP_FAILED);
    lab_start_with(l, lanes_write);
    lanes_pass(l, 1); /* everything has content */
}

/* From now on pages are discarded, or not. */
static inline void lanes_ask(bool discard)
{
    uint32_t asked = atomic_load_explicit(&lanes_words->asked, memory_order_relaxed);

    asked += asked % 2 == discard ? 2 : 1;
    atomic_store_explicit(&lanes_words->asked, asked, memory_order_relaxed);
    /* acquire: pairs with the thread's release */
    while (atomic_load_explicit(&lanes_words->heard, memory_order_acquire) != asked)
        usleep(50);
}

/* All pages that are alike are written soon. */
static inline void lanes_turn(void)
{
    atomic_fetch_add_explicit(&lanes_words->tide, 1, memory_order_relaxed);
}

static inline void lanes_stop(struct lab *l)
{
    lab_stop(l);
    munmap(lanes_words, 4096);
    memset(&lanes, 0, sizeof lanes);
}

/* ---- the test ---- */

/* All threads of the target stand still when this returns. */
static inline void target_stop(struct lab *l)
{
    int status;

    kill(l->pid, SIGSTOP);
    if (waitpid(l->pid, &status, WUNTRACED) != l->pid || !WIFSTOPPED(status))
        fail_msg("the target ended: wait status %#x", status);
}

static inline void target_go(struct lab *l)
{
    kill(l->pid, SIGCONT);
}

/* The counter of an image: of the page that was written last. */
static inline uint64_t lanes_counter(const struct run *r)
{
    uint64_t page = 0, counter = 0;

    for (unsigned b = 0; b < r->lab->blocks; b++)
        for (size_t p = 0; p < lane_pages(&r->lab->block[b]); p++, page++) {
            uint64_t first;

            memcpy(&first, r->image[b] + p * LAB_PAGE, 8);
            if (!lane_alike(page) && first >> 32 > counter)
                counter = first >> 32;
        }
    return counter;
}

/* How many words of a page hold `first`; -1 if not all after them hold `rest`. */
static inline int lane_prefix(const uint64_t *words, uint64_t first, uint64_t rest)
{
    unsigned w = 0;

    while (w < LANE_WORDS && words[w] == lane_expected(first, w))
        w++;
    for (unsigned i = w; i < LANE_WORDS; i++)
        if (words[i] != lane_expected(rest, i))
            return -1;
    return (int)w;
}

/* A page that may be discarded while it is written holds either, or zeros, in any order. */
static inline bool lane_any(const uint64_t *words, uint64_t first, uint64_t rest)
{
    for (unsigned w = 0; w < LANE_WORDS; w++)
        if (words[w] != 0 && words[w] != lane_expected(first, w) &&
            words[w] != lane_expected(rest, w))
            return false;
    return true;
}

/* -1 if all of the image is of one instant, otherwise the first page that is of another. Zero pages
 * must be filled in already. */
static inline int64_t lanes_judge(const struct run *r, uint64_t *counter)
{
    uint64_t k = *counter = lanes_counter(r), page = 0;
    bool beyond[LANES_MAX] = {false};

    for (unsigned b = 0; b < r->lab->blocks; b++)
        for (size_t p = 0; p < lane_pages(&r->lab->block[b]); p++, page++) {
            const uint64_t *words = (const void *)(r->image[b] + p * LAB_PAGE);
            uint64_t now = lane_word(k, page), before = k ? lane_word(k - 1, page) : 0;
            unsigned lane = page / LANE_GROUP % lanes.count;
            int prefix;

            if (lane_alike(page))
                continue; /* of no step; compare() has looked at it */
            if (lane_discards(&r->lab->block[b], page)) {
                if (!lane_any(words, now, before))
                    return (int64_t)page;
                continue;
            }
            prefix = lane_prefix(words, beyond[lane] ? before : now, before);
            if (prefix < 0)
                return (int64_t)page;
            beyond[lane] = beyond[lane] || prefix < (int)LANE_WORDS;
        }
    return -1;
}

#endif
