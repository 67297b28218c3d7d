/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The memory behind the slots of a stage: a file without a name in huge pages, touched before it is
 * used, because fresh memory is slow. Slots get memory and lose it while the capture runs; only the
 * keeper's main thread calls these.
 */
#ifndef LS_CAPTURE_STAGE_MEMORY_H
#define LS_CAPTURE_STAGE_MEMORY_H

#include "capture/stage.h"

/* Address space for so many slots, without memory yet, at a multiple of a huge page. *huge: its
 * memory will come in huge pages by itself. */
uint8_t *ls_stage_memory_map(uint32_t slots, bool *huge, struct ls_error *err);

/* The first slots, `wanted` or as many as can be touched in half a minute; LS_SLOTS_MIN at least,
 * or it fails. `stop` is asked before each. */
int ls_stage_fill(struct ls_stage *stage, uint32_t wanted, bool (*stop)(void *), void *arg,
                  struct ls_error *err);

/* Gives memory to so many empty slots, if there are, and hands them out as free. A slot takes up to
 * 5 ms where memory was never touched by the host before. Returns how many. */
uint32_t ls_stage_grow(struct ls_stage *stage, uint32_t wanted);

/* Takes the memory of so many free slots, as long as more than `least` keep theirs. Returns how
 * many. */
uint32_t ls_stage_shrink(struct ls_stage *stage, uint32_t wanted, uint32_t least);

#endif
