/* SPDX-License-Identifier: GPL-3.0-or-later */
/* How often tests repeat: ROUNDS in the environment, as for the tests in Python. */
#ifndef LS_TESTS_ROUNDS_H
#define LS_TESTS_ROUNDS_H

#include <stdbool.h>

/* How often a loop runs: `few` times with ROUNDS=short or unset, `full` times with full, k times
 * `few` with a number k, and a tenth of `few` with 0, for an emulated machine. Anything else fails
 * the test: a size that is not understood must not pass for the short one. */
unsigned rounds(unsigned few, unsigned full);

/* Whether there is only time for what matters most: short size, or an emulated machine. */
bool rounds_are_few(void);

/* Whether every step takes many times as long as elsewhere. */
bool rounds_are_emulated(void);

#endif
