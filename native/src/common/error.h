/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * How functions of this program fail.
 *
 * A function that can fail takes a `struct ls_error *` as its last argument and returns 0 (or a
 * count) on success and -1 on failure. On failure it has filled the error; on success it has not
 * touched it. The class of an error decides the exit code of the program.
 */
#ifndef LS_COMMON_ERROR_H
#define LS_COMMON_ERROR_H

/* Exit codes of livesnap-helper, documented in docs/helper.md. */
enum ls_class {
    LS_OK = 0,
    LS_USAGE = 1,    /* bad arguments, request, or input file */
    LS_REFUSED = 2,  /* the engine must stand aside; nothing was touched */
    LS_ABORTED = 3,  /* aborted on request, or its owner died before the instant */
    LS_GONE = 4,     /* the guest's process ended */
    LS_STORAGE = 5,  /* writing or reading the store failed */
    LS_TORN = 6,     /* a proof or checksum failed: the snapshot is thrown away */
    LS_INTERNAL = 7, /* anything else */
};

struct ls_error {
    enum ls_class cls;
    int sys;           /* errno, or 0 */
    char reason[32];   /* machine-readable word, such as "ksm" or "seccomp" */
    char message[480]; /* one sentence for people: subject, state, cause, remedy */
};

/* Fills *err and returns -1. `reason` is a short machine-readable word. */
int ls_fail(struct ls_error *err, enum ls_class cls, const char *reason, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* The same, with ": strerror(errno)" appended and errno kept in err->sys. */
int ls_fail_errno(struct ls_error *err, enum ls_class cls, const char *reason, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Puts "context: " before the message; returns -1. */
int ls_context(struct ls_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
