# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that are run to their end, and in whose words each caller says what went wrong."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _helper
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import target
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    CloneError,
    HelperError,
    StoreError,
    TimedOutError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._restore import checks
from ansible_collections.livesnap.qemu.plugins.module_utils._run import run_bounded


def script(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return str(path)


def test_what_it_printed_and_how_it_ended(tmp_path: Path) -> None:
    program = script(tmp_path / "x", 'read line; echo "in=$line $1"; pwd; echo no >&2; exit 3')
    ended = run_bounded([program, "a b"], 10)
    assert (ended.code, ended.text, ended.words) == (3, "in= a b\n/\n", "no")
    assert (ended.problem, ended.timed_out) == ("", False)


def test_one_that_does_not_end_is_killed() -> None:
    begun = time.monotonic()
    ended = run_bounded(["sleep", "60"], 0.2)
    assert time.monotonic() - begun < 10
    assert (ended.code, ended.timed_out) == (None, True)
    assert ended.problem == "did not end within 0.2 s"


def test_one_that_is_not_there() -> None:
    ended = run_bounded(["/nowhere/program"], 1)
    assert (ended.code, ended.timed_out) == (None, False)
    assert ended.problem == "cannot be run: No such file or directory"


def test_the_callers_have_errors_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = script(tmp_path / "failing", "echo reasons >&2; exit 4")
    denied = script(tmp_path / "denied", "", 0o644)
    hanging = script(tmp_path / "hanging", "exec sleep 60")
    with pytest.raises(CloneError, match=f"'{failing} --version' failed: reasons"):
        checks.ask(failing, "--version")
    with pytest.raises(CloneError, match=f"'{denied}' cannot be run: Permission denied"):
        checks.ask(denied, "--version")
    monkeypatch.setattr(checks, "_PROGRAM_LIMIT", 0.2)
    with pytest.raises(CloneError, match=f"'{hanging} --version' did not end within 0.2 s"):
        checks.ask(hanging, "--version")
    with pytest.raises(HelperError, match="livesnap-helper ended with code 4: reasons") as caught:
        _helper.run_once(failing, ["features"])
    assert caught.value.word == _helper.CLASSES[4]
    with pytest.raises(HelperError, match=f"'{denied}' cannot be run: Permission denied"):
        _helper.run_once(denied, ["features"])
    with pytest.raises(TimedOutError, match="'livesnap-helper features' did not end within"):
        _helper.run_once(hanging, ["features"], timeout=0.2)
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin" / "qemu-img", "echo no such format >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    with pytest.raises(StoreError, match="image' cannot be made: no such format"):
        target._create(tmp_path / "image", 1 << 20, "", "none")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StoreError, match="'qemu-img create' cannot be run: No such file"):
        target._create(tmp_path / "other", 1 << 20, "", "none")
