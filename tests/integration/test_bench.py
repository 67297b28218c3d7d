# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""make bench works; what it measures is no matter of tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from runs import REPO


def run(cases: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The bench with one round a case; its file goes where the tests' results are."""
    return subprocess.run(
        [sys.executable, str(REPO / "tests" / "bench" / "bench.py")],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=200, check=False,
        env={**os.environ, "BENCH": cases, "BENCH_ROUNDS": "1"},
    )  # fmt: skip


def test_a_case_is_measured_and_written(tmp_path: Path) -> None:
    done = run("holds", tmp_path)
    assert done.returncode == 0, done.stdout
    assert "mmap() of another thread of the target" in done.stdout
    found = json.loads((REPO / "build" / "bench.json").read_text())
    assert found["machine"]["qemu"].startswith("QEMU emulator")
    assert set(found["cases"]) == {"holds"}
    assert found["cases"]["holds"]["bounds"][0]["value"] > 0


def test_an_unknown_case_is_named(tmp_path: Path) -> None:
    done = run("nothing", tmp_path)
    assert done.returncode == 2
    assert "there is no case nothing" in done.stdout
