/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * An ELF core of the guest's memory: what QEMU's dump-guest-memory writes without paging. One
 * PT_LOAD for each range of guest-physical addresses (p_paddr), and for each processor the notes
 * that crash and others look for: NT_PRSTATUS, and QEMU's own with the control registers
 * (QEMU, target/i386/arch_dump.c).
 */
#include <elf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/procfs.h>

#include "common/cleanup.h"
#include "stream/beside.h"
#include "stream/cpu.h"
#include "stream/stream.h"

struct qemu_segment {
    uint32_t selector, limit, flags, pad;
    uint64_t base;
};

/* Version 1 of the descriptor of note "QEMU". */
struct qemu_cpu {
    uint32_t version, size;
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
    uint64_t r8_to_r15[8];
    uint64_t rip, rflags;
    struct qemu_segment cs, ds, es, fs, gs, ss, ldt, tr, gdt, idt;
    uint64_t cr[5];
    uint64_t kernel_gs_base;
};
_Static_assert(sizeof(struct qemu_cpu) == 440, "as QEMU writes it");

#define NOTE_HEAD 20u /* sizes and type, and a name of five bytes in words of four */
#define NOTES (2 * NOTE_HEAD + sizeof(struct elf_prstatus) + sizeof(struct qemu_cpu))

struct elf {
    struct ls_beside out;
    const struct ls_image_info *info;
    uint64_t head;    /* bytes before the memory, whole pages */
    uint64_t *places; /* of each range in the file */
    void *bounce;
    uint32_t block; /* that is being walked */
    ls_image_progress_fn progress;
    void *opaque;
    uint64_t done;
};

/* Notes are words of four bytes without padding between them. Returns what comes behind. */
static uint8_t *put_note(uint8_t *at, const char *name, uint32_t type, const void *data,
                         size_t size)
{
    const Elf64_Nhdr head = {.n_namesz = 5, .n_descsz = (Elf64_Word)size, .n_type = type};

    memcpy(at, &head, sizeof(head));
    memcpy(at + sizeof(head), name, 5);
    memcpy(at + NOTE_HEAD, data, size);
    return at + NOTE_HEAD + size;
}

static struct qemu_segment segment(const struct ls_cpu_segment *s)
{
    return (struct qemu_segment){
        .selector = s->selector, .limit = s->limit, .flags = s->flags, .base = s->base};
}

static void fill_qemu(const struct ls_cpu *c, struct qemu_cpu *q)
{
    const uint64_t *r = c->registers;
    const struct ls_cpu_segment *s = c->segments;

    *q = (struct qemu_cpu){
        .version = 1,
        .size = sizeof(*q),
        .rax = r[LS_RAX],
        .rbx = r[LS_RBX],
        .rcx = r[LS_RCX],
        .rdx = r[LS_RDX],
        .rsi = r[LS_RSI],
        .rdi = r[LS_RDI],
        .rsp = r[LS_RSP],
        .rbp = r[LS_RBP],
        .rip = c->rip,
        .rflags = c->rflags,
        .cs = segment(&s[LS_CS]),
        .ds = segment(&s[LS_DS]),
        .es = segment(&s[LS_ES]),
        .fs = segment(&s[LS_FS]),
        .gs = segment(&s[LS_GS]),
        .ss = segment(&s[LS_SS]),
        .ldt = segment(&s[LS_LDT]),
        .tr = segment(&s[LS_TR]),
        .gdt = segment(&s[LS_GDT]),
        .idt = segment(&s[LS_IDT]),
        .kernel_gs_base = c->kernel_gs_base,
    };
    memcpy(q->r8_to_r15, r + LS_R8, sizeof(q->r8_to_r15));
    memcpy(q->cr, c->cr, sizeof(q->cr));
}

/* The registers of NT_PRSTATUS, in the order of struct user_regs_struct. */
static void fill_status(const struct ls_cpu *c, uint32_t number, struct elf_prstatus *status)
{
    const uint64_t *r = c->registers;
    const struct ls_cpu_segment *s = c->segments;
    const uint64_t registers[ELF_NGREG] = {
        r[15],
        r[14],
        r[13],
        r[12],
        r[LS_RBP],
        r[LS_RBX],
        r[11],
        r[10],
        r[9],
        r[LS_R8],
        r[LS_RAX],
        r[LS_RCX],
        r[LS_RDX],
        r[LS_RSI],
        r[LS_RDI],
        0,
        c->rip,
        s[LS_CS].selector,
        c->rflags,
        r[LS_RSP],
        s[LS_SS].selector,
        s[LS_FS].base,
        s[LS_GS].base,
        s[LS_DS].selector,
        s[LS_ES].selector,
        s[LS_FS].selector,
        s[LS_GS].selector,
    };

    memset(status, 0, sizeof(*status));
    status->pr_pid = (int)number + 1;
    memcpy(&status->pr_reg, registers, sizeof(registers));
}

static void put_notes(const struct ls_cpu *cpus, size_t count, uint8_t *at)
{
    for (size_t i = 0; i < count; i++) {
        struct elf_prstatus status;
        struct qemu_cpu qemu;

        fill_status(&cpus[i], (uint32_t)i, &status);
        at = put_note(at, "CORE", NT_PRSTATUS, &status, sizeof(status));
        fill_qemu(&cpus[i], &qemu);
        at = put_note(at, "QEMU", 0, &qemu, sizeof(qemu));
    }
}

static uint64_t round_up(uint64_t bytes)
{
    return (bytes + LS_PAGE - 1) / LS_PAGE * LS_PAGE;
}

static uint64_t notes_at(const struct ls_image_info *info)
{
    return sizeof(Elf64_Ehdr) + (info->range_count + 1) * sizeof(Elf64_Phdr);
}

/* Where each range goes, behind the notes of so many processors. Returns the length of the file. */
static uint64_t place_ranges(struct elf *e, size_t cpus)
{
    uint64_t at = e->head = round_up(notes_at(e->info) + cpus * NOTES);

    for (uint32_t i = 0; i < e->info->range_count; i++) {
        e->places[i] = at;
        at += round_up(e->info->ranges[i].length);
    }
    return at;
}

/* Everything before the memory. */
static int write_head(struct elf *e, const struct ls_cpu *cpus, size_t count, struct ls_error *err)
{
    const struct ls_image_info *info = e->info;
    uint64_t notes = notes_at(info);
    LS_AUTO_FREE uint8_t *head = aligned_alloc(LS_PAGE, e->head);
    Elf64_Phdr *segments;

    if (!head)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory for the head of an ELF core");
    memset(head, 0, e->head);
    *(Elf64_Ehdr *)head = (Elf64_Ehdr){
        .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
        .e_type = ET_CORE,
        .e_machine = EM_X86_64,
        .e_version = EV_CURRENT,
        .e_phoff = sizeof(Elf64_Ehdr),
        .e_ehsize = sizeof(Elf64_Ehdr),
        .e_phentsize = sizeof(Elf64_Phdr),
        .e_phnum = (Elf64_Half)(info->range_count + 1),
    };
    segments = (Elf64_Phdr *)(head + sizeof(Elf64_Ehdr));
    segments[0] =
        (Elf64_Phdr){.p_type = PT_NOTE, .p_offset = notes, .p_filesz = count * NOTES, .p_align = 4};
    for (uint32_t i = 0; i < info->range_count; i++) {
        const struct ls_image_range *range = &info->ranges[i];

        segments[i + 1] = (Elf64_Phdr){.p_type = PT_LOAD,
                                       .p_flags = PF_R | PF_W | PF_X,
                                       .p_offset = e->places[i],
                                       .p_paddr = range->gpa,
                                       .p_filesz = range->length,
                                       .p_memsz = range->length,
                                       .p_align = LS_PAGE};
    }
    put_notes(cpus, count, head + notes);
    return ls_append_place(&e->out.file, head, e->head, 0, e->bounce, err);
}

/* A run of pages of a block goes to each range that has some of them. */
static int write_run(const struct ls_image_run *run, void *opaque, struct ls_error *err)
{
    struct elf *e = opaque;
    uint64_t start = run->first_page * LS_PAGE, length = run->pages * LS_PAGE;

    for (uint32_t i = 0; run->data && i < e->info->range_count; i++) {
        const struct ls_image_range *range = &e->info->ranges[i];
        uint64_t from = range->offset > start ? range->offset : start;
        uint64_t to = range->offset + range->length;

        if (to > start + length)
            to = start + length;
        if (range->block == e->block && from < to &&
            ls_append_place(&e->out.file, (const uint8_t *)run->data + (from - start), to - from,
                            e->places[i] + (from - range->offset), e->bounce, err))
            return -1;
    }
    e->done += length;
    if (e->progress)
        e->progress(e->done, e->info->ram_bytes, e->opaque);
    return 0;
}

static int write_core(struct ls_image *image, struct elf *e, const struct ls_cpu *cpus,
                      size_t count, struct ls_error *err)
{
    if (write_head(e, cpus, count, err))
        return -1;
    for (e->block = 0; e->block < e->info->block_count; e->block++) {
        if (ls_image_walk(image, e->block, write_run, e, err))
            return -1;
    }
    return 0;
}

static int write_file(struct ls_image *image, struct elf *e, const struct ls_devices *devices,
                      const char *path, struct ls_error *err)
{
    LS_AUTO_FREE struct ls_cpu *cpus = calloc(LS_CPUS, sizeof(*cpus));
    size_t count;

    if (!cpus)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to write '%s'", path);
    count = ls_cpus(devices, cpus);
    if (ls_beside_begin(&e->out, path, place_ranges(e, count), err))
        return -1;
    return ls_beside_end(&e->out, write_core(image, e, cpus, count, err), err);
}

int ls_elf_write(struct ls_image *image, const struct ls_devices *devices, const char *path,
                 ls_image_progress_fn progress, void *opaque, struct ls_error *err)
{
    struct elf e = {.info = ls_image_info(image), .progress = progress, .opaque = opaque};
    const char *arch = ls_image_string(image, "arch");
    int ret;

    if (!arch || strcmp(arch, "x86_64") != 0)
        return ls_fail(err, LS_REFUSED, "arch", "ELF cores are made of x86-64 guests only");
    e.places = calloc(e.info->range_count + 1, sizeof(*e.places));
    e.bounce = aligned_alloc(LS_PAGE, LS_IMAGE_RUN * LS_PAGE);
    if (!e.places || !e.bounce)
        ret = ls_fail(err, LS_INTERNAL, "memory", "no memory to write '%s'", path);
    else
        ret = write_file(image, &e, devices, path, err);
    free(e.places);
    free(e.bounce);
    return ret;
}
