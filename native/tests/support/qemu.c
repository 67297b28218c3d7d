/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "qemu.h"

#include <errno.h>
#include <grp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define QEMU "/usr/bin/qemu-system-x86_64"
#define NOBODY 65534

static void run(const struct qemu *q, bool sandboxed)
{
    char socket_option[128];
    char *argv[32] = {QEMU,  "-nodefaults", "-display", "none",    "-m",   "64",   "-accel",
                      "tcg", "-vga",        "std",      "-serial", "none", "-qmp", socket_option};
    int argc = 14;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(socket_option, sizeof socket_option, "unix:%s/qmp,server=on,wait=off", q->dir);
    if (sandboxed) {
        argv[argc++] = "-sandbox";
        argv[argc++] = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
        if (setgroups(0, NULL) != 0 || setgid(NOBODY) != 0 || setuid(NOBODY) != 0)
            _exit(1);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    }
    execv(QEMU, argv);
    _exit(127);
}

/* One line, as JSON. */
static json_t *read_line(struct qemu *q)
{
    static char line[1 << 16];
    size_t used = 0;

    while (used + 1 < sizeof line && recv(q->qmp, line + used, 1, 0) == 1)
        if (line[used++] == '\n')
            return json_loadb(line, used, 0, NULL);
    fail_msg("QMP does not answer: %s", strerror(errno));
    return NULL;
}

static json_t *reply(struct qemu *q)
{
    for (;;) {
        json_t *message = read_line(q);
        json_t *answer = json_object_get(message, "return");

        assert_non_null(message);
        if (json_object_get(message, "error"))
            fail_msg("QMP: %s", json_dumps(message, 0));
        if (answer) {
            json_incref(answer);
            json_decref(message);
            return answer;
        }
        json_decref(message);
    }
}

json_t *qemu_command(struct qemu *q, const char *json)
{
    assert_int_equal(send(q->qmp, json, strlen(json), MSG_NOSIGNAL), (ssize_t)strlen(json));
    return reply(q);
}

char *qemu_hmp(struct qemu *q, const char *line)
{
    char json[256];
    json_t *answer;
    char *text;

    snprintf(json, sizeof json,
             "{\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\":\"%s\"}}",
             line);
    answer = qemu_command(q, json);
    text = strdup(json_string_value(answer));
    json_decref(answer);
    return text;
}

void qemu_getfd(struct qemu *q, const char *name, int fd)
{
    char json[128];
    struct iovec iov = {json, 0};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = sizeof control.bytes};

    iov.iov_len = (size_t)snprintf(
        json, sizeof json, "{\"execute\":\"getfd\",\"arguments\":{\"fdname\":\"%s\"}}", name);
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    assert_int_equal(sendmsg(q->qmp, &msg, MSG_NOSIGNAL), (ssize_t)iov.iov_len);
    json_decref(reply(q));
}

bool qemu_start(struct qemu *q, bool sandboxed)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {20, 0};

    if (access(QEMU, X_OK) != 0)
        return false;
    snprintf(q->dir, sizeof q->dir, "/tmp/livesnap-test-XXXXXX");
    assert_non_null(mkdtemp(q->dir));
    assert_int_equal(chmod(q->dir, 0777), 0);
    q->pid = fork();
    assert_true(q->pid >= 0);
    if (q->pid == 0)
        run(q, sandboxed);
    q->qmp = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(q->qmp, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    snprintf(address.sun_path, sizeof address.sun_path, "%s/qmp", q->dir);
    for (int i = 0; connect(q->qmp, (struct sockaddr *)&address, sizeof address) != 0; i++) {
        if (i == 2000 || waitpid(q->pid, NULL, WNOHANG) != 0)
            fail_msg("QEMU does not start");
        usleep(10000);
    }
    json_decref(read_line(q));
    json_decref(qemu_command(q, "{\"execute\":\"qmp_capabilities\"}"));
    return true;
}

void qemu_stop(struct qemu *q)
{
    char path[96];

    kill(q->pid, SIGKILL);
    waitpid(q->pid, NULL, 0);
    close(q->qmp);
    snprintf(path, sizeof path, "%s/qmp", q->dir);
    unlink(path);
    rmdir(q->dir);
}

pid_t qemu_vcpu_thread(struct qemu *q)
{
    json_t *cpus = qemu_command(q, "{\"execute\":\"query-cpus-fast\"}");
    pid_t tid = (pid_t)json_integer_value(json_object_get(json_array_get(cpus, 0), "thread-id"));

    json_decref(cpus);
    return tid;
}

void qemu_goes_on(struct qemu *q)
{
    json_t *status = qemu_command(q, "{\"execute\":\"query-status\"}");

    assert_true(json_is_true(json_object_get(status, "running")));
    json_decref(status);
}
