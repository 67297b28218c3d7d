/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * RAM brought to a process that looks at it meanwhile: each page is what the image says, whoever
 * asks first; what was given back is zero; and whoever dies, nobody ever sees zeros instead.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "commands.h"
#include "image_dir.h"
#include "support/victim.h"
#include "target/target.h"

#define PAGES 3000u /* neither whole records nor whole neighbourhoods */
#define LIMIT_MS 20000

/* ---- the target: does what it is told with its RAM ---- */

struct order {
    char what; /* r: read, d: discard, w: write */
    uint32_t page;
    uint32_t count;
};

struct target {
    pid_t pid;
    int talk;
    uint8_t *ram; /* the same address here and there */
};

static struct guest *guest;
static char *image;

static void obey(int talk, uint8_t *ram)
{
    struct order o;

    while (read(talk, &o, sizeof o) == (ssize_t)sizeof o) {
        uint8_t *at = ram + (size_t)o.page * LS_PAGE;
        size_t length = (size_t)o.count * LS_PAGE;

        if (o.what == 'r' && write(talk, at, length) != (ssize_t)length)
            _exit(1);
        if (o.what == 'w')
            memset(at, 0xee, length);
        if (o.what == 'd' && madvise(at, length, MADV_DONTNEED))
            _exit(1);
        if (o.what != 'r' && write(talk, "", 1) != 1)
            _exit(1);
    }
    _exit(0);
}

static struct target target_start(void)
{
    struct target t;
    int pair[2];

    t.ram = mmap(NULL, PAGES * LS_PAGE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(t.ram != MAP_FAILED);
    /* Or a page of the parent's would come with its neighbours. */
    madvise(t.ram, PAGES * LS_PAGE, MADV_NOHUGEPAGE);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    t.pid = fork();
    assert_true(t.pid >= 0);
    if (t.pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pair[0]);
        obey(pair[1], t.ram);
    }
    close(pair[1]);
    t.talk = pair[0];
    return t;
}

static void target_end(struct target *t)
{
    close(t->talk);
    kill(t->pid, SIGKILL);
    waitpid(t->pid, NULL, 0);
    munmap(t->ram, PAGES * LS_PAGE);
}

static void tell(struct target *t, char what, uint32_t page, uint32_t count)
{
    struct order o = {.what = what, .page = page, .count = count};
    char done;

    assert_int_equal(write(t->talk, &o, sizeof o), sizeof o);
    if (what != 'r')
        assert_int_equal(read(t->talk, &done, 1), 1);
}

/* What the target sees there is what the guest had, or zero. */
static void sees(struct target *t, uint32_t page, uint32_t count, bool zero)
{
    size_t length = (size_t)count * LS_PAGE, got = 0;
    uint8_t *seen = malloc(length), *wanted = guest->ram[0] + (size_t)page * LS_PAGE;

    assert_non_null(seen);
    tell(t, 'r', page, count);
    while (got < length) {
        ssize_t n = read(t->talk, seen + got, length - got);

        assert_true(n > 0);
        got += (size_t)n;
    }
    if (zero)
        assert_true(ls_is_zero(seen, length));
    else
        assert_memory_equal(seen, wanted, length);
    free(seen);
}

static uint64_t pages_there(const struct target *t)
{
    uint64_t count = 0, entry;
    char path[64];
    FILE *f;

    snprintf(path, sizeof path, "/proc/%d/pagemap", (int)t->pid);
    f = fopen(path, "re");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)((uintptr_t)t->ram / LS_PAGE * 8), SEEK_SET), 0);
    for (unsigned i = 0; i < PAGES && fread(&entry, 8, 1, f) == 1; i++)
        count += entry >> 63;
    fclose(f);
    return count;
}

/* ---- the server ---- */

struct server {
    pid_t pid;
    FILE *events;
    pid_t sentinel;
};

static void run_server(const struct target *t, const char *extra, int out)
{
    char pid[16], started[24], text[256];
    const char *argv[] = {"serve",  "--pid",      pid,  "--start-time", started, "--block",
                          "pc.ram", "--ramblock", text, image,          extra,   NULL};
    uint64_t start_time = 1;
    struct ls_error err;

    ls_proc_start_time(t->pid, &start_time, &err);
    snprintf(pid, sizeof pid, "%d", (int)t->pid);
    snprintf(started, sizeof started, "%llu", (unsigned long long)start_time);
    snprintf(text, sizeof text, " pc.ram 4 KiB 0x0 0x%x 0x%x 0x%016llx rw\n", PAGES * LS_PAGE,
             PAGES * LS_PAGE, (unsigned long long)(uintptr_t)t->ram);
    dup2(out, STDOUT_FILENO);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    exit(ls_cmd_serve(extra ? 11 : 10, (char **)(uintptr_t)argv));
}

static char *event(struct server *s, char *line, size_t size)
{
    do {
        assert_non_null(fgets(line, (int)size, s->events));
    } while (strstr(line, "\"progress\""));
    return line;
}

static struct server server_begin(const struct target *t, const char *extra)
{
    struct server s = {0};
    int ends[2];

    assert_int_equal(pipe(ends), 0);
    s.pid = fork();
    if (s.pid == 0)
        run_server(t, extra, ends[1]);
    close(ends[1]);
    s.events = fdopen(ends[0], "re");
    return s;
}

static struct server server_start(const struct target *t, bool asked_only)
{
    struct server s = server_begin(t, asked_only ? "--asked-only" : NULL);
    char line[1024];

    event(&s, line, sizeof line);
    if (!strstr(line, "\"serving\""))
        fail_msg("%s", line);
    s.sentinel = atoi(strstr(line, "\"sentinel\":") + strlen("\"sentinel\":"));
    assert_true(s.sentinel > 0);
    return s;
}

/* Exit code; 256 and the signal if it was killed. */
static int server_ended(struct server *s)
{
    int status;

    assert_int_equal(waitpid(s->pid, &status, 0), s->pid);
    fclose(s->events);
    return WIFSIGNALED(status) ? 256 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void kill_server(struct server *s)
{
    kill(s->pid, SIGKILL);
    assert_int_equal(server_ended(s), 256 + SIGKILL);
}

/* The target was ended by somebody, within the limit. */
static void target_was_killed(struct target *t)
{
    int status = 0;

    for (int i = 0; waitpid(t->pid, &status, WNOHANG) == 0; i++) {
        if (i > LIMIT_MS)
            fail_msg("the target lives on without its server");
        usleep(1000);
    }
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    close(t->talk);
    munmap(t->ram, PAGES * LS_PAGE);
}

/* ---- the tests ---- */

static void all_of_it(void **state)
{
    struct target t = target_start();
    struct server s;
    char *before, *after;
    char line[1024];

    (void)state;
    tell(&t, 'w', 700, 90); /* pages that no fault will ask for */
    before = descriptors_of(t.pid);
    s = server_start(&t, false);
    for (uint32_t page = 0; page < PAGES; page += 331)
        sees(&t, PAGES - 1 - page, 1, false);
    assert_non_null(strstr(event(&s, line, sizeof line), "\"loaded\""));
    assert_int_equal(server_ended(&s), LS_OK);
    sees(&t, 0, PAGES, false);
    after = descriptors_of(t.pid);
    assert_string_equal(before, after);
    /* It is its own again: what it gives back is zero, and what it writes stays. */
    tell(&t, 'd', 5, 20);
    sees(&t, 5, 20, true);
    free(before);
    free(after);
    target_end(&t);
}

static void what_is_asked_for(void **state)
{
    struct target t = target_start();
    struct server s = server_start(&t, true);

    (void)state;
    assert_int_equal(pages_there(&t), 0);
    sees(&t, 1000, 1, false);
    assert_in_range(pages_there(&t), 1, 16);
    tell(&t, 'd', 992, 16);
    sees(&t, 990, 2, false);
    sees(&t, 992, 16, true);
    /* What it never looked at it has given back as well. */
    tell(&t, 'd', 2000, 200);
    sees(&t, 2000, 200, true);
    sees(&t, PAGES - 3, 3, false);
    kill(t.pid, SIGKILL);
    assert_int_equal(server_ended(&s), LS_GONE);
    target_end(&t);
}

static void it_does_not_outlive_its_server(void **state)
{
    (void)state;
    for (int waits = 0; waits < 2; waits++) {
        struct target t = target_start();
        struct server s = server_start(&t, true);

        sees(&t, 17, 1, false);
        if (waits) {
            kill(s.pid, SIGSTOP);
            tell(&t, 'r', 500, 1);
            usleep(20000);
        }
        kill_server(&s);
        target_was_killed(&t);
    }
}

static void the_sentinel_is_replaced(void **state)
{
    struct target t = target_start();
    struct server s = server_start(&t, true);

    (void)state;
    kill(s.sentinel, SIGKILL);
    /* Its parent has missed it; what is brought next is brought with another one in its place. */
    for (int i = 0; kill(s.sentinel, 0) == 0; i++) {
        if (i > LIMIT_MS)
            fail_msg("the sentinel is not missed");
        usleep(1000);
    }
    sees(&t, 17, 1, false);
    kill_server(&s);
    target_was_killed(&t);
}

/* Nobody is left who could bring a page, or end the target: it waits. */
static void never_zeros(void **state)
{
    struct target t = target_start();
    struct server s = server_start(&t, true);
    uint8_t byte;

    (void)state;
    kill(s.pid, SIGSTOP);
    kill(s.sentinel, SIGKILL);
    kill_server(&s);
    tell(&t, 'r', 500, 1);
    usleep(300000);
    assert_int_equal(recv(t.talk, &byte, 1, MSG_DONTWAIT), -1);
    assert_int_equal(waitpid(t.pid, NULL, WNOHANG), 0);
    target_end(&t);
}

static void a_damaged_image_ends_it(void **state)
{
    struct target t = target_start();
    struct server s = server_start(&t, true);
    char line[1024];
    int fd = open(image, O_RDWR);

    (void)state;
    sees(&t, 17, 1, false);
    for (int at = 0; at < 64; at++)
        assert_int_equal(pwrite(fd, "damage", 6, 4096 + at * 4096), 6);
    close(fd);
    tell(&t, 'r', 0, PAGES);
    assert_non_null(strstr(event(&s, line, sizeof line), "\"torn\""));
    assert_int_equal(server_ended(&s), LS_TORN);
    target_was_killed(&t);
    guest_write(guest, image, 512);
}

static void refused(const struct target *t, const char *reason)
{
    struct server s = server_begin(t, NULL);
    char line[1024];

    assert_non_null(strstr(event(&s, line, sizeof line), reason));
    assert_int_not_equal(server_ended(&s), LS_OK);
}

static void refuses(void **state)
{
    struct target t = target_start(), other = t;
    struct guest *small = guest_new(PAGES - 1, 1, LS_CODEC_LZ4), *whole = guest;

    (void)state;
    other.pid = 1 << 22; /* nobody's */
    refused(&other, "\"gone\"");
    guest_write(small, image, 512);
    refused(&t, "\"ramblock\"");
    guest_write(whole, image, 512);
    guest_free(small);
    /* It was not touched. */
    sees(&t, 0, 10, true);
    target_end(&t);
}

static int setup(void **state)
{
    make_dir(state);
    guest = guest_new(PAGES, 1, LS_CODEC_LZ4);
    image = in_dir(dir, "ram.lsnap");
    guest_write(guest, image, 512);
    return 0;
}

static int teardown(void **state)
{
    unlink(image);
    free(image);
    guest_free(guest);
    return remove_dir(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_of_it),
        cmocka_unit_test(what_is_asked_for),
        cmocka_unit_test(it_does_not_outlive_its_server),
        cmocka_unit_test(the_sentinel_is_replaced),
        cmocka_unit_test(never_zeros),
        cmocka_unit_test(a_damaged_image_ends_it),
        cmocka_unit_test(refuses),
    };

    if (geteuid() != 0) {
        printf("SKIP test_serve: needs root\n");
        return 0;
    }
    return cmocka_run_group_tests(tests, setup, teardown);
}
