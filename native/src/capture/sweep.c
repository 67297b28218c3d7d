/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The sweep workers: they go through all chunks and save what no fault has claimed. */
#include <poll.h>
#include <time.h>

#include "capture/engine.h"
#include "common/fault.h"
#include "uffd/uffd.h"

#define RESUME_MS 20 /* until then the owner needs a CPU to resume the guest */

#ifdef LS_FAULTS
/* A test build that leaves a granule unprotected copies it late, so that the guest has surely
 * written to it. */
static void save_sabotaged(struct ls_sweep_thread *t)
{
    struct ls_engine *e = t->engine;
    static const struct timespec late = {.tv_sec = 1};
    const struct ls_block *b = ls_layout_find(&e->layout, e->sabotage_start);
    uint64_t chunk;
    struct ls_mask want;

    if (!b)
        return;
    chunk = ls_block_page(b, e->sabotage_start) / LS_CHUNK_PAGES;
    nanosleep(&late, NULL);
    ls_chunk_pages(e, b, chunk, &want);
    ls_save_pages(e, &t->stager, chunk, &want, NULL);
}

static bool sabotaged(const struct ls_engine *e, const struct ls_block *b, uint64_t chunk)
{
    return e->sabotage_end > e->sabotage_start && ls_chunk_address(b, chunk) == e->sabotage_start;
}
#endif

void *ls_sweep_main(void *arg)
{
    struct ls_sweep_thread *t = arg;
    struct ls_engine *e = t->engine;
    struct ls_turn turn;

    if (t->helps)
        poll(&(struct pollfd){.fd = e->kick, .events = POLLIN}, 1, RESUME_MS);
    ls_turn_begin(&turn);
    while (!t->helps || !ls_stage_short(e->stage)) {
        /* relaxed: each number is given out once, nothing else depends on it */
        uint64_t chunk = atomic_fetch_add_explicit(&e->next_chunk, 1, memory_order_relaxed);
        const struct ls_block *b;
        struct ls_mask want;

        if (chunk >= e->layout.chunks || ls_engine_stopping(e))
            break;
        if (LS_FAULT("capture.sweep")) {
            struct ls_error err;

            ls_fail(&err, LS_INTERNAL, "fault", "fault point capture.sweep");
            ls_engine_fail(e, &err);
            break;
        }
        b = ls_layout_of_page(&e->layout, chunk * LS_CHUNK_PAGES);
#ifdef LS_FAULTS
        if (sabotaged(e, b, chunk))
            continue;
#endif
        ls_chunk_pages(e, b, chunk, &want);
        if (ls_save_pages(e, &t->stager, chunk, &want, NULL) < 0)
            break;
        if (!e->still)
            atomic_fetch_add_explicit(&e->proof_chunks, 1, memory_order_relaxed);
        ls_turn_give(&turn);
    }
#ifdef LS_FAULTS
    if (t == &e->sweep[0] && e->sabotage_end > e->sabotage_start)
        save_sabotaged(t);
#endif
    ls_stager_flush(e, &t->stager);
    return NULL;
}
