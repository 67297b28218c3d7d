# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest's console: what the witness prints on it among all else, and commands to its init."""

from __future__ import annotations

import json
import socket
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from .errors import LabError

# Ten seconds alone on a machine of this kind; others may be busy on it.
BOOT_LIMIT = 180.0
MARK = "witness {"


def states(text: str) -> list[dict[str, Any]]:
    """Each whole line of the witness; the last may still be in the making, and is then left out."""
    found = []
    for line in text.split("\n")[:-1]:
        at = line.find(MARK)
        if at < 0:
            continue
        try:
            found.append(json.loads(line[at + len(MARK) - 1:].rstrip("\r")))
        except ValueError:
            # Kernel messages of an emergency do not wait for the end of a line.
            continue
    return found


class Console(ABC):
    """A guest's serial port: a socket that QEMU serves, and its log, in the guest's folder."""

    def __init__(self, folder: Path, disk_count: int) -> None:
        self.serial_path = folder / "serial"
        self.serial_log = folder / "serial.log"
        self._disks = disk_count

    @abstractmethod
    def check_alive(self) -> None:
        """LabError, with the reason, if the guest has ended."""

    def _log_size(self) -> int:
        return self.serial_log.stat().st_size if self.serial_log.exists() else 0

    def serial_text(self, since: int = 0) -> str:
        """What the guest printed from that byte of its log on; all its boots are in it."""
        if not self.serial_log.exists():
            return ""
        with self.serial_log.open("rb") as file:
            file.seek(since)
            return file.read().decode(errors="replace")

    def serial_lines(self, since: int = 0) -> list[str]:
        """The same in lines."""
        return self.serial_text(since).splitlines()

    def wait_serial(self, text: str, since: int = 0, limit: float = 30.0) -> None:
        """Returns when the guest has printed that."""
        deadline = time.monotonic() + limit
        while text not in self.serial_text(since):
            self.check_alive()
            if time.monotonic() > deadline:
                raise LabError(f"the guest did not print {text!r}:\n"
                               f"{self.serial_text(since)[-2000:]}")
            time.sleep(0.05)

    def wait_counting(self, since: int = 0, limit: float = BOOT_LIMIT) -> dict[str, Any]:
        """The witness' first state, printed after that byte of the log, in which it counts."""
        deadline = time.monotonic() + limit
        while True:
            found = states(self.serial_text(since))
            if found and found[-1]["ready"] and found[-1]["counter"] > 0:
                if found[-1]["disks"] != self._disks:
                    raise LabError(f"the guest did not mount its disks: {found[-1]}")
                return found[-1]
            if found and not found[-1]["intact"]:
                raise LabError(f"the witness found damage: {found[-1]['error']}")
            self.check_alive()
            if time.monotonic() > deadline:
                raise LabError(f"the witness did not count within {limit:g} s:\n"
                               f"{self.serial_text(since)[-2000:]}")
            time.sleep(0.05)

    def witness(self, limit: float = 15.0) -> dict[str, Any]:
        """The witness' next state on the console, which has five a second.

        Needs no agent; works while the guest is frozen, not while it is paused.
        """
        since = self._log_size()
        deadline = time.monotonic() + limit
        while True:
            found = states(self.serial_text(since))
            if found:
                return found[0]
            self.check_alive()
            if time.monotonic() > deadline:
                raise LabError(f"the witness printed nothing for {limit:g} s")
            time.sleep(0.05)

    def witness_states(self, since: int = 0) -> list[dict[str, Any]]:
        """All its states from that byte of the log on, oldest first."""
        return states(self.serial_text(since))

    def command(self, line: str, limit: float = 60.0) -> None:
        """Tells the guest's init on its console: "agent run|none|hung", "hook ok|fail".

        Once more when it says nothing: one that came right after another was seen to be lost.
        """
        since = self._log_size()
        deadline = time.monotonic() + limit
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(limit)
                connection.connect(str(self.serial_path))
                connection.sendall(line.encode() + b"\n")
                try:
                    return self.wait_serial(f"lab {line}", since, 10.0)
                except LabError:
                    if time.monotonic() > deadline:
                        raise
