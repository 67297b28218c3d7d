/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "image/append.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "image/format.h"
#include "image/image.h"

_Static_assert(LS_APPEND_CHUNK >= 2 * LS_IMAGE_RUN * LS_PAGE, "a run fits into half a chunk");

int ls_append_open(struct ls_append *a, const char *path, uint64_t base, struct ls_error *err)
{
    *a = (struct ls_append){.base = base, .direct = true};
    a->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW | O_DIRECT, 0600);
    if (a->fd < 0 && errno == EINVAL) {
        /* The kernel may have made the file before it found that it has no O_DIRECT. */
        unlink(path);
        a->direct = false;
        a->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    }
    if (a->fd < 0)
        return ls_fail_errno(err, LS_STORAGE, "create", "cannot create RAM image '%s'", path);
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->written, NULL);
    for (unsigned i = 0; i < LS_APPEND_BUFFERS; i++) {
        a->buffers[i].chunk = i;
        a->buffers[i].data = aligned_alloc(LS_PAGE, LS_APPEND_CHUNK);
        if (!a->buffers[i].data) {
            ls_append_close(a);
            unlink(path);
            return ls_fail(err, LS_INTERNAL, "memory",
                           "no memory for the buffers of RAM image '%s'", path);
        }
    }
    return 0;
}

/* Keeps the first failure for all who come later. */
static int fail_for_all(struct ls_append *a, const struct ls_error *err)
{
    pthread_mutex_lock(&a->lock);
    if (!a->failed) {
        a->failed = true;
        a->error = *err;
    }
    pthread_cond_broadcast(&a->written);
    pthread_mutex_unlock(&a->lock);
    return -1;
}

/* The file system refuses O_DIRECT (or such writes): do without from now on. */
static void give_up_direct(struct ls_append *a)
{
    pthread_mutex_lock(&a->lock);
    if (a->direct) {
        int flags = fcntl(a->fd, F_GETFL);

        if (flags >= 0)
            fcntl(a->fd, F_SETFL, flags & ~O_DIRECT);
        a->direct = false;
    }
    pthread_mutex_unlock(&a->lock);
}

static int write_out(struct ls_append *a, const void *data, size_t length, uint64_t offset,
                     struct ls_error *err)
{
    struct ls_error mine;
    bool direct, retried = false;

    while (ls_pwrite_full(a->fd, data, length, (off_t)offset, &mine)) {
        if (mine.sys == EINVAL && !retried) {
            retried = true;
            give_up_direct(a);
            continue;
        }
        *err = mine;
        if (mine.sys == ENOSPC || mine.sys == EDQUOT) {
            ls_fail(err, LS_STORAGE, "full", "the store is full: cannot write %zu bytes of RAM",
                    length);
            err->sys = mine.sys;
        }
        return fail_for_all(a, err);
    }
    pthread_mutex_lock(&a->lock);
    a->stored += length;
    direct = a->direct;
    pthread_mutex_unlock(&a->lock);
    if (!direct) {
        sync_file_range(a->fd, (off_t)offset, (off_t)length, SYNC_FILE_RANGE_WRITE);
        if (offset >= 2 * LS_APPEND_CHUNK) {
            off_t old = (off_t)(offset - 2 * LS_APPEND_CHUNK);

            sync_file_range(a->fd, old, LS_APPEND_CHUNK,
                            SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                SYNC_FILE_RANGE_WAIT_AFTER);
            posix_fadvise(a->fd, old, LS_APPEND_CHUNK, POSIX_FADV_DONTNEED);
        }
    }
    return 0;
}

/*
 * Copies bytes reserved at `at` into their buffer; whoever completes a buffer writes it out and
 * hands it to the chunk LS_APPEND_BUFFERS further on. A chunk waits only for lower ones, so the
 * lowest one that is not complete always goes on: no two threads wait for each other.
 */
static int fill(struct ls_append *a, const uint8_t *data, size_t length, uint64_t at,
                struct ls_error *err)
{
    uint64_t chunk = at / LS_APPEND_CHUNK;
    struct ls_append_buffer *b = &a->buffers[chunk % LS_APPEND_BUFFERS];
    bool complete;

    pthread_mutex_lock(&a->lock);
    while (b->chunk != chunk && !a->failed)
        pthread_cond_wait(&a->written, &a->lock);
    if (a->failed) {
        *err = a->error;
        pthread_mutex_unlock(&a->lock);
        return -1;
    }
    pthread_mutex_unlock(&a->lock);

    memcpy(b->data + at % LS_APPEND_CHUNK, data, length);

    pthread_mutex_lock(&a->lock);
    b->filled += length;
    complete = b->filled == LS_APPEND_CHUNK;
    pthread_mutex_unlock(&a->lock);
    if (!complete)
        return 0;
    if (write_out(a, b->data, LS_APPEND_CHUNK, a->base + chunk * LS_APPEND_CHUNK, err))
        return -1;
    pthread_mutex_lock(&a->lock);
    b->chunk += LS_APPEND_BUFFERS;
    b->filled = 0;
    pthread_cond_broadcast(&a->written);
    pthread_mutex_unlock(&a->lock);
    return 0;
}

int ls_append(struct ls_append *a, const void *data, size_t length, uint64_t *offset,
              struct ls_error *err)
{
    const uint8_t *from = data;
    uint64_t at;

    pthread_mutex_lock(&a->lock);
    at = a->reserved;
    a->reserved += length;
    pthread_mutex_unlock(&a->lock);
    *offset = a->base + at;
    while (length > 0) {
        size_t room = LS_APPEND_CHUNK - at % LS_APPEND_CHUNK;
        size_t n = length < room ? length : room;

        if (fill(a, from, n, at, err))
            return -1;
        from += n;
        at += n;
        length -= n;
    }
    return 0;
}

int ls_append_place(struct ls_append *a, const void *data, size_t length, uint64_t offset,
                    void *bounce, struct ls_error *err)
{
    if ((uintptr_t)data % LS_PAGE != 0) {
        memcpy(bounce, data, length);
        data = bounce;
    }
    return write_out(a, data, length, offset, err);
}

int ls_append_flush(struct ls_append *a, struct ls_error *err)
{
    static const uint8_t zeros[LS_PAGE];
    size_t over = a->reserved % LS_PAGE;
    uint64_t chunk, at;
    struct ls_append_buffer *b;

    if (over && ls_append(a, zeros, LS_PAGE - over, &at, err))
        return -1;
    chunk = a->reserved / LS_APPEND_CHUNK;
    b = &a->buffers[chunk % LS_APPEND_BUFFERS];
    if (b->filled > 0 && write_out(a, b->data, b->filled, a->base + chunk * LS_APPEND_CHUNK, err))
        return -1;
    if (fsync(a->fd)) {
        ls_fail_errno(err, LS_STORAGE, "fsync", "cannot bring the RAM image to the disk");
        return fail_for_all(a, err);
    }
    return 0;
}

uint64_t ls_append_offset(const struct ls_append *a)
{
    return a->base + a->reserved;
}

uint64_t ls_append_stored(struct ls_append *a)
{
    uint64_t stored;

    pthread_mutex_lock(&a->lock);
    stored = a->stored;
    pthread_mutex_unlock(&a->lock);
    return stored;
}

void ls_append_close(struct ls_append *a)
{
    close(a->fd);
    for (unsigned i = 0; i < LS_APPEND_BUFFERS; i++)
        free(a->buffers[i].data);
    pthread_cond_destroy(&a->written);
    pthread_mutex_destroy(&a->lock);
}
