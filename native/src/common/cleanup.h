/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Ownership by scope: variables that free or close what they hold when their scope ends. */
#ifndef LS_COMMON_CLEANUP_H
#define LS_COMMON_CLEANUP_H

#include <stdlib.h>
#include <unistd.h>

static inline void ls_free_ptr(void *p)
{
    free(*(void **)p);
}

static inline void ls_close_fd(const int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

#define LS_AUTO_FREE __attribute__((cleanup(ls_free_ptr)))
#define LS_AUTO_CLOSE __attribute__((cleanup(ls_close_fd)))

/* Hands the value out of an owning variable: ls_steal_fd(&fd) leaves -1 behind. */
static inline int ls_steal_fd(int *fd)
{
    int value = *fd;

    *fd = -1;
    return value;
}

#endif
