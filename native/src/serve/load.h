/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Pages of a RAM image into a process that runs already, by a userfaultfd of it that is registered
 * for missing pages: each page once, in any order.
 */
#ifndef LS_SERVE_LOAD_H
#define LS_SERVE_LOAD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"
#include "image/image.h"

#define LS_LOAD_MOST 512u /* pages at a time */

struct ls_load {
    pid_t pid;
    int uffd;
    uint64_t host;   /* where the block begins in the process */
    uint64_t length; /* bytes */
    /* A bit a page: it is there, or the guest has given it back since and it is zero. */
    uint64_t *settled;
    uint64_t loaded_bytes;
};

int ls_load_open(struct ls_load *l, pid_t pid, int uffd, uint64_t host, uint64_t length,
                 struct ls_error *err);
void ls_load_close(struct ls_load *l);

/* Handshake and registration. Nobody may write to the block until ls_load_present() is done. */
int ls_load_register(struct ls_load *l, struct ls_error *err);

/* Pages that the process had already, which no fault will ask for, get what the image says. */
int ls_load_present(struct ls_load *l, struct ls_image *image, uint32_t block,
                    struct ls_error *err);

/*
 * Puts `count` pages from `first` on, those of them that are not settled; data NULL is zeros.
 * Wakes who waits for them. 1: an event is to be read first, and the same is to be asked again.
 */
int ls_load_put(struct ls_load *l, uint64_t first, uint64_t count, const uint8_t *data,
                struct ls_error *err);

/* A page that was asked for although it is settled: zero, unless it is there. 1: as above. */
int ls_load_again(struct ls_load *l, uint64_t page, struct ls_error *err);

/* The guest has given these addresses back. */
void ls_load_removed(struct ls_load *l, uint64_t start, uint64_t end);

static inline bool ls_load_settled(const struct ls_load *l, uint64_t page)
{
    return l->settled[page / 64] >> (page % 64) & 1;
}

#endif
