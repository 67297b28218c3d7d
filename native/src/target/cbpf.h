/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Classic BPF as seccomp(2) uses it: what would a filter say to a call, before it is made? */
#ifndef LS_TARGET_CBPF_H
#define LS_TARGET_CBPF_H

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Runs one filter over `data`. 0 and the filter's verdict (SECCOMP_RET_*) in *verdict, or -1 if the
 * program is none that the kernel would have accepted.
 */
int ls_cbpf_run(const struct sock_filter *program, size_t length, const struct seccomp_data *data,
                uint32_t *verdict);

#endif
