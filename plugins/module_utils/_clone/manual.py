# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands that bring a snapshot back with stock QEMU and without this collection. Pure."""

from __future__ import annotations

import os
import shlex

from ansible_collections.livesnap.qemu.plugins.module_utils._clone import cmdline
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.plan import DiskImage, Plan
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.source import Source

#: The agent's protocol: a byte that ends whatever came before, a sync, then the request.
_THAW = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.connect({path!r}); s.settimeout(30); "
    's.sendall(b\'\\xff{{"execute":"guest-sync-delimited","arguments":{{"id":7}}}}\\n\'); '
    'b"\\xff" in s.recv(999); s.sendall(b\'{{"execute":"guest-fsfreeze-thaw"}}\\n\'); '
    "print(s.recv(999))"
)


def commands(source: Source, helper: str, folder: str) -> list[str]:
    """Lines for a shell, run as root one after the other; everything new lies in `folder`.

    The stream says that the guest runs, so QEMU starts it once all is loaded. If it was frozen at
    the instant, it wakes up frozen: the last line thaws it.
    """
    disks = tuple(
        DiskImage(disk.device, disk.node, disk.qdev, disk.source, f"{folder}/disk{number}.qcow2")
        for number, disk in enumerate(source.disks)
    )
    plan = Plan(
        folder=folder,
        disk_folder=folder,
        name=f"{source.guest}.restored",
        machine=source.machine,
        disks=disks,
        incoming="fd:3",
        stopped=not source.was_running,
    )
    rewritten = cmdline.rewrite(source.command, plan)
    lines = [f"mkdir -p {shlex.quote(folder)} && cd {shlex.quote(folder)}"]
    for disk, given in zip(source.disks, disks):
        lines.append(
            "qemu-img create -q -f qcow2 -F qcow2 -b "
            f"{shlex.quote(disk.image)} {shlex.quote(given.overlay)}"
        )
    lines.append(f"{helper} export --format qemu {shlex.quote(source.folder)} stream")
    words = [source.exe, *rewritten.argv[1:]]
    lines.append(f"{shlex.join(words)} 3<stream &")
    agent = rewritten.findings.agent_socket
    if source.frozen and agent:
        thaw = _THAW.format(path=os.path.join(folder, agent))
        lines.append(f"python3 -c {shlex.quote(thaw)}")
    return lines
