/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "capture/request.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

static int wrong(struct ls_error *err, const char *field, const char *what)
{
    return ls_fail(err, LS_USAGE, "request", "request: '%s' %s", field, what);
}

static int get_text(json_t *o, const char *field, char *to, size_t room, bool needed,
                    struct ls_error *err)
{
    json_t *v = json_object_get(o, field);

    if (!v || json_is_null(v))
        return needed ? wrong(err, field, "is missing") : 0;
    if (!json_is_string(v) || json_string_length(v) != strlen(json_string_value(v)))
        return wrong(err, field, "is not a text");
    if (json_string_length(v) >= room)
        return wrong(err, field, "is too long");
    memcpy(to, json_string_value(v), json_string_length(v) + 1);
    return 0;
}

static int dup_text(json_t *o, const char *field, char **to, struct ls_error *err)
{
    json_t *v = json_object_get(o, field);

    if (!json_is_string(v) || json_string_length(v) == 0 ||
        json_string_length(v) != strlen(json_string_value(v)))
        return wrong(err, field, "is missing or not a text");
    *to = strdup(json_string_value(v));
    return *to ? 0 : ls_fail(err, LS_INTERNAL, "memory", "out of memory");
}

static int dup_optional(json_t *o, const char *field, char **to, struct ls_error *err)
{
    json_t *v = json_object_get(o, field);

    return !v || json_is_null(v) ? 0 : dup_text(o, field, to, err);
}

static int get_number(json_t *o, const char *field, uint64_t max, bool needed, uint64_t *to,
                      struct ls_error *err)
{
    json_t *v = json_object_get(o, field);

    *to = 0;
    if (!v || json_is_null(v))
        return needed ? wrong(err, field, "is missing") : 0;
    if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) > max)
        return wrong(err, field, "is not a number in its range");
    *to = (uint64_t)json_integer_value(v);
    return 0;
}

static int get_choice(json_t *o, const char *field, const char *first, const char *second,
                      bool *is_first, struct ls_error *err)
{
    json_t *v = json_object_get(o, field);
    const char *text = v ? json_string_value(v) : first;

    if (!text || (strcmp(text, first) != 0 && strcmp(text, second) != 0))
        return wrong(err, field, "has an unknown value");
    *is_first = strcmp(text, first) == 0;
    return 0;
}

static int get_id(struct ls_request *r, struct ls_error *err)
{
    size_t n = 0;

    for (const char *c = r->id_text; *c; c++) {
        if (*c == '-')
            continue;
        /* not left to strtoul, which takes spaces, signs and "0x", too */
        if (n >= sizeof r->id || !isxdigit((unsigned char)c[0]) || !isxdigit((unsigned char)c[1]))
            return wrong(err, "id", "is not a UUID");
        r->id[n++] = (uint8_t)strtoul((const char[]){c[0], c[1], 0}, NULL, 16);
        c++;
    }
    return n == sizeof r->id ? 0 : wrong(err, "id", "is not a UUID");
}

static int get_gpa(json_t *o, struct ls_request *r, struct ls_error *err)
{
    json_t *list = json_object_get(o, "gpa"), *item;
    size_t i;

    if (!list || json_is_null(list))
        return 0;
    if (!json_is_array(list) || json_array_size(list) > LS_IMAGE_RANGES)
        return wrong(err, "gpa", "is not a list, or too long");
    r->gpa = calloc(json_array_size(list) + 1, sizeof *r->gpa);
    if (!r->gpa)
        return ls_fail(err, LS_INTERNAL, "memory", "out of memory");
    json_array_foreach(list, i, item)
    {
        struct ls_gpa_range *g = &r->gpa[r->gpa_count++];

        if (get_number(item, "gpa", INT64_MAX, true, &g->gpa, err) ||
            get_number(item, "offset", INT64_MAX, true, &g->offset, err) ||
            get_number(item, "length", INT64_MAX, true, &g->length, err) ||
            get_text(item, "block", g->block, sizeof g->block, true, err))
            return -1;
    }
    return 0;
}

static int get_start(json_t *o, struct ls_request *r, struct ls_error *err)
{
    uint64_t pid, level, workers;
    char codec[16] = "lz4";
    bool device, uffd;

    if (get_text(o, "id", r->id_text, sizeof r->id_text, true, err) || get_id(r, err) ||
        get_text(o, "guest", r->guest, sizeof r->guest, true, err) ||
        get_number(o, "pid", INT32_MAX, true, &pid, err) ||
        get_number(o, "start_time", INT64_MAX, true, &r->start_time, err) || get_gpa(o, r, err) ||
        get_text(o, "machine", r->machine, sizeof r->machine, false, err) ||
        get_text(o, "qemu_version", r->qemu_version, sizeof r->qemu_version, false, err) ||
        dup_text(o, "image", &r->image, err) ||
        get_text(o, "compression", codec, sizeof codec, false, err) ||
        get_number(o, "level", 22, false, &level, err) ||
        get_number(o, "staging", INT64_MAX, false, &r->staging, err) ||
        get_number(o, "bandwidth", INT64_MAX, false, &r->bandwidth, err) ||
        get_number(o, "workers", 1024, false, &workers, err) ||
        get_choice(o, "attach", "device", "inject", &device, err) ||
        get_choice(o, "ksm", "pause", "refuse", &r->ksm_pause, err) ||
        get_choice(o, "engine", "uffd", "pause", &uffd, err) ||
        dup_optional(o, "spool", &r->spool, err) ||
        get_number(o, "spool_bytes", INT64_MAX, false, &r->spool_bytes, err) ||
        dup_optional(o, "devices", &r->devices, err))
        return -1;
    if (pid < 1)
        return wrong(err, "pid", "is not a process id");
    if (ls_codec_parse(codec, &r->codec, err))
        return -1;
    r->pid = (pid_t)pid;
    r->level = (int)level;
    r->workers = (unsigned)workers;
    r->attach = device ? LS_ATTACH_DEVICE : LS_ATTACH_INJECT;
    r->still = !uffd;
    return 0;
}

static int fill(json_t *o, struct ls_request *r, struct ls_error *err)
{
    const char *kind = json_string_value(json_object_get(o, "request"));

    if (!kind)
        return wrong(err, "request", "is missing");
    if (strcmp(kind, "start") == 0) {
        r->kind = LS_REQUEST_START;
        if (get_start(o, r, err))
            return -1;
    } else if (strcmp(kind, "protect") == 0) {
        r->kind = LS_REQUEST_PROTECT;
    } else if (strcmp(kind, "prearm") == 0) {
        r->kind = LS_REQUEST_PREARM;
        return 0;
    } else if (strcmp(kind, "arm") == 0) {
        r->kind = LS_REQUEST_ARM;
        return 0;
    } else if (strcmp(kind, "abort") == 0) {
        r->kind = LS_REQUEST_ABORT;
        return 0;
    } else {
        return wrong(err, "request", "is unknown");
    }
    return dup_text(o, "ramblock", &r->ramblock, err);
}

int ls_request_parse(const char *line, size_t length, struct ls_request *r, struct ls_error *err)
{
    json_error_t where;
    json_t *o = json_loadb(line, length, JSON_REJECT_DUPLICATES, &where);
    int rc;

    memset(r, 0, sizeof *r);
    if (!json_is_object(o)) {
        json_decref(o);
        return ls_fail(err, LS_USAGE, "request", "a request is not a JSON object: %s", where.text);
    }
    rc = fill(o, r, err);
    json_decref(o);
    if (rc)
        ls_request_free(r);
    return rc;
}

void ls_request_free(struct ls_request *r)
{
    free(r->ramblock);
    free(r->gpa);
    free(r->image);
    free(r->spool);
    free(r->devices);
    memset(r, 0, sizeof *r);
}

unsigned ls_request_strings(const struct ls_request *r,
                            struct ls_image_string strings[LS_REQUEST_STRINGS])
{
    static struct utsname uts;
    unsigned n = 0;

    uname(&uts);
    if (r->machine[0])
        strings[n++] = (struct ls_image_string){"machine", r->machine};
    if (r->qemu_version[0])
        strings[n++] = (struct ls_image_string){"qemu_version", r->qemu_version};
    strings[n++] = (struct ls_image_string){"arch", uts.machine};
    strings[n++] = (struct ls_image_string){"guest", r->guest};
    return n;
}

int ls_lines_fill(struct ls_lines *l, struct ls_error *err)
{
    ssize_t n;

    if (l->used == l->room) {
        size_t room = l->room ? l->room * 2 : 65536;
        char *grown;

        if (room > LS_REQUEST_MAX)
            return ls_fail(err, LS_USAGE, "request", "a request is longer than %u bytes",
                           LS_REQUEST_MAX);
        grown = realloc(l->buf, room);
        if (!grown)
            return ls_fail(err, LS_INTERNAL, "memory", "out of memory");
        l->buf = grown;
        l->room = room;
    }
    n = read(l->fd, l->buf + l->used, l->room - l->used);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return 0;
    if (n <= 0)
        l->end = true;
    else
        l->used += (size_t)n;
    return 0;
}

char *ls_lines_next(struct ls_lines *l, size_t *length)
{
    char *newline = l->used ? memchr(l->buf, '\n', l->used) : NULL;
    char *line;

    if (!newline)
        return NULL;
    *length = (size_t)(newline - l->buf);
    line = malloc(*length + 1);
    if (!line)
        return NULL;
    memcpy(line, l->buf, *length);
    line[*length] = 0;
    l->used -= *length + 1;
    memmove(l->buf, newline + 1, l->used);
    return line;
}

void ls_lines_free(struct ls_lines *l)
{
    free(l->buf);
    memset(l, 0, sizeof *l);
    l->fd = -1;
}
