# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The move to a scope, with a busctl and a /proc of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _scope


def machine(root: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (root / "run/systemd/system").mkdir(parents=True)
    (root / "proc/77").mkdir(parents=True)
    (root / "proc/77/cgroup").write_text("0::/user.slice/session-1.scope\n")
    busctl = root / "busctl"
    busctl.write_text(f'#!/bin/sh\nroot={root}\nprintf "%s\\n" "$@" > $root/asked\n{script}\n')
    busctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(root), prepend=":")


def test_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, "echo 0::/system.slice/x.scope > $root/proc/77/cgroup")
    assert _scope.move(77, "x", "a clone", str(tmp_path))
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[asked.index("x.scope") :] == [
        *("x.scope", "fail", "3", "Description", "s", "a clone", "Slice", "s", "system.slice"),
        *("PIDs", "au", "1", "77", "0"),
    ]
    assert _scope.move(77, "x", "", str(tmp_path), others=[78, 79])
    assert (tmp_path / "asked").read_text().splitlines()[-6:] == ["au", "3", "77", "78", "79", "0"]


def test_no_systemd(tmp_path: Path) -> None:
    assert not _scope.move(77, "x", "", str(tmp_path))


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 9", ":"])
def test_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(_scope, "_LIMIT", 0.2)
    machine(tmp_path, monkeypatch, script)
    assert not _scope.move(77, "x", "", str(tmp_path))


def test_joins_the_group_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "sys/fs/cgroup/machine/web1.scope"
    group.mkdir(parents=True)
    for name in ("cgroup.procs", "cgroup.controllers"):
        (group / name).touch()
    assert _scope.join(77, "/machine/web1.scope", "a guest", str(tmp_path))
    assert (group / "cgroup.procs").read_text() == "77"
    # Gone with its last process: a scope of its own.
    machine(tmp_path, monkeypatch, "exit 1")
    assert not _scope.join(77, "/machine/gone.scope", "a guest", str(tmp_path))
    assert "livesnap-guest-77.scope" in (tmp_path / "asked").read_text()
