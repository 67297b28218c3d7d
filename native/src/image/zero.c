/* SPDX-License-Identifier: GPL-3.0-or-later */
#include <string.h>

#include "image/image.h"

/* Pieces of 256 bytes, so that the compiler can make vectors of it, and data that is not zero
 * (which mostly shows at its start) ends it early. */
bool ls_is_zero(const void *data, size_t length)
{
    const unsigned char *p = data;

    while (length >= 256) {
        uint64_t word[32], any = 0;

        memcpy(word, p, sizeof word);
        for (int i = 0; i < 32; i++)
            any |= word[i];
        if (any)
            return false;
        p += 256;
        length -= 256;
    }
    while (length > 0) {
        if (*p)
            return false;
        p++;
        length--;
    }
    return true;
}

bool ls_page_is_zero(const void *page)
{
    return ls_is_zero(page, LS_PAGE);
}
