# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's tour."""

from __future__ import annotations

import subprocess
import sys

from runs import REPO


def test_demo() -> None:
    done = subprocess.run(
        [sys.executable, str(REPO / "tests" / "demo.py")],
        cwd=REPO, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for word in ("freeze ", "pause ", "engine  ", "RAM  ", "proof  ", "of one instant",
                 "changed=1; the second time changed=0", "-incoming", "guest-fsfreeze-thaw",
                 "cleaned up"):  # fmt: skip
        assert word in done.stdout, f"{word}\n{done.stdout}"
    assert len(done.stdout.splitlines()) < 50
