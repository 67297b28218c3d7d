/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Whatever QEMU has written, each page is found inside of it once, and so is the device state; or
 * it is refused. */
#include <string.h>

#include "must.h"
#include "stream/incoming.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ls_incoming in;
    struct ls_error err = {0};
    uint64_t pages = 0;

    if (ls_incoming_read(data, size, &in, &err)) {
        must(err.cls == LS_TORN || err.cls == LS_INTERNAL);
        return 0;
    }
    must(in.pages > 0 && in.block_count > 0 && strlen(in.machine) > 0);
    for (uint32_t b = 0; b < in.block_count; b++) {
        must(in.blocks[b].first == pages && in.blocks[b].length % LS_PAGE == 0);
        pages += in.blocks[b].length / LS_PAGE;
    }
    must(pages == in.pages);
    for (uint64_t p = 0; p < in.pages; p++)
        must(in.page[p] == LS_INCOMING_ZERO ||
             (in.page[p] > LS_INCOMING_ZERO && in.page[p] + LS_PAGE <= in.sections));
    must(in.sections + in.sections_length < size);
    ls_incoming_free(&in);
    return 0;
}
