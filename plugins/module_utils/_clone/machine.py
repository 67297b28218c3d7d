# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules for -machine, -object, -device and sound: what the machine is made of. Pure."""

from __future__ import annotations

import re

from ansible_collections.livesnap.qemu.plugins.module_utils._clone.argv import Option, Props
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.plan import (
    Findings,
    Plan,
    short_hash,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.paths import absolute

#: Of memory backends: the host's side, which a clone does not share.
_HOST_MEMORY = (
    "mem-path",
    "share",
    "prealloc",
    "prealloc-threads",
    "prealloc-context",
    "host-nodes",
    "policy",
    "reserve",
    "align",
    "pmem",
    "discard-data",
    "readonly",
    "rom",
    "offset",
    "hugetlb",
    "hugetlbsize",
    "seal",
)
#: Objects without state of the guest's; they stay while something refers to them.
_BY_REFERENCE = ("secret", "secret_keyring", "tls-", "authz-", "throttle-group", "pr-manager")
#: Objects of the network path or of the operator's desk, which the clone has not.
_DROPPED_OBJECTS = ("filter-", "colo-", "input-linux", "input-barrier")
_FOREIGN_OBJECTS = (
    "sev-",
    "tdx-",
    "sgx-",
    "memory-backend-epc",
    "x-remote-object",
    "x-vfu-server",
    "dbus-vmstate",
    "cryptodev-vhost-user",
    "iommufd",
    "rng-egd",
)
_FOREIGN_DEVICES = re.compile(
    r"(vfio-|vhost-user-|vhost-vdpa-|vhost-scsi|ivshmem|usb-host|scsi-block|scsi-generic"
    r"|virtio-input-host|u2f-passthru|ccid-card-(passthru|emulated)|x-pci-proxy|xen-|virtio-9p).*"
)
_FOREIGN_KEYS = ("host", "hostaddr", "sysfsdev", "fd", "evdev", "hidraw", "mem-path")


def machine(option: Option, plan: Plan, options: list[Option], findings: Findings) -> list[Option]:
    """-machine: the type by its version, so that a newer QEMU makes the same machine."""
    props = Props("machine", option.value)
    if props.get("type") and plan.machine:
        props.set("type", plan.machine)
    for key in ("confidential-guest-support", "memory-encryption"):
        if props.get(key):
            findings.block(f"the guest's memory is encrypted ('{key}={props.get(key)}')")
    props.drop("dumpdtb")
    if plan.ram is not None and not _backend(plan.ram.block, options):
        props.set("memory-backend", plan.ram.block)
    return [props.option()]


def _backend(name: str, options: list[Option]) -> bool:
    """Whether the command line has a memory backend of that id."""
    every = [Props("object", option.value) for option in options if option.name == "object"]
    return any(
        props.get("qom-type").startswith("memory-backend-") and props.get("id") == name
        for props in every
    )


def additions(plan: Plan, options: list[Option]) -> list[Option]:
    """-machine where there is none, and the -object for mapped RAM where there is only -m."""
    out = []
    if not any(option.name == "machine" for option in options) and plan.machine:
        out += machine(Option("machine", plan.machine), plan, options, Findings())
    if plan.ram is not None and not _backend(plan.ram.block, options):
        out.append(Option("object", _mapped(plan)))
    return out


def _mapped(plan: Plan, extra: str = "") -> str:
    if plan.ram is None:
        raise AssertionError
    path = plan.ram.image.replace(",", ",,")
    return (
        f"memory-backend-file,id={plan.ram.block},size={plan.ram.bytes},mem-path={path},share=off"
        f"{extra}"
    )


def object_(option: Option, plan: Plan, used: set[str], findings: Findings) -> list[Option]:
    """-object: memory of its own for the clone; the host's things by reference, or not at all."""
    props = Props("object", option.value)
    kind, name = props.get("qom-type"), props.get("id")
    if kind.startswith(_FOREIGN_OBJECTS):
        findings.block(f"object '{name}' ('{kind}') ties the guest to this host or another program")
        return [option]
    if kind.startswith("memory-backend-"):
        if plan.ram is not None and plan.ram.block == name:
            canonical = props.get("x-use-canonical-path-for-ramblock-id")
            extra = f",x-use-canonical-path-for-ramblock-id={canonical}" if canonical else ""
            return [Option("object", _mapped(plan, extra))]
        # Never the same file: two machines would share one memory.
        props.drop(*_HOST_MEMORY)
        props.set("qom-type", "memory-backend-ram")
        return [props.option()]
    if kind.startswith(_DROPPED_OBJECTS):
        return []
    if kind.startswith(_BY_REFERENCE):
        return [option] if name in used else []
    for key, text in props.items():
        if text.startswith("/") and not (kind == "rng-random" and key == "filename"):
            findings.block(f"object '{name}' ('{kind}') uses '{text}' of this host")
    return [option]


def device(option: Option, plan: Plan, cwd: str, findings: Findings) -> list[Option]:
    """-device: kept, unless a piece of the host is in it."""
    props = Props("device", option.value)
    kind = props.get("driver")
    label = f"device '{props.get('id') or kind}' ('{kind}')"
    if _FOREIGN_DEVICES.fullmatch(kind):
        findings.block(f"{label} is a piece of this host, or of another program")
        return [option]
    if kind.startswith("vhost-vsock"):
        # Two guests cannot have one address. 2^31 is a legal one; small ones are given out by hand.
        props.drop("vhostfd")
        props.set("guest-cid", str((1 << 30) + int(short_hash(plan.folder), 16) % (1 << 30)))
        return [props.option()]
    if kind == "vmgenid":
        # Whoever resumes from the same state has to learn that it is not alone (design of vmgenid).
        props.set("guid", "auto")
    for key in _FOREIGN_KEYS:
        if props.get(key):
            findings.block(f"{label} uses '{key}={props.get(key)}' of this host")
    for key in ("romfile", "file"):
        if "/" in props.get(key):
            props.set(key, absolute(props.get(key), cwd))
            findings.files.append(props.get(key))
    return [props.option()]


def silent(option: Option) -> list[Option]:
    """-audiodev and -audio: the card plays to nobody."""
    props = Props(option.name, option.value)
    keep = [(key, props.get(key)) for key in ("id", "model") if props.get(key)]
    words = ["none", *(f"{key}={text}" for key, text in keep)]
    return [Option(option.name, ",".join(words))]


def without(option: Option, *keys: str) -> list[Option]:
    """An option less some of its keys, or nothing when none is left."""
    props = Props(option.name, option.value)
    props.drop(*keys)
    return [props.option()] if props.items() else []
