/* SPDX-License-Identifier: GPL-3.0-or-later */
/* What holds for every input: the fuzzer reports one for which it does not. */
#ifndef LS_FUZZ_MUST_H
#define LS_FUZZ_MUST_H

#include <stdio.h>
#include <stdlib.h>

#define must(what)                                                                                 \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            fprintf(stderr, "%s:%d: must be: %s\n", __FILE__, __LINE__, #what);                    \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif
