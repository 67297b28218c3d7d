# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The linters, each as a command line; ansible-test sanity with each ansible-core that can run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
BUILD = REPO / "build"
BIN = BUILD / "venv" / "bin"

# ansible-core, oldest first -> the Python that runs it. 2.19 is the newest for 3.11; 2.21 needs
# 3.12.
CORES = {"2.17.14": "3.11", "2.19.14": "3.11", "2.21.5": "3.13"}
# The Pythons that ansible-test compiles and imports the modules with, where they are there.
TARGET_PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")


def python(version: str) -> str | None:
    """A real interpreter of that version: the system's, else pyenv's, past its shims."""
    candidates = [Path(f"/usr/bin/python{version}"), Path(f"/usr/local/bin/python{version}")]
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates += sorted(root.glob(f"{version}.*/bin/python{version}"), reverse=True)
    return next((str(path) for path in candidates if path.exists()), None)


def tracked(*patterns: str) -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", *patterns],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in done.stdout.splitlines() if (REPO / name).exists()]


def shell_scripts() -> list[str]:
    found = []
    for name in tracked():
        path = REPO / name
        with path.open("rb") as file:
            first = file.readline(64)
        if re.match(rb"#!\s*/(usr/)?bin/(env )?(ba|da)?sh", first):
            found.append(name)
    return found


def sanity() -> dict[str, list[str] | str]:
    """ansible-test sanity with each ansible-core: at short size with the newest that can run here.

    The newest looks at most, and has the most to say against.
    """
    checks: dict[str, list[str] | str] = {}
    for core, version in reversed(CORES.items()):
        interpreter = python(version)
        checks[f"sanity-{core.rpartition('.')[0]}"] = (
            [str(REPO / "tests" / "run-sanity"), core, interpreter]
            if interpreter
            else f"ansible-core {core} needs Python {version}, which is not here"
        )
        if interpreter and os.environ.get("ROUNDS", "short") == "short":
            break
    return checks


def commands() -> dict[str, list[str] | str]:
    """Name -> command line, or the reason why it can't run here."""
    checks: dict[str, list[str] | str] = {
        "ruff": [str(BIN / "ruff"), "check", "--cache-dir", "build/ruff", "."],
        "mypy": [str(BIN / "mypy"), "-p", "ansible_collections.livesnap.qemu.plugins"],
        "ansible-lint": [str(BIN / "ansible-lint"), "--strict"],
        "yamllint": [str(BIN / "yamllint"), "--strict", "."],
        "changelog": [str(BIN / "antsibull-changelog"), "lint"],
    }
    c_files = tracked("*.c", "*.h")
    checks["clang-format"] = (
        ["clang-format", "--dry-run", "-Werror", *c_files]
        if shutil.which("clang-format")
        else "clang-format is not installed"
    )
    scripts = shell_scripts()
    checks["shellcheck"] = (
        ["shellcheck", "-x", *scripts]
        if shutil.which("shellcheck")
        else "shellcheck is not installed"
    )
    checks.update(sanity())
    return checks
