# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme overlay: a new image takes the guest's writes, and the one that it covers is the snapshot.

Nothing is copied. The new image lies beside the covered one. When the snapshot goes, what covers it
is merged into it (uncover.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._connection.domain import (
    Domain,
    as_domain,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import (
    bitmaps,
    domain_layers,
    image_file,
    layers,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.definition import Definition
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.leftovers import (
    PREFIX,
    prefix_of,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import (
    Image,
    Making,
    Outside,
    Share,
    Subject,
    entry,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    FrozenWriteError,
    LivesnapError,
    RefusedError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.address import reached
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import FORMATS, Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded
from ansible_collections.livesnap.qemu.plugins.module_utils._store import files, names, space
from ansible_collections.livesnap.qemu.plugins.module_utils._units import format_size

FORMAT = "qcow2"
#: The choice of option when_chain_full by which the oldest snapshot goes (_bracket/full.py).
MERGE = "merge"
#: Seconds that making an empty image may take.
_QEMU_IMG_LIMIT = 60.0
#: Seconds that looking at one may take.
_LOOK_LIMIT = 30.0
#: The slowest that storage may be and not count as stuck, bytes a second; what is added, seconds.
_SLOWEST, _MERGE_LIMIT = 10 << 20, 60.0
_LABEL = "security.selinux"


class Overlay(Outside):
    """The layers that one snapshot has put upon disks."""

    NAME = "overlay"
    WARNING = (
        "scheme 'overlay' has the guest write to new images, which the result names: it must be"
        " started with them from now on; started with those that they cover, it would ruin the"
        " snapshot and miss what it wrote since"
    )

    @classmethod
    def warning(cls, disks: Sequence[Disk]) -> str:
        """None of a libvirt domain: libvirt starts it with the new images. Pure."""
        return "" if all(disk.target for disk in disks) else cls.WARNING

    @classmethod
    def check(cls, subject: Subject, qmp: Connection, disks: Sequence[Disk]) -> None:
        """Refuse what no image can be laid upon beside it, and bitmaps that would stop to count."""
        for problem in cls.problems(subject, qmp, disks).values():
            raise problem

    @classmethod
    def problems(
        cls, subject: Subject, qmp: Connection, disks: Sequence[Disk]
    ) -> dict[str, RefusedError]:
        """Node name -> why check() would refuse a disk, in their order. Queries only."""
        nodes = bitmaps.of_nodes(qmp)
        stacks = {stack.root: stack for stack in layers.stacks(qmp)}
        found = {}
        for disk in disks:
            try:
                _check(subject, qmp, disk, stacks[disk.node], nodes.get(disk.node, {}))
            except RefusedError as err:
                found[disk.node] = err
        return found

    def __init__(self, making: Making, shares: Sequence[Share]) -> None:
        """Touches nothing yet."""
        super().__init__(making, shares)
        #: libvirt's name -> new image.
        self._of_domain = {
            each.disk.target: self._path(each) for each in shares if each.disk.target
        }
        self.goes_first = bool(self._of_domain)
        #: Nodes of these, where they cover disks since before the pause.
        self._covering: Optional[list[str]] = None

    def entries(self) -> list[dict[str, Any]]:
        """With both images."""
        return [
            {
                **entry(self.NAME, share.disk, None, FORMATS[share.disk.format]),
                "covered": share.disk.file,
                "overlay": self._path(share),
            }
            for share in self.shares
        ]

    def _path(self, share: Share) -> str:
        return names.layer_of(share.disk.file, self.making.whose["id"])

    def _node(self, share: Share) -> str:
        # What begins with the prefix of ours is removed as a leftover; this is the guest's.
        return f"overlay-{self.making.whose['id'][:8]}-{share.index}"

    def prepare(self, qmp: Connection) -> None:
        """Make the new images, and open them in QEMU. Nobody writes to them yet."""
        nodes = bitmaps.of_nodes(qmp)
        for share in self.shares:
            _create(self._path(share), share.disk)
            if share.disk.target:
                continue
            qmp.execute(
                "blockdev-add",
                {
                    "driver": FORMAT,
                    "node-name": self._node(share),
                    "backing": None,
                    "discard": "unmap",
                    **_like(nodes.get(share.disk.node, {})),
                    "file": {
                        "driver": "file",
                        "filename": self._path(share),
                        "discard": "unmap",
                        **_cache(nodes.get(share.disk.node, {})),
                    },
                },
            )

    def actions(self) -> list[dict[str, Any]]:
        """All disks at once, or none of them; libvirt takes no transaction."""
        return [
            {
                "type": "blockdev-snapshot",
                "data": {"node": share.disk.node, "overlay": self._node(share)},
            }
            for share in self.shares
            if not share.disk.target
        ]

    def commit_frozen(self, qmp: Connection, timeout: float) -> None:
        """The disks of a libvirt domain: its call takes longer than the rest of the pause."""
        domain_layers.cover(as_domain(qmp), self._of_domain, timeout)
        images = self._of_domain.values()
        every = [stack.layers[0] for stack in layers.stacks(qmp)]
        self._covering = [layer.node for layer in every if layer.file in images]

    def commit(self, qmp: Connection, timeout: float) -> None:
        """The disks of a libvirt domain. The transaction has done it all for others."""
        if self._covering is not None:
            still = set(self._covering) - set(layers.written(qmp, self._covering))
            if len(still) < len(self._of_domain):
                raise FrozenWriteError(
                    f"{len(still)} of {len(self._of_domain)} disks are as they were when they were"
                    " covered: the guest wrote although its file systems are frozen"
                )
        elif self._of_domain:
            domain_layers.cover(as_domain(qmp), self._of_domain, timeout)

    def undo(self, qmp: Connection) -> str:
        """Take out of QEMU what no guest writes to. What one writes to goes with the folder."""
        used = {layer.file for stack in layers.stacks(qmp) for layer in stack.layers}
        for share in self.shares:
            if self._path(share) not in used:
                layers.forget(qmp, self._path(share))
                remove(self._path(share))
        return ""

    @classmethod
    def discard(cls, whose: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
        """The guest is back on the image that was covered, with all that it wrote since."""
        covered, over = entry["covered"], entry["overlay"]
        if over is None or not os.path.lexists(over):
            return
        with reached(whose) as qmp:
            found = None if qmp is None else layers.covering(qmp, over, covered)
            if qmp is not None and found is not None:
                stack, at = found
                layers.merge_down(qmp, stack, at, job_of(whose["id"], over), limit_of(over))
                layers.forget(qmp, over)
            elif qmp is None:
                with Definition.of(whose) as definition:
                    commit_resting(over, covered)
                    if definition is not None:
                        definition.leave_out(over, covered, entry["format"])
            else:
                layers.forget(qmp, over)
                if not _is_empty(over):
                    raise LivesnapError(
                        f"the guest runs on '{covered}', and '{over}' has what it wrote before it"
                        " was started with that",
                        f"if that is not wanted, remove '{over}'",
                    )
        remove(over)

    @classmethod
    def fetch(
        cls, whose: Mapping[str, Any], entry: Mapping[str, Any], path: str, limit: float
    ) -> None:
        """Never asked for: it is read where it is."""
        raise AssertionError

    @classmethod
    def image(cls, folder: Path, entry: Mapping[str, Any]) -> Optional[Image]:
        """The covered image. Pure."""
        return Image(entry["covered"], entry["format"])


def job_of(snapshot_id: str, over: str) -> str:
    """The name in QEMU of the job that merges an image into the one that it covers. Pure."""
    return f"{prefix_of(snapshot_id)}merge-{hashlib.sha256(over.encode()).hexdigest()[:8]}"


def limit_of(over: str) -> float:
    """Seconds that merging it may take."""
    with files.as_store_error(f"'{over}' cannot be looked at"):
        return _MERGE_LIMIT + os.stat(over).st_blocks * 512 / _SLOWEST


def commit_resting(over: str, covered: str) -> None:
    """Merge an image that no QEMU has open. Cut short, the same again ends it."""
    below = image_file.look(over, FORMAT).get("full-backing-filename")
    if below != covered:
        raise LivesnapError(f"'{over}' covers '{below}', not '{covered}'")
    argv = ["nice", "qemu-img", "commit", "-q", "-d", "-f", FORMAT, over]
    done = run_bounded(argv, limit_of(over))
    if done.problem or done.code != 0:
        raise LivesnapError(
            f"'{over}' cannot be merged into '{covered}': 'qemu-img commit'"
            f" {done.problem or 'failed: ' + done.words}"
        )
    files.sync_file(Path(covered))


def remove(over: str) -> None:
    """Its file. It is never one of another name than ours have."""
    if not names.is_layer(over):
        raise StoreError(f"'{over}' is not the name of an image that livesnap made")
    with files.as_store_error(f"'{over}' cannot be removed"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(over)
            files.sync_folder(Path(over).parent)


def _is_empty(over: str) -> bool:
    """Whether nothing was ever written to it."""
    done = run_bounded(["qemu-img", "map", "-U", "-f", FORMAT, "--output=json", over], _LOOK_LIMIT)
    if done.problem or done.code != 0:
        raise LivesnapError(f"'{over}' cannot be read: {done.problem or done.words}")
    return all(extent["depth"] > 0 or not extent["present"] for extent in json.loads(done.text))


def _refused(disk: Disk, why: str, hint: str) -> RefusedError:
    return RefusedError(
        f"disk '{disk.label}' cannot be captured by scheme 'overlay': {why}", hint, "overlay"
    )


def _check(
    subject: Subject, qmp: Connection, disk: Disk, stack: layers.Stack, node: Mapping[str, Any]
) -> None:
    why = _why_not(subject, disk)
    if isinstance(qmp, Domain):
        why = _why_not_by_libvirt(qmp, disk) or why
    if why:
        raise _refused(disk, why, "choose scheme 'backup' for it")
    _check_length(subject, disk, stack)
    if subject.foreign_bitmaps == "refuse":
        _check_bitmaps(disk, node)


def _why_not(subject: Subject, disk: Disk) -> str:
    """Why nothing can be laid upon a disk; ''."""
    if shutil.which("qemu-img") is None:
        return "qemu-img is not installed (qemu-utils)"
    if disk.read_only:
        return "it is read-only"
    if disk.format not in FORMATS:
        return f"its format is '{disk.format}', neither raw nor qcow2"
    if not disk.file.startswith("/"):
        return f"'{disk.file}' is not a file"
    theirs = f"/proc/{subject.process.pid}/root{disk.file}"
    try:
        about = os.stat(disk.file)
        same = os.path.samestat(about, os.stat(theirs))
    except OSError as err:
        return f"'{disk.file}' cannot be looked at: {err.strerror}"
    if not same:
        return f"'{disk.file}' is another file to the guest's QEMU, in a mount namespace of its own"
    if not stat.S_ISREG(about.st_mode):
        return f"'{disk.file}' is not a file"
    free = space.free_bytes(Path(disk.file).parent)
    if free < space.SLACK:
        return f"its folder has no room for what the guest writes: {format_size(free)} are free"
    return ""


def _why_not_by_libvirt(domain: Domain, disk: Disk) -> str:
    if not disk.target:
        return "libvirt has no name for it"
    if not domain.call("isPersistent", lambda each: each.isPersistent()):
        return "the domain is transient: whoever creates it anew names the image of now"
    return ""


def _check_length(subject: Subject, disk: Disk, stack: layers.Stack) -> None:
    """As option max_chain says: each image that covers another is one to look through."""
    # After a restore in place the lowest may have the name of a layer, and covers nothing.
    count = sum(names.is_layer(layer.file) for layer in stack.layers[:-1])
    if subject.when_chain_full != MERGE and 0 < subject.max_chain <= count:
        raise _refused(
            disk,
            f"it stands on {count} snapshots, as many as max_chain allows",
            "remove some of them (livesnap_prune), or set max_chain or when_chain_full",
        )


def _check_bitmaps(disk: Disk, node: Mapping[str, Any]) -> None:
    """Those of others that are kept in the image: they do not see what is written to another."""
    found = [
        str(each.get("name", ""))
        for each in node.get("dirty-bitmaps", ())
        if each.get("persistent") and not str(each.get("name", "")).startswith(PREFIX)
    ]
    if found:
        raise _refused(
            disk,
            "its image has bitmaps of others, which would no longer count: "
            + ", ".join(f"'{name}'" for name in found),
            "choose scheme 'backup' for it, or set foreign_bitmaps: ignore",
        )


def _create(path: str, disk: Disk) -> None:
    """An empty image upon that of a disk, for who may open that."""
    with files.as_store_error(f"'{path}' cannot be made"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        argv = ["qemu-img", "create", "-q", "-f", FORMAT, "-u", "-b", disk.file]
        kind = FORMATS[disk.format]
        done = run_bounded([*argv, "-F", kind, path, str(disk.virtual_bytes)], _QEMU_IMG_LIMIT)
        if done.problem or done.code != 0:
            raise LivesnapError(
                f"'{path}' cannot be made: 'qemu-img create' {done.problem or done.words}"
            )
        with files.as_store_error(f"'{path}' cannot be given its owner"):
            about = os.stat(disk.file)
            os.fchown(fd, about.st_uid, about.st_gid)
            os.fchmod(fd, stat.S_IMODE(about.st_mode))
            with contextlib.suppress(OSError):
                os.setxattr(fd, _LABEL, os.getxattr(disk.file, _LABEL))
            os.fsync(fd)
            files.sync_folder(Path(path).parent)
    finally:
        os.close(fd)


def _like(node: Mapping[str, Any]) -> dict[str, Any]:
    """What of a node's ways the new one above it has as well. Pure."""
    return {**_cache(node), "detect-zeroes": str(node.get("detect_zeroes", "off"))}


def _cache(node: Mapping[str, Any]) -> dict[str, Any]:
    cache = node.get("cache", {})
    return {"cache": {"direct": bool(cache.get("direct")), "no-flush": bool(cache.get("no-flush"))}}
