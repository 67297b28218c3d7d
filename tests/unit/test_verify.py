# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verdicts, checksums of pieces, sections of device states, what checkers say: without a guest."""

from __future__ import annotations

import hashlib
import struct
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import StoreError
from ansible_collections.livesnap.qemu.plugins.module_utils._retention.periods import Duration
from ansible_collections.livesnap.qemu.plugins.module_utils._store import manifest, sums
from ansible_collections.livesnap.qemu.plugins.module_utils._verify import filesystems, verdict
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.sections import parse_sections
from hypothesis import given
from hypothesis import strategies as st
from test_store import fields

NOW = datetime(2026, 11, 28, 12, tzinfo=timezone.utc)
MIB = 1 << 20


def judged(level: str, result: str = "passed", days: float = 0) -> dict[str, Any]:
    when = (NOW - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return verdict.make(level, result, when, "0.1.0", {})


def stands(verdicts: list[Any], level: str, age: str | None = None) -> bool:
    max_age = None if age is None else Duration.parse(age)
    return verdict.standing(verdicts, level, max_age, NOW) is not None


def test_a_verdict_replaces_what_it_went_through() -> None:
    low, high = judged("checksum"), judged("structure")
    assert verdict.with_verdict([low], high) == [high]
    assert verdict.with_verdict([high], low) == [high, low]
    assert verdict.with_verdict(["what", high], judged("structure", "failed")) == [
        "what",
        judged("structure", "failed"),
    ]


def test_which_verdict_makes_a_check_needless() -> None:
    assert not stands([], "checksum")
    assert stands([judged("structure")], "checksum")
    assert not stands([judged("checksum")], "structure")
    assert not stands([judged("structure"), judged("checksum", "failed")], "checksum")
    assert not stands(["what", judged("structure")], "checksum")
    assert not stands([{**judged("structure"), "level": "magic"}], "checksum")


def test_a_verdict_gets_old() -> None:
    old = [judged("structure", days=31)]
    assert stands(old, "structure")
    assert stands(old, "structure", "32d")
    assert not stands(old, "structure", "30d")
    assert not stands([judged("structure", days=0.001)], "structure", "0h")
    assert not stands([{**judged("structure"), "when": None}], "structure", "1y")


@given(st.integers(0, 1 << 50), st.integers(1, 100_000))
def test_pieces_stay_few(size: int, files: int) -> None:
    chunk = sums.chunk_bytes(size, files)
    assert chunk >= 16 * MIB and not chunk & (chunk - 1)
    assert sums.pieces(size, chunk) <= max(1, min(1024, 16384 // files))


def test_digests_are_of_each_piece(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    data = b"".join(bytes([number]) * MIB for number in range(5)) + b"end"
    path.write_bytes(data)
    chunk = 2 * MIB
    expected = {
        piece: hashlib.sha256(data[piece * chunk : (piece + 1) * chunk]).hexdigest()
        for piece in range(3)
    }
    known = {1: "as it was"}
    for given_known, threads in (({}, 1), ({}, 3), (known, 2)):
        subject = sums.Subject(path, len(data), chunk, given_known)
        with sums.Digests([subject], threads, stored=True) as digests:
            while not digests.finished():
                pass
            assert digests.found() == [{**expected, **given_known}]
            assert digests.done_bytes == digests.total_bytes == len(data)


def test_a_file_that_is_shorter_or_gone(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x")
    for name, words in (("short", "ends at byte 1"), ("gone", "cannot be read")):
        with sums.Digests([sums.Subject(tmp_path / name, 9, MIB, {})], 1) as digests:
            with pytest.raises(StoreError, match=words):
                while not digests.finished():
                    pass


def test_a_manifest_may_have_checksums_and_they_must_fit() -> None:
    disk = fields()["disks"][0]
    good = {"chunk_bytes": 16 * MIB, "sha256": ["0" * 64]}
    manifest.decode(manifest.encode(fields(disks=[{**disk, "checksums": good}])))
    for wrong in (
        None,
        [],
        {**good, "sha256": []},
        {**good, "sha256": ["0" * 64] * 2},
        {**good, "sha256": [7]},
        {**good, "chunk_bytes": 0},
        {**good, "chunk_bytes": True},
    ):
        with pytest.raises(StoreError, match="bad 'checksums' of disk 'd0'"):
            manifest.encode(fields(disks=[{**disk, "checksums": wrong}]))


def section(number: int, name: str, data: bytes) -> bytes:
    head = b"\x04" + struct.pack(">IB", number, len(name)) + name.encode()
    return head + struct.pack(">II", 0, 1) + data + b"\x7e" + struct.pack(">I", number)


HEADER = struct.pack(">II", 0x5145564D, 3)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_sections_are_found_whatever_is_in_them(datas: list[bytes]) -> None:
    whole = HEADER + b"".join(
        section(number, f"dev{number}", data) for number, data in enumerate(datas)
    )
    found = parse_sections(whole + b"\0")
    assert [each.name for each in found] == [f"dev{number}" for number in range(len(datas))]
    assert [each.data for each in found] == datas


def test_a_footer_inside_of_a_section_is_none() -> None:
    inner = b"\x7e" + struct.pack(">I", 3) + b"\x04more"
    (found,) = parse_sections(HEADER + section(3, "timer", inner) + b"\0")
    assert found.data == inner


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "does not begin"),
        (HEADER, "no section begins at byte 8"),
        (HEADER + b"\0", "has no section"),
        (HEADER + section(1, "timer", b"x"), "has no end"),
        (HEADER + section(1, "timer", b"x")[:-1] + b"\0", "has no end"),
        (HEADER + section(1, "ti\x01mer", b"x") + b"\0", "no section begins at byte 8"),
        (HEADER + section(1, "a", b"x") + b"junk" + section(2, "b", b"x") + b"\0", "has no end"),
    ],
)
def test_what_is_no_device_state(data: bytes, words: str) -> None:
    with pytest.raises(StoreError, match=words):
        parse_sections(data)


def test_what_a_look_at_a_disk_says() -> None:
    whole = filesystems.Part(0, 0, 1000 * 512)
    assert filesystems.parts("", whole.length) == [whole]
    table = "@@ table\n1 2 100\n2 200 2\n 3 300 700 \nwhat\n4 990 11\n"
    assert filesystems.parts(table, whole.length) == [
        filesystems.Part(1, 2 * 512, 100 * 512),
        filesystems.Part(3, 300 * 512, 700 * 512),
    ]


def test_what_a_guest_writes_is_no_line_of_ours() -> None:
    text = "@@ type ext4\n /@@ code 0\n @@ code 0\n@@ code 4\n"
    assert filesystems.parse(text) == ("ext4", 4, "/@@ code 0; @@ code 0")
    assert filesystems.parse("@@ type swap\n") == ("swap", None, "")


@pytest.mark.parametrize(
    ("kind", "code", "said", "expected"),
    [
        ("ext4", 0, "", "good"),
        ("ext4", 1, "recovering journal", "repaired"),
        ("ext4", 4, "UNEXPECTED INCONSISTENCY", "bad"),
        ("ext4", 12, "No space left", "e2fsck failed: No space left"),
        ("xfs", 0, "", "good"),
        ("xfs", 1, "bad magic", "bad"),
        (
            "xfs",
            1,
            "ALERT: The filesystem has valuable metadata changes in a log which is being",
            "its log would have to be played back first",
        ),
    ],
)
def test_what_checkers_mean(kind: str, code: int, said: str, expected: str) -> None:
    assert filesystems.judge(kind, code, said) == expected
