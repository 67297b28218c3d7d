# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme command: commands of the operator's make, remove and bring back the copy of a disk.

For storage that can do this itself: LVM, ZFS, Ceph, btrfs subvolumes, arrays. docs/commands.md says
what is expected of the commands. All disks' `create` run side by side while the guest stands still.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._connection.connection import (
    Connection,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import image_file
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import (
    Outside,
    Share,
    Subject,
    entry,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import FORMATS, Disk

#: Seconds that `remove` may take.
_REMOVE_LIMIT = 120.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Command(Outside):
    """The copies of one snapshot that commands make."""

    NAME = "command"

    @classmethod
    def check(cls, subject: Subject, qmp: Connection, disks: Sequence[Disk]) -> None:
        """Refuse without commands, and formats that nobody could read the copy as."""
        if not subject.commands:
            raise RefusedError(
                f"disk '{disks[0].label}' cannot be captured by scheme 'command': no commands are"
                " given",
                "give disk_commands, or choose another scheme",
                "command",
            )
        for disk in disks:
            if disk.format not in FORMATS:
                raise RefusedError(
                    f"disk '{disk.label}' cannot be captured by scheme 'command': its format is"
                    f" '{disk.format}', neither raw nor qcow2",
                    "choose scheme 'backup' for it",
                    "command",
                )

    def entries(self) -> list[dict[str, Any]]:
        """What the commands are told, and the commands that are wanted later."""
        return [self._entry(share) for share in self.shares]

    def _entry(self, share: Share) -> dict[str, Any]:
        commands = self.making.subject.commands or {}
        return {
            **entry(self.NAME, share.disk, None, FORMATS[share.disk.format]),
            "commands": {
                "key": f"livesnap-{self.making.whose['id'][:8]}-{share.index}",
                "remove": commands["remove"],
                "restore": commands["restore"],
            },
        }

    def commit(self, qmp: Connection, timeout: float) -> None:
        """Run `create` of each disk, all at the same time."""
        commands = self.making.subject.commands or {}
        limit = min(float(commands["limit"]), timeout)

        def create(disk: Mapping[str, Any]) -> None:
            _run("create", commands["create"], self.making.whose, disk, limit)

        entries = self.entries()
        with ThreadPoolExecutor(len(entries)) as pool:
            for done in [pool.submit(create, disk) for disk in entries]:
                done.result()

    @classmethod
    def discard(cls, whose: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
        """Run `remove`."""
        _run("remove", entry["commands"]["remove"], whose, entry, _REMOVE_LIMIT)

    @classmethod
    def fetch(
        cls, whose: Mapping[str, Any], entry: Mapping[str, Any], path: str, limit: float
    ) -> None:
        """Run `restore`, and see that what it wrote is a whole disk."""
        _run("restore", entry["commands"]["restore"], whose, entry, limit, path)
        try:
            image_file.check_whole(path, entry)
        except LivesnapError as err:
            raise _failed("restore", entry, err.msg) from None


def variables(
    action: str, whose: Mapping[str, Any], disk: Mapping[str, Any], target: str = ""
) -> dict[str, str]:
    """The environment of a command. Pure."""
    return {
        "PATH": _PATH,
        "LC_ALL": "C",
        "LIVESNAP_ACTION": action,
        "LIVESNAP_GUEST": whose["guest"],
        "LIVESNAP_SNAPSHOT": whose["name"],
        "LIVESNAP_ID": whose["id"],
        "LIVESNAP_KEY": disk["commands"]["key"],
        "LIVESNAP_DISK": disk["match"],
        "LIVESNAP_SERIAL": disk["serial"] or "",
        "LIVESNAP_SOURCE": disk["source"]["file"],
        "LIVESNAP_FORMAT": disk["format"],
        "LIVESNAP_BYTES": str(disk["bytes"]),
        **({"LIVESNAP_TARGET": target} if target else {}),
    }


def _run(
    action: str,
    command: str,
    whose: Mapping[str, Any],
    disk: Mapping[str, Any],
    limit: float,
    target: str = "",
) -> None:
    """By /bin/sh, all that it starts in a group of its own, which is killed at the limit."""
    try:
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            env=variables(action, whose, disk, target),
            start_new_session=True,
        )
    except OSError as err:
        raise _failed(action, disk, f"cannot be run: {err.strerror}") from None
    said: Optional[bytes] = None
    try:
        said = process.communicate(timeout=limit)[1]
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stderr is not None:
            process.stderr.close()
    if said is None:
        raise _failed(action, disk, f"it did not end within {limit:g} s")
    if process.returncode != 0:
        words = said.decode("utf-8", "replace").strip()[-300:]
        raise _failed(action, disk, f"it ended with code {process.returncode}: {words}")


def _failed(action: str, disk: Mapping[str, Any], why: str) -> LivesnapError:
    return LivesnapError(
        f"command '{action}' of disk '{disk['match']}' failed: {why}",
        "docs/commands.md says what is expected of it",
    )
