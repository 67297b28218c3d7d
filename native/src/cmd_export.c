/* SPDX-License-Identifier: GPL-3.0-or-later */
/* `livesnap-helper export`: for stock QEMU, for libvirt, as plain files, or as an ELF core. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "commands.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/event.h"
#include "stream/source.h"
#include "stream/stream.h"

struct request {
    bool raw;
    bool libvirt;
    bool elf;
    bool paused;
    bool main_pages;
    const char *xml;     /* NULL: beside the image */
    const char *devices; /* NULL: beside the image */
    const char *source;
    const char *output;
};

static int parse(int argc, char **argv, struct request *r, struct ls_error *err)
{
    static const struct option options[] = {
        {"format", required_argument, NULL, 'f'},  {"pages", required_argument, NULL, 'p'},
        {"devices", required_argument, NULL, 'd'}, {"xml", required_argument, NULL, 'x'},
        {"paused", no_argument, NULL, 's'},        {0}};
    const char *format = NULL, *pages = NULL;
    int c;

    opterr = 0;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'f')
            format = optarg;
        else if (c == 'p')
            pages = optarg;
        else if (c == 'd')
            r->devices = optarg;
        else if (c == 'x')
            r->xml = optarg;
        else if (c == 's')
            r->paused = true;
        else
            goto usage;
    }
    if (!format || optind != argc - 2)
        goto usage;
    r->source = argv[optind];
    r->output = argv[optind + 1];
    r->raw = strcmp(format, "raw") == 0;
    r->libvirt = strcmp(format, "libvirt") == 0;
    r->elf = strcmp(format, "elf") == 0;
    r->main_pages = !pages || strcmp(pages, "all") == 0;
    if (!r->raw && !r->libvirt && !r->elf && strcmp(format, "qemu") != 0)
        return ls_fail(err, LS_USAGE, "usage",
                       "format '%s' is not known; use qemu, libvirt, raw or elf", format);
    if (!r->libvirt && (r->xml || r->paused))
        return ls_fail(err, LS_USAGE, "usage", "only format libvirt has an XML and may be paused");
    if (r->libvirt && !r->main_pages)
        return ls_fail(err, LS_USAGE, "usage", "format libvirt has all pages");
    if (!r->main_pages && strcmp(pages, "none") != 0)
        return ls_fail(err, LS_USAGE, "usage", "pages '%s' is not known; use all or none", pages);
    if (r->raw && (pages || r->devices || strcmp(r->output, "-") == 0))
        return ls_fail(err, LS_USAGE, "usage",
                       "format raw writes all pages, no devices, and to a folder");
    if (r->elf && (pages || strcmp(r->output, "-") == 0))
        return ls_fail(err, LS_USAGE, "usage", "format elf writes all pages, and to a file");
    return 0;
usage:
    return ls_fail(err, LS_USAGE, "usage",
                   "usage: livesnap-helper export --format qemu [--pages all|none] "
                   "[--devices FILE] IMAGE|SNAPSHOT_DIR OUTPUT|-, or --format libvirt "
                   "[--xml FILE] [--paused] [--devices FILE] IMAGE|SNAPSHOT_DIR OUTPUT|-, or "
                   "--format raw IMAGE|SNAPSHOT_DIR FOLDER, or "
                   "--format elf [--devices FILE] IMAGE|SNAPSHOT_DIR FILE");
}

/* A FIFO, device or socket: written to as it is, since a rename would replace it. */
static bool is_special(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode);
}

static int sync_folder(const char *path, struct ls_error *err)
{
    LS_AUTO_FREE char *copy = strdup(path);
    LS_AUTO_CLOSE int fd = -1;
    char *slash = copy ? strrchr(copy, '/') : NULL;

    if (!copy)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to export");
    if (slash)
        slash[slash == copy] = 0; /* "/file": the folder is "/" */
    fd = open(slash ? copy : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd))
        return ls_fail_errno(err, LS_STORAGE, "fsync", "cannot bring '%s' to the disk", path);
    return 0;
}

static int write_all(struct ls_image *image, const struct ls_devices *devices,
                     const struct request *r, int fd, struct ls_meter *meter, struct ls_error *err)
{
    if (r->libvirt) {
        LS_AUTO_FREE char *xml = r->xml ? strdup(r->xml) : ls_source_domain(r->source);

        if (!xml)
            return ls_fail(err, LS_INTERNAL, "memory", "no memory to export");
        if (ls_libvirt_header_write(xml, !r->paused, fd, err))
            return -1;
    }
    return ls_stream_write(image, devices, r->main_pages, fd, meter ? ls_meter_progress : NULL,
                           meter, err);
}

static int stream_to_file(struct ls_image *image, const struct ls_devices *devices,
                          const struct request *r, struct ls_meter *meter, struct ls_error *err)
{
    LS_AUTO_FREE char *part = NULL;
    LS_AUTO_CLOSE int fd = -1;
    int ret;

    if (is_special(r->output)) {
        fd = open(r->output, O_WRONLY | O_CLOEXEC);
        if (fd < 0)
            return ls_fail_errno(err, LS_STORAGE, "open", "cannot open '%s'", r->output);
        return write_all(image, devices, r, fd, meter, err);
    }
    if (asprintf(&part, "%s.XXXXXX", r->output) < 0)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to export");
    fd = mkostemp(part, O_CLOEXEC); /* mode 0600: there are keys in RAM */
    if (fd < 0)
        return ls_fail_errno(err, LS_STORAGE, "create", "cannot create '%s'", part);
    ret = write_all(image, devices, r, fd, meter, err);
    if (!ret && (fsync(fd) || rename(part, r->output)))
        ret = ls_fail_errno(err, LS_STORAGE, "write", "cannot write '%s'", r->output);
    if (ret) {
        unlink(part);
        return ret;
    }
    return sync_folder(r->output, err);
}

static int export_stream(struct ls_image *image, const struct request *r, struct ls_meter *meter,
                         struct ls_error *err)
{
    LS_AUTO_FREE char *beside = r->devices ? strdup(r->devices) : ls_source_devices(r->source);
    struct ls_devices devices;
    int ret;

    if (!beside)
        return ls_fail(err, LS_INTERNAL, "memory", "no memory to export");
    if (ls_devices_load(beside, &devices, err))
        return -1;
    if (r->elf)
        ret = ls_elf_write(image, &devices, r->output, ls_meter_progress, meter, err);
    else if (strcmp(r->output, "-") == 0)
        ret = write_all(image, &devices, r, STDOUT_FILENO, NULL, err);
    else
        ret = stream_to_file(image, &devices, r, meter, err);
    ls_devices_free(&devices);
    return ret;
}

int ls_cmd_export(int argc, char **argv)
{
    struct request r = {0};
    struct ls_image *image;
    struct ls_error err = {0};
    struct ls_meter meter;
    FILE *events = stdout;
    uint64_t ram;
    int ret;

    signal(SIGPIPE, SIG_IGN);
    if (parse(argc, argv, &r, &err))
        return ls_event_error(stderr, &err);
    if (strcmp(r.output, "-") == 0)
        events = stderr; /* standard output is the stream */
    ls_meter_start(&meter, events);
    if (ls_source_open(r.source, &image, &err))
        return ls_event_error(events, &err);
    if (r.raw)
        ret = ls_raw_write(image, r.output, ls_meter_progress, &meter, &err);
    else
        ret = export_stream(image, &r, &meter, &err);
    ram = ls_image_info(image)->ram_bytes;
    ls_image_close(image);
    if (ret)
        return ls_event_error(events, &err);
    if (events == stdout)
        printf("{\"event\":\"done\",\"ram_bytes\":%llu,\"seconds\":%.3f}\n",
               (unsigned long long)ram, ls_seconds() - meter.started);
    return fflush(stdout) ? LS_STORAGE : LS_OK;
}
