/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * The owner of a `capture`: a target of capture_lab.h, a helper beside it, requests and events.
 * Used by tests only; one includer a program, after cmocka.h.
 */
#ifndef LS_TESTS_CAPTURE_OWNER_H
#define LS_TESTS_CAPTURE_OWNER_H

#include <jansson.h>
#include <poll.h>

#include "capture_lab.h"
#include "commands.h"
#include "image/image.h"
#include "target/target.h"

#define ID "01234567-89ab-cdef-0123-456789abcdef"

struct owner {
    struct lab lab;
    pid_t helper;
    int to, from;
    char path[64];
    char line[8192];
    size_t used;
    pid_t writer;
    uint8_t *truth[4];
    char ramblock[2048];
};

static inline void say(struct owner *o, json_t *request)
{
    char *text = json_dumps(request, JSON_COMPACT);

    if (write(o->to, text, strlen(text)) < 0 || write(o->to, "\n", 1) < 0)
        print_message("the helper does not read\n");
    free(text);
    json_decref(request);
}

/* The next event, NULL at the end of the stream. */
static inline json_t *hear(struct owner *o)
{
    for (;;) {
        char *newline = memchr(o->line, '\n', o->used);
        struct pollfd p = {.fd = o->from, .events = POLLIN};
        ssize_t n;

        if (newline) {
            json_t *event = json_loadb(o->line, (size_t)(newline - o->line), 0, NULL);

            o->used -= (size_t)(newline + 1 - o->line);
            memmove(o->line, newline + 1, o->used);
            assert_non_null(event);
            return event;
        }
        if (poll(&p, 1, 60000) <= 0)
            fail_msg("the helper is silent");
        n = read(o->from, o->line + o->used, sizeof o->line - o->used);
        if (n <= 0)
            return NULL;
        o->used += (size_t)n;
    }
}

/* Skips what is not `name`; an error event instead fails the test. */
static inline json_t *expect(struct owner *o, const char *name)
{
    for (;;) {
        json_t *event = hear(o);
        const char *what;

        if (!event)
            fail_msg("the helper ended before '%s'", name);
        what = json_string_value(json_object_get(event, "event"));
        if (strcmp(what, name) == 0)
            return event;
        if (strcmp(what, "error") == 0 || strcmp(what, "aborted") == 0)
            fail_msg("instead of '%s': %s", name,
                     json_string_value(json_object_get(event, "message")));
        json_decref(event);
    }
}

static inline void expect_only(struct owner *o, const char *name)
{
    json_decref(expect(o, name));
}

static inline int exit_code(struct owner *o)
{
    int status;

    assert_int_equal(waitpid(o->helper, &status, 0), o->helper);
    o->helper = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

static inline void run_helper(struct owner *o)
{
    int in[2], out[2];
    char *argv[] = {(char[]){"capture"}, NULL};

    assert_int_equal(pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC), 0);
    o->helper = fork();
    if (o->helper == 0) {
        setsid();
        dup2(in[0], STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        exit(ls_cmd_capture(1, argv));
    }
    close(in[0]);
    close(out[1]);
    o->to = in[1];
    o->from = out[0];
    o->used = 0;
}

static inline void add_line(struct owner *o, unsigned b)
{
    size_t used = strlen(o->ramblock);

    snprintf(o->ramblock + used, sizeof o->ramblock - used,
             "block%u 4 KiB 0x%016llx 0x%016zx 0x%016zx 0x%016llx rw\n", b, b * 0x10000000ull,
             o->lab.block[b].size, o->lab.block[b].size,
             (unsigned long long)(uintptr_t)o->lab.block[b].at);
}

static inline json_t *start_request(struct owner *o)
{
    struct ls_error err;
    uint64_t start_time;

    assert_int_equal(ls_proc_start_time(o->lab.pid, &start_time, &err), 0);
    return json_pack("{s:s,s:s,s:s,s:i,s:I,s:s,s:[{s:i,s:s,s:i,s:i}],s:s,s:s,s:i,s:s}", "request",
                     "start", "id", ID, "guest", "lab", "pid", (int)o->lab.pid, "start_time",
                     (json_int_t)start_time, "ramblock", o->ramblock, "gpa", "gpa", 0, "block",
                     "block0", "offset", 0, "length", (int)o->lab.block[0].size, "image", o->path,
                     "compression", "none", "staging", 32 << 20, "attach", "inject");
}

/* A target with everything in it, a helper beside it, and the first request sent. */
static inline void open_owner_with(struct owner *o, json_t *more)
{
    json_t *request;

    memset(o, 0, sizeof *o);
    strcpy(o->path, "/tmp/livesnap-test-XXXXXX");
    assert_non_null(mkdtemp(o->path));
    strcat(o->path, "/ram.lsnap");
    lab_add(&o->lab, 24 << 20, false, false);
    lab_add(&o->lab, 8 << 20, true, false);
    lab_add(&o->lab, 16 << 20, false, true);
    lab_start(&o->lab, true);
    strcpy(o->ramblock, "Block Name PSize Offset Used Total HVA RO\n");
    for (unsigned i = 0; i < o->lab.blocks; i++) {
        add_line(o, i);
        o->truth[i] = malloc(o->lab.block[i].size);
    }
    while (atomic_load(&o->lab.words->rounds) < 2)
        usleep(100);
    run_helper(o);
    request = start_request(o);
    json_object_update(request, more);
    json_decref(more);
    say(o, request);
}

static inline void open_owner(struct owner *o, const char *extra, json_t *value)
{
    open_owner_with(o, extra ? json_pack("{s:o}", extra, value) : json_object());
}

static inline void attached(struct owner *o)
{
    json_t *event = expect(o, "attached");

    o->writer = (pid_t)json_integer_value(json_object_get(event, "writer"));
    assert_int_equal(json_integer_value(json_object_get(event, "keeper")), o->helper);
    json_decref(event);
}

static inline void protect(struct owner *o)
{
    lab_park(&o->lab);
    for (unsigned i = 0; i < o->lab.blocks; i++)
        lab_read(&o->lab, i, o->truth[i]);
    say(o, json_pack("{s:s,s:s}", "request", "protect", "ramblock", o->ramblock));
    expect_only(o, "protected");
}

static inline void arm(struct owner *o)
{
    json_t *event;

    say(o, json_pack("{s:s}", "request", "arm"));
    event = expect(o, "armed");
    assert_true(json_is_true(json_object_get(event, "clean")));
    json_decref(event);
    lab_go(&o->lab);
}

static inline void target_goes_on(struct owner *o)
{
    uint64_t now;

    lab_go(&o->lab);
    now = atomic_load(&o->lab.words->rounds);
    for (int i = 0; atomic_load(&o->lab.words->rounds) < now + 3; i++) {
        if (i > 5000)
            fail_msg("the target stands still");
        usleep(1000);
    }
}

static inline void no_image(struct owner *o)
{
    for (int i = 0; access(o->path, F_OK) == 0; i++) {
        if (i > 3000)
            fail_msg("an image is left behind");
        usleep(1000);
    }
}

static inline void compare(struct owner *o)
{
    struct ls_image *image;
    struct ls_error err;

    if (ls_image_open(o->path, &image, &err))
        fail_msg("%s", err.message);
    for (unsigned b = 0; b < o->lab.blocks; b++) {
        uint8_t *got = malloc(o->lab.block[b].size);

        if (ls_image_read(image, b, 0, got, o->lab.block[b].size, &err))
            fail_msg("%s", err.message);
        assert_memory_equal(got, o->truth[b], o->lab.block[b].size);
        free(got);
    }
    assert_int_equal(ls_image_verify(image, NULL, NULL, &err), 0);
    ls_image_close(image);
}

static inline void close_owner(struct owner *o)
{
    close(o->to);
    close(o->from);
    if (o->helper > 0)
        waitpid(o->helper, NULL, 0);
    lab_stop(&o->lab);
    unlink(o->path);
    *strrchr(o->path, '/') = 0;
    rmdir(o->path);
    for (unsigned i = 0; i < 4; i++)
        free(o->truth[i]);
}

/* The helper says why it will not, and ends; nothing has happened to the target. */
static inline void expect_refusal(struct owner *o, int code, const char *reason)
{
    json_t *event = hear(o);

    assert_non_null(event);
    assert_string_equal(json_string_value(json_object_get(event, "event")), "error");
    assert_string_equal(json_string_value(json_object_get(event, "reason")), reason);
    print_message("%s\n", json_string_value(json_object_get(event, "message")));
    json_decref(event);
    assert_int_equal(exit_code(o), code);
    target_goes_on(o);
    close_owner(o);
}

static inline int owner_setup(void **state)
{
    signal(SIGPIPE, SIG_IGN);
    return lab_setup(state);
}

#endif
