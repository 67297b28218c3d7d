# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks of a command line: -drive and its short forms, and the graph of -blockdev. Pure.

A disk of the snapshot becomes its overlay under the same name. What is read-only stays. A writable
disk that the snapshot does not have becomes an empty one: the original's is in use and not of the
instant.
"""

from __future__ import annotations

import json
import re
from typing import Any, Optional

from ansible_collections.livesnap.qemu.plugins.module_utils._clone.argv import (
    Option,
    Props,
    nest,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.plan import (
    DiskImage,
    Findings,
    Plan,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.paths import absolute

#: Short forms of -drive (vl.c): keys that each stands for. Its own argument is the file.
SHORT = {
    "hda": {"index": "0", "media": "disk"},
    "hdb": {"index": "1", "media": "disk"},
    "hdc": {"index": "2", "media": "disk"},
    "hdd": {"index": "3", "media": "disk"},
    "cdrom": {"index": "2", "media": "cdrom"},
    "fda": {"if": "floppy", "index": "0"},
    "fdb": {"if": "floppy", "index": "1"},
    "mtdblock": {"if": "mtd"},
    "sd": {"if": "sd"},
    "pflash": {"if": "pflash"},
}
#: Units a bus of these interfaces has (blockdev.c, if_max_devs); the others have one bus.
_UNITS = {"ide": 2, "scsi": 7}
#: What an overlay keeps of a -drive: where it is in the machine and how it behaves, not its image.
_KEPT = re.compile(
    r"if|bus|unit|index|media|id|node-name|werror|rerror|discard|detect-zeroes"
    r"|readonly|read-only|throttling\..*|iops.*|bps.*|group|cyls|heads|secs|trans"
)
_KEPT_NODE = ("discard", "detect-zeroes", "read-only", "force-share")


def drive_props(option: Option) -> Props:
    """The properties of a -drive, or of a short form as the -drive that it stands for."""
    if option.name == "drive":
        return Props("drive", option.value)
    props = Props("drive", "")
    for key, value in SHORT[option.name].items():
        props.set(key, value)
    props.set("file", option.value or "")
    return props


class DriveNames:
    """The names that QEMU gives to drives without an id (blockdev.c, drive_new)."""

    def __init__(self, interface: str = "ide") -> None:
        """`interface` is the machine's default, ide on PCs."""
        self.interface = interface
        self.taken: set[tuple[str, int, int]] = set()

    def name(self, props: Props) -> str:
        """Of the next -drive of the command line; call it for each, in their order."""
        kind = props.get("if", self.interface)
        units = _UNITS.get(kind, 0)
        bus, unit = props.number("bus"), -1
        if props.get("index").isdecimal():
            index = int(props.get("index"))
            bus, unit = divmod(index, units) if units else (0, index)
        elif props.get("unit").isdecimal():
            unit = int(props.get("unit"))
        else:
            unit = 0
            while (kind, bus, unit) in self.taken:
                unit += 1
                if units and unit >= units:
                    bus, unit = bus + 1, 0
        self.taken.add((kind, bus, unit))
        if props.get("id"):
            return props.get("id")
        media = ""
        if kind in ("ide", "scsi"):
            media = "-cd" if props.get("media") == "cdrom" else "-hd"
        return f"{kind}{bus if units else ''}{media}{unit}"


class Blocks:
    """Rewrites drives one by one, and the block graph as a whole."""

    def __init__(self, plan: Plan, cwd: str, findings: Findings) -> None:
        """`cwd` is the original's: its relative file names are of that folder."""
        self.plan = plan
        self.cwd = cwd
        self.findings = findings
        self.names = DriveNames()
        self.used: set[str] = set()

    def find(self, device: str, node: str, files: list[str]) -> Optional[DiskImage]:
        """The disk of the snapshot of that name, else of that file, else what stands on that."""
        disks = [disk for disk in self.plan.disks if disk.overlay not in self.used]
        for disk in disks:
            if (device and device == disk.device) or (node and node == disk.node):
                return self._take(disk)
        for disk in disks:
            if disk.source and disk.source in files:
                return self._take(disk)
        for disk in disks:
            if not set(disk.below).isdisjoint(files):
                return self._take(disk)
        return None

    def _take(self, disk: DiskImage) -> DiskImage:
        self.used.add(disk.overlay)
        self.findings.matched.append(disk.overlay)
        return disk

    def blank(self, what: str, source: str) -> str:
        """Where the empty disk for a writable one lies that the snapshot does not have."""
        name = f"blank{len(self.findings.blank_disks)}.qcow2"
        self.findings.blank_disks.append(source)
        self.findings.warnings.append(
            f"disk {what} ('{source}') is not in the snapshot: the clone gets an empty one"
        )
        return f"{self.plan.disk_folder or self.plan.folder}/{name}"

    def drive(self, option: Option) -> list[Option]:
        """What -drive, or a short form of it, becomes."""
        props = drive_props(option)
        name = self.names.name(props)
        file = absolute(props.get("file") or props.get("file.filename"), self.cwd)
        disk = self.find(name, props.get("node-name"), [file])
        if disk is None and (not file or self._read_only(props)):
            if file:
                self._absolute(props)
                self.findings.files.append(file)
            return [props.option()]
        overlay = disk.overlay if disk else self.blank(f"'{name}'", file)
        kept = Props("drive", "")
        kept.pairs = [(key, value) for key, value in props.items() if _KEPT.fullmatch(key)]
        kept.set("file", overlay)
        kept.set("format", "qcow2")
        return [kept.option()]

    def _read_only(self, props: Props) -> bool:
        return props.get("media") == "cdrom" or props.is_on("readonly") or props.is_on("read-only")

    def _absolute(self, props: Props) -> None:
        for key in ("file", "file.filename"):
            if props.get(key):
                props.set(key, absolute(props.get(key), self.cwd))

    def graph(self, blockdevs: list[Option], used_nodes: set[str]) -> list[Option]:
        """What all -blockdev together become. `used_nodes`: names that other options refer to."""
        nodes: dict[str, dict[str, Any]] = {}
        for option in blockdevs:
            props = Props("blockdev", option.value)
            tree = props.json if props.json is not None else nest(props.items())
            nodes[str(tree.get("node-name", f"#{len(nodes)}"))] = tree
        replaced: dict[str, dict[str, Any]] = {}
        kept: set[str] = set()
        for name in nodes:
            if name in used_nodes:
                self._top(name, nodes, replaced, kept)
        out = []
        for name, tree in nodes.items():
            if name in replaced:
                out.append(Option("blockdev", json.dumps(replaced[name])))
            elif name in kept:
                out.append(Option("blockdev", json.dumps(self._made_absolute(tree))))
        return out

    def _top(
        self,
        name: str,
        nodes: dict[str, dict[str, Any]],
        replaced: dict[str, dict[str, Any]],
        kept: set[str],
    ) -> None:
        below = reachable(name, nodes)
        files = [absolute(file, self.cwd) for each in below for file in file_names(nodes[each])]
        disk = self.find("", name, files)
        tree = nodes[name]
        if disk is None and str(tree.get("read-only", "off")) in ("on", "True", "true"):
            kept |= below
            self.findings.files += files
            return
        overlay = disk.overlay if disk else self.blank(f"'{name}'", (files or [""])[0])
        node = {"driver": "qcow2", "node-name": name}
        node.update({key: tree[key] for key in _KEPT_NODE if key in tree})
        replaced[name] = {**node, "file": {"driver": "file", "filename": overlay}}

    def _made_absolute(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: absolute(inner, self.cwd)
                if key == "filename" and isinstance(inner, str)
                else self._made_absolute(inner)
                for key, inner in value.items()
            }
        return value


def reachable(name: str, nodes: dict[str, dict[str, Any]]) -> set[str]:
    """A node and all below it: every text in a node that is a node's name is a reference to it."""
    found: set[str] = set()
    todo = [name]
    while todo:
        at = todo.pop()
        if at in found:
            continue
        found.add(at)
        todo += [text for text in leaves(nodes[at], "node-name") if text in nodes]
    return found


def leaves(value: Any, without: str = "") -> list[str]:
    """All texts in JSON, but those of the key `without`."""
    if isinstance(value, dict):
        return [
            text
            for key, inner in value.items()
            if key != without
            for text in leaves(inner, without)
        ]
    if isinstance(value, list):
        return [text for inner in value for text in leaves(inner, without)]
    return [value] if isinstance(value, str) else []


def file_names(tree: dict[str, Any]) -> list[str]:
    """The values of 'filename' in a node, nested ones included."""
    found = []
    for key, value in tree.items():
        if key == "filename" and isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            found += file_names(value)
    return found
