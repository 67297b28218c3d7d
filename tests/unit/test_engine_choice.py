# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which engine is taken, and what is said of those that are not."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Optional

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.capture import copy_limit
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._capture import choice, qemu, spool
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.choice import Verdict, choose
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.subject import (
    Subject,
    read_reasons,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    HelperError,
    RefusedError,
    StoreError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.engine_checks import Reason
from test_facts import GOOD

DISK = Reason("file_backed", "memory 'm' is a file on ext4")
BALLOON = Reason("free_page_reporting", "the balloon gives memory back")
BLOCKED = Reason("migration_blocked", "QEMU cannot migrate it")
CAN = [Verdict("uffd", ()), Verdict("pause", ())]
HELD = [Verdict("uffd", (DISK, BALLOON)), Verdict("pause", ())]
NONE = [Verdict("uffd", (BLOCKED,)), Verdict("pause", (BLOCKED,))]


@pytest.mark.parametrize("wanted", ["auto", "uffd"])
@pytest.mark.parametrize("allowed", [True, False])
def test_the_first_that_can_is_taken_in_silence(wanted: str, allowed: bool) -> None:
    taken = choose("web1", CAN, wanted, allowed)
    assert (taken.engine, taken.indications, taken.warnings) == ("uffd", (), ())


def test_the_one_asked_for_is_taken_in_silence() -> None:
    for verdicts in (CAN, HELD):
        taken = choose("web1", verdicts, "pause", True)
        assert (taken.engine, taken.indications, taken.warnings) == ("pause", (), ())


def test_the_next_is_taken_and_every_reason_told() -> None:
    taken = choose("web1", HELD, "auto", True)
    assert taken.engine == "pause"
    (said,) = taken.indications
    assert said.startswith("engine 'uffd': ") and DISK.message in said and BALLOON.message in said
    (warned,) = taken.warnings
    assert "'web1'" in warned and "'pause'" in warned and said in warned


def test_the_guest_is_not_held_unless_that_is_allowed() -> None:
    with pytest.raises(RefusedError) as caught:
        choose("web1", HELD, "auto", False)
    assert caught.value.reason == "file_backed"
    assert DISK.message in caught.value.msg and "allow_pause: true" in caught.value.hint
    with pytest.raises(RefusedError) as caught:
        choose("web1", HELD, "pause", False)
    assert "not allowed" in caught.value.msg and caught.value.reason == "pause"


@pytest.mark.parametrize(("wanted", "engines"), [("auto", 2), ("uffd", 1), ("pause", 1)])
def test_none_can(wanted: str, engines: int) -> None:
    with pytest.raises(RefusedError) as caught:
        choose("web1", NONE, wanted, True)
    assert caught.value.msg.count(BLOCKED.message) == engines
    assert caught.value.reason == "migration_blocked"
    assert "allow_pause" not in caught.value.hint


def test_no_other_engine_than_the_one_asked_for() -> None:
    with pytest.raises(RefusedError) as caught:
        choose("web1", HELD, "uffd", True)
    assert caught.value.reason == "file_backed" and "pause" not in caught.value.msg


def test_no_more_engines_are_asked_than_need_be(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"uffd": [BALLOON], "qemu": [], "pause": []}
    subject = Subject(dataclasses.replace(GOOD, qemu_version="8.2.0"), 1, said, None, False)
    monkeypatch.setattr(choice, "look", lambda *_args: subject)

    def asked(wanted: Optional[str]) -> list[tuple[str, bool]]:
        found = choice.judge(GOOD, 1, "/h", wanted=wanted)
        return [(verdict.engine, verdict.possible) for verdict in found]

    assert asked(None) == [("uffd", False), ("qemu", True), ("pause", True)]
    assert asked("auto") == [("uffd", False), ("qemu", True)]
    assert asked("pause") == [("pause", True)]
    said["uffd"] = []
    assert asked("auto") == [("uffd", True)]


def test_what_the_helper_says() -> None:
    said = {"uffd": [{"reason": "traced", "message": "process 7 is traced"}], "pause": []}
    assert read_reasons(said, "uffd") == [Reason("traced", "process 7 is traced")]
    assert read_reasons(said, "pause") == []
    with pytest.raises(HelperError, match="'pause'"):
        read_reasons({"uffd": []}, "pause")


def test_how_long_a_guest_may_stand_still() -> None:
    def limit(size: int, **options: int) -> float:
        return copy_limit(SnapshotSpec(guest="web1", name="one", **options), size)

    assert limit(0) == 10.0
    assert limit(64 << 20) == 12.0
    assert limit(64 << 20, bandwidth=1 << 20) == 74.0
    assert limit(64 << 20, bandwidth=1 << 30) == 12.0
    assert limit(1 << 40, timeout=7) == 7.0
    # The guard takes no more than an hour.
    assert limit(1 << 40) == limit(1 << 40, timeout=5000) == 3000.0


def test_room_for_a_stream_that_qemu_writes() -> None:
    mib = 1 << 20
    assert spool.stream_bytes(0) == 64 * mib
    assert spool.stream_bytes(4096) == 4096 + 8 + 257 + 64 * mib
    assert spool.fits_in_memory(100, 100, 0) and not spool.fits_in_memory(101, 100, 1 << 40)
    assert spool.fits_in_memory(128 * mib, 0, 512 * mib)
    assert not spool.fits_in_memory(128 * mib + 1, 0, 512 * mib)
    assert not spool.fits_in_memory(1, 0, 100 * mib)


@pytest.mark.parametrize("memory", [True, False])
def test_the_spool_has_its_room(tmp_path: Path, memory: bool) -> None:
    made = spool.Spool(1 << 20, 1 << 20 if memory else 1, tmp_path)
    assert made.in_memory == memory and list(tmp_path.iterdir()) == []
    assert os.fstat(made.fd).st_blocks * 512 >= 1 << 20
    os.write(made.fd, b"stream")
    assert made.written() == 6
    assert Path(made.path).read_bytes()[:6] == b"stream"
    made.close()
    made.close()


def test_no_room_for_the_spool(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be reserved in"):
        spool.Spool(1 << 50, 1, tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "paused", "running": False}, "paused"),
        ({"domain_xml": "<domain/>"}, "libvirt"),
        ({"free_page_reporting": True}, "free_page_reporting"),
        ({}, "shared_ram"),
    ],
)
def test_qemu_stands_aside(change: dict[str, Any], reason: str) -> None:
    seen = [Reason("shared_ram", "process 7")] if reason == "shared_ram" else []
    facts = dataclasses.replace(GOOD, **change)
    found = qemu.reasons(Subject(facts, os.getpid(), {"qemu": seen}, None, False))
    assert reason in [each.reason for each in found]


def test_qemu_need_not() -> None:
    for version in ("6.0.0", "7.2.22", "8.2.1", "9.0.2", "10.0.1"):
        facts = dataclasses.replace(GOOD, qemu_version=version)
        subject = Subject(facts, os.getpid(), {"qemu": []}, None, False)
        assert [each.reason for each in qemu.reasons(subject)] == (
            [] if qemu.may_userfaultfd(os.getpid()) or version not in ("6.0.0", "7.2.22")
            else ["background_snapshot"])
