# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clones of a real guest: mapped or read, thawed, with the right time; and the printed commands."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.api import (
    SnapshotSpec,
    take_snapshot,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.clone import (
    CloneRequest,
    create_clone,
    remove_clone,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._clone.plain import plain_restore
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._guest import waking
from lab import Guest, Reach


class Taken:
    """A guest that works, and two snapshots of it: one uncompressed, one frozen and compressed."""

    def __init__(self, guest: Guest, store: Path, helper: Path) -> None:
        self.guest = guest
        self.store = store
        self.helper = str(helper)
        self.boot = guest.counts()["boot"]
        self.flat = self.take("flat", compression="none", freeze="never")
        self.frozen = self.take("frozen", compression="lz4", freeze="required")

    def take(self, name: str, **options: Any) -> Path:
        params = {
            **{"guest": "shop", "name": name, "store": str(self.store)},
            **{"qmp_socket": str(self.guest.qmp_path), "_livesnap_helper": self.helper},
            **{"agent_socket": str(self.guest.agent_path), **options},
        }
        result = take_snapshot(SnapshotSpec.of(params))
        assert result["snapshot"]["restore_blockers"] == []
        return Path(result["snapshot"]["path"])

    def request(self, snapshot: str, name: str = "twin", **given: Any) -> CloneRequest:
        return CloneRequest(str(self.store), "shop", name, snapshot, helper=self.helper, **given)

    @contextlib.contextmanager
    def clone(self, snapshot: str, name: str = "twin", **given: Any) -> Iterator[dict[str, Any]]:
        request = self.request(snapshot, name, **given)
        try:
            yield create_clone(request)
        finally:
            remove_clone(request)
            assert request.place.left() == []


def reach(made: dict[str, Any]) -> Reach:
    return Reach(Path(made["qmp_socket"]), Path(made["agent_socket"]), made["pid"])


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module")
def shop(helper: Path) -> Iterator[Taken]:
    store = Path(tempfile.mkdtemp(prefix="livesnap-clones-", dir="/tmp"))
    store.chmod(0o711)
    try:
        with Guest(name="shop", net=True, vga=True) as guest:
            yield Taken(guest, store, helper)
            guest.counts()
    finally:
        shutil.rmtree(store)


def test_mapped_ram_is_private(shop: Taken) -> None:
    before = digest(shop.flat / "ram.lsnap")
    with shop.clone("flat") as made:
        assert made["lazy"] and made["running"]
        assert reach(made).counts()["boot"] == shop.boot
        maps = Path(f"/proc/{made['pid']}/maps").read_text()
        assert [line.split()[1] for line in maps.splitlines() if "ram.lsnap" in line] == ["rw-p"]
    assert digest(shop.flat / "ram.lsnap") == before


def test_not_lazy_reads_it_all(shop: Taken) -> None:
    with shop.clone("flat", lazy=False) as made:
        assert not made["lazy"]
        assert "ram.lsnap" not in Path(f"/proc/{made['pid']}/maps").read_text()
        assert reach(made).counts()["boot"] == shop.boot


def test_frozen_guest_wakes_thawed_and_on_time(shop: Taken) -> None:
    with shop.clone("frozen") as made:
        assert made["warnings"] == []
        twin = reach(made)
        with twin.agent() as agent:
            assert abs(int(agent.run("/bin/date", "+%s")) - time.time()) < 5
        assert twin.counts()["boot"] == shop.boot
        assert twin.devices().items() >= {"disk0": "ok", "net": "ok", "vga": "ok"}.items()


def test_two_at_a_time_beside_the_original(shop: Taken) -> None:
    with shop.clone("flat", "one") as one, shop.clone("flat", "two") as two:
        states = [reach(each).counts() for each in (one, two)]
        assert [state["boot"] for state in states] == [shop.boot] * 2
        assert len({one["pid"], two["pid"], shop.guest.pid}) == 3
    assert shop.guest.counts()["boot"] == shop.boot


def test_clone_that_cannot_be_thawed_is_none(shop: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waking, "AGENT_LIMIT", 0.001)
    with pytest.raises(LivesnapError, match="cannot be thawed"):
        create_clone(shop.request("frozen"))
    assert shop.request("frozen").place.left() == []


def test_paused_guest_gives_a_paused_clone(shop: Taken) -> None:
    with shop.guest.qmp() as qmp:
        qmp.execute("stop")
    try:
        shop.take("paused", freeze="auto")
    finally:
        with shop.guest.qmp() as qmp:
            qmp.execute("cont")
    with shop.clone("paused") as made:
        assert not made["running"]
        with reach(made).qmp() as qmp:
            qmp.execute("cont")
        assert reach(made).counts()["boot"] == shop.boot


def test_printed_commands_restore_without_us(shop: Taken, tmp_path: Path) -> None:
    """As printed, by a shell: the stream, an overlay, QEMU, and the thaw of a frozen guest."""
    folder = tmp_path / "back"
    lines = plain_restore(str(shop.store), "shop", "frozen", str(folder), shop.helper)
    for line in lines[:-2]:
        subprocess.run(["sh", "-ec", line], check=True, stdout=subprocess.DEVNULL, timeout=120)
    log = (tmp_path / "log").open("wb")
    qemu = subprocess.Popen(
        ["sh", "-ec", lines[-2]],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (folder / "agent.sock").exists():
            assert qemu.poll() is None and time.monotonic() < deadline, (
                tmp_path / "log"
            ).read_text()
            time.sleep(0.05)
        thawed = subprocess.run(
            ["sh", "-ec", lines[-1]], check=True, capture_output=True, timeout=60
        )
        assert b'"return": 1' in thawed.stdout
        back = Reach(folder / "qmp.sock", folder / "agent.sock")
        assert back.counts()["boot"] == shop.boot
        assert back.devices()["disk0"] == "ok"
    finally:
        log.close()
        os.killpg(qemu.pid, signal.SIGKILL)
        qemu.wait()
