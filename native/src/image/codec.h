/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Frames of pages: compress, decompress. Inside image/ only. */
#ifndef LS_IMAGE_CODEC_H
#define LS_IMAGE_CODEC_H

#include "image/image.h"

/* Two runs of scratch memory, aligned to LS_PAGE, of at least LS_CODEC_SCRATCH bytes each: the
 * first for stored bytes, the second for pages. */
#define LS_CODEC_SCRATCH ((size_t)LS_IMAGE_RUN * LS_PAGE)

void *ls_codec_stored(struct ls_image_codec *c);
void *ls_codec_pages(struct ls_image_codec *c);

/*
 * Compresses data that begins at a page. Returns the frame's length, and where it is until the next
 * call, or 0 where it would not be shorter than the data (or the codec is none): such data is
 * stored as it is.
 */
size_t ls_codec_compress(struct ls_image_codec *c, const void *data, size_t length,
                         const void **frame);

/* Decompresses one whole frame of `codec` to exactly `length` bytes, or returns -1 without a
 * message: the frame is not what a writer made. */
int ls_codec_decompress(struct ls_image_codec *c, enum ls_codec codec, const void *frame,
                        size_t frame_length, void *data, size_t length);

#endif
