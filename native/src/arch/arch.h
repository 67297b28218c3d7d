/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * All that depends on the machine: how a stopped thread of another process is made to run system
 * calls, so that it heals by itself whenever it is let go. One file an architecture; where there is
 * none, other.c refuses.
 */
#ifndef LS_ARCH_ARCH_H
#define LS_ARCH_ARCH_H

#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"

/* Code in the target, both from a mapping of a file that cannot be written to. */
struct ls_arch_code {
    uint64_t call; /* a system call instruction followed by a return */
    uint64_t park; /* that return */
    uint64_t heal; /* code that makes the thread return from a signal */
};

/* A stopped thread: its registers as they were, and where its healing frame lies. */
struct ls_arch_thread;

/* Name for messages, and whether this architecture is supported at all. */
extern const char ls_arch_name[];
extern const bool ls_arch_supported;

/* The calls that may be injected, and those that the kernel makes on the way, by number. */
enum ls_arch_call {
    LS_CALL_IOCTL,
    LS_CALL_CLOSE,
    LS_CALL_SOCKETPAIR,
    LS_CALL_RECVMSG,
    LS_CALL_USERFAULTFD,
    LS_CALL_SIGRETURN,
    LS_CALL_COUNT,
};
extern const char *const ls_arch_call_names[LS_CALL_COUNT];

/* Looks for the code in `text`, which lies at `address` in the target; fills what is still zero in
 * *code. True when all is found. */
bool ls_arch_find_code(const uint8_t *text, size_t size, uint64_t address,
                       struct ls_arch_code *code);

/* What a seccomp filter would be shown. */
void ls_arch_seccomp_data(enum ls_arch_call call, const uint64_t args[6],
                          const struct ls_arch_code *code, struct seccomp_data *data);

/* Where the thread was when it stopped. */
enum ls_arch_where {
    LS_IN_CALL, /* at the end of a system call: it holds no user-space critical section */
    LS_IN_USER, /* in its own code */
};

/* Reads all registers of a thread in a ptrace stop. The result is freed by ls_arch_thread_free. */
int ls_arch_thread_read(pid_t tid, struct ls_arch_thread **thread, enum ls_arch_where *where,
                        struct ls_error *err);
void ls_arch_thread_free(struct ls_arch_thread *thread);

/* The instruction that the thread was stopped at. */
uint64_t ls_arch_thread_ip(const struct ls_arch_thread *thread);

/*
 * The bytes of the healing frame, for a thread whose signal mask was `mask`: with them at *address
 * and the thread parked, it restores itself whenever it runs. Below them `scratch` bytes of stack
 * at *scratch_address are free for arguments of calls. The bytes belong to `thread`.
 */
int ls_arch_frame(struct ls_arch_thread *thread, const struct ls_arch_code *code, uint64_t mask,
                  size_t scratch, const uint8_t **bytes, size_t *size, uint64_t *address,
                  uint64_t *scratch_address, struct ls_error *err);

/* Sets the registers: parked over its frame; about to make a call; and as they were, with the
 * interrupted call made again where the kernel would have. All -1 with errno, as ptrace(2). */
int ls_arch_park(pid_t tid, const struct ls_arch_thread *thread, const struct ls_arch_code *code);
int ls_arch_prepare_call(pid_t tid, const struct ls_arch_thread *thread,
                         const struct ls_arch_code *code, enum ls_arch_call call,
                         const uint64_t args[6]);
int ls_arch_restore(pid_t tid, const struct ls_arch_thread *thread);

/* The result of the call that the thread has just made: -errno or the value. */
int ls_arch_result(pid_t tid, int64_t *result);

#endif
