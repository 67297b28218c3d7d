/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * What keeper and writer share: the staging memory, in slots of 2 MiB, and the words by which they
 * tell each other how far they are. Made before the writer is forked, so pointers hold in both.
 * Neither ever waits for the other without a limit.
 */
#ifndef LS_CAPTURE_STAGE_H
#define LS_CAPTURE_STAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "capture/bits.h"
#include "capture/queue.h"
#include "common/error.h"
#include "image/image.h"

#define LS_SLOT_BYTES (2ull << 20)
#define LS_SLOTS_MIN 16u

/* A run of pages of RAM inside a slot. */
struct ls_extent {
    uint64_t page;   /* number of ls_layout */
    uint32_t offset; /* in the slot, pages */
    uint32_t count;
};

struct ls_slot {
    uint32_t extents;
    struct ls_extent extent[LS_CHUNK_PAGES];
};

/* What the keeper wants of the writer. */
enum ls_stage_order {
    LS_ORDER_WAIT = 0,
    LS_ORDER_CREATE = 1,  /* spec is filled: create the image, then store what comes */
    LS_ORDER_FINISH = 2,  /* all slots are in the queue, the zero map is complete */
    LS_ORDER_DISCARD = 3, /* remove what there is, and end */
};

enum ls_stage_state {
    LS_WRITER_NEW = 0,
    LS_WRITER_READY = 1,   /* the place of the image can be written */
    LS_WRITER_CREATED = 2, /* the image file is there */
    LS_WRITER_DONE = 3,    /* the image is whole; stats are filled */
    LS_WRITER_FAILED = 4,  /* error is filled; the image is removed */
};

/* One block of the image; page numbers as in ls_layout. */
struct ls_stage_block {
    uint64_t first_page; /* number of its first page: base + pad */
    uint64_t pages;
};

struct ls_stage {
    /* set before the fork, constant */
    uint8_t *data;
    bool huge;      /* memory comes in huge pages by itself */
    uint32_t slots; /* that there is room for in the address space */
    int notify;     /* eventfd: the writer has news for the keeper */
    struct ls_slot *slot;
    uint64_t zero_words; /* room of the zero map */

    struct ls_queue free;   /* slots nobody uses */
    struct ls_queue filled; /* slots to be stored */
    /* Futexes: raised (release) after a push to the queue, waited for by who found it empty. */
    _Atomic uint32_t free_news;
    _Atomic uint32_t filled_news;
    _Atomic uint32_t free_waiters; /* who pushes looks here to spare the system call */
    _Atomic uint32_t filled_waiters;
    /* Slots in the free queue, for the reserve; relaxed, a moment's value. */
    _Atomic int32_t free_count;
    /* Pages with content that are not in staging yet, written by the keeper; relaxed likewise. */
    _Atomic uint64_t to_come;
    /* Slots that have memory, written by the keeper's main thread; relaxed, for rules of thumb. */
    _Atomic uint32_t usable;
    _Atomic uint32_t most_usable; /* the most of them that there were */

    /* The keeper's main thread alone: slots that have no memory at present. */
    uint32_t *empty;
    uint32_t empty_count;

    _Atomic uint32_t order; /* enum ls_stage_order; release by the keeper, acquire by the writer */
    _Atomic uint32_t state; /* enum ls_stage_state; release by the writer, acquire by the keeper */
    _Atomic uint64_t stored_bytes; /* relaxed */

    /* Filled by the keeper before LS_ORDER_CREATE. */
    uint32_t block_count;
    uint32_t range_count;
    struct ls_stage_block block[LS_IMAGE_BLOCKS];
    struct ls_image_block image_block[LS_IMAGE_BLOCKS];
    struct ls_image_range image_range[LS_IMAGE_RANGES];

    /* Filled by the writer before LS_WRITER_FAILED, LS_WRITER_DONE. */
    struct ls_error error;
    struct ls_image_stats stats;

    /* A bit a page: it is zero and was not staged. Keeper's threads set bits (relaxed; the release
     * of LS_ORDER_FINISH publishes them), the writer reads them then. */
    _Atomic uint64_t *zero;
};

/*
 * Makes a stage of `bytes` (rounded to slots) with room for `most` (see stage_memory.h). What
 * cannot be touched in half a minute is not used. `pages` is the room of the zero map. `stop` is
 * asked now and then, and ends the work with LS_ABORTED.
 */
struct ls_stage *ls_stage_new(uint64_t bytes, uint64_t most, uint64_t pages, bool (*stop)(void *),
                              void *arg, struct ls_error *err);
void ls_stage_free(struct ls_stage *stage);

/* In the writer, right after the fork: takes the right to write to the staging memory away. */
int ls_stage_read_only(struct ls_stage *stage, struct ls_error *err);

/* A free slot if more than `reserve` are free; false if not. Never waits. */
bool ls_stage_take(struct ls_stage *stage, uint32_t reserve, uint32_t *slot);
void ls_stage_give(struct ls_stage *stage, uint32_t slot);
/* Waits until a slot may be free, at most `ms`. */
void ls_stage_wait_free(struct ls_stage *stage, uint32_t seen, unsigned ms);

void ls_stage_submit(struct ls_stage *stage, uint32_t slot);
bool ls_stage_fetch(struct ls_stage *stage, uint32_t *slot);
void ls_stage_wait_filled(struct ls_stage *stage, uint32_t seen, unsigned ms);

/* Wakes all who wait in either function, to look at what has changed. */
void ls_stage_wake_all(struct ls_stage *stage);

void ls_stage_give_order(struct ls_stage *stage, enum ls_stage_order order);

/* Whether what is to come has to wait until slots are stored. */
static inline bool ls_stage_short(const struct ls_stage *stage)
{
    int32_t free_slots = atomic_load_explicit(&stage->free_count, memory_order_relaxed);

    return (int64_t)atomic_load_explicit(&stage->to_come, memory_order_relaxed) >
           (int64_t)free_slots * LS_CHUNK_PAGES;
}

static inline uint64_t ls_stage_bytes(const struct ls_stage *stage)
{
    return (uint64_t)atomic_load_explicit(&stage->usable, memory_order_relaxed) * LS_SLOT_BYTES;
}

static inline void *ls_slot_data(const struct ls_stage *stage, uint32_t slot)
{
    return stage->data + slot * LS_SLOT_BYTES;
}

#endif
