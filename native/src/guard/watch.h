/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Watches the keeper of a capture, and releases the guest's RAM when it hangs.
 *
 * Death of the keeper frees the guest by itself (the kernel lifts protection with the last
 * descriptor of the userfaultfd). What does not: a keeper that is stopped, or one whose threads
 * have been killed but for one that hangs in the kernel and keeps the descriptors.
 */
#ifndef LS_GUARD_WATCH_H
#define LS_GUARD_WATCH_H

#include "capture/progress.h"
#include "guard/peer.h"

/* Guest threads wait and nothing moves for this long: the keeper hangs. */
#define LS_WATCH_STALL_MS 2000
/* The same where nobody is seen to wait; a host short of memory gets more time. */
#define LS_WATCH_IDLE_STALL_MS 5000
/* How often to look. */
#define LS_WATCH_LOOK_MS 100

struct ls_watch {
    struct ls_peer peer;
    int uffd;                           /* its number in the keeper */
    const struct ls_progress *progress; /* its memory, mapped read-only */
    uint64_t beat;                      /* heartbeat when last looked */
    int64_t looked;                     /* when that was */
    int stalled_ms;                     /* time seen to pass without a beat */
};

#define LS_WATCH_NONE                                                                              \
    {                                                                                              \
        .peer = LS_PEER_NONE, .uffd = -1                                                           \
    }

enum ls_watch_sight {
    LS_WATCH_LIVES,
    LS_WATCH_HUNG,  /* release */
    LS_WATCH_ENDED, /* every thread of it is gone, and with it all protection */
};

/* `progress` is the number of the progress memory's descriptor in the keeper. */
int ls_watch_open(struct ls_watch *keeper, pid_t pid, uint64_t start_time, int uffd, int progress,
                  struct ls_error *err);

/* Whether writes of the guest wait for this keeper. */
bool ls_watch_holds_ram(const struct ls_watch *keeper);

/* Call it every LS_WATCH_LOOK_MS; `now` as of ls_now_ms(). */
enum ls_watch_sight ls_watch_look(struct ls_watch *keeper, int64_t now);

/*
 * Frees the guest: takes the userfaultfd, kills the keeper, lifts protection from all ranges, wakes
 * who waits. Does not wait for the keeper's death. A keeper that has ended is a success.
 */
int ls_watch_release(struct ls_watch *keeper, struct ls_error *err);

void ls_watch_close(struct ls_watch *keeper);

#endif
