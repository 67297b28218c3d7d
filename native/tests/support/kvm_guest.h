/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The least that is a guest: a virtual machine of KVM whose vCPUs do nothing in long mode but write
 * a counter through memory. Its page tables, its program and its counters lie in its memory, too.
 */
#ifndef LS_TESTS_KVM_GUEST_H
#define LS_TESTS_KVM_GUEST_H

#include <stddef.h>
#include <stdint.h>

/* Guest memory below this is the guest's own: tables, program, counters. */
#define KVM_GUEST_OWN (64ul << 10)
#define KVM_GUEST_VCPUS_MAX 4u
#define KVM_GUEST_BLOCKS_MAX 4u
/* Where block b begins, guest-physical. */
#define KVM_GUEST_BLOCK(b) ((uint64_t)(b) << 26)

struct kvm_guest_block {
    void *at;
    size_t size; /* at most 64 MiB */
    size_t used; /* bytes that are written */
};

/* NULL, or why there can be no virtual machine here. Leaves nothing open. */
const char *kvm_guest_impossible(void);

/*
 * Makes the machine and starts a thread a vCPU; it runs until the process ends. vCPU v of n writes
 * the pages v, v + n, v + 2n, ... of all blocks, from the first block's KVM_GUEST_OWN on: each word
 * of page g (guest-physical address / 4096) gets k << 32 | g, and then k grows by one. Exits the
 * process with a code of 10 to 19 if it cannot.
 */
void kvm_guest_run(const struct kvm_guest_block *blocks, unsigned count, unsigned vcpus);

/* Offset in the first block of the counter of a vCPU, which has gone through memory that often. */
size_t kvm_guest_counter(unsigned vcpu);

#endif
