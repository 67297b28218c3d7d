/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Memory that no instruction of the target writes, but the kernel for it: through a vCPU of KVM,
 * and by read(2). Such faults come from inside the kernel; every byte of each image is compared.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "lanes.h"
#include "support/kvm_guest.h"
#include "support/rounds.h"

#if defined(__SANITIZE_THREAD__)
#define SHARE 10
#elif defined(__SANITIZE_ADDRESS__)
#define SHARE 4
#else
#define SHARE 1
#endif

#define VCPUS 2u

static uint64_t faults, changed;

/* Pages that the target has changed since it stood still. */
static uint64_t changed_pages(struct run *r)
{
    uint64_t n = 0;

    for (unsigned b = 0; b < r->lab->blocks; b++) {
        uint8_t *now = malloc(r->lab->block[b].size);

        lab_read(r->lab, b, now);
        for (size_t p = 0; p < r->lab->block[b].size; p += LAB_PAGE)
            n += memcmp(now + p, r->truth[b] + p, LAB_PAGE) != 0;
        free(now);
    }
    return n;
}

/* A capture of the running target, whose image is then compared. */
static void capture(struct run *r, unsigned i)
{
    begin(r, i % 4 == 3, 1 + i % 2);
    target_stop(r->lab);
    arm_still(r);
    target_go(r->lab);
    switch (wait_end(r)) {
    case -1:
        fail_msg("capture %u: %s", i, r->err.message);
        break;
    case 1:
        fail_msg("capture %u: %lu of %lu pages saved", i, atomic_load(&r->engine->saved_pages),
                 r->engine->total_pages);
        break;
    default:
        break;
    }
    end(r);
    faults += atomic_load_explicit(&progress.faults, memory_order_relaxed);
    changed += changed_pages(r);
    compare(r);
}

static void captured(struct run *r)
{
    ls_engine_free(r->engine);
    free(r->count);
}

static void add_blocks(struct lab *l)
{
    faults = changed = 0;
    lab_add(l, 4 << 20, false, true);
    lab_add(l, 2 << 20, false, false);
    lab_add(l, 1 << 20, true, false);
}

static void report(const char *what, unsigned n, uint64_t began)
{
    print_message("%s: %u captures in %.1f s, %lu faults, %lu pages changed meanwhile\n", what, n,
                  (double)(lab_us() - began) / 1e6, faults, changed);
    assert_true(faults > 0 && changed > 0);
}

/* ---- a vCPU ---- */

static void start_guest(struct lab *l)
{
    struct kvm_guest_block block[KVM_GUEST_BLOCKS_MAX];

    for (unsigned b = 0; b < l->blocks; b++)
        block[b] = (struct kvm_guest_block){l->block[b].at, l->block[b].size,
                                            lane_pages(&l->block[b]) * LAB_PAGE};
    kvm_guest_run(block, l->blocks, VCPUS);
}

static uint64_t guest_counter(struct lab *l, unsigned vcpu)
{
    uint64_t counter = 0;
    struct iovec local = {&counter, 8};
    struct iovec remote = {l->block[0].at + kvm_guest_counter(vcpu), 8};

    if (process_vm_readv(l->pid, &local, 1, &remote, 1, 0) != 8)
        fail_msg("the guest ended: %d", waitpid(l->pid, NULL, WNOHANG));
    return counter;
}

/* Waits until each vCPU has gone through memory `times` more. */
static void guest_counts_on(struct lab *l, uint64_t times)
{
    for (unsigned v = 0; v < VCPUS; v++) {
        uint64_t until = guest_counter(l, v) + times;

        for (unsigned tries = 0; guest_counter(l, v) < until; tries++) {
            if (tries > 30000)
                fail_msg("vCPU %u stands still at %lu", v, guest_counter(l, v));
            usleep(1000);
        }
    }
}

/* Each vCPU's pages are a prefix that holds k and a rest that holds k - 1, by itself. */
static void judge_guest(struct run *r, unsigned vcpu)
{
    uint64_t k, n = 0;
    bool beyond = false;

    memcpy(&k, r->image[0] + kvm_guest_counter(vcpu), 8);
    k++;
    for (unsigned b = 0; b < r->lab->blocks; b++)
        for (size_t at = b ? 0 : KVM_GUEST_OWN; at < lane_pages(&r->lab->block[b]) * LAB_PAGE;
             at += LAB_PAGE, n++) {
            const uint64_t *words = (const void *)(r->image[b] + at);
            uint64_t page = (KVM_GUEST_BLOCK(b) + at) / LAB_PAGE;
            size_t offset = at - (b ? 0 : KVM_GUEST_OWN);

            if (offset / LAB_PAGE % VCPUS != vcpu)
                continue;
            for (unsigned w = 0; w < LANE_WORDS; w++) {
                if (words[w] == (k << 32 | page) && !beyond)
                    continue;
                beyond = true;
                if (words[w] != ((k - 1) << 32 | page))
                    fail_msg("vCPU %u, step %lu: word %u of page %#lx is %#lx", vcpu, k, w, page,
                             words[w]);
            }
        }
}

static void by_a_vcpu(void **state)
{
    const char *why = kvm_guest_impossible();
    unsigned n = rounds(60, 2000) / SHARE;
    struct lab l = {0};
    struct run r;
    uint64_t began = lab_us();

    (void)state;
    if (why) {
        print_message("SKIP by_a_vcpu: %s\n", why);
        skip();
    }
    add_blocks(&l);
    lab_start_with(&l, start_guest);
    lab_ask(&l, ' '); /* it is made when it answers */
    lab_answer(&l);
    guest_counts_on(&l, 2);
    run_new(&r, &l, 32 << 20);
    for (unsigned i = 0; i < n; i++) {
        capture(&r, i);
        for (unsigned v = 0; v < VCPUS; v++)
            judge_guest(&r, v);
        captured(&r);
        guest_counts_on(&l, 1);
    }
    report("by a vCPU", n, began);
    run_free(&r);
    lab_stop(&l);
}

/* ---- read(2) ---- */

static void by_read(void **state)
{
    unsigned n = rounds(60, 2000) / SHARE;
    struct lab l = {0};
    struct run r;
    uint64_t began = lab_us();

    (void)state;
    lanes.count = 2;
    lanes.kind[0] = LANE_PIPE;
    lanes.kind[1] = LANE_FILE;
    add_blocks(&l);
    lanes_start(&l);
    run_new(&r, &l, 32 << 20);
    for (unsigned i = 0; i < n; i++) {
        uint64_t counter;

        capture(&r, i);
        if (lanes_judge(&r, &counter) >= 0)
            fail_msg("capture %u of counter %lu: page %ld is of another instant", i, counter,
                     lanes_judge(&r, &counter));
        captured(&r);
        lanes_pass(&l, 0);
    }
    report("by read", n, began);
    run_free(&r);
    lanes_stop(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_a_vcpu),
        cmocka_unit_test(by_read),
    };

    return cmocka_run_group_tests(tests, run_setup, NULL);
}
