/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "victim.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

const char *const victim_names[VICTIM_KINDS] = {
    "ppoll",        "poll",       "read",  "futex", "nanosleep",
    "sigtimedwait", "sigsuspend", "epoll", "busy",  "busy-avx",
};

#define REGION (64 * 1024)
#define NSIG_BYTES 8
#define BUSY_LOOPS 4000000

static struct victim_state *state;
static int feed[2];
static pid_t victim_tid;
static bool have_avx;

/* ---- in the victim ---- */

__attribute__((format(printf, 1, 2))) static void complain(const char *format, ...)
{
    va_list ap;

    if (atomic_exchange(&state->failed, 1))
        return;
    va_start(ap, format);
    vsnprintf(state->complaint, sizeof state->complaint, format, ap);
    va_end(ap);
}

struct held {
    uint64_t general[6]; /* rbx rbp r12 r13 r14 r15 */
    uint8_t vector[16][32] __attribute__((aligned(32)));
};

static struct held wanted;
static struct held seen;

/* clang-format off */
#define LOAD_V(n) "vmovdqu " #n "*32(%%rax), %%ymm" #n "\n"
#define SAVE_V(n) "vmovdqu %%ymm" #n ", " #n "*32(%%rax)\n"
#define ALL_V(m) m(0) m(1) m(2) m(3) m(4) m(5) m(6) m(7) m(8) m(9) m(10) m(11) m(12) m(13) m(14) m(15)
#define LOAD_X(n) "movdqu " #n "*32(%%rax), %%xmm" #n "\n"
#define SAVE_X(n) "movdqu %%xmm" #n ", " #n "*32(%%rax)\n"
#define VECTORS "xmm0","xmm1","xmm2","xmm3","xmm4","xmm5","xmm6","xmm7","xmm8","xmm9","xmm10", \
    "xmm11","xmm12","xmm13","xmm14","xmm15"
/* clang-format on */

/* Sets every register, makes the call `nr` (or, for -1, counts down), and stores them. */
#define HOLD(load, save)                                                                           \
    do {                                                                                           \
        register long r10 __asm__("r10") = d;                                                      \
        register long r8 __asm__("r8") = e;                                                        \
        register long r9 __asm__("r9") = f;                                                        \
        __asm__ volatile("push %%rbp\n"                                                            \
                         "lea %[wv], %%rax\n" load "lea %[wg], %%rax\n"                            \
                         "mov 0(%%rax), %%rbx\n"                                                   \
                         "mov 16(%%rax), %%r12\n"                                                  \
                         "mov 24(%%rax), %%r13\n"                                                  \
                         "mov 32(%%rax), %%r14\n"                                                  \
                         "mov 40(%%rax), %%r15\n"                                                  \
                         "mov 8(%%rax), %%rbp\n"                                                   \
                         "mov %[nr], %%rax\n"                                                      \
                         "cmp $-1, %%rax\n"                                                        \
                         "je 1f\n"                                                                 \
                         "syscall\n"                                                               \
                         "jmp 3f\n"                                                                \
                         "1: mov %%rdi, %%rax\n"                                                   \
                         "2: dec %%rax\n"                                                          \
                         "jnz 2b\n"                                                                \
                         "3: mov %%rax, %[ret]\n"                                                  \
                         "lea %[sg], %%rax\n"                                                      \
                         "mov %%rbx, 0(%%rax)\n"                                                   \
                         "mov %%rbp, 8(%%rax)\n"                                                   \
                         "mov %%r12, 16(%%rax)\n"                                                  \
                         "mov %%r13, 24(%%rax)\n"                                                  \
                         "mov %%r14, 32(%%rax)\n"                                                  \
                         "mov %%r15, 40(%%rax)\n"                                                  \
                         "lea %[sv], %%rax\n" save "pop %%rbp\n"                                   \
                         : [ret] "=m"(result), [sg] "=m"(seen.general), [sv] "=m"(seen.vector)     \
                         : [wg] "m"(wanted.general), [wv] "m"(wanted.vector), [nr] "m"(number),    \
                           "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)                      \
                         : "rax", "rbx", "rcx", "r11", "r12", "r13", "r14", "r15", "memory", "cc", \
                           VECTORS);                                                               \
    } while (0)

static long checked(long nr, long a, long b, long c, long d, long e, long f)
{
    static long number;
    static long result;
    unsigned mxcsr = 0x7f80; /* round towards zero: not the default */
    unsigned mxcsr_after;

    number = nr;
    for (size_t i = 0; i < sizeof wanted; i++)
        ((uint8_t *)&wanted)[i] = (uint8_t)rand();
    memset(&seen, 0, sizeof seen);
    __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
    if (have_avx)
        HOLD(ALL_V(LOAD_V), ALL_V(SAVE_V));
    else
        HOLD(ALL_V(LOAD_X), ALL_V(SAVE_X));
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr_after));
    if (have_avx)
        __asm__ volatile("vzeroupper");
    if ((mxcsr_after & 0xffc0) != (mxcsr & 0xffc0))
        complain("the rounding mode was lost: %#x", mxcsr_after);
    if (memcmp(wanted.general, seen.general, sizeof wanted.general) != 0)
        complain("a general register was lost");
    for (int i = 0; i < 16; i++)
        if (memcmp(wanted.vector[i], seen.vector[i], have_avx ? 32 : 16) != 0)
            complain("vector register %d was lost", i);
    return result;
}

static void on_signal(int sig)
{
    if (sig == SIGRTMIN)
        atomic_fetch_add(&state->signals, 1);
}

/* Wakes the main thread about a thousand times a second, in every way that some kind waits for. */
static void *feeder(void *kind)
{
    char byte = 0;
    sigset_t all;

    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    for (;;) {
        usleep(1000);
        switch ((enum victim_kind)(intptr_t)kind) {
        case VICTIM_PPOLL:
        case VICTIM_READ:
        case VICTIM_EPOLL:
            byte++;
            if (write(feed[1], &byte, 1) != 1)
                return NULL;
            break;
        case VICTIM_FUTEX:
            atomic_store(&state->fed, 1);
            syscall(SYS_futex, &state->fed, FUTEX_WAKE, 1, NULL, NULL, 0);
            break;
        case VICTIM_SIGTIMEDWAIT:
        case VICTIM_SIGSUSPEND:
            syscall(SYS_tgkill, getpid(), victim_tid, SIGUSR1);
            break;
        default:
            break;
        }
    }
}

static void check_byte(void)
{
    static uint8_t before;
    uint8_t byte;

    if (read(feed[0], &byte, 1) != 1)
        return;
    if (byte != (uint8_t)(before + 1))
        complain("a byte was lost: %d after %d", byte, before);
    before = byte;
}

static bool elapsed(const struct timespec *since, long us)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - since->tv_sec) * 1000000 + (now.tv_nsec - since->tv_nsec) / 1000 >= us;
}

static void one_round(enum victim_kind kind, int epoll)
{
    static uint64_t user1 = 1ull << (SIGUSR1 - 1);
    static uint64_t none;
    struct timespec limit = {0, 2000000};
    struct timespec left = {0};
    struct timespec before;
    struct pollfd pfd = {.fd = feed[0], .events = POLLIN};
    struct epoll_event event;
    static uint8_t last_byte;
    uint8_t byte;
    long r;

    clock_gettime(CLOCK_MONOTONIC, &before);
    switch (kind) {
    case VICTIM_PPOLL:
        r = checked(SYS_ppoll, (long)&pfd, 1, 0, (long)&none, NSIG_BYTES, 0);
        if (r != 1 && r != -EINTR)
            complain("ppoll: %ld", r);
        if (r == 1)
            check_byte();
        break;
    case VICTIM_POLL:
        r = checked(SYS_poll, 0, 0, 2, 0, 0, 0);
        if ((r != 0 && r != -EINTR) || (r == 0 && !elapsed(&before, 2000)))
            complain("poll: %ld", r);
        break;
    case VICTIM_READ:
        r = checked(SYS_read, feed[0], (long)&byte, 1, 0, 0, 0);
        if (r != 1 && r != -EINTR)
            complain("read: %ld", r);
        if (r == 1 && byte != (uint8_t)(last_byte + 1))
            complain("read: byte %d after %d", byte, last_byte);
        if (r == 1)
            last_byte = byte;
        break;
    case VICTIM_FUTEX:
        atomic_store(&state->fed, 0);
        r = checked(SYS_futex, (long)&state->fed, FUTEX_WAIT, 0, (long)&limit, 0, 0);
        if (r != 0 && r != -EINTR && r != -ETIMEDOUT && r != -EAGAIN)
            complain("futex: %ld", r);
        break;
    case VICTIM_NANOSLEEP:
        r = checked(SYS_nanosleep, (long)&limit, (long)&left, 0, 0, 0, 0);
        if ((r != 0 && r != -EINTR) || (r == 0 && !elapsed(&before, 2000)))
            complain("nanosleep: %ld", r);
        break;
    case VICTIM_SIGTIMEDWAIT:
        r = checked(SYS_rt_sigtimedwait, (long)&user1, 0, (long)&limit, NSIG_BYTES, 0, 0);
        if (r != SIGUSR1 && r != -EINTR && r != -EAGAIN)
            complain("sigtimedwait: %ld", r);
        break;
    case VICTIM_SIGSUSPEND:
        r = checked(SYS_rt_sigsuspend, (long)&none, NSIG_BYTES, 0, 0, 0, 0);
        if (r != -EINTR)
            complain("sigsuspend: %ld", r);
        break;
    case VICTIM_EPOLL:
        r = checked(SYS_epoll_wait, epoll, (long)&event, 1, -1, 0, 0);
        if (r != 1 && r != -EINTR)
            complain("epoll_wait: %ld", r);
        if (r == 1)
            check_byte();
        break;
    case VICTIM_BUSY:
        r = checked(-1, BUSY_LOOPS, 0, 0, 0, 0, 0);
        if (r != 0)
            complain("counted down to %ld", r);
        break;
    default: {
        double sum[4] __attribute__((aligned(32)));
        const double step[4] __attribute__((aligned(32))) = {1, 2, 3, 4};
        long loops = BUSY_LOOPS / 4;

        if (have_avx)
            __asm__ volatile("vxorpd %%ymm1, %%ymm1, %%ymm1\n"
                             "vmovapd %1, %%ymm2\n"
                             "1: vaddpd %%ymm2, %%ymm1, %%ymm1\n"
                             "dec %0\n"
                             "jnz 1b\n"
                             "vmovapd %%ymm1, %2\n"
                             "vzeroupper\n"
                             : "+r"(loops)
                             : "m"(step), "m"(sum)
                             : "xmm1", "xmm2", "memory", "cc");
        for (int i = 0; have_avx && i < 4; i++)
            if (sum[i] != (BUSY_LOOPS / 4) * step[i])
                complain("the sum in lane %d is %f", i, sum[i]);
    }
    }
}

static void victim_main(enum victim_kind kind)
{
    struct sigaction action = {.sa_handler = on_signal};
    const uint64_t mask = 1ull << (SIGUSR1 - 1) | 1ull << (SIGUSR2 - 1);
    struct epoll_event event = {.events = EPOLLIN};
    uint64_t now = 0;
    pthread_t thread;
    int epoll;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    have_avx = __builtin_cpu_supports("avx");
    sigaction(SIGRTMIN, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, NSIG_BYTES);
    victim_tid = (pid_t)syscall(SYS_gettid);
    if (pipe2(feed, O_CLOEXEC) != 0)
        _exit(2);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(epoll, EPOLL_CTL_ADD, feed[0], &event);
    pthread_create(&thread, NULL, feeder, (void *)(intptr_t)kind);
    usleep(2000);
    atomic_store(&state->ready, 1);
    while (!atomic_load(&state->stop)) {
        one_round(kind, epoll);
        syscall(SYS_rt_sigprocmask, SIG_SETMASK, NULL, &now, NSIG_BYTES);
        if (now != mask)
            complain("the signal mask is %#llx", (unsigned long long)now);
        atomic_fetch_add(&state->rounds, 1);
    }
    _exit(0);
}

/* ---- in the test ---- */

void victim_start(struct victim *v, enum victim_kind kind, int device)
{
    v->state =
        mmap(NULL, sizeof *v->state, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(v->state, MAP_FAILED);
    /* the child puts memory of its own here, which this process does not keep */
    v->region = mmap(NULL, REGION, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(v->region, REGION);
    v->pid = fork();
    assert_true(v->pid >= 0);
    if (v->pid == 0) {
        state = v->state;
        if (mmap(v->region, REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                 -1, 0) != v->region)
            _exit(2);
        memset(v->region, 1, REGION);
        if (device && open("/dev/userfaultfd", O_RDWR | O_CLOEXEC) < 0)
            _exit(2);
        victim_main(kind);
    }
    while (!atomic_load(&v->state->ready)) {
        assert_int_equal(waitpid(v->pid, NULL, WNOHANG), 0);
        usleep(500);
    }
}

void victim_goes_on(struct victim *v, long rounds)
{
    long aim = atomic_load(&v->state->rounds) + rounds;

    for (int i = 0; i < 20000 && atomic_load(&v->state->rounds) < aim; i++) {
        if (atomic_load(&v->state->failed))
            break;
        usleep(500);
    }
    if (atomic_load(&v->state->failed))
        fail_msg("victim: %s", v->state->complaint);
    if (atomic_load(&v->state->rounds) < aim)
        fail_msg("the victim stands still");
}

void victim_stop(struct victim *v)
{
    int status;

    if (atomic_load(&v->state->failed))
        fail_msg("victim: %s", v->state->complaint);
    kill(v->pid, SIGKILL);
    assert_int_equal(waitpid(v->pid, &status, 0), v->pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    munmap(v->state, sizeof *v->state);
}

char *descriptors_of(pid_t pid)
{
    char *text = calloc(1, 65536);
    size_t used = 0;

    for (int fd = 0; fd < 1024; fd++) {
        char path[64];
        char link[256];
        ssize_t n;

        snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)pid, fd);
        n = readlink(path, link, sizeof link);
        if (n >= 0 && used < 65000)
            used += (size_t)snprintf(text + used, 65536 - used, "%d=%.*s ", fd, (int)n, link);
    }
    return text;
}
