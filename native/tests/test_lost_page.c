/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The hunt for one lost page: hundreds of small captures, back to back, of a process that never
 * stops writing. Each image must be of exactly one counter value, and what the process had while it
 * stood still; or the capture was thrown away, where something is at work that may part a page from
 * its protection.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "hunt.h"

static void undisturbed(void **state)
{
    unsigned n = rounds(300, 5000) / SHARE;
    struct hunt h;

    (void)state;
    hunt_open(&h, "undisturbed", 0);
    for (unsigned i = 0; i < n; i++)
        hunt_one(&h, i);
    assert_int_equal(h.torn, 0);
    hunt_close(&h);
}

/* Half of the captures run while the target discards pages. */
static void with_discards(void **state)
{
    unsigned n = rounds(100, 2000) / SHARE;
    struct hunt h;

    (void)state;
    lanes.discard = true;
    hunt_open(&h, "with discards", 0);
    for (unsigned i = 0; i < n || (h.torn == 0 && i < 20 * n); i++) {
        unsigned torn = h.torn;

        lanes_ask(i % 2);
        hunt_one(&h, i);
        if (i % 2 == 0 && h.torn > torn)
            fail_msg("capture %u: %s", i, h.run.err.message);
    }
    assert_true(atomic_load(&lanes_words->discarded) > 0 && h.torn > 0);
    hunt_close(&h);
}

static _Atomic uint32_t compacting;

static void *compact(void *arg)
{
    int fd = *(int *)arg;

    while (atomic_load_explicit(&compacting, memory_order_relaxed))
        if (pwrite(fd, "1", 1, 0) != 1)
            break;
    return NULL;
}

static uint64_t migrated(void)
{
    FILE *f = fopen("/proc/vmstat", "re");
    unsigned long long pages = 0;
    char line[128];

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "pgmigrate_success %llu", &pages) == 1)
            break;
    if (f)
        fclose(f);
    return pages;
}

/* The kernel moves pages from one place of memory to another all the time. */
static void with_compaction(void **state)
{
    int fd = open("/proc/sys/vm/compact_memory", O_WRONLY | O_CLOEXEC);
    unsigned n = rounds(60, 2000) / SHARE;
    uint64_t before = migrated();
    pthread_t thread;
    struct hunt h;

    (void)state;
    if (fd < 0) {
        print_message("SKIP with_compaction: cannot open /proc/sys/vm/compact_memory: %s\n",
                      strerror(errno));
        skip();
    }
    hunt_open(&h, "with compaction", 0);
    atomic_store(&compacting, 1);
    assert_int_equal(pthread_create(&thread, NULL, compact, &fd), 0);
    for (unsigned i = 0; i < n; i++)
        hunt_one(&h, i);
    atomic_store(&compacting, 0);
    pthread_join(thread, NULL);
    close(fd);
    print_message("%lu pages were moved on this machine\n", migrated() - before);
    assert_true(migrated() > before);
    hunt_close(&h);
}

#ifdef LS_FAULTS
/* That all this would find a lost page: 2 MiB are left unprotected, and copied a second later. */
static void a_lost_page_is_found(void **state)
{
    struct hunt h;

    (void)state;
    hunt_open(&h, "sabotaged", 0);
    setenv("LIVESNAP_SABOTAGE", "skip-granule", 1);
    begin(&h.run, false, 1);
    unsetenv("LIVESNAP_SABOTAGE");
    assert_true(hunt_arm(&h, false));
    assert_int_equal(wait_end(&h.run), 0);
    end(&h.run);
    assert_true(lanes_judge(&h.run, &h.last) >= 0);
    ls_engine_free(h.run.engine);
    free(h.run.count);
    hunt_drop(&h);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(undisturbed),
        cmocka_unit_test(with_discards),
        cmocka_unit_test(with_compaction),
#ifdef LS_FAULTS
        cmocka_unit_test(a_lost_page_is_found),
#endif
    };

    return cmocka_run_group_tests(tests, run_setup, NULL);
}
