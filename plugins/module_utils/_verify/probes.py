# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probes are looked for in a guest's memory, and what of them stands on a disk as well on that."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.guest_memory import GuestMemory
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.paging import Cpu, translate
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.probe import Probe
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.request import BadSnapshot

_READ_LIMIT = 60.0
#: A line of what `read -v` of qemu-io prints.
_DUMP = re.compile(r"^[0-9a-f]+:((?: +[0-9a-f]{2})+)", re.M)


class Judge:
    """Looks at one snapshot. cpu: by whose page tables virtual addresses are found."""

    def __init__(
        self, memory: GuestMemory, cpu: Optional[Cpu], disks: Mapping[str, tuple[Path, str]]
    ) -> None:
        """`disks`: match -> image and format."""
        self._memory = memory
        self._cpu = cpu
        self._disks = disks

    def judge(self, probes: Sequence[Probe]) -> list[dict[str, Any]]:
        """Evidence of each; BadSnapshot of the first that is not as it should be."""
        patterns = {probe.pattern for probe in probes if probe.pattern is not None}
        places = self._places(patterns)
        return [self._one(probe, places) for probe in probes]

    def _places(self, patterns: set[bytes]) -> dict[bytes, int]:
        """Where each pattern is found first; all of RAM is read for that, once."""
        found: dict[bytes, int] = {}
        if not patterns:
            return found
        for address, data in self._memory.pieces(max(map(len, patterns)) - 1):
            for pattern in patterns - set(found):
                at = data.find(pattern)
                if at >= 0:
                    found[pattern] = address + at
            if len(found) == len(patterns):
                break
        return found

    def _one(self, probe: Probe, places: Mapping[bytes, int]) -> dict[str, Any]:
        what = f"probe '{probe.name}'"
        address = self._address(probe, places)
        if address is None:
            raise BadSnapshot(f"{what}: {_where(probe)} is not in the guest's memory")
        data = self._memory.read(address + probe.offset, probe.length)
        if data is None:
            raise BadSnapshot(f"{what}: guest address {address + probe.offset:#x} is no RAM")
        if probe.value is not None and data != probe.value:
            raise BadSnapshot(
                f"{what}: at guest address {address + probe.offset:#x} there is {data.hex()}, not"
                f" {probe.value.hex()}"
            )
        found = {"name": probe.name, "physical": hex(address + probe.offset), "memory": data.hex()}
        if probe.disk is not None:
            found["disk"] = self._on_disk(probe, probe.disk, data)
        return found

    def _address(self, probe: Probe, places: Mapping[bytes, int]) -> Optional[int]:
        if probe.physical is not None:
            return probe.physical
        if probe.pattern is not None:
            return places.get(probe.pattern)
        if probe.virtual is None or self._cpu is None:
            return None
        return translate(self._cpu, probe.virtual, self._memory.word)

    def _on_disk(self, probe: Probe, match: str, memory: bytes) -> str:
        if match not in self._disks:
            raise RefusedError(
                f"probe '{probe.name}' is of disk '{match}', which has no image in the snapshot",
                f"its disks are {', '.join(sorted(self._disks)) or 'none'}",
                "probes",
            )
        disk = _read_disk(*self._disks[match], probe.disk_offset, probe.length)
        apart = abs(int.from_bytes(memory, "little") - int.from_bytes(disk, "little"))
        if apart > probe.most_apart:
            raise BadSnapshot(
                f"probe '{probe.name}': memory has {memory.hex()}, and disk '{match}' has"
                f" {disk.hex()} at byte {probe.disk_offset}: they are not of one instant"
            )
        return disk.hex()


def _where(probe: Probe) -> str:
    if probe.pattern is not None:
        return f"pattern {probe.pattern!r}"
    if probe.virtual is not None:
        return f"virtual address {probe.virtual:#x}"
    return f"guest address {probe.physical or 0:#x}"


def _read_disk(image: Path, kind: str, offset: int, length: int) -> bytes:
    """Bytes of a disk as the guest has it."""
    argv = ["qemu-io", "-r", "-U", "-f", kind, "-c", f"read -v {offset} {length}", str(image)]
    done = run_bounded(argv, _READ_LIMIT)
    data = b"".join(bytes.fromhex(row) for row in _DUMP.findall(done.text))
    if done.problem or done.code != 0 or len(data) != length:
        said = done.problem or (done.words or done.text.strip())[-300:]
        raise LivesnapError(f"byte {offset} of disk image '{image}' cannot be read: {said}")
    return data
