# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme command and the note of what lies outside: on files of this machine, without a guest."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import outside
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.command import Command
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import (
    Making,
    Share,
    Subject,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess

NO_QMP: Any = None
WHOSE = {"id": "1a2b3c4d-0000-4000-8000-000000000000", "guest": "web1", "name": "one"}
needs_qemu_img = pytest.mark.skipif(
    shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def disk(number: int, file: Path, kind: str = "raw") -> Disk:
    return Disk(device="", node=f"n{number}", qdev=f"d{number}", serial="", file=str(file),
                format=kind, virtual_bytes=1 << 20, read_only=False, removable=False, inserted=True)


def scheme(folder: Path, disks: int = 1, **changed: Any) -> Command:
    """With commands that copy files, and what differs from them."""
    commands = {
        "create": f'cp "$LIVESNAP_SOURCE" "{folder}/$LIVESNAP_KEY"',
        "remove": f'rm -f "{folder}/$LIVESNAP_KEY"',
        "restore": f'cp "{folder}/$LIVESNAP_KEY" "$LIVESNAP_TARGET"',
        "limit": 5, **changed}
    shares = []
    for number in range(disks):
        file = folder / f"image{number}"
        file.write_bytes(bytes([number + 1]) * (1 << 20))
        shares.append(Share(number, disk(number, file)))
    process = QemuProcess(1, 1, 0, 0, (), "root", (), "/", "/q", "/")
    subject = Subject("web1", str(folder), process, commands)
    return Command(Making(subject, "p-", folder, WHOSE), shares)


def copies(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("livesnap-*"))


@needs_qemu_img
def test_made_brought_back_and_removed(tmp_path: Path) -> None:
    made = scheme(tmp_path, disks=2)
    made.commit(NO_QMP, 10.0)
    assert copies(tmp_path) == ["livesnap-1a2b3c4d-0", "livesnap-1a2b3c4d-1"]
    first, second = made.finish(NO_QMP)
    assert (first["file"], first["format"], first["stored_bytes"]) == (None, "raw", 0)
    target = tmp_path / "target"
    target.touch()
    Command.fetch(WHOSE, second, str(target), 10.0)
    assert target.read_bytes() == b"\2" * (1 << 20)
    for each in (first, second, second):
        Command.discard(WHOSE, each)
    assert copies(tmp_path) == []


def test_they_run_side_by_side(tmp_path: Path) -> None:
    # Each waits for the other one.
    meet = f'touch "{tmp_path}/$LIVESNAP_KEY"; until [ $(ls {tmp_path} | grep -c livesnap-) = 2 ]; '
    scheme(tmp_path, disks=2, create=meet + "do sleep 0.02; done").commit(NO_QMP, 10.0)


def test_one_that_fails_is_named_with_its_words(tmp_path: Path) -> None:
    made = scheme(tmp_path, create="echo no room >&2; exit 3")
    with pytest.raises(LivesnapError, match=r"'create' of disk 'd0' failed: .* code 3: no room"):
        made.commit(NO_QMP, 10.0)


@pytest.mark.parametrize(("limit", "left"), [(1, 10.0), (5, 0.5)])
def test_one_that_hangs_is_killed_with_its_children(
        tmp_path: Path, limit: int, left: float) -> None:
    pid, begun = tmp_path / "pid", time.monotonic()
    made = scheme(tmp_path, create=f"sleep 61 & echo $! > {pid}", limit=limit)
    with pytest.raises(LivesnapError, match=f"did not end within {min(limit, left):g} s"):
        made.commit(NO_QMP, left)
    assert time.monotonic() - begun < 4
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid.read_text().strip()}/exe").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_environment_is_documented_and_nothing_else(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    scheme(tmp_path, create=f"env > {tmp_path}/env; pwd >> {tmp_path}/env").commit(NO_QMP, 10.0)
    told = (tmp_path / "env").read_text()
    assert "SECRET" not in told and told.endswith("\n/\n")
    assert f"LIVESNAP_SOURCE={tmp_path}/image0\n" in told


def test_refused_beforehand(tmp_path: Path) -> None:
    made = scheme(tmp_path)
    subject = made.making.subject
    Command.check(subject, NO_QMP, [disk(0, tmp_path / "a")])
    with pytest.raises(RefusedError, match="its format is 'luks'"):
        Command.check(subject, NO_QMP, [disk(0, tmp_path / "a", "luks")])
    with pytest.raises(RefusedError, match="no commands are given"):
        Command.check(Subject("web1", "/s", subject.process), NO_QMP, [disk(0, tmp_path / "a")])


@needs_qemu_img
def test_what_is_not_the_whole_disk_is_refused(tmp_path: Path) -> None:
    made = scheme(tmp_path, restore='head -c 1000 /dev/zero > "$LIVESNAP_TARGET"')
    target = tmp_path / "target"
    target.touch()
    with pytest.raises(LivesnapError, match="is of 1024 bytes, and the disk of 1048576"):
        Command.fetch(WHOSE, made.entries()[0], str(target), 10.0)


# -- the note


def test_what_was_noted_is_removed_once(tmp_path: Path) -> None:
    made = scheme(tmp_path)
    outside.discard(tmp_path)
    outside.note(tmp_path, WHOSE, made.entries())
    assert os.stat(tmp_path / outside.NOTE).st_mode & 0o777 == 0o600
    made.commit(NO_QMP, 10.0)
    outside.discard(tmp_path)
    assert copies(tmp_path) == [] and not (tmp_path / outside.NOTE).exists()


def test_a_note_stays_until_all_of_it_is_removed(tmp_path: Path) -> None:
    stuck = tmp_path / "stuck"
    stuck.touch()
    made = scheme(tmp_path, remove=f"[ ! -e {stuck} ] || {{ echo busy >&2; exit 1; }}")
    outside.note(tmp_path, WHOSE, made.entries())
    with pytest.raises(LivesnapError, match=r"snapshot 'one' of guest 'web1' has outside .*: busy"):
        outside.discard(tmp_path)
    stuck.unlink()
    outside.discard(tmp_path)
    assert not (tmp_path / outside.NOTE).exists()


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_note_that_others_may_have_written_is_not_run(tmp_path: Path, mode: int) -> None:
    outside.note(tmp_path, WHOSE, scheme(tmp_path, remove=f"touch {tmp_path}/run").entries())
    (tmp_path / outside.NOTE).chmod(mode)
    with pytest.raises(LivesnapError, match="could have been written by somebody else"):
        outside.discard(tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", [
    "{}", '{"id": "1", "guest": "a", "name": "b", "disks": [{"scheme": "other"}]}', "[]", "{",
    '{"id": 1, "guest": "a", "name": "b", "disks": []}'])
def test_a_note_that_is_none_is_not_guessed_at(tmp_path: Path, text: str) -> None:
    (tmp_path / outside.NOTE).write_text(text)
    (tmp_path / outside.NOTE).chmod(0o600)
    with pytest.raises(LivesnapError):
        outside.discard(tmp_path)
