# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection says of itself, seen through Ansible."""

from __future__ import annotations

import json
import re

import pytest
from runs import REPO, VENV, Controller


def names(folder: str, pattern: str) -> list[str]:
    return sorted(f"livesnap.qemu.{path.stem}" for path in (REPO / folder).glob(pattern))


@pytest.mark.parametrize(
    ("kind", "documented"),
    [
        ("module", names("plugins/modules", "livesnap*.py")),
        ("filter", names("plugins/filter", "[a-z]*.py")),
        ("role", names("roles", "*")),
    ],
)
def test_ansible_doc_renders_all(controller: Controller, kind: str, documented: list[str]) -> None:
    asked = (str(VENV / "ansible-doc"), "-t", kind)
    done = controller.command(*asked, *documented)
    assert done.returncode == 0, done.stdout
    assert len(documented) > 4
    for name in documented:
        assert name.rpartition(".")[2] in done.stdout.lower()
    as_data = controller.command(*asked, "--json", *documented)
    assert sorted(json.loads(as_data.stdout)) == documented
    if kind == "module":
        for heading in ("OPTIONS", "EXAMPLES", "RETURN VALUES"):
            assert len(re.findall(rf"^{heading}\b", done.stdout, re.M)) == len(documented)


def test_the_built_collection_has_the_helpers_sources_and_nothing_generated(
    controller: Controller,
) -> None:
    root = controller.collections / "ansible_collections" / "livesnap" / "qemu"
    assert (root / "native" / "src" / "main.c").exists()
    assert (root / "native" / "Makefile").exists()
    assert not (root / "build").exists()
    assert not (root / "native" / "build").exists()
    assert not list(root.rglob("__pycache__"))
