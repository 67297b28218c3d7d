/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * A target for captures: a child process with RAM that its threads rewrite all the time. It parks
 * them on request, as QMP stop does with vCPUs, makes a userfaultfd of its own address space and
 * hands it over. Used by tests only; one includer a program.
 */
#ifndef LS_TESTS_CAPTURE_LAB_H
#define LS_TESTS_CAPTURE_LAB_H

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define LAB_PAGE 4096ul
#define LAB_WRITERS 2

struct lab_block {
    uint8_t *at; /* the same address in parent and child */
    size_t size;
    bool shared; /* a memfd, only the first half ever touched */
    bool huge;
    bool hugetlb; /* made by the test itself */
};

/* In memory that both see. */
struct lab_words {
    _Atomic uint32_t park;                /* not 0: writers park; another number each time */
    _Atomic uint32_t parked[LAB_WRITERS]; /* the number that each has parked for last */
    _Atomic uint64_t rounds;              /* of all writers */
    _Atomic uint64_t longest_us;          /* longest time of one page's write */
};

struct lab {
    pid_t pid;
    int talk;
    struct lab_words *words;
    struct lab_block block[4];
    unsigned blocks;
    uint32_t times_parked;
    bool no_writers; /* nobody to wait for */
};

static struct lab *lab_self;                       /* the child's own */
static bool lab_mergeable __attribute__((unused)); /* RAM is offered to KSM */

static inline void lab_recv_byte(int fd, char *c)
{
    while (read(fd, c, 1) < 0)
        ;
}

static uint64_t lab_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* Writes the counter into page after page of what is this writer's; the last eighth of a private
 * block and the second half of a shared one are never touched. */
static void *lab_writer(void *arg)
{
    struct lab *l = lab_self;
    uintptr_t me = (uintptr_t)arg;

    for (uint64_t counter = 1;; counter++) {
        for (unsigned b = 0; b < l->blocks; b++) {
            size_t pages = l->block[b].size / LAB_PAGE;
            size_t end = l->block[b].shared ? pages / 2 : pages - pages / 8;

            for (size_t p = me; p < end; p += LAB_WRITERS) {
                volatile uint64_t *word = (uint64_t *)(void *)(l->block[b].at + p * LAB_PAGE);
                uint64_t began;

                if (p % 7 == 3)
                    continue; /* stays as it was: zero */
                while (atomic_load(&l->words->park)) {
                    atomic_store(&l->words->parked[me], atomic_load(&l->words->park));
                    usleep(50);
                }
                began = lab_us();
                word[0] = counter;
                word[p % 512] = counter * 31 + p;
                word[511] = ~counter;
                began = lab_us() - began;
                if (began > atomic_load(&l->words->longest_us))
                    atomic_store(&l->words->longest_us, began);
            }
        }
        atomic_fetch_add(&l->words->rounds, 1);
    }
    return NULL;
}

static void lab_send_uffd(int talk)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    char byte = 'f', control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec iov = {&byte, 1};
    struct msghdr m = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    sendmsg(talk, &m, 0);
    close(fd);
}

/* Starts the writers of the child, if it has any. */
typedef void (*lab_threads_fn)(struct lab *l);

static void lab_write_all(struct lab *l)
{
    pthread_t t;

    (void)l;
    for (uintptr_t i = 0; i < LAB_WRITERS; i++)
        pthread_create(&t, NULL, lab_writer, (void *)i);
}

static void lab_child(struct lab *l, lab_threads_fn threads)
{
    char c;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    lab_self = l;
    if (threads)
        threads(l);
    for (;;) {
        if (read(l->talk, &c, 1) != 1)
            _exit(0);
        switch (c) {
        case 'u':
            lab_send_uffd(l->talk);
            continue;
        case 'd': /* discards 64 KiB in the middle of the first block */
            madvise(l->block[0].at + l->block[0].size / 2, 65536, MADV_DONTNEED);
            break;
        case 'r': { /* the kernel writes into RAM for us */
            int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

            if (read(fd, l->block[0].at + 5 * LAB_PAGE, 8 * LAB_PAGE) < 0)
                _exit(3);
            close(fd);
            break;
        }
        default:
            break;
        }
        if (write(l->talk, "k", 1) != 1)
            _exit(0);
    }
}

static void lab_add(struct lab *l, size_t size, bool shared, bool huge)
{
    struct lab_block *b = &l->block[l->blocks++];
    uint8_t *room = mmap(NULL, size + (4ul << 20), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uintptr_t at = ((uintptr_t)room + (2ul << 20)) & ~((2ul << 20) - 1);
    int fd = -1;

    if (!huge)
        at += 3 * LAB_PAGE; /* chunks do not begin where the block does */
    if (shared) {
        fd = memfd_create("lab", MFD_CLOEXEC);
        if (ftruncate(fd, (off_t)size) < 0)
            abort();
    }
    b->at = mmap((void *)at, size, PROT_READ | PROT_WRITE,
                 MAP_FIXED | (shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS), fd, 0);
    if (fd >= 0)
        close(fd);
    b->size = size;
    b->shared = shared;
    b->huge = huge;
    madvise(b->at, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    if (lab_mergeable)
        madvise(b->at, size, MADV_MERGEABLE);
}

static void lab_start_with(struct lab *l, lab_threads_fn threads)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        abort();
    l->words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    l->pid = fork();
    if (l->pid == 0) {
        close(pair[0]);
        l->talk = pair[1];
        lab_child(l, threads);
    }
    close(pair[1]);
    l->talk = pair[0];
}

__attribute__((unused)) static void lab_start(struct lab *l, bool write_all)
{
    lab_start_with(l, write_all ? lab_write_all : NULL);
}

static void lab_stop(struct lab *l)
{
    kill(l->pid, SIGKILL);
    waitpid(l->pid, NULL, 0);
    close(l->talk);
    munmap(l->words, 4096);
    for (unsigned i = 0; i < l->blocks; i++)
        munmap(l->block[i].at, l->block[i].size);
    memset(l, 0, sizeof *l);
}

/* Asks without waiting for the answer. */
__attribute__((unused)) static void lab_ask(struct lab *l, char c)
{
    if (write(l->talk, &c, 1) != 1)
        abort();
}

__attribute__((unused)) static void lab_answer(struct lab *l)
{
    char c;

    lab_recv_byte(l->talk, &c);
}

__attribute__((unused)) static void lab_park(struct lab *l)
{
    uint32_t number = ++l->times_parked;

    atomic_store(&l->words->park, number);
    for (unsigned i = 0; i < LAB_WRITERS && !l->no_writers; i++)
        while (atomic_load(&l->words->parked[i]) != number)
            usleep(50);
}

__attribute__((unused)) static void lab_go(struct lab *l)
{
    atomic_store(&l->words->park, 0);
}

__attribute__((unused)) static int lab_uffd(struct lab *l)
{
    char byte, control[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {&byte, 1};
    struct msghdr m = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    int fd = -1;

    lab_ask(l, 'u');
    if (recvmsg(l->talk, &m, MSG_CMSG_CLOEXEC) != 1 || !CMSG_FIRSTHDR(&m))
        return -1;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
    return fd;
}

/* What the child has in a block now, holes of shared memory left alone. */
__attribute__((unused)) static void lab_read(struct lab *l, unsigned b, uint8_t *to)
{
    size_t size = l->block[b].shared ? l->block[b].size / 2 : l->block[b].size;
    struct iovec local = {to, size}, remote = {l->block[b].at, size};

    memset(to, 0, l->block[b].size);
    if (process_vm_readv(l->pid, &local, 1, &remote, 1, 0) != (ssize_t)size)
        abort();
}

/* Setup of a group whose targets make their userfaultfd themselves. */
static inline int lab_setup(void **state)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

    (void)state;
    if (fd < 0 || geteuid() != 0) {
        print_message("SKIP capture_lab: needs root and userfaultfd\n");
        exit(0);
    }
    close(fd);
    return 0;
}

#endif
