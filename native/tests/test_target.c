/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Reading a process from outside: /proc, seccomp filters, the RAM blocks in its heap. */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "target/attach.h"
#include "target/cbpf.h"

/* ---- classic BPF ---- */

static uint32_t verdict_of(const struct sock_filter *code, size_t length, int nr, uint64_t arg0)
{
    struct seccomp_data data = {.nr = nr, .arch = AUDIT_ARCH_X86_64, .args = {arg0}};
    uint32_t verdict = 0;

    assert_int_equal(ls_cbpf_run(code, length, &data, &verdict), 0);
    return verdict;
}

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RET(value) BPF_STMT(BPF_RET | BPF_K, value)

static void cbpf_jumps_and_arithmetic(void **opaque)
{
    const struct sock_filter by_number[] = {
        LOAD(nr),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_close, 0, 1),
        RET(SECCOMP_RET_KILL_PROCESS),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 400, 0, 1),
        RET(SECCOMP_RET_ERRNO | EPERM),
        RET(SECCOMP_RET_ALLOW),
    };
    const struct sock_filter by_argument[] = {
        LOAD(args[0]),
        BPF_STMT(BPF_MISC | BPF_TAX, 0),
        BPF_STMT(BPF_LD | BPF_IMM, 7),
        BPF_STMT(BPF_ST, 3),
        BPF_STMT(BPF_ALU | BPF_ADD | BPF_X, 0),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff),
        BPF_STMT(BPF_LDX | BPF_MEM, 3),
        BPF_STMT(BPF_ALU | BPF_SUB | BPF_X, 0),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x10, 0, 1),
        RET(SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_A, 0),
    };

    (void)opaque;
    assert_int_equal(verdict_of(by_number, 6, SYS_close, 0), SECCOMP_RET_KILL_PROCESS);
    assert_int_equal(verdict_of(by_number, 6, SYS_read, 0), SECCOMP_RET_ALLOW);
    assert_int_equal(verdict_of(by_number, 6, 400, 0), SECCOMP_RET_ERRNO | EPERM);
    assert_int_equal(verdict_of(by_argument, 11, 0, 0x10), SECCOMP_RET_TRAP);
    assert_int_equal(verdict_of(by_argument, 11, 0, 5), 5);
}

static void cbpf_refuses_nonsense(void **opaque)
{
    const struct sock_filter no_return[] = {LOAD(nr)};
    const struct sock_filter too_far[] = {BPF_STMT(BPF_JMP | BPF_JA, 5), RET(0)};
    const struct sock_filter beyond[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 64), RET(0)};
    const struct sock_filter byte[] = {BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 0), RET(0)};
    const struct sock_filter memory[] = {BPF_STMT(BPF_ST, 16), RET(0)};
    const struct sock_filter by_zero[] = {BPF_STMT(BPF_ALU | BPF_DIV | BPF_X, 0), RET(0)};
    struct seccomp_data data = {0};
    uint32_t verdict;

    (void)opaque;
    assert_int_equal(ls_cbpf_run(no_return, 1, &data, &verdict), -1);
    assert_int_equal(ls_cbpf_run(too_far, 2, &data, &verdict), -1);
    assert_int_equal(ls_cbpf_run(beyond, 2, &data, &verdict), -1);
    assert_int_equal(ls_cbpf_run(byte, 2, &data, &verdict), -1);
    assert_int_equal(ls_cbpf_run(memory, 2, &data, &verdict), -1);
    assert_int_equal(ls_cbpf_run(by_zero, 2, &data, &verdict), -1);
}

/* The most restrictive of several filters counts, as in the kernel. */
static void worst_filter_counts(void **opaque)
{
    struct sock_filter allow[] = {RET(SECCOMP_RET_ALLOW)};
    struct sock_filter log[] = {RET(SECCOMP_RET_LOG)};
    struct sock_filter kill_it[] = {RET(SECCOMP_RET_KILL_PROCESS)};
    struct sock_filter error[] = {RET(SECCOMP_RET_ERRNO | EPERM)};
    struct ls_seccomp_filter filters[] = {{allow, 1}, {error, 1}, {kill_it, 1}, {log, 1}};
    struct ls_seccomp all = {4, filters};
    struct ls_seccomp two = {2, filters};
    struct ls_seccomp none = {0, NULL};
    struct seccomp_data data = {0};

    (void)opaque;
    assert_int_equal(ls_seccomp_verdict(&all, &data), SECCOMP_RET_KILL_PROCESS);
    assert_int_equal(ls_seccomp_verdict(&two, &data), SECCOMP_RET_ERRNO | EPERM);
    assert_int_equal(ls_seccomp_verdict(&none, &data), SECCOMP_RET_ALLOW);
}

/* ---- a target with a filter ---- */

/* A process that answers `nr` with `verdict` and waits. */
static pid_t start_filtered(int nr, uint32_t verdict)
{
    struct sock_filter code[] = {LOAD(nr), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)nr, 0, 1),
                                 RET(verdict), RET(SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {4, code};
    int ready[2];
    char byte;
    pid_t pid;

    assert_int_equal(pipe(ready), 0);
    pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0 ||
            write(ready[1], "x", 1) != 1)
            _exit(1);
        for (;;)
            syscall(SYS_pause);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
    return pid;
}

static void end(pid_t pid)
{
    int status;

    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* Nobody dies of an injected call: a filter that does not plainly allow it refuses. */
static void filters_refuse(void **opaque)
{
    static const int calls[] = {SYS_ioctl, SYS_close, SYS_socketpair, SYS_recvmsg,
                                SYS_rt_sigreturn};
    static const char *const names[] = {"ioctl", "close", "socketpair", "recvmsg", "rt_sigreturn"};
    static const uint32_t verdicts[] = {SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD,
                                        SECCOMP_RET_TRAP, SECCOMP_RET_ERRNO | EPERM,
                                        SECCOMP_RET_TRACE};

    (void)opaque;
    if (geteuid() != 0 || ls_uffd_device() == 0)
        skip();
    for (int i = 0; i < 5; i++) {
        for (int k = 0; k < 5; k++) {
            pid_t pid = start_filtered(calls[i], verdicts[k]);
            struct ls_attach_result result;
            struct ls_error err;

            assert_int_equal(ls_attach_userfaultfd(pid, LS_ATTACH_INJECT, &result, &err), -1);
            assert_int_equal(err.cls, LS_REFUSED);
            assert_string_equal(err.reason, "seccomp");
            assert_non_null(strstr(err.message, names[i]));
            usleep(1000);
            assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
            end(pid);
        }
    }
}

static void filters_that_allow(void **opaque)
{
    pid_t pid;
    struct ls_attach_result result;
    struct ls_error err;

    (void)opaque;
    if (geteuid() != 0)
        skip();
    pid = start_filtered(SYS_mount, SECCOMP_RET_KILL_PROCESS);
    assert_int_equal(ls_attach_preflight(pid, &err), 0);
    if (ls_attach_userfaultfd(pid, LS_ATTACH_INJECT, &result, &err) != 0)
        fail_msg("%s", err.message);
    close(result.uffd);
    end(pid);
}

static pid_t start_waiting(void)
{
    pid_t pid = fork();

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            syscall(SYS_pause);
    }
    usleep(2000);
    return pid;
}

static void refusals_have_reasons(void **opaque)
{
    struct ls_attach_result result;
    struct ls_error err;
    pid_t pid;

    (void)opaque;
    if (geteuid() != 0)
        skip();
    pid = start_waiting();
    kill(pid, SIGSTOP);
    usleep(2000);
    assert_int_equal(ls_attach_userfaultfd(pid, LS_ATTACH_INJECT, &result, &err), -1);
    assert_string_equal(err.reason, "stopped");
    kill(pid, SIGCONT);
    assert_int_equal(ptrace(PTRACE_SEIZE, pid, NULL, NULL), 0);
    assert_int_equal(ls_attach_userfaultfd(pid, LS_ATTACH_INJECT, &result, &err), -1);
    assert_string_equal(err.reason, "traced");
    end(pid);
    assert_int_equal(ls_attach_userfaultfd(pid, LS_ATTACH_INJECT, &result, &err), -1);
    assert_int_equal(err.cls, LS_GONE);
    pid = start_waiting();
    if (ls_uffd_device() != 0) {
        assert_int_equal(ls_attach_userfaultfd(pid, LS_ATTACH_DEVICE, &result, &err), -1);
        assert_string_equal(err.reason, "device");
    }
    end(pid);
}

/* ---- /proc ---- */

static int find_data(const struct ls_vma *vma, void *opaque)
{
    uintptr_t address = *(uintptr_t *)opaque;

    if (address < vma->start || address >= vma->end)
        return 0;
    assert_true(vma->readable && vma->writable && !vma->executable && !vma->shared);
    assert_int_equal(vma->page_size, 4096);
    *(uintptr_t *)opaque = 0;
    return 1;
}

static void proc_readers(void **opaque)
{
    static int data = 1;
    uintptr_t address = (uintptr_t)&data;
    struct ls_proc_status status;
    struct ls_error err;
    uint64_t mine;
    uint64_t parents;

    (void)opaque;
    assert_int_equal(ls_proc_start_time(getpid(), &mine, &err), 0);
    assert_int_equal(ls_proc_start_time(getppid(), &parents, &err), 0);
    assert_true(mine >= parents && parents > 0);
    assert_int_equal(ls_proc_start_time(0x3ffffffe, &mine, &err), -1);
    assert_int_equal(err.cls, LS_GONE);
    assert_int_equal(ls_proc_status(getpid(), getpid(), &status, &err), 0);
    assert_int_equal(status.state, 'R');
    assert_int_equal(ls_proc_maps(getpid(), LS_SMAPS, find_data, &address, &err), 0);
    assert_int_equal(address, 0);
}

/* ---- RAM blocks ---- */

/* struct RAMBlock of QEMU 6.2 to 10.0, from its host field on. */
struct fake_block {
    uint64_t host;
    uint64_t colo_cache;
    uint64_t offset;
    uint64_t used;
    uint64_t total;
    uint64_t resized;
    uint32_t flags;
    char id[256];
};

#define MIGRATABLE 16

static void *memory(uint64_t size)
{
    return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static struct fake_block *fake(const char *id, uint64_t offset, uint64_t total, uint32_t flags)
{
    /* from the break, where QEMU's malloc has it; a sanitizer's malloc is elsewhere */
    struct fake_block *b = sbrk(512);

    assert_ptr_not_equal(b, (void *)-1);
    memset(b, 0, sizeof *b);
    b->host = (uintptr_t)memory(total);
    b->offset = offset;
    b->used = b->total = total;
    b->flags = flags;
    snprintf(b->id, sizeof b->id, "%s", id);
    return b;
}

enum { PLAIN, TWIN, GAP };
static struct fake_block *ram, *vga, *page;
static void *rom;

/* The process with the blocks in its heap is not the one that searches: that has copies of what it
 * has read. */
static pid_t start_with_blocks(int what)
{
    pid_t pid = fork();

    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (what == TWIN)
        fake("pc.ram", 0, 0x123000, MIGRATABLE);
    if (what == GAP)
        munmap((void *)(uintptr_t)(vga->host + 0x44000), 0x1000);
    kill(getpid(), SIGSTOP);
    _exit(0);
}

static pid_t with_blocks[3];

static int start_all(void **opaque)
{
    (void)opaque;
    ram = fake("pc.ram", 0, 0x123000, MIGRATABLE);
    vga = fake("0000:00:02.0/vga.vram", 0x123000, 0x45000, MIGRATABLE);
    page = fake("hw.page", 0x800000, 0x7000, 0);
    rom = memory(0x2000);
    for (int i = 0; i < 3; i++) {
        with_blocks[i] = start_with_blocks(i);
        waitpid(with_blocks[i], NULL, WUNTRACED);
    }
    return 0;
}

static int end_all(void **opaque)
{
    (void)opaque;
    for (int i = 0; i < 3; i++)
        end(with_blocks[i]);
    return 0;
}

static void blocks_without_addresses(void **opaque)
{
    static const char text[] =
        "              Block Name    PSize              Offset               Used              "
        "Total\n"
        "                  pc.ram    4 KiB  0x0000000000000000 0x0000000000123000 "
        "0x0000000000123000\r\n"
        "                            4 KiB  0x0000000000900000 0x0000000000001000 "
        "0x0000000000001000\r\n"
        "   0000:00:02.0/vga.vram    2 MiB  0x0000000000123000 0x0000000000045000 "
        "0x0000000000045000\r\n"
        "                 hw.page    4 KiB  0x0000000000800000 0x0000000000007000 "
        "0x0000000000007000\r\n";
    struct ls_rammap map;
    struct ls_error err;

    (void)opaque;
    if (ls_rammap_locate(with_blocks[PLAIN], text, &map, &err) != 0)
        fail_msg("%s", err.message);
    assert_int_equal(map.count, 2); /* hw.page does not migrate */
    assert_string_equal(map.blocks[0].id, "pc.ram");
    assert_int_equal(map.blocks[0].host, ram->host);
    assert_int_equal(map.blocks[1].host, vga->host);
    assert_int_equal(map.blocks[1].page_size, 2 << 20);
    assert_int_equal(map.blocks[1].descriptor, (uintptr_t)vga);
    ls_rammap_free(&map);
    /* twice is as bad as never */
    assert_int_equal(ls_rammap_locate(with_blocks[TWIN], text, &map, &err), -1);
    assert_string_equal(err.reason, "ramblock");
    assert_non_null(strstr(err.message, "'pc.ram'"));
    assert_non_null(strstr(err.message, "2 times"));
    /* memory that is not there */
    assert_int_equal(ls_rammap_locate(with_blocks[GAP], text, &map, &err), -1);
    assert_non_null(strstr(err.message, "not mapped"));
}

static void blocks_with_addresses(void **opaque)
{
    const pid_t pid = with_blocks[PLAIN];
    struct ls_rammap map;
    struct ls_rammap again;
    struct ls_error err;
    char text[2048];

    (void)opaque;
    snprintf(text, sizeof text,
             "   Block Name    PSize   Offset  Used  Total  HVA  RO\n"
             "   pc.ram  4 KiB  0x0000000000000000 0x0000000000123000 0x0000000000123000 "
             "0x%016llx  rw\n"
             "   pc.rom  4 KiB  0x0000000000500000 0x0000000000001000 0x0000000000002000 "
             "0x%016llx  ro\n"
             "   hw.page 4 KiB  0x0000000000800000 0x0000000000007000 0x0000000000007000 "
             "0x%016llx  rw\n",
             (unsigned long long)ram->host, (unsigned long long)(uintptr_t)rom,
             (unsigned long long)page->host);
    if (ls_rammap_locate(pid, text, &map, &err) != 0)
        fail_msg("%s", err.message);
    assert_int_equal(map.count, 2);
    assert_false(map.blocks[0].readonly);
    assert_true(map.blocks[1].readonly);
    assert_int_equal(map.blocks[1].host, (uintptr_t)rom);
    assert_int_equal(map.blocks[1].used, 0x1000);
    assert_int_equal(ls_rammap_refresh(pid, text, &map, &again, &err), 0);
    assert_int_equal(again.count, 2);
    ls_rammap_free(&again);
    ls_rammap_free(&map);
    assert_int_equal(ls_rammap_locate(pid, "nonsense here\n", &map, &err), -1);
    assert_non_null(strstr(err.message, "nonsense here"));
    assert_int_equal(ls_rammap_locate(pid, "", &map, &err), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cbpf_jumps_and_arithmetic),
        cmocka_unit_test(cbpf_refuses_nonsense),
        cmocka_unit_test(worst_filter_counts),
        cmocka_unit_test(filters_refuse),
        cmocka_unit_test(filters_that_allow),
        cmocka_unit_test(refusals_have_reasons),
        cmocka_unit_test(proc_readers),
        cmocka_unit_test(blocks_without_addresses),
        cmocka_unit_test(blocks_with_addresses),
    };

    return cmocka_run_group_tests(tests, start_all, end_all);
}
