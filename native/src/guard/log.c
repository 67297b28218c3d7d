/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "guard/log.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/cleanup.h"

static char subject_guest[128] = "-";
static char subject_id[64] = "-";
static const char *speaker = "guard";

void ls_log_part(const char *part)
{
    speaker = part;
}

void ls_log_subject(const char *guest, const char *id)
{
    snprintf(subject_guest, sizeof subject_guest, "%s", guest ? guest : "-");
    snprintf(subject_id, sizeof subject_id, "%s", id ? id : "-");
}

static void to_journal(int level, const char *line)
{
    const struct sockaddr_un daemon = {.sun_family = AF_UNIX, .sun_path = "/dev/log"};
    LS_AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    char packet[1024];
    int size;

    if (fd < 0 || connect(fd, (const struct sockaddr *)&daemon, sizeof daemon) != 0)
        return;
    size = snprintf(packet, sizeof packet, "<%d>livesnap[%d]: %s", LOG_DAEMON | level,
                    (int)getpid(), line);
    if (size >= (int)sizeof packet)
        size = (int)sizeof packet - 1;
    (void)!send(fd, packet, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void ls_log(int level, const char *fmt, ...)
{
    struct pollfd err = {.fd = STDERR_FILENO, .events = POLLOUT};
    char text[640], line[896];
    va_list ap;
    int size;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    for (char *c = text; *c; c++)
        if (*c == '\n' || *c == '\r')
            *c = ' ';
    snprintf(line, sizeof line - 1, "guest=%s id=%s %s: %s", subject_guest, subject_id, speaker,
             text);
    to_journal(level, line);
    size = (int)strlen(line);
    line[size++] = '\n';
    /* A pipe that polls writable takes PIPE_BUF (4096) bytes without blocking. */
    if (poll(&err, 1, 0) == 1 && (err.revents & POLLOUT))
        (void)!write(STDERR_FILENO, line, (size_t)size);
}
