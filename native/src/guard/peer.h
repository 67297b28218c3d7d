/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Other processes, held by pidfd and known by pid and start time (field 22 of /proc/PID/stat, clock
 * ticks), so that a number that was used again is never taken for the process it was.
 */
#ifndef LS_GUARD_PEER_H
#define LS_GUARD_PEER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

struct ls_peer {
    pid_t pid;
    int pidfd;
    uint64_t start_time;
};

#define LS_PEER_NONE                                                                               \
    {                                                                                              \
        .pid = -1, .pidfd = -1                                                                     \
    }

/* Start time 0 takes the process as it is. Class LS_GONE, reason "gone": it has ended, or the pid
 * is another's by now. */
int ls_peer_open(struct ls_peer *peer, pid_t pid, uint64_t start_time, struct ls_error *err);

/* Has every thread of it ended? A zombie leader with a thread left in the kernel has not. */
bool ls_peer_ended(const struct ls_peer *peer);

/* Waits for that until a moment of the monotonic clock (common/clock.h). */
bool ls_peer_wait(const struct ls_peer *peer, int64_t until);

/* State letter of its main thread as in /proc/PID/stat; 'X' when it is not there any more. */
char ls_peer_state(const struct ls_peer *peer);

/* SIGKILL. One that has ended is no failure. */
int ls_peer_kill(const struct ls_peer *peer, struct ls_error *err);

/*
 * A copy of its descriptor `fd` (CLOEXEC). Where its main thread has ended already and another
 * hangs in the kernel, the descriptor is taken from that thread (Linux 6.9). Class LS_GONE: there
 * is no such descriptor any more.
 */
int ls_peer_take(const struct ls_peer *peer, int fd, struct ls_error *err);

/*
 * Copies of its UNIX sockets whose other end is process `other` or is bound to one of `paths`
 * (NULL entries are passed over), at most `room` of them. For ending the connections of a process
 * that SIGKILL does not end, because it hangs in the kernel.
 */
size_t ls_peer_take_sockets(const struct ls_peer *peer, pid_t other, const char *const paths[2],
                            int *fds, size_t room);

void ls_peer_close(struct ls_peer *peer);

#endif
