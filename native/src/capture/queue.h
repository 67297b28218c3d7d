/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A bounded queue of slot numbers for several producers and consumers in two processes. Neither end
 * ever waits for the other: a peer that was stopped or killed in the middle of an operation makes
 * the queue look full or empty, no more. (Dmitry Vyukov's array queue.)
 */
#ifndef LS_CAPTURE_QUEUE_H
#define LS_CAPTURE_QUEUE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct ls_queue_cell {
    _Atomic uint64_t turn;
    uint32_t value;
};

struct ls_queue {
    uint64_t mask;
    struct ls_queue_cell *cell;
    _Alignas(64) _Atomic uint64_t head;
    _Alignas(64) _Atomic uint64_t tail;
};

/* `cells` has `size` entries, a power of two. */
static inline void ls_queue_init(struct ls_queue *q, struct ls_queue_cell *cells, uint64_t size)
{
    q->mask = size - 1;
    q->cell = cells;
    for (uint64_t i = 0; i < size; i++)
        atomic_init(&cells[i].turn, i);
    atomic_init(&q->head, 0);
    atomic_init(&q->tail, 0);
}

static inline bool ls_queue_push(struct ls_queue *q, uint32_t value)
{
    /* relaxed: only a guess, the exchange below decides */
    uint64_t at = atomic_load_explicit(&q->tail, memory_order_relaxed);

    for (;;) {
        struct ls_queue_cell *c = &q->cell[at & q->mask];
        /* acquire: the consumer of the last round has read the value */
        uint64_t turn = atomic_load_explicit(&c->turn, memory_order_acquire);

        if (turn == at) {
            if (atomic_compare_exchange_weak_explicit(&q->tail, &at, at + 1, memory_order_relaxed,
                                                      memory_order_relaxed)) {
                c->value = value;
                /* release: publishes the value and all that was written before */
                atomic_store_explicit(&c->turn, at + 1, memory_order_release);
                return true;
            }
        } else if (turn < at) {
            return false;
        } else {
            at = atomic_load_explicit(&q->tail, memory_order_relaxed);
        }
    }
}

static inline bool ls_queue_pop(struct ls_queue *q, uint32_t *value)
{
    uint64_t at = atomic_load_explicit(&q->head, memory_order_relaxed);

    for (;;) {
        struct ls_queue_cell *c = &q->cell[at & q->mask];
        /* acquire: pairs with the producer's release */
        uint64_t turn = atomic_load_explicit(&c->turn, memory_order_acquire);

        if (turn == at + 1) {
            if (atomic_compare_exchange_weak_explicit(&q->head, &at, at + 1, memory_order_relaxed,
                                                      memory_order_relaxed)) {
                *value = c->value;
                /* release: the value has been read before the cell is given back */
                atomic_store_explicit(&c->turn, at + q->mask + 1, memory_order_release);
                return true;
            }
        } else if (turn < at + 1) {
            return false;
        } else {
            at = atomic_load_explicit(&q->head, memory_order_relaxed);
        }
    }
}

#endif
