/* SPDX-License-Identifier: GPL-3.0-or-later */
/* The layout is that of vmstate_x86_cpu in QEMU's target/i386/machine.c: big-endian, no padding. */
#include "stream/cpu.h"

#include <string.h>

#include "stream/format.h"

#define HEAD 17u /* type, number, length of the name, "cpu", instance, version */
#define VERSION 12u
#define FPU_BYTES 92u /* hflags, control words and eight registers of ten bytes */
#define SYSENTER_BYTES 20u
#define EFER_AT 816u
#define NEEDED (EFER_AT + 48u) /* up to kernel_gs_base, the sixth of the MSRs from EFER on */
#define RFLAGS_ALWAYS 2u

static uint64_t be(const uint8_t **p, size_t bytes)
{
    uint64_t value = 0;

    while (bytes--)
        value = value << 8 | *(*p)++;
    return value;
}

static void read_cpu(const uint8_t *data, struct ls_cpu *cpu)
{
    const uint8_t *p = data;

    memset(cpu, 0, sizeof(*cpu));
    for (unsigned i = 0; i < LS_REGISTERS; i++)
        cpu->registers[i] = be(&p, 8);
    cpu->rip = be(&p, 8);
    cpu->rflags = be(&p, 8);
    p += FPU_BYTES;
    for (unsigned i = 0; i < LS_SEGMENTS; i++) {
        cpu->segments[i].selector = (uint32_t)be(&p, 4);
        cpu->segments[i].base = be(&p, 8);
        cpu->segments[i].limit = (uint32_t)be(&p, 4);
        cpu->segments[i].flags = (uint32_t)be(&p, 4);
    }
    p += SYSENTER_BYTES;
    cpu->cr[0] = be(&p, 8);
    for (unsigned i = 2; i < 5; i++)
        cpu->cr[i] = be(&p, 8);
    p = data + NEEDED - 8;
    cpu->kernel_gs_base = be(&p, 8);
}

size_t ls_cpus(const struct ls_devices *d, struct ls_cpu *cpus)
{
    size_t found = 0;

    for (size_t at = 0; at + HEAD + NEEDED <= d->length && found < LS_CPUS; at++) {
        const uint8_t *p = d->sections + at;
        const uint8_t *version = p + HEAD - 4;

        if (p[0] != LS_QEMU_SECTION_FULL || memcmp(p + 5, "\3cpu", 4) != 0 ||
            be(&version, 4) != VERSION)
            continue;
        /* Sections do not tell their length: this one begins where another has ended. */
        if (at && (at < 5 || p[-5] != LS_QEMU_FOOTER))
            continue;
        read_cpu(p + HEAD, &cpus[found]);
        if (cpus[found].rflags & RFLAGS_ALWAYS)
            found++;
    }
    return found;
}
