/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * x86-64. A parked thread has its stack pointer on a frame such as the kernel builds for a signal
 * handler, and its instruction pointer on a `ret`. The frame's first word is the address of
 * rt_sigreturn code. So if whoever stopped it dies, at any moment, the thread returns into
 * rt_sigreturn, which puts back every register, the FPU's state and the signal mask in one step.
 */
#ifdef __x86_64__

#include "arch/arch.h"

#include <elf.h>
#include <errno.h>
#include <linux/audit.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <ucontext.h>

const char ls_arch_name[] = "x86_64";
const bool ls_arch_supported = true;
const char *const ls_arch_call_names[LS_CALL_COUNT] = {"ioctl",   "close",       "socketpair",
                                                       "recvmsg", "userfaultfd", "rt_sigreturn"};
static const int call_numbers[LS_CALL_COUNT] = {SYS_ioctl,   SYS_close,       SYS_socketpair,
                                                SYS_recvmsg, SYS_userfaultfd, SYS_rt_sigreturn};

#define SIZE_OF_CALL 2   /* of the instruction `syscall` */
#define RED_ZONE 128     /* below the stack pointer, the thread's own */
#define CS_64BIT 0x33    /* user code segment of 64-bit code */
#define FPSTATE_ALIGN 64 /* XRSTOR demands it */
#define XSTATE_MAX 32768 /* more than any xstate there is (AMX: about 11,000) */
#define FXSAVE_SIZE 512  /* the legacy region, which has sw_reserved in its last 48 bytes */
#define SW_RESERVED 464  /* where struct sw_bytes lies in it */
#define XSTATE_BV 512    /* the xsave header: which parts are not in their initial state */
#define XSTATE_MAGIC1 0x46505853u
#define XSTATE_MAGIC2 0x46505845u
#define UC_FLAGS 7 /* UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS */

/* What interrupted calls return inside the kernel, never to user space otherwise. */
#define ERESTARTSYS 512
#define ERESTARTNOINTR 513
#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516

/* struct _fpx_sw_bytes of the kernel */
struct sw_bytes {
    uint32_t magic1;
    uint32_t extended_size; /* xstate_size + magic2 */
    uint64_t xfeatures;
    uint32_t xstate_size;
    uint32_t padding[7];
};

/* The kernel's struct ucontext: user space's ucontext_t has a longer signal mask. */
struct kernel_ucontext {
    uint64_t flags;
    uint64_t link;
    uint64_t stack_sp;
    uint32_t stack_flags;
    uint32_t stack_padding;
    uint64_t stack_size;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
    uint64_t rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags;
    uint16_t cs, gs, fs, ss;
    uint64_t error, trap, oldmask, cr2;
    uint64_t fpstate;
    uint64_t reserved[8];
    uint64_t sigmask;
};

struct rt_frame {
    uint64_t return_address;
    struct kernel_ucontext uc;
};

struct ls_arch_thread {
    struct user_regs_struct regs;
    size_t xstate_size;
    uint64_t stack; /* where the stack pointer is while parked */
    uint8_t *frame;
    _Alignas(FPSTATE_ALIGN) uint8_t xstate[XSTATE_MAX];
};

bool ls_arch_find_code(const uint8_t *text, size_t size, uint64_t address,
                       struct ls_arch_code *code)
{
    static const uint8_t call[] = {0x0f, 0x05, 0xc3};                             /* syscall; ret */
    static const uint8_t heal1[] = {0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05};             /* mov $15,%eax */
    static const uint8_t heal2[] = {0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05}; /* ... %rax */
    const uint8_t *at;

    if (!code->call && (at = memmem(text, size, call, sizeof call))) {
        code->call = address + (uint64_t)(at - text);
        code->park = code->call + SIZE_OF_CALL;
    }
    if (!code->heal && ((at = memmem(text, size, heal2, sizeof heal2)) ||
                        (at = memmem(text, size, heal1, sizeof heal1))))
        code->heal = address + (uint64_t)(at - text);
    return code->call && code->heal;
}

void ls_arch_seccomp_data(enum ls_arch_call call, const uint64_t args[6],
                          const struct ls_arch_code *code, struct seccomp_data *data)
{
    *data = (struct seccomp_data){
        .nr = call_numbers[call],
        .arch = AUDIT_ARCH_X86_64,
        .instruction_pointer = code->park,
    };
    if (args)
        memcpy(data->args, args, sizeof data->args);
}

/* What a signal frame says of this machine, taken from one that the kernel makes for us: sizes and
 * features that do not fit silently lose the FPU's state. */
static struct sw_bytes own_sw_bytes;

static void on_own_signal(int sig, siginfo_t *info, void *context)
{
    const ucontext_t *uc = context;

    (void)sig;
    (void)info;
    memcpy(&own_sw_bytes, (const char *)uc->uc_mcontext.fpregs + SW_RESERVED, sizeof own_sw_bytes);
}

static int learn_sw_bytes(struct ls_error *err)
{
    struct sigaction action = {.sa_sigaction = on_own_signal, .sa_flags = SA_SIGINFO};
    struct sigaction before;
    sigset_t unblock;
    sigset_t mask;

    sigemptyset(&unblock);
    sigaddset(&unblock, SIGUSR2);
    if (sigaction(SIGUSR2, &action, &before) != 0 || sigprocmask(SIG_UNBLOCK, &unblock, &mask) != 0)
        return ls_fail_errno(err, LS_INTERNAL, "fpu", "cannot raise a signal in this process");
    raise(SIGUSR2);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    sigaction(SIGUSR2, &before, NULL);
    if (own_sw_bytes.magic1 != XSTATE_MAGIC1 || own_sw_bytes.xstate_size < FXSAVE_SIZE + 64 ||
        own_sw_bytes.xstate_size > XSTATE_MAX - 4 ||
        own_sw_bytes.extended_size != own_sw_bytes.xstate_size + 4)
        return ls_fail(err, LS_REFUSED, "fpu",
                       "cannot attach: signal frames on this machine have no XSAVE state");
    return 0;
}

int ls_arch_thread_read(pid_t tid, struct ls_arch_thread **thread, enum ls_arch_where *where,
                        struct ls_error *err)
{
    struct ls_arch_thread *t = aligned_alloc(FPSTATE_ALIGN, sizeof *t);
    struct iovec iov;
    uint64_t used;

    if (!t)
        return ls_fail_errno(err, LS_INTERNAL, "memory", "cannot keep registers");
    memset(t, 0, sizeof *t);
    iov = (struct iovec){t->xstate, sizeof t->xstate};
    if (ptrace(PTRACE_GETREGS, tid, NULL, &t->regs) != 0 ||
        ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &iov) != 0) {
        ls_fail_errno(err, errno == ESRCH ? LS_GONE : LS_REFUSED, "registers",
                      "cannot read the registers of thread %d", (int)tid);
        ls_arch_thread_free(t);
        return -1;
    }
    t->xstate_size = iov.iov_len;
    *where = (int64_t)t->regs.orig_rax >= 0 ? LS_IN_CALL : LS_IN_USER;
    if (learn_sw_bytes(err) != 0) {
        ls_arch_thread_free(t);
        return -1;
    }
    memcpy(&used, t->xstate + XSTATE_BV, sizeof used);
    if ((t->regs.cs & 0xffff) != CS_64BIT || t->xstate_size < own_sw_bytes.xstate_size ||
        (used & ~own_sw_bytes.xfeatures) != 0) {
        ls_fail(err, LS_REFUSED, (t->regs.cs & 0xffff) != CS_64BIT ? "arch" : "fpu",
                "cannot attach to thread %d: it runs 32-bit code, or uses FPU state that an "
                "ordinary signal frame does not hold",
                (int)tid);
        ls_arch_thread_free(t);
        return -1;
    }
    *thread = t;
    return 0;
}

void ls_arch_thread_free(struct ls_arch_thread *thread)
{
    if (thread)
        free(thread->frame);
    free(thread);
}

uint64_t ls_arch_thread_ip(const struct ls_arch_thread *thread)
{
    return thread->regs.rip;
}

/* The registers with which an interrupted call goes on. `heals`: after rt_sigreturn, which makes
 * restart_syscall answer EINTR; the caller of such a call (nanosleep, futex, poll with a time
 * limit) has to expect that, and the time left is known to nobody else. */
static struct user_regs_struct going_on(const struct ls_arch_thread *thread, bool heals)
{
    struct user_regs_struct regs = thread->regs;

    if ((int64_t)regs.orig_rax >= 0) {
        switch (-(int64_t)regs.rax) {
        case ERESTARTSYS:
        case ERESTARTNOINTR:
        case ERESTARTNOHAND:
            regs.rax = regs.orig_rax;
            regs.rip -= SIZE_OF_CALL;
            break;
        case ERESTART_RESTARTBLOCK:
            if (heals) {
                regs.rax = (uint64_t)-EINTR;
            } else {
                regs.rax = SYS_restart_syscall;
                regs.rip -= SIZE_OF_CALL;
            }
            break;
        default:
            break;
        }
    }
    /* the kernel must not do the same once more */
    regs.orig_rax = (uint64_t)-1;
    return regs;
}

static void fill_ucontext(struct kernel_ucontext *uc, const struct user_regs_struct *r,
                          uint64_t mask, uint64_t fpstate)
{
    *uc = (struct kernel_ucontext){
        .flags = UC_FLAGS,
        /* no alternate stack of size 0 exists, so rt_sigreturn leaves the thread's as it is */
        .r8 = r->r8,
        .r9 = r->r9,
        .r10 = r->r10,
        .r11 = r->r11,
        .r12 = r->r12,
        .r13 = r->r13,
        .r14 = r->r14,
        .r15 = r->r15,
        .rdi = r->rdi,
        .rsi = r->rsi,
        .rbp = r->rbp,
        .rbx = r->rbx,
        .rdx = r->rdx,
        .rax = r->rax,
        .rcx = r->rcx,
        .rsp = r->rsp,
        .rip = r->rip,
        .eflags = r->eflags,
        .cs = (uint16_t)r->cs,
        .ss = (uint16_t)r->ss,
        .fpstate = fpstate,
        .sigmask = mask,
    };
}

int ls_arch_frame(struct ls_arch_thread *thread, const struct ls_arch_code *code, uint64_t mask,
                  size_t scratch, const uint8_t **bytes, size_t *size, uint64_t *address,
                  uint64_t *scratch_address, struct ls_error *err)
{
    const uint32_t magic2 = XSTATE_MAGIC2;
    size_t xsize = own_sw_bytes.xstate_size;
    struct user_regs_struct regs = going_on(thread, true);
    struct rt_frame frame = {.return_address = code->heal};
    uint64_t fpstate = (regs.rsp - RED_ZONE - xsize - sizeof magic2) & ~(FPSTATE_ALIGN - 1ull);
    uint64_t stack = ((fpstate - sizeof frame) & ~15ull) - 8; /* as after a call */
    size_t total = (size_t)(fpstate - stack) + xsize + sizeof magic2;
    uint8_t *image = calloc(1, total);

    if (!image)
        return ls_fail_errno(err, LS_INTERNAL, "memory", "cannot build a signal frame");
    fill_ucontext(&frame.uc, &regs, mask, fpstate);
    memcpy(image, &frame, sizeof frame);
    memcpy(image + (fpstate - stack), thread->xstate, xsize);
    memcpy(image + (fpstate - stack) + SW_RESERVED, &own_sw_bytes, sizeof own_sw_bytes);
    memcpy(image + (fpstate - stack) + xsize, &magic2, sizeof magic2);
    free(thread->frame);
    thread->frame = image;
    thread->stack = stack;
    *bytes = image;
    *size = total;
    *address = stack;
    *scratch_address = (stack - RED_ZONE - scratch) & ~15ull;
    return 0;
}

int ls_arch_park(pid_t tid, const struct ls_arch_thread *thread, const struct ls_arch_code *code)
{
    struct user_regs_struct regs = thread->regs;

    regs.rsp = thread->stack;
    regs.rip = code->park;
    regs.rax = 0;
    regs.orig_rax = (uint64_t)-1;
    /* neither the direction flag nor single-stepping may follow the thread into the frame */
    regs.eflags &= ~0x500ull;
    return ptrace(PTRACE_SETREGS, tid, NULL, &regs) == 0 ? 0 : -1;
}

int ls_arch_prepare_call(pid_t tid, const struct ls_arch_thread *thread,
                         const struct ls_arch_code *code, enum ls_arch_call call,
                         const uint64_t args[6])
{
    struct user_regs_struct regs = thread->regs;

    regs.rsp = thread->stack;
    regs.rip = code->call;
    regs.rax = (uint64_t)call_numbers[call];
    regs.orig_rax = (uint64_t)-1;
    regs.eflags &= ~0x500ull;
    regs.rdi = args[0];
    regs.rsi = args[1];
    regs.rdx = args[2];
    regs.r10 = args[3];
    regs.r8 = args[4];
    regs.r9 = args[5];
    return ptrace(PTRACE_SETREGS, tid, NULL, &regs) == 0 ? 0 : -1;
}

int ls_arch_restore(pid_t tid, const struct ls_arch_thread *thread)
{
    struct user_regs_struct regs = going_on(thread, false);

    return ptrace(PTRACE_SETREGS, tid, NULL, &regs) == 0 ? 0 : -1;
}

int ls_arch_result(pid_t tid, int64_t *result)
{
    struct user_regs_struct regs;

    if (ptrace(PTRACE_GETREGS, tid, NULL, &regs) != 0)
        return -1;
    *result = (int64_t)regs.rax;
    return 0;
}

#endif
