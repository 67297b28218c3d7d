# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checkout is the collection: what must be true of its files wherever it is cloned to."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
LICENSE_LINE = "# GNU General Public License v3.0+ (see LICENSE or "


def files(pattern: str) -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", pattern], cwd=REPO, capture_output=True, text=True, check=True
    )
    return [REPO / name for name in done.stdout.splitlines() if (REPO / name).exists()]


@pytest.mark.parametrize(
    "path", files("plugins/*.py"), ids=lambda path: str(path.relative_to(REPO))
)
def test_plugins_carry_licence_and_postponed_annotations(path: Path) -> None:
    text = path.read_text()
    if path.name == "__init__.py":
        assert text == ""
        return
    assert LICENSE_LINE in text
    assert "SPDX-License-Identifier: GPL-3.0-or-later" in text
    assert "from __future__ import annotations" in text


@pytest.mark.parametrize(
    "path", files("native/src/*.[ch]"), ids=lambda path: str(path.relative_to(REPO))
)
def test_sources_of_the_helper_carry_the_licence(path: Path) -> None:
    assert path.read_text().startswith("/* SPDX-License-Identifier: GPL-3.0-or-later */\n")


def test_sources_stay_readable_in_one_sitting() -> None:
    sources = files("plugins/*.py") + files("native/*.c") + files("native/*.h")
    long = {
        str(path.relative_to(REPO)): lines
        for path in sources
        if (lines := path.read_text().count("\n")) > 500
    }
    assert not long


def test_builds_leave_out_what_is_generated() -> None:
    ignored = set(yaml.safe_load((REPO / "galaxy.yml").read_text())["build_ignore"])
    for line in (REPO / ".gitignore").read_text().split():
        name = line.strip("/")
        assert name in ignored or any(
            re.fullmatch(entry.replace("*", ".*"), name) for entry in ignored
        ), line
