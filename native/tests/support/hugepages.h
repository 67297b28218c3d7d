/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Huge pages of 2 MiB for tests: added to the machine's pool, and taken back. */
#ifndef LS_TESTS_HUGEPAGES_H
#define LS_TESTS_HUGEPAGES_H

#include <stdbool.h>

/* False, with the reason, if the machine does not give them. They are given back when the test
 * dies, too. Others who take some wait until then. */
bool hugepages_take(unsigned pages, const char **why);
void hugepages_give_back(void);

/* How many of the pool nobody has. */
long hugepages_free(void);

#endif
