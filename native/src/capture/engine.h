/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The capture of RAM through a userfaultfd: fault threads, sweep workers, and the rules by which a
 * page is saved exactly once and released only after it has been proven untouched. Or, `still`,
 * without one: the guest stands still until all is saved, and nothing is protected or proven.
 *
 * One thread (the keeper's main thread) calls the functions here; the engine's own threads tell it
 * of completion and failure through the eventfd `news`. It knows nothing of requests and events.
 */
#ifndef LS_CAPTURE_ENGINE_H
#define LS_CAPTURE_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "capture/histogram.h"
#include "capture/layout.h"
#include "capture/progress.h"
#include "capture/stage.h"
#include "common/error.h"
#include "uffd/pagemap.h"

#define LS_FAULT_THREADS_MAX 4u
#define LS_SWEEP_THREADS_MAX 16u
#define LS_STASH 1024u

/* What fault threads do with a fault. */
enum ls_mode {
    LS_MODE_RELEASE = 1, /* let it go: before arm */
    LS_MODE_PARKED = 2,  /* leave it unread: while arm looks */
    LS_MODE_COPY = 3,    /* save, then let it go */
};

/* How far the end of an engine is. */
enum ls_stop {
    LS_GOING_ON = 0,
    LS_LETTING_GO =
        1,          /* nothing is saved any more; fault threads let go of what they are asked for */
    LS_STOPPED = 2, /* threads end */
};

/* The slot that a thread fills at present. */
struct ls_stager {
    bool held;
    uint32_t slot;
    uint32_t used; /* pages */
};

struct ls_engine;

struct ls_fault_thread {
    struct ls_engine *engine;
    pthread_t thread;
    bool running;
    _Atomic uint32_t ack; /* the mode it follows: release by it, acquire by the barrier */
    struct ls_stager stager;
    /* Faults read while an ioctl of this thread waited for an event to be read. */
    uint64_t stash[LS_STASH];
    uint32_t stashed;
};

struct ls_sweep_thread {
    struct ls_engine *engine;
    pthread_t thread;
    bool running;
    bool helps; /* only while staging has room for all that is to come */
    struct ls_stager stager;
};

struct ls_engine_options {
    pid_t pid;
    int uffd;   /* the engine's from now on; -1 if `still` */
    bool still; /* the guest stands still until all is saved */
    unsigned fault_threads;
    unsigned sweep_threads;
    unsigned sweep_helpers;  /* more of them, while the store does not set the pace */
    bool force_pagemap_file; /* as on a kernel without PAGEMAP_SCAN */
    uint64_t prearm_bytes;   /* so much RAM in small pages is protected before the pause */
    struct ls_stage *stage;
    struct ls_progress *progress;
};

struct ls_engine {
    pid_t pid;
    int uffd;
    bool still;
    struct ls_pagemap pagemap;
    struct ls_stage *stage;
    struct ls_progress *progress;
    struct ls_layout layout;
    bool registered;
    uint64_t prearm_bytes;
    bool protected_once; /* all of it was; since then only what was written is not */
    unsigned fault_threads, sweep_threads, sweep_helpers;
    int kick; /* eventfd: fault threads, look at mode and stop */
    int news; /* eventfd: main thread, look at `failed` and `saved_pages` */
    _Atomic uint32_t mode;
    _Atomic uint32_t stop;    /* enum ls_stop */
    _Atomic uint32_t removed; /* RAM was discarded since the last scan */

    /* Bitmaps over the layout's pages. */
    _Atomic uint64_t *claimed; /* who sets the bit saves the page */
    _Atomic uint64_t *saved;   /* set after copy and proof, before release */
    uint64_t *populated;       /* had content when armed; written while fault threads are parked */
    uint8_t *huge;             /* a byte a chunk: mapped as one huge page when armed; likewise */
    _Atomic uint8_t *faulted;  /* a byte a chunk: a fault was served in it */

    _Atomic uint64_t next_chunk;
    _Atomic uint64_t saved_pages;
    uint64_t total_pages;
    _Atomic uint64_t zero_pages;
    _Atomic uint64_t proof_scans, proof_chunks;
    struct ls_histogram fault_time;

    _Atomic uint32_t failed; /* 0, 1: error is being written, 2: error may be read (acquire) */
    struct ls_error error;

    struct ls_fault_thread fault[LS_FAULT_THREADS_MAX];
    struct ls_sweep_thread sweep[LS_SWEEP_THREADS_MAX];
#ifdef LS_FAULTS
    uint64_t sabotage_start, sabotage_end; /* addresses left without protection and proof */
    bool late_arm;
#endif
};

/* Takes the userfaultfd (handshake done) in any case. */
int ls_engine_new(struct ls_engine **engine, const struct ls_engine_options *options,
                  struct ls_error *err);

/* The layout is the engine's from then on, also on failure; may be called again before
 * ls_engine_arm() has succeeded. What was protected of an earlier layout stays so. */
int ls_engine_set_layout(struct ls_engine *e, struct ls_layout *layout, struct ls_error *err);

struct ls_protect_result {
    uint64_t pages; /* that are populated, and protected */
    unsigned scans;
};

/*
 * While the guest runs: registers and protects all of RAM if so much of it is in small pages that
 * this would take long in the pause (*done), else does nothing. Faults are let go in chunks.
 */
int ls_engine_prearm(struct ls_engine *e, bool *done, struct ls_protect_result *result,
                     struct ls_error *err);

/* Registers what is not yet registered and protects all that is populated, until a scan names no
 * page that is not. Faults are let go. */
int ls_engine_protect(struct ls_engine *e, struct ls_protect_result *result, struct ls_error *err);

/*
 * Asks the kernel whether everything populated is protected still. If so (*written is 0) the
 * instant is now: faults are saved from here on and the sweep begins. If not, *written pages are
 * not protected, or RAM was discarded (*written is 1 at least), and nothing has changed.
 */
int ls_engine_arm(struct ls_engine *e, uint64_t *written, struct ls_error *err);

/* `still`, in place of the three above: notes what has content, and begins to copy. The guest must
 * stand still until ls_engine_complete(). */
int ls_engine_copy_still(struct ls_engine *e, struct ls_error *err);

#ifdef LS_FAULTS
/* LIVESNAP_SABOTAGE=late-arm: arms 20 ms after arm has been answered, guest running. */
int ls_engine_arm_late(struct ls_engine *e, struct ls_error *err);
#endif

bool ls_engine_complete(const struct ls_engine *e);

/* The error of the thread that failed first, if any: true and *err filled. */
bool ls_engine_failed(struct ls_engine *e, struct ls_error *err);

/* Frees the guest: ends the sweep, lifts all protection, wakes all, closes the userfaultfd, joins
 * the threads, and hands partly filled slots to the writer. */
void ls_engine_release(struct ls_engine *e);

void ls_engine_free(struct ls_engine *e);

/* ---- inside the engine ---- */

/* The first failure counts; its error must not be the caller's stack beyond the call. */
void ls_engine_fail(struct ls_engine *e, const struct ls_error *err);
/* Changes the mode and waits until no fault thread follows the one before. */
int ls_engine_change_mode(struct ls_engine *e, enum ls_mode mode, struct ls_error *err);
/* Wakes the main thread. */
void ls_engine_tell(struct ls_engine *e);

static inline bool ls_engine_stopping(const struct ls_engine *e)
{
    /* acquire: whoever stops has finished what it did before */
    return atomic_load_explicit(&e->stop, memory_order_acquire) != LS_GOING_ON;
}

/*
 * Claims those pages of a chunk that are wanted and not claimed yet, copies them into staging,
 * proves that they were not written, releases them. `fault` is the calling fault thread or NULL
 * (then slots of the reserve are not taken). Returns pages saved, or -1 after ls_engine_fail().
 */
int ls_save_pages(struct ls_engine *e, struct ls_stager *stager, uint64_t chunk,
                  const struct ls_mask *want, struct ls_fault_thread *fault);

/* Hands a partly filled slot on. */
void ls_stager_flush(struct ls_engine *e, struct ls_stager *stager);

/* Whether a chunk is one page of the guest's: it is saved and released as a whole. */
static inline bool ls_chunk_is_huge(const struct ls_engine *e, const struct ls_block *b,
                                    uint64_t chunk)
{
    return b->hugetlb || e->huge[chunk];
}

/* The pages of a chunk that belong to its block. */
void ls_chunk_pages(const struct ls_engine *e, const struct ls_block *b, uint64_t chunk,
                    struct ls_mask *pages);

/* Scan of everything (scan.c). Fills populated, huge and the zero map if `record`. */
struct ls_scan_result {
    uint64_t populated;
    uint64_t unprotected;
    uint64_t small; /* populated and not part of a huge page */
};
int ls_scan_all(struct ls_engine *e, bool record, struct ls_scan_result *result,
                struct ls_error *err);
/* Protects all that is populated, in one round. */
int ls_protect_all(struct ls_engine *e, struct ls_error *err);
/* The same as ls_scan_all() without a record, protecting on the way what is not protected. */
int ls_protect_written(struct ls_engine *e, struct ls_scan_result *result, struct ls_error *err);
/* The proof: 0 if all pages of `data` are there and protected (and `mapped`, if that is asked for);
 * else how many are not; -1, errno. */
int ls_scan_proof(struct ls_engine *e, uint64_t chunk_address, const struct ls_mask *data,
                  bool mapped);

void *ls_fault_main(void *thread);
/* Reads and handles waiting events; faults are stashed. For ioctls that got EAGAIN. */
void ls_fault_drain(struct ls_fault_thread *t);
void *ls_sweep_main(void *thread);

/* Slots that sweep workers leave to faults. */
uint32_t ls_engine_reserve(const struct ls_engine *e);

static inline void ls_engine_tick(struct ls_engine *e)
{
    atomic_fetch_add_explicit(&e->progress->heartbeat, 1, memory_order_relaxed);
}

static inline uint64_t ls_chunk_address(const struct ls_block *b, uint64_t chunk)
{
    return b->host - b->pad * 4096 + (chunk * LS_CHUNK_PAGES - b->base) * 4096;
}

#endif
