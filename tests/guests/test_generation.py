# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest with a vmgenid device learns that it is a copy, or went back in time."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path

from lab import Guest, Reach
from taking import TestStore

MEMORY = 128
FIRST = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"


def generation(reach: Guest | Reach, where: Path) -> str:
    """The id that QEMU gives, which is in the guest's memory as well."""
    with reach.qmp() as qmp:
        found = str(qmp.execute("query-vm-generation-id")["guid"])
        qmp.execute("pmemsave", {"val": 0, "size": MEMORY << 20, "filename": str(where)})
    assert uuid.UUID(found).bytes_le in where.read_bytes()
    where.unlink()
    return found


def test_a_clone_and_a_restored_guest_have_new_ids(store: TestStore, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    with Guest(memory=MEMORY, args=("-device", f"vmgenid,guid={FIRST},id=generation")) as guest:
        store.take(guest, "one", freeze="never")
        with store.clone(guest, "one") as clone:
            second = generation(clone, memory)
            clone.counts()
        assert generation(guest, memory) == FIRST
        restored = store.restore(guest, "one")
        try:
            back = Reach(guest.qmp_path, guest.agent_path)
            third = generation(back, memory)
            assert len({FIRST, second, third}) == 3
            back.counts()
        finally:
            # No child of this process.
            os.kill(restored["pid"], signal.SIGKILL)
