# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one table of the options that modules, roles and documentation share.

Modules take their argument specification from here, and a test checks the documentation of the
modules and the argument specifications of the roles against it. Private to this collection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

DEFAULT_STORE = "/var/lib/livesnap"


@dataclass(frozen=True)
class Option:
    """One option, as all the modules that have it understand it."""

    name: str
    type: str
    default: Any = None
    choices: tuple[str, ...] = ()
    elements: Optional[str] = None
    suboptions: tuple[Option, ...] = ()
    required: bool = False
    # A role passes it on as <role>_<option>, unless the role makes its value itself.
    role: bool = True

    def spec(self) -> dict[str, Any]:
        """The option as AnsibleModule wants it."""
        spec: dict[str, Any] = {"type": self.type}
        if self.required:
            spec["required"] = True
        if self.default is not None:
            spec["default"] = self.default
        if self.choices:
            spec["choices"] = list(self.choices)
        if self.elements:
            spec["elements"] = self.elements
        if self.suboptions:
            spec["options"] = {option.name: option.spec() for option in self.suboptions}
        return spec


GUEST = Option("guest", "str", required=True, role=False)
NAME = Option("name", "str", required=True, role=False)
STORE = Option("store", "path", DEFAULT_STORE)
URI = Option("uri", "str", "qemu:///system")
STATE = Option("state", "str", "present", ("present", "absent"), role=False)

_SCHEMES = ("auto", "backup", "command", "internal", "overlay", "reflink")

DISKS = Option(
    "disks",
    "list",
    elements="dict",
    suboptions=(
        Option("match", "str", required=True),
        Option("scheme", "str", "auto", (*_SCHEMES, "none")),
    ),
)

DISK_COMMANDS = Option(
    "disk_commands",
    "dict",
    suboptions=(
        Option("create", "str", required=True),
        Option("remove", "str", required=True),
        Option("restore", "str", required=True),
        Option("limit", "int", 5),
    ),
)

_HOOK: tuple[Option, ...] = (
    Option("command", "list", elements="str", required=True),
    Option("where", "str", "host", ("host", "guest")),
    Option("timeout", "int", 30),
)

SNAPSHOT: tuple[Option, ...] = (
    GUEST,
    NAME,
    STATE,
    STORE,
    Option("qmp_socket", "path"),
    Option("agent_socket", "path"),
    URI,
    Option("when_off", "str", "fail", ("disks", "skip", "fail")),
    Option("memory", "bool", True),
    Option("engine", "str", "auto", ("auto", "uffd", "qemu", "pause")),
    Option("allow_pause", "bool", False),
    Option("disk_scheme", "str", "auto", _SCHEMES),
    DISKS,
    DISK_COMMANDS,
    Option("max_chain", "int", 16),
    Option("when_chain_full", "str", "refuse", ("refuse", "merge")),
    Option("foreign_bitmaps", "str", "refuse", ("refuse", "ignore")),
    Option("disk_bandwidth", "bytes", 0),
    Option("disk_compression", "str", "none", ("none", "zlib", "zstd")),
    Option("freeze", "str", "auto", ("auto", "required", "never")),
    Option("freeze_timeout", "int", 5),
    Option("deadline", "int", 9),
    Option("lock_timeout", "int", 60),
    Option("timeout", "int", 0),
    Option("host_turns", "int", 0),
    Option("store_turns", "int", 0),
    Option("turn_timeout", "int", 3600),
    Option("compression", "str", "lz4", ("none", "lz4", "zstd")),
    Option("compression_level", "int"),
    Option("staging", "str", "auto"),
    Option("workers", "int", 0),
    Option("bandwidth", "bytes", 0),
    Option("reserve", "str", "0"),
    Option("ksm", "str", "pause", ("pause", "refuse")),
    Option("before", "list", elements="dict", suboptions=_HOOK),
    Option("after", "list", elements="dict", suboptions=_HOOK),
    Option("schedule", "str"),
    Option("slot", "str", role=False),
    Option("labels", "list", elements="str"),
    Option("pinned", "bool"),
)

INFO: tuple[Option, ...] = (
    STORE,
    Option("guest", "str"),
    Option("query", "str"),
)

CLONE: tuple[Option, ...] = (
    GUEST,
    Option("snapshot", "str"),
    NAME,
    STATE,
    STORE,
    Option("network", "bool", False),
    Option("lazy", "bool", True),
)

RESTORE: tuple[Option, ...] = (
    GUEST,
    Option("snapshot", "str", required=True),
    STORE,
    Option("qmp_socket", "path"),
    Option("agent_socket", "path"),
    Option("uri", "str", "qemu:///system"),
    Option("keep_current", "bool", True),
    Option("force", "bool", False),
    Option("lock_timeout", "int", 60),
)

VERIFY: tuple[Option, ...] = (
    GUEST,
    Option("snapshot", "str", required=True, role=False),
    STORE,
    Option("level", "str", "structure", ("checksum", "structure", "memory", "drill")),
    Option("max_age", "str"),
    Option(
        "probes",
        "list",
        elements="dict",
        suboptions=(
            Option("name", "str", required=True),
            Option("physical", "str"),
            Option("virtual", "str"),
            Option("pattern", "str"),
            Option("offset", "int", 0),
            Option("length", "int", 8),
            Option("value", "str"),
            Option("disk", "str"),
            Option("disk_offset", "int", 0),
            Option("most_apart", "int", 0),
        ),
    ),
    Option(
        "commands",
        "list",
        elements="dict",
        suboptions=(
            Option("argv", "list", elements="str", required=True),
            Option("code", "int", 0),
            Option("stdout", "str"),
            Option("timeout", "int", 10),
        ),
    ),
    Option("drill_memory", "bytes", 0),
    Option("drill_cpus", "int", 0),
    Option("drill_timeout", "int", 300),
    Option("lock_timeout", "int", 60),
)

RECOVER: tuple[Option, ...] = (
    STORE,
    Option("guest", "str"),
    Option("state", "str", "recovered", ("recovered", "flattened")),
    Option("qmp_socket", "path"),
    URI,
)

#: What is kept, as role retention and guests of its own may say it.
KEEP: tuple[Option, ...] = (
    Option("keep_last", "int", 0),
    Option("keep_hourly", "int", 0),
    Option("keep_daily", "int", 0),
    Option("keep_weekly", "int", 0),
    Option("keep_monthly", "int", 0),
    Option("keep_yearly", "int", 0),
    Option("keep_within", "str"),
    Option("keep_within_hourly", "str"),
    Option("keep_within_daily", "str"),
    Option("keep_within_weekly", "str"),
    Option("keep_within_monthly", "str"),
    Option("keep_within_yearly", "str"),
    Option("keep_labels", "list", elements="str"),
    Option("keep_when", "str"),
    Option("group_by", "str", "guest", ("guest", "schedule", "label")),
    Option("timezone", "str", "UTC"),
    Option("allow_empty", "bool", False),
    Option("max_remove", "int", 0),
    Option("gone", "str", "keep", ("keep", "prune")),
)

PRUNE: tuple[Option, ...] = (STORE, Option("guest", "str", role=False), *KEEP)

HELPER: tuple[Option, ...] = (STATE,)

METRICS: tuple[Option, ...] = (
    STORE,
    Option("path", "path", required=True),
    Option(
        "outcomes",
        "list",
        elements="dict",
        suboptions=(
            Option("guest", "str", required=True),
            Option(
                "outcome", "str", choices=("taken", "unchanged", "skipped", "failed"), required=True
            ),
        ),
    ),
)

HOST_INFO: tuple[Option, ...] = (
    STORE,
    URI,
    Option(
        "guests",
        "list",
        elements="dict",
        suboptions=(
            Option("name", "str", required=True),
            Option("qmp_socket", "path", required=True),
            Option("agent_socket", "path"),
        ),
    ),
    Option("select", "str"),
    Option("preflight", "bool", True),
)

WAIT: tuple[Option, ...] = (
    Option(
        "jobs",
        "list",
        elements="dict",
        required=True,
        suboptions=(
            Option("guest", "str", required=True),
            Option("ansible_job_id", "str", required=True),
            Option("results_file", "path", required=True),
        ),
    ),
    Option("most", "int", 0),
    Option("seconds", "int", 30),
)

MODULES: dict[str, tuple[Option, ...]] = {
    "livesnap": SNAPSHOT,
    "livesnap_clone": CLONE,
    "livesnap_helper": HELPER,
    "livesnap_host_info": HOST_INFO,
    "livesnap_info": INFO,
    "livesnap_metrics": METRICS,
    "livesnap_prune": PRUNE,
    "livesnap_recover": RECOVER,
    "livesnap_restore": RESTORE,
    "livesnap_verify": VERIFY,
    "livesnap_wait": WAIT,
}

# They read manifests only, or what others have said.
WITHOUT_HELPER = frozenset(("livesnap_info", "livesnap_metrics", "livesnap_wait"))

# Set by the action plugin, never by users; Ansible leaves options that begin with an underscore
# out of documentation.
INTERNAL: dict[str, dict[str, Any]] = {"_livesnap_helper": {"type": "path"}}


def argument_spec(module: str) -> dict[str, Any]:
    """The argument specification of a module by its short name."""
    spec = {option.name: option.spec() for option in MODULES[module]}
    if module not in WITHOUT_HELPER:
        spec.update(INTERNAL)
    return spec
