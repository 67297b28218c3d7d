# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands by which an operator restores a snapshot with stock QEMU alone, ready to paste."""

from __future__ import annotations

import shlex
from pathlib import Path

from ansible_collections.livesnap.qemu.plugins.module_utils._clone import cmdline
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.plan import DiskImage, Plan
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.source import (
    Source,
    SourceDisk,
    from_manifest,
    guest_name,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import Image
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import RefusedError
from ansible_collections.livesnap.qemu.plugins.module_utils._restore.checks import qemu_img
from ansible_collections.livesnap.qemu.plugins.module_utils._store import chain
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store

#: The stream comes in by this descriptor: a sandboxed QEMU may not start 'cat'.
_FD = 3

_THAW = (
    "import socket as s, sys; c = s.socket(s.AF_UNIX); c.settimeout(30); c.connect(sys.argv[1]);"
    ' c.sendall(b\'\\xff{"execute": "guest-sync-delimited", "arguments": {"id": 1}}\\n\');'
    ' f = c.makefile("rb"); any(b\'"return": 1}\' in l for l in f);'
    ' c.sendall(b\'{"execute": "guest-fsfreeze-thaw"}\\n\'); print(f.readline().decode())'
)


def plain_restore(
    store: str, guest: str, snapshot: str, folder: str, helper: str = "livesnap-helper"
) -> list[str]:
    """Shell commands, one an element, for root: stream, overlays, QEMU, thaw.

    `folder` is an absolute path that does not exist yet; what the guest writes from then on lies
    there. QEMU runs in the foreground, the thaw is for another shell. RefusedError when the
    snapshot cannot be restored at all.
    """
    path = Store(store).snapshot(guest, snapshot)
    return commands(from_manifest(path, chain.read(path)), folder, helper)


def commands(source: Source, folder: str, helper: str) -> list[str]:
    """The same of what was read already. Pure, but for looking where qemu-img is."""
    if source.domain is not None:
        raise RefusedError(
            f"'{source.guest}/{source.snapshot}' is of a libvirt domain, which no command line of"
            " QEMU's brings back",
            "'livesnap-helper export --format libvirt' writes what 'virsh restore' takes",
            "domain",
        )
    base = Path(folder)
    disks = [
        (_image(source, disk), str(base / f"disk{number}.qcow2"))
        for number, disk in enumerate(source.disks)
    ]
    plan = Plan(
        folder=folder,
        disk_folder=folder,
        name=guest_name(source),
        machine=source.machine,
        disks=tuple(
            DiskImage(disk.device, disk.node, disk.qdev, disk.source, overlay, disk.below)
            for disk, (_unused, overlay) in zip(source.disks, disks)
        ),
        incoming=f"fd:{_FD}",
        # The saved state says 'running', so it runs by itself.
        stopped=not source.was_running,
        network=True,
        keep_taps=True,
    )
    rewritten = cmdline.rewrite(source.command, plan)
    findings = rewritten.findings
    if findings.blockers or source.needs.blockers:
        raise RefusedError(
            f"'{source.guest}/{source.snapshot}' cannot be restored:"
            f" {'; '.join([*source.needs.blockers, *findings.blockers])}",
            reason="restore_blockers",
        )
    program, stream = qemu_img(source.exe), str(base / "stream")
    owner = [] if source.uid == 0 else ["-o", source.user]
    lines = [["install", "-d", "-m", "0700", *owner, folder]]
    lines.append([helper, "export", "--format", "qemu", source.folder, stream])
    create = [program, "create", "-q", "-f", "qcow2"]
    lines += [[*create, "-F", image.format, "-b", image.path, overlay] for image, overlay in disks]
    if findings.blank_disks:
        raise RefusedError(
            f"'{source.guest}/{source.snapshot}' lacks disks of its guest:"
            f" {', '.join(findings.blank_disks)}",
            "make a clone, which gets empty ones",
            "excluded_disks",
        )
    if owner:
        overlays = [overlay for _unused, overlay in disks]
        lines.append(["chown", source.user, *overlays])
    found = [shlex.join(line) for line in lines]
    as_user = ["runuser", "-u", source.user, "--"] if owner else []
    argv = [*as_user, source.exe, *rewritten.argv[1:]]
    found.append(f"cd {shlex.quote(folder)} && {shlex.join(argv)} {_FD}< {shlex.quote(stream)}")
    if findings.agent_socket and source.frozen:
        found.append(shlex.join(["python3", "-c", _THAW, plan.path(findings.agent_socket)]))
    return found


def _image(source: Source, disk: SourceDisk) -> Image:
    if disk.image is None:
        raise RefusedError(
            f"disk '{disk.source}' of '{source.guest}/{source.snapshot}' is not in the store",
            "make a clone, which gets a copy of it",
            "outside",
        )
    return disk.image
