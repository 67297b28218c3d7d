/* SPDX-License-Identifier: GPL-3.0-or-later */
#include "guard/request.h"

#include <ctype.h>
#include <string.h>

#include "guard/log.h"

#define DEADLINE_MAX_MS 3600000

static int take_string(const json_t *request, const char *key, char **value, struct ls_error *err)
{
    const char *text = json_string_value(json_object_get(request, key));

    if (!text || !*text)
        return ls_fail(err, LS_USAGE, "usage", "the start request needs a string '%s'", key);
    *value = strdup(text);
    return *value ? 0 : ls_fail_errno(err, LS_INTERNAL, "memory", "no memory");
}

static int take_number(const json_t *request, const char *key, json_int_t max, json_int_t *value,
                       struct ls_error *err)
{
    const json_t *number = json_object_get(request, key);

    *value = json_integer_value(number);
    if (!json_is_integer(number) || *value < 0 || *value > max)
        return ls_fail(err, LS_USAGE, "usage", "the request needs a number '%s' of 0 to %lld", key,
                       (long long)max);
    return 0;
}

static int take_flag(const json_t *request, const char *key, bool *value, struct ls_error *err)
{
    const json_t *flag = json_object_get(request, key);

    *value = json_is_true(flag);
    if (!json_is_boolean(flag))
        return ls_fail(err, LS_USAGE, "usage", "the start request needs true or false as '%s'",
                       key);
    return 0;
}

static int take_peer(const json_t *request, const char *pid_key, const char *time_key,
                     struct ls_peer *peer, struct ls_error *err)
{
    json_int_t pid, start_time;

    if (take_number(request, pid_key, INT32_MAX, &pid, err) != 0 ||
        take_number(request, time_key, INT64_MAX, &start_time, err) != 0)
        return -1;
    if (ls_peer_open(peer, (pid_t)pid, (uint64_t)start_time, err) != 0)
        return ls_context(err, "'%s'", pid_key);
    return 0;
}

/* A field that is absent or null is not given. */
static bool is_given(const json_t *request, const char *key)
{
    const json_t *value = json_object_get(request, key);

    return value && !json_is_null(value);
}

static int take_keeper(struct ls_guard *guard, const json_t *request, struct ls_error *err)
{
    json_int_t pid, start_time, uffd, progress;

    if (!is_given(request, "keeper"))
        return 0;
    if (take_number(request, "keeper", INT32_MAX, &pid, err) != 0 ||
        take_number(request, "keeper_start_time", INT64_MAX, &start_time, err) != 0 ||
        take_number(request, "keeper_uffd", INT32_MAX, &uffd, err) != 0 ||
        take_number(request, "keeper_progress", INT32_MAX, &progress, err) != 0 ||
        ls_watch_open(&guard->keeper, (pid_t)pid, (uint64_t)start_time, (int)uffd, (int)progress,
                      err) != 0)
        return -1;
    guard->has_keeper = true;
    return 0;
}

static int take_sockets(struct ls_reach *reach, const json_t *request, struct ls_error *err)
{
    if (take_string(request, "qmp_socket", &reach->qmp_socket, err) != 0)
        return -1;
    reach->freeze = is_given(request, "agent_socket");
    return reach->freeze ? take_string(request, "agent_socket", &reach->agent_socket, err) : 0;
}

/* Nothing else gets to virsh as a domain: a name could look like an option. */
static bool is_uuid(const char *text)
{
    static const char form[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";

    for (size_t i = 0; i < sizeof form; i++)
        if (form[i] == 'x' ? !isxdigit((unsigned char)text[i]) : text[i] != form[i])
            return false;
    return true;
}

static int take_libvirt(struct ls_reach *reach, const json_t *libvirt, struct ls_error *err)
{
    struct ls_virsh *virsh = &reach->virsh;

    if (!json_is_object(libvirt))
        return ls_fail(err, LS_USAGE, "usage", "'libvirt' of the start request is no object");
    if (take_string(libvirt, "uri", &virsh->uri, err) != 0 ||
        take_string(libvirt, "domain", &virsh->domain, err) != 0 ||
        take_string(libvirt, "virsh", &virsh->program, err) != 0 ||
        take_flag(libvirt, "freeze", &reach->freeze, err) != 0)
        return -1;
    if (!is_uuid(virsh->domain))
        return ls_fail(err, LS_USAGE, "usage", "the 'domain' of 'libvirt' is no UUID");
    if (virsh->program[0] != '/')
        return ls_fail(err, LS_USAGE, "usage", "the 'virsh' of 'libvirt' is no absolute path");
    return 0;
}

static int take_reach(struct ls_reach *reach, const json_t *request, struct ls_error *err)
{
    bool sockets = is_given(request, "qmp_socket") || is_given(request, "agent_socket");
    bool libvirt = is_given(request, "libvirt");

    if (sockets == libvirt)
        return ls_fail(err, LS_USAGE, "usage",
                       "the start request needs either 'qmp_socket' or 'libvirt'");
    return libvirt ? take_libvirt(reach, json_object_get(request, "libvirt"), err)
                   : take_sockets(reach, request, err);
}

int ls_guard_take_start(struct ls_guard *guard, const json_t *request, struct ls_error *err)
{
    if (take_string(request, "guest", &guard->guest, err) != 0 ||
        take_string(request, "id", &guard->id, err) != 0)
        return -1;
    ls_log_subject(guard->guest, guard->id);
    if (take_reach(&guard->reach, request, err) != 0 ||
        take_string(request, "report", &guard->report, err) != 0 ||
        take_flag(request, "was_running", &guard->was_running, err) != 0 ||
        take_peer(request, "pid", "start_time", &guard->qemu, err) != 0 ||
        take_peer(request, "owner", "owner_start_time", &guard->owner, err) != 0)
        return -1;
    return take_keeper(guard, request, err);
}

int ls_guard_take_deadline(const json_t *request, json_int_t *ms, struct ls_error *err)
{
    return take_number(request, "deadline_ms", DEADLINE_MAX_MS, ms, err);
}
