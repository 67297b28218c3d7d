/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "rounds.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { EMULATED = 0, SHORT = 1, FULL = -1 };

/* One of these, or how many times as often as at short size. */
static int size(void)
{
    const char *text = getenv("ROUNDS");
    unsigned long times;
    char *end;

    if (!text || !*text || strcmp(text, "short") == 0)
        return SHORT;
    if (strcmp(text, "full") == 0)
        return FULL;
    times = strtoul(text, &end, 10);
    if (*end || times > 1000)
        fail_msg("ROUNDS is '%s': neither short, full nor a number up to 1000", text);
    return (int)times;
}

unsigned rounds(unsigned few, unsigned full)
{
    int times = size();

    if (times == FULL)
        return full;
    return times == EMULATED ? few / 10 + 1 : few * (unsigned)times;
}

bool rounds_are_few(void)
{
    return size() == SHORT || size() == EMULATED;
}

bool rounds_are_emulated(void)
{
    return size() == EMULATED;
}
