/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "kvm_guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef __x86_64__

/* Guest-physical, in its own memory. */
enum {
    PML4 = 0x1000,
    PDPT = 0x2000,
    PD = 0x3000,
    COUNTERS = 0x4000,
    RANGES = 0x5000, /* {first address, end} of each block, then 0 */
    PROGRAM = 0x6000,
};

/*
 * r8: step between two pages of this vCPU; r9: its first page, as an offset; r10: its counter's
 * address; rbx: k. It runs as user code, which the hypervisors without help of the processor
 * execute directly, too. At each step it takes marks of access away from the page directory, which
 * is guest memory: there the hypervisor writes such entries itself, elsewhere the processor.
 */
extern const uint8_t kvm_guest_program[], kvm_guest_program_end[];
__asm__(".pushsection .rodata\n"
        "kvm_guest_program:\n"
        "1: inc %rbx\n"
        "   mov $0x3000, %edi\n" /* PD */
        "   mov $4, %ecx\n"
        "2: andq $~0x60, (%rdi)\n"
        "   add $8, %rdi\n"
        "   dec %ecx\n"
        "   jnz 2b\n"
        "   mov $0x5000, %esi\n" /* RANGES */
        "3: mov (%rsi), %rdx\n"  /* page */
        "   mov 8(%rsi), %r12\n" /* end */
        "   add $16, %rsi\n"
        "   test %r12, %r12\n"
        "   jz 6f\n"
        "   add %r9, %rdx\n"
        "4: cmp %r12, %rdx\n"
        "   jae 3b\n"
        "   mov %rdx, %rdi\n"
        "   mov %rdx, %rcx\n"
        "   shr $12, %rcx\n"
        "   mov %rbx, %rax\n"
        "   shl $32, %rax\n"
        "   or %rcx, %rax\n"
        "   mov $512, %ecx\n"
        "   test $0x1000, %edx\n" /* every second page in one instruction, the others by single */
        "   jz 5f\n"              /* ones */
        "   rep stosq\n"
        "   add %r8, %rdx\n"
        "   jmp 4b\n"
        "5: mov %rax, (%rdi)\n"
        "   add $8, %rdi\n"
        "   dec %ecx\n"
        "   jnz 5b\n"
        "   add %r8, %rdx\n"
        "   jmp 4b\n"
        "6: mov %rbx, (%r10)\n"
        "   jmp 1b\n"
        "kvm_guest_program_end:\n"
        ".popsection\n");

static void put(uint8_t *own, size_t at, uint64_t value)
{
    memcpy(own + at, &value, sizeof value);
}

/* The first GiB at its own addresses, in pages of 2 MiB that a user may write. */
static void fill_own(uint8_t *own, const struct kvm_guest_block *blocks, unsigned count)
{
    put(own, PML4, PDPT | 7);
    put(own, PDPT, PD | 7);
    for (uint64_t i = 0; i < 512; i++)
        put(own, PD + i * 8, i << 21 | 0x87);
    for (unsigned b = 0; b < count; b++) {
        put(own, RANGES + b * 16, KVM_GUEST_BLOCK(b) + (b == 0 ? KVM_GUEST_OWN : 0));
        put(own, RANGES + b * 16 + 8, KVM_GUEST_BLOCK(b) + blocks[b].used);
    }
    memcpy(own + PROGRAM, kvm_guest_program, (size_t)(kvm_guest_program_end - kvm_guest_program));
}

static int set_long_mode(int vcpu)
{
    struct kvm_sregs s;
    const struct kvm_segment code = {
        .limit = ~0u, .selector = 0x1b, .dpl = 3, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    const struct kvm_segment data = {
        .limit = ~0u, .selector = 0x23, .dpl = 3, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};

    if (ioctl(vcpu, KVM_GET_SREGS, &s))
        return -1;
    s.cs = code;
    s.ds = s.es = s.ss = s.fs = s.gs = data;
    s.cr3 = PML4;
    s.cr4 = 0x20;       /* PAE */
    s.cr0 = 0x80050033; /* PG AM WP NE ET MP PE */
    s.efer = 0x500;     /* LMA LME */
    return ioctl(vcpu, KVM_SET_SREGS, &s);
}

static void *run(void *arg)
{
    int vcpu = (int)(intptr_t)arg;

    for (;;)
        if (ioctl(vcpu, KVM_RUN, 0) == 0 || (errno != EINTR && errno != EAGAIN))
            _exit(19); /* the program never leaves by itself */
    return NULL;
}

static void start_vcpu(int vm, unsigned n, unsigned vcpus)
{
    struct kvm_regs regs = {
        .rip = PROGRAM,
        .rflags = 2,
        .r8 = vcpus * 4096ul,
        .r9 = n * 4096ul,
        .r10 = COUNTERS + n * 8ul,
    };
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, n);
    pthread_t thread;

    if (vcpu < 0 || set_long_mode(vcpu) || ioctl(vcpu, KVM_SET_REGS, &regs))
        _exit(13);
    if (pthread_create(&thread, NULL, run, (void *)(intptr_t)vcpu))
        _exit(14);
}

void kvm_guest_run(const struct kvm_guest_block *blocks, unsigned count, unsigned vcpus)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);

    if (vm < 0)
        _exit(10);
    fill_own(blocks[0].at, blocks, count);
    /* Three pages for the processor's own use, beyond all blocks; older Intel ones need them. */
    if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000ul) < 0)
        _exit(11);
    for (unsigned b = 0; b < count; b++) {
        struct kvm_userspace_memory_region r = {
            .slot = b,
            .guest_phys_addr = KVM_GUEST_BLOCK(b),
            .memory_size = blocks[b].size,
            .userspace_addr = (uintptr_t)blocks[b].at,
        };

        if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &r))
            _exit(12);
    }
    for (unsigned n = 0; n < vcpus; n++)
        start_vcpu(vm, n, vcpus);
}

const char *kvm_guest_impossible(void)
{
    static char why[128];
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
    int vcpu = vm < 0 ? -1 : ioctl(vm, KVM_CREATE_VCPU, 0);

    why[0] = 0;
    if (vcpu < 0)
        snprintf(why, sizeof why, "%s: %s", kvm < 0 ? "/dev/kvm" : "no virtual machine by KVM",
                 strerror(errno));
    if (vcpu >= 0)
        close(vcpu);
    if (vm >= 0)
        close(vm);
    if (kvm >= 0)
        close(kvm);
    return why[0] ? why : NULL;
}

size_t kvm_guest_counter(unsigned vcpu)
{
    return COUNTERS + vcpu * 8ul;
}

#else

const char *kvm_guest_impossible(void)
{
    return "its program is of x86-64";
}

void kvm_guest_run(const struct kvm_guest_block *blocks, unsigned count, unsigned vcpus)
{
    (void)blocks;
    (void)count;
    (void)vcpus;
    _exit(10);
}

size_t kvm_guest_counter(unsigned vcpu)
{
    return vcpu * 8ul;
}

#endif
