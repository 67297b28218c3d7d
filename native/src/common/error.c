/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "common/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void fill(struct ls_error *err, enum ls_class cls, const char *reason, const char *fmt,
                 va_list ap)
{
    err->cls = cls;
    err->sys = 0;
    snprintf(err->reason, sizeof err->reason, "%s", reason);
    vsnprintf(err->message, sizeof err->message, fmt, ap);
}

int ls_fail(struct ls_error *err, enum ls_class cls, const char *reason, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fill(err, cls, reason, fmt, ap);
    va_end(ap);
    return -1;
}

int ls_fail_errno(struct ls_error *err, enum ls_class cls, const char *reason, const char *fmt, ...)
{
    int saved = errno;
    size_t used;
    va_list ap;

    va_start(ap, fmt);
    fill(err, cls, reason, fmt, ap);
    va_end(ap);
    err->sys = saved;
    used = strlen(err->message);
    snprintf(err->message + used, sizeof err->message - used, ": %s", strerror(saved));
    return -1;
}

int ls_context(struct ls_error *err, const char *fmt, ...)
{
    char inner[sizeof err->message];
    size_t used;
    va_list ap;

    memcpy(inner, err->message, sizeof inner);
    va_start(ap, fmt);
    vsnprintf(err->message, sizeof err->message, fmt, ap);
    va_end(ap);
    used = strlen(err->message);
    snprintf(err->message + used, sizeof err->message - used, ": %s", inner);
    return -1;
}
