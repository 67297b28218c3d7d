# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images that a guest's disks are made of, as its QEMU has them open, and how one of them is
merged into the one below while the guest runs on."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import (
    Domain,
    as_domain,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import domain_layers
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    QmpCommandError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import FORMATS, device_id
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.domain_xml import disk_targets
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.paths import absolute

_POLL = 0.05


@dataclass(frozen=True)
class Layer:
    """An image that QEMU has open. file: absolute where it is a file."""

    node: str
    file: str


@dataclass(frozen=True)
class Stack:
    """What a disk is made of, the image that is written to first. root: the disk's own node.

    target: libvirt's name for the disk, '' for guests that are not libvirt's.
    """

    root: str
    target: str
    layers: tuple[Layer, ...]

    def find(self, file: str) -> Optional[int]:
        """Where in the stack an image is. Pure."""
        return next((at for at, each in enumerate(self.layers) if each.file == file), None)


def stacks(qmp: Connection) -> list[Stack]:
    """Of all disks that have a medium. Queries only."""
    try:
        cwd = os.readlink(f"/proc/{qmp.peer_pid}/cwd")
    except OSError:
        cwd = "/"
    every = [
        (str(node["drv"]), _file(node["image"], cwd), str(node["node-name"]))
        for node in qmp.execute("query-named-block-nodes", {"flat": True})
        if node.get("drv") in FORMATS and "image" in node
    ]
    # A file has a node of its own below that of its format; where it has no other it is the disk.
    every.sort(key=lambda node: node[0] != "file")
    nodes = {file: name for _driver, file, name in every}
    targets = disk_targets(qmp.xml()) if isinstance(qmp, Domain) else {}
    found = []
    for block in qmp.execute("query-block"):
        inserted = block.get("inserted")
        if inserted and inserted.get("node-name"):
            target = targets.get(device_id(str(block.get("qdev", ""))), "")
            files = _files(inserted.get("image", {}), cwd)
            layers = [Layer(nodes.get(file, ""), file) for file in files]
            found.append(Stack(str(inserted["node-name"]), target, tuple(layers)))
    return found


def written(qmp: Connection, nodes: Sequence[str]) -> list[str]:
    """Which of these nodes were written to since QEMU opened them. Queries only."""
    stats = qmp.execute("query-blockstats", {"query-nodes": True})
    still = [each["node-name"] for each in stats if not each["stats"]["wr_highest_offset"]]
    return [node for node in nodes if node not in still]


def _files(image: Mapping[str, Any], cwd: str) -> list[str]:
    """An image and what it stands on. Pure."""
    found = []
    about: Optional[Mapping[str, Any]] = image
    while about:
        found.append(_file(about, cwd))
        about = about.get("backing-image")
    return found


def _file(image: Mapping[str, Any], cwd: str) -> str:
    """The file of an image; QEMU tells of options that its name does not say as JSON. Pure."""
    name = str(image.get("filename", ""))
    if name.startswith("json:"):
        about = json.loads(name[len("json:") :]).get("file")
        name = str(about.get("filename", name)) if isinstance(about, dict) else name
    return absolute(name, cwd)


def covering(qmp: Connection, over: str, covered: str) -> Optional[tuple[Stack, int]]:
    """Where image `over` covers another one; None where no disk has it. Queries only.

    LivesnapError where it covers something else.
    """
    for stack in stacks(qmp):
        at = stack.find(over)
        if at is None:
            continue
        below = [each.file for each in stack.layers[at + 1 : at + 2]]
        if below != [covered]:
            raise LivesnapError(
                f"'{over}' covers {below[0] if below else 'nothing'} in QEMU, not '{covered}'"
            )
        return stack, at
    return None


def forget(qmp: Connection, file: str) -> None:
    """Close an image that is a layer no more, or never was.

    QEMU closes what it opened itself, and refuses to close what a disk has.
    """
    for node in qmp.execute("query-named-block-nodes", {"flat": True}):
        if node.get("drv") in FORMATS and _file(node.get("image", {}), "/") == file:
            with contextlib.suppress(QmpCommandError):
                qmp.execute("blockdev-del", {"node-name": node["node-name"]})


def merge_down(qmp: Connection, stack: Stack, at: int, job: str, limit: float) -> None:
    """Write what layer `at` has into the one below it, and leave it out of the disk.

    The guest reads the same all the time. LivesnapError when it fails or takes longer than so many
    seconds; the disk is then as it was.
    """
    upper, lower = stack.layers[at], stack.layers[at + 1]
    if stack.target:
        merging = domain_layers.Merging(stack.target, upper.file, lower.file, at == 0)
        domain_layers.merge(as_domain(qmp), merging, limit)
        _check_gone(qmp, upper.file)
        return
    if not upper.node or not lower.node:
        raise LivesnapError(f"QEMU has no node of its own for '{upper.file}' or '{lower.file}'")
    qmp.execute(
        "block-commit",
        {
            "job-id": job,
            "device": stack.root,
            "top-node": upper.node,
            "base-node": lower.node,
            "auto-dismiss": False,
        },
    )
    _follow(qmp, job, upper.file, limit)


def finish_begun(qmp: Connection, over: str, covered: str, job: str, limit: float) -> None:
    """Wait for the end of a merging that merge_down() began and has not seen the end of, if any."""
    found = covering(qmp, over, covered)
    if found is not None and found[0].target:
        stack, at = found
        merging = domain_layers.Merging(stack.target, over, covered, at == 0)
        domain_layers.follow(as_domain(qmp), merging, limit)
    elif _job(qmp, job) is not None:
        _follow(qmp, job, over, limit)


def _check_gone(qmp: Connection, file: str) -> None:
    """What libvirt keeps of a job that has ended is nothing: the disk tells how it ended."""
    if any(stack.find(file) is not None for stack in stacks(qmp)):
        raise LivesnapError(
            f"libvirt could not merge '{file}'", "libvirt's log, and that of the guest, say why"
        )


def _job(qmp: Connection, job: str) -> Optional[dict[str, Any]]:
    return next((each for each in qmp.execute("query-jobs") if each["id"] == job), None)


def _follow(qmp: Connection, job: str, file: str, limit: float) -> None:
    """A merging to its end. A layer that the guest writes to is let go when all of it is below."""
    deadline = time.monotonic() + limit
    completed = False
    while True:
        found = _job(qmp, job)
        if found is None:
            raise LivesnapError(f"the merging of '{file}' has disappeared from QEMU")
        if found["status"] == "concluded":
            qmp.execute("job-dismiss", {"id": job})
            if found.get("error"):
                raise LivesnapError(f"QEMU could not merge '{file}': {found['error']}")
            return
        if found["status"] == "ready" and not completed:
            qmp.execute("job-complete", {"id": job})
            completed = True
        if time.monotonic() > deadline:
            with contextlib.suppress(QmpCommandError):
                qmp.execute("job-cancel", {"id": job})
            raise TimedOutError(
                f"QEMU did not merge '{file}' within {limit:g} s", "is its storage stuck?"
            )
        time.sleep(_POLL)
