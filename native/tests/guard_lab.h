/* SPDX-License-Identifier: GPL-3.0-or-later */
/* What the guard's tests share: a folder of their own, children, and servers that play a script. */
#ifndef LS_TESTS_GUARD_LAB_H
#define LS_TESTS_GUARD_LAB_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"

static char lab_folder[64];

static inline const char *lab_path(const char *name)
{
    static char paths[8][128];
    static unsigned turn;
    char *path = paths[turn++ % 8];

    snprintf(path, sizeof paths[0], "%s/%s", lab_folder, name);
    return path;
}

static inline int lab_open(void **state)
{
    (void)state;
    strcpy(lab_folder, "/tmp/livesnap-guard.XXXXXX");
    return mkdtemp(lab_folder) ? 0 : -1;
}

static inline int lab_close(void **state)
{
    char command[96];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", lab_folder);
    return system(command);
}

/* A child that dies with the test. 0 in the child. */
static inline pid_t lab_fork(void)
{
    pid_t parent = getpid();
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
    }
    return pid;
}

static inline void lab_end(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* Exit code of a child within `ms`; -1 when it was killed, -2 when it is still there. */
static inline int lab_wait(pid_t pid, int ms)
{
    int64_t until = ls_now_ms() + ms;
    int status;

    for (;;) {
        if (waitpid(pid, &status, WNOHANG) == pid)
            return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
        if (ls_now_ms() >= until)
            return -2;
        ls_sleep_ms(5);
    }
}

/* One step: wait until `expect` has been received (NULL: at once), then send `reply`. */
struct lab_step {
    const char *expect;
    const char *reply;
    size_t size; /* of reply, 0: a string */
    int pause_ms;
};

static inline int lab_listen(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(address.sun_path, path);
    unlink(path);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(fd, 1), 0);
    return fd;
}

/* Plays the script to each client in turn, then holds the connection until the client leaves. */
static inline pid_t lab_serve(const char *path, const struct lab_step *steps, size_t count)
{
    int listener = lab_listen(path);
    pid_t pid = lab_fork();

    if (pid) {
        close(listener);
        return pid;
    }
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        char got[65536];
        size_t have = 0;
        ssize_t n = 1;

        for (size_t i = 0; i < count && n > 0; i++) {
            const struct lab_step *step = &steps[i];

            while (step->expect && !memmem(got, have, step->expect, strlen(step->expect)) &&
                   (n = recv(fd, got + have, sizeof got - have, 0)) > 0)
                have += (size_t)n;
            if (step->pause_ms)
                ls_sleep_ms(step->pause_ms);
            if (n > 0 && step->reply)
                (void)!send(fd, step->reply, step->size ? step->size : strlen(step->reply),
                            MSG_NOSIGNAL);
            have = step->expect ? 0 : have;
        }
        while (recv(fd, got, sizeof got, 0) > 0)
            ;
        close(fd);
    }
}

#endif
