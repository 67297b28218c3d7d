/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Processors of an x86-64 guest, as a device state has them. */
#ifndef LS_STREAM_CPU_H
#define LS_STREAM_CPU_H

#include <stddef.h>
#include <stdint.h>

#include "stream/stream.h"

#define LS_CPUS 4096u /* more than any machine type of QEMU's has */

/* In QEMU's order. */
enum { LS_RAX, LS_RCX, LS_RDX, LS_RBX, LS_RSP, LS_RBP, LS_RSI, LS_RDI, LS_R8, LS_REGISTERS = 16 };
enum { LS_ES, LS_CS, LS_SS, LS_DS, LS_FS, LS_GS, LS_LDT, LS_TR, LS_GDT, LS_IDT, LS_SEGMENTS };

struct ls_cpu_segment {
    uint64_t base;
    uint32_t selector, limit, flags;
};

struct ls_cpu {
    uint64_t registers[LS_REGISTERS];
    uint64_t rip, rflags;
    struct ls_cpu_segment segments[LS_SEGMENTS];
    uint64_t cr[5]; /* CR1 is 0 */
    uint64_t kernel_gs_base;
};

/*
 * The processors of a device state, in their order, into `cpus` (LS_CPUS at most): those whose
 * section `cpu` is of version 12, which QEMU has written since 2.4. Returns how many.
 */
size_t ls_cpus(const struct ls_devices *devices, struct ls_cpu *cpus);

#endif
