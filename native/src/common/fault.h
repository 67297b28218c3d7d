/* SPDX-License-Identifier: GPL-3.0-or-later */
/*
 * Fault points: named places where a test makes this program die, stop, wait or fail.
 *
 * They exist only in the build with -DLS_FAULTS; elsewhere LS_FAULT() is a constant false. Each use
 * of LS_FAULT() puts its name into one linker section, so that the list which `faults` prints, and
 * which the tests are made from, cannot miss a point.
 *
 * LIVESNAP_FAULT=name:action[:n] chooses one; it fires at the n-th time (1 unless given) that the
 * point is passed, counted over this process and its children. Actions: kill (SIGKILL),
 * killboth (SIGKILL to the parent, then to itself), stop (SIGSTOP), sleepMS (such as sleep250),
 * error (LS_FAULT() is true, and the caller fails).
 */
#ifndef LS_COMMON_FAULT_H
#define LS_COMMON_FAULT_H

#include <stdbool.h>

#ifdef LS_FAULTS

/* Puts `name`, a string literal, on the list without passing it. */
#define LS_FAULT_DECLARE(name)                                                                     \
    do {                                                                                           \
        static const char *const ls_fault_entry __attribute__((section("ls_faults"), used)) =      \
            (name);                                                                                \
        (void)ls_fault_entry;                                                                      \
    } while (0)

/* Passes the point `name`, a string literal: true if the caller is to fail here. */
#define LS_FAULT(name)                                                                             \
    ({                                                                                             \
        LS_FAULT_DECLARE(name);                                                                    \
        ls_fault_pass(name);                                                                       \
    })

/* Passes a point by a name made at run time; it must be declared somewhere. */
bool ls_fault_pass(const char *name);

/* What LIVESNAP_FAULT would say; NULL switches faults off. For tests inside one process. */
void ls_fault_choose(const char *spec);

/* Calls `each` with every name, sorted, once. */
void ls_fault_list(void (*each)(const char *name, void *opaque), void *opaque);

#else

#define LS_FAULT_DECLARE(name)                                                                     \
    do {                                                                                           \
    } while (0)
#define LS_FAULT(name) ls_fault_pass(name)

static inline bool ls_fault_pass(const char *name)
{
    (void)name;
    return false;
}

#endif
#endif
