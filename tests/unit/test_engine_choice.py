# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which engine is taken, and what is said of those that are not."""

from __future__ import annotations

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.capture import copy_limit
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.choice import Verdict, choose
from ansible_collections.livesnap.qemu.plugins.module_utils._capture.subject import read_reasons
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    HelperError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.engine_checks import Reason

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
