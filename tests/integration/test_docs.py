# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection says of itself, seen through Ansible."""

from __future__ import annotations

import json

import pytest
from runs import REPO, VENV, Controller

MODULES = sorted(path.stem for path in (REPO / "plugins" / "modules").glob("livesnap*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_ansible_doc_renders_each_module(controller: Controller, name: str) -> None:
    doc = str(VENV / "ansible-doc")
    done = controller.command(doc, f"livesnap.qemu.{name}")
    assert done.returncode == 0, done.stdout
    for heading in ("OPTIONS", "EXAMPLES", "RETURN VALUES"):
        assert heading in done.stdout
    as_data = controller.command(doc, "--json", f"livesnap.qemu.{name}")
    assert json.loads(as_data.stdout)[f"livesnap.qemu.{name}"]["doc"]["module"] == name


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("filter", "outcome"),
        ("filter", "report"),
        ("filter", "simulate"),
        ("filter", "slot"),
        ("filter", "summary"),
        ("filter", "to_check"),
        ("filter", "within"),
        ("role", "consistency_check"),
        ("role", "host"),
        ("role", "retention"),
        ("role", "schedule"),
        ("role", "snapshot"),
    ],
)
def test_ansible_doc_renders_the_rest(controller: Controller, kind: str, name: str) -> None:
    done = controller.command(str(VENV / "ansible-doc"), "-t", kind, f"livesnap.qemu.{name}")
    assert done.returncode == 0, done.stdout
    assert name in done.stdout.lower()


def test_the_built_collection_has_the_helpers_sources_and_nothing_generated(
    controller: Controller,
) -> None:
    root = controller.collections / "ansible_collections" / "livesnap" / "qemu"
    assert (root / "native" / "src" / "main.c").exists()
    assert (root / "native" / "Makefile").exists()
    assert not (root / "build").exists()
    assert not (root / "native" / "build").exists()
    assert not list(root.rglob("__pycache__"))
