/* SPDX-License-Identifier: GPL-3.0-or-later */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "common/cleanup.h"
#include "target/target.h"

static void close_file(FILE **file)
{
    if (*file)
        fclose(*file);
}
#define AUTO_FILE __attribute__((cleanup(close_file)))

static FILE *open_proc(const char *path, pid_t pid, struct ls_error *err)
{
    FILE *file = fopen(path, "re");

    if (!file && (errno == ENOENT || errno == ESRCH))
        ls_fail(err, LS_GONE, "gone", "process %d does not exist", (int)pid);
    else if (!file)
        ls_fail_errno(err, LS_REFUSED, "proc", "cannot open '%s'", path);
    return file;
}

int ls_proc_start_time(pid_t pid, uint64_t *start_time, struct ls_error *err)
{
    AUTO_FILE FILE *file = NULL;
    char path[64];
    char line[1024];
    const char *at;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    file = open_proc(path, pid, err);
    if (!file)
        return -1;
    if (!fgets(line, sizeof line, file))
        return ls_fail(err, LS_GONE, "gone", "process %d ended", (int)pid);
    /* the command in field 2 may hold spaces and brackets; field 3 follows its last bracket */
    at = strrchr(line, ')');
    for (int field = 3; at && field <= 22; field++)
        at = strchr(at + 1, ' ');
    if (!at || sscanf(at, " %" SCNu64, start_time) != 1)
        return ls_fail(err, LS_INTERNAL, "proc", "cannot read the start time in '%s'", path);
    return 0;
}

int ls_proc_status(pid_t pid, pid_t tid, struct ls_proc_status *status, struct ls_error *err)
{
    AUTO_FILE FILE *file = NULL;
    struct ls_proc_status found = {0};
    char path[64];
    char line[1024];

    snprintf(path, sizeof path, "/proc/%d/task/%d/status", (int)pid, (int)tid);
    file = open_proc(path, pid, err);
    if (!file)
        return -1;
    while (fgets(line, sizeof line, file)) {
        int number;

        if (sscanf(line, "State: %c", &found.state) == 1)
            continue;
        if (sscanf(line, "TracerPid: %d", &number) == 1)
            found.tracer = number;
        else if (sscanf(line, "Seccomp: %d", &number) == 1)
            found.seccomp = number;
        else if (strncmp(line, "x86_Thread_features:", 20) == 0)
            found.shadow_stack = strstr(line, "shstk") != NULL;
        else if (sscanf(line, "SigBlk: %" SCNx64, &found.blocked) == 1)
            continue;
    }
    if (!found.state)
        return ls_fail(err, LS_GONE, "gone", "process %d ended", (int)pid);
    *status = found;
    return 0;
}

static bool parse_map(char *line, struct ls_vma *vma)
{
    char perms[5] = "";
    unsigned maj;
    unsigned min;
    uint64_t inode;
    int name_at = 0;

    memset(vma, 0, sizeof *vma);
    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n", &vma->start,
               &vma->end, perms, &vma->file_offset, &maj, &min, &inode, &name_at) != 7 ||
        vma->start >= vma->end || strlen(perms) != 4)
        return false;
    vma->readable = perms[0] == 'r';
    vma->writable = perms[1] == 'w';
    vma->executable = perms[2] == 'x';
    vma->shared = perms[3] == 's';
    vma->device = makedev(maj, min);
    vma->inode = (ino_t)inode;
    line[strcspn(line, "\n")] = '\0';
    snprintf(vma->name, sizeof vma->name, "%s", line + name_at);
    return true;
}

static void parse_smaps_line(char *line, struct ls_vma *vma)
{
    uint64_t kib;
    char *save = NULL;

    if (sscanf(line, "KernelPageSize: %" SCNu64 " kB", &kib) == 1)
        vma->page_size = kib * 1024;
    if (sscanf(line, "Rss: %" SCNu64 " kB", &kib) == 1 ||
        sscanf(line, "Swap: %" SCNu64 " kB", &kib) == 1)
        vma->rss_bytes += kib * 1024;
    if (sscanf(line, "Shared_Hugetlb: %" SCNu64 " kB", &kib) == 1 ||
        sscanf(line, "Private_Hugetlb: %" SCNu64 " kB", &kib) == 1)
        vma->hugetlb_bytes += kib * 1024;
    if (strncmp(line, "VmFlags:", 8) != 0)
        return;
    for (char *flag = strtok_r(line + 8, " \n", &save); flag; flag = strtok_r(NULL, " \n", &save)) {
        vma->mergeable |= strcmp(flag, "mg") == 0;
        vma->uffd_missing |= strcmp(flag, "um") == 0;
        vma->uffd_wp |= strcmp(flag, "uw") == 0;
        vma->hugetlb |= strcmp(flag, "ht") == 0;
        vma->io |= strcmp(flag, "io") == 0 || strcmp(flag, "pf") == 0;
    }
}

/* A line as far as there is room; the rest of it is skipped, or it would pass for a line. */
static bool read_line(FILE *file, char *line, int room)
{
    int c = 0;

    if (!fgets(line, room, file))
        return false;
    if (!strchr(line, '\n'))
        while (c != '\n' && c != EOF)
            c = getc_unlocked(file);
    return true;
}

int ls_proc_read_maps(FILE *file, int (*each)(const struct ls_vma *vma, void *opaque), void *opaque)
{
    struct ls_vma vma = {0};
    struct ls_vma next;
    bool have = false;
    char line[5000];

    while (read_line(file, line, sizeof line)) {
        if (!parse_map(line, &next)) {
            parse_smaps_line(line, &vma);
            continue;
        }
        if (have && each(&vma, opaque) != 0)
            return 1;
        vma = next;
        have = true;
    }
    if (have)
        each(&vma, opaque);
    return have;
}

int ls_proc_maps(pid_t pid, enum ls_vma_source source,
                 int (*each)(const struct ls_vma *vma, void *opaque), void *opaque,
                 struct ls_error *err)
{
    AUTO_FILE FILE *file = NULL;
    char path[64];
    int found;

    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, source == LS_SMAPS ? "smaps" : "maps");
    file = open_proc(path, pid, err);
    if (!file)
        return -1;
    found = ls_proc_read_maps(file, each, opaque);
    if (ferror(file))
        return ls_fail_errno(err, LS_REFUSED, "proc", "cannot read '%s'", path);
    if (!found)
        return ls_fail(err, LS_GONE, "gone", "process %d ended: it has no memory", (int)pid);
    return 0;
}
