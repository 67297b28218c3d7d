/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "image/codec.h"

#include <lz4frame.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

/*
 * Where in a page a frame begins. LZ4 copies what does not compress behind its header, and a copy
 * to a few bytes further in the page than it comes from takes four times as long (rep movsb on AMD:
 * 1.4 against 5 GB/s for random pages).
 */
#define FRAME_AT (LS_PAGE / 2)
/* LZ4's acceleration 2: a sixth less time for a thirtieth more bytes, on the memory of programs. */
#define LZ4_LEVEL (-1)

struct ls_image_codec {
    enum ls_codec codec;
    int level;
    ZSTD_CCtx *zc;
    ZSTD_DCtx *zd;
    LZ4F_dctx *ld;
    void *stored;
    size_t stored_size; /* LZ4F wants room for the worst case before it begins */
    void *pages;
};

static const char *const names[] = {"none", "lz4", "zstd"};

const char *ls_codec_name(enum ls_codec codec)
{
    return (unsigned)codec < 3 ? names[codec] : "unknown";
}

int ls_codec_parse(const char *name, enum ls_codec *codec, struct ls_error *err)
{
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i]) == 0) {
            *codec = (enum ls_codec)i;
            return 0;
        }
    }
    return ls_fail(err, LS_USAGE, "compression",
                   "compression '%s' is not known; use none, lz4 or zstd", name);
}

static void lz4_preferences(const struct ls_image_codec *c, size_t length, LZ4F_preferences_t *p)
{
    *p = (LZ4F_preferences_t)LZ4F_INIT_PREFERENCES;
    p->frameInfo.blockSizeID = LZ4F_max4MB; /* a run is one block */
    p->frameInfo.blockMode = LZ4F_blockIndependent;
    p->frameInfo.contentSize = length;
    p->compressionLevel = c->level ? c->level : LZ4_LEVEL;
    p->autoFlush = 1;
}

struct ls_image_codec *ls_image_codec_new(enum ls_codec codec, int level)
{
    struct ls_image_codec *c = calloc(1, sizeof *c);
    LZ4F_preferences_t p;

    if (!c)
        return NULL;
    c->codec = codec;
    c->level = level;
    lz4_preferences(c, LS_CODEC_SCRATCH, &p);
    c->stored_size = LZ4F_compressFrameBound(LS_CODEC_SCRATCH, &p);
    c->stored_size = (c->stored_size + LS_PAGE - 1) / LS_PAGE * LS_PAGE;
    c->stored = aligned_alloc(LS_PAGE, c->stored_size + LS_PAGE);
    c->pages = aligned_alloc(LS_PAGE, LS_CODEC_SCRATCH);
    if (!c->stored || !c->pages)
        goto fail;
    if (codec == LS_CODEC_ZSTD) {
        c->zc = ZSTD_createCCtx();
        if (!c->zc ||
            ZSTD_isError(
                ZSTD_CCtx_setParameter(c->zc, ZSTD_c_compressionLevel, level ? level : 1)) ||
            ZSTD_isError(ZSTD_CCtx_setParameter(c->zc, ZSTD_c_contentSizeFlag, 1)) ||
            ZSTD_isError(ZSTD_CCtx_setParameter(c->zc, ZSTD_c_checksumFlag, 0)))
            goto fail;
    }
    return c;
fail:
    ls_image_codec_free(c);
    return NULL;
}

void ls_image_codec_free(struct ls_image_codec *c)
{
    if (!c)
        return;
    ZSTD_freeCCtx(c->zc);
    ZSTD_freeDCtx(c->zd);
    LZ4F_freeDecompressionContext(c->ld);
    free(c->stored);
    free(c->pages);
    free(c);
}

void *ls_codec_stored(struct ls_image_codec *c)
{
    return c->stored;
}

void *ls_codec_pages(struct ls_image_codec *c)
{
    return c->pages;
}

size_t ls_codec_compress(struct ls_image_codec *c, const void *data, size_t length,
                         const void **frame)
{
    uint8_t *to = (uint8_t *)c->stored + FRAME_AT;
    size_t n;

    *frame = to;
    if (c->codec == LS_CODEC_LZ4) {
        LZ4F_preferences_t p;

        lz4_preferences(c, length, &p);
        n = LZ4F_compressFrame(to, c->stored_size, data, length, &p);
        return LZ4F_isError(n) || n >= length ? 0 : n;
    }
    if (c->codec == LS_CODEC_ZSTD) {
        n = ZSTD_compress2(c->zc, to, length - 1, data, length);
        return ZSTD_isError(n) ? 0 : n;
    }
    return 0;
}

static int lz4_decompress(struct ls_image_codec *c, const void *frame, size_t frame_length,
                          void *data, size_t length)
{
    const char *from = frame;
    char *to = data;
    size_t left = frame_length, room = length, hint;
    size_t used = frame_length;
    LZ4F_frameInfo_t info;

    if (!c->ld && LZ4F_isError(LZ4F_createDecompressionContext(&c->ld, LZ4F_VERSION)))
        return -1;
    LZ4F_resetDecompressionContext(c->ld);
    hint = LZ4F_getFrameInfo(c->ld, &info, from, &used);
    if (LZ4F_isError(hint) || info.frameType != LZ4F_frame || info.contentSize != length ||
        info.dictID != 0)
        return -1;
    from += used;
    left -= used;
    do {
        size_t in = left, out = room;

        hint = LZ4F_decompress(c->ld, to, &out, from, &in, NULL);
        if (LZ4F_isError(hint) || (in == 0 && out == 0 && hint != 0))
            return -1;
        from += in;
        left -= in;
        to += out;
        room -= out;
    } while (hint != 0);
    return left == 0 && room == 0 ? 0 : -1;
}

static int zstd_decompress(struct ls_image_codec *c, const void *frame, size_t frame_length,
                           void *data, size_t length)
{
    size_t n;

    if (!c->zd && !(c->zd = ZSTD_createDCtx()))
        return -1;
    if (ZSTD_getFrameContentSize(frame, frame_length) != length ||
        ZSTD_findFrameCompressedSize(frame, frame_length) != frame_length)
        return -1;
    n = ZSTD_decompressDCtx(c->zd, data, length, frame, frame_length);
    return !ZSTD_isError(n) && n == length ? 0 : -1;
}

int ls_codec_decompress(struct ls_image_codec *c, enum ls_codec codec, const void *frame,
                        size_t frame_length, void *data, size_t length)
{
    if (codec == LS_CODEC_LZ4)
        return lz4_decompress(c, frame, frame_length, data, length);
    if (codec == LS_CODEC_ZSTD)
        return zstd_decompress(c, frame, frame_length, data, length);
    return -1;
}
