/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Architectures that nobody has written yet: everything refuses, before anything is touched. */
#ifndef __x86_64__

#include <errno.h>

#include "arch/arch.h"

#ifdef __aarch64__
const char ls_arch_name[] = "aarch64";
#else
const char ls_arch_name[] = "unknown";
#endif
const bool ls_arch_supported = false;
const char *const ls_arch_call_names[LS_CALL_COUNT] = {"ioctl",   "close",       "socketpair",
                                                       "recvmsg", "userfaultfd", "rt_sigreturn"};

static int refuse(struct ls_error *err)
{
    return ls_fail(err, LS_REFUSED, "arch",
                   "cannot attach on this architecture (%s): only x86_64 is supported",
                   ls_arch_name);
}

bool ls_arch_find_code(const uint8_t *text, size_t size, uint64_t address,
                       struct ls_arch_code *code)
{
    (void)text, (void)size, (void)address, (void)code;
    return false;
}

void ls_arch_seccomp_data(enum ls_arch_call call, const uint64_t args[6],
                          const struct ls_arch_code *code, struct seccomp_data *data)
{
    (void)call, (void)args, (void)code;
    *data = (struct seccomp_data){0};
}

int ls_arch_thread_read(pid_t tid, struct ls_arch_thread **thread, enum ls_arch_where *where,
                        struct ls_error *err)
{
    (void)tid, (void)thread, (void)where;
    return refuse(err);
}

void ls_arch_thread_free(struct ls_arch_thread *thread)
{
    (void)thread;
}

uint64_t ls_arch_thread_ip(const struct ls_arch_thread *thread)
{
    (void)thread;
    return 0;
}

int ls_arch_frame(struct ls_arch_thread *thread, const struct ls_arch_code *code, uint64_t mask,
                  size_t scratch, const uint8_t **bytes, size_t *size, uint64_t *address,
                  uint64_t *scratch_address, struct ls_error *err)
{
    (void)thread, (void)code, (void)mask, (void)scratch, (void)bytes, (void)size;
    (void)address, (void)scratch_address;
    return refuse(err);
}

int ls_arch_park(pid_t tid, const struct ls_arch_thread *thread, const struct ls_arch_code *code)
{
    (void)tid, (void)thread, (void)code;
    errno = ENOSYS;
    return -1;
}

int ls_arch_prepare_call(pid_t tid, const struct ls_arch_thread *thread,
                         const struct ls_arch_code *code, enum ls_arch_call call,
                         const uint64_t args[6])
{
    (void)call, (void)args;
    return ls_arch_park(tid, thread, code);
}

int ls_arch_restore(pid_t tid, const struct ls_arch_thread *thread)
{
    return ls_arch_park(tid, thread, NULL);
}

int ls_arch_result(pid_t tid, int64_t *result)
{
    (void)result;
    return ls_arch_park(tid, NULL, NULL);
}

#endif
