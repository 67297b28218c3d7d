# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each option and each return value has a test: tests/options.yml, held against the modules."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.livesnap.qemu.plugins.module_utils import _options

TESTS = Path(__file__).resolve().parents[1]
TABLE: dict[str, dict[str, dict[str, str]]] = yaml.safe_load((TESTS / "options.yml").read_text())


def returned(module: str) -> dict[str, Any]:
    found = importlib.import_module(f"ansible_collections.livesnap.qemu.plugins.modules.{module}")
    documented: dict[str, Any] = yaml.safe_load(found.RETURN)
    return documented


def test_the_table_has_every_module() -> None:
    assert set(TABLE) == set(_options.MODULES)


@pytest.mark.parametrize("module", sorted(_options.MODULES))
def test_every_option_and_return_value_has_a_test(module: str) -> None:
    specified = set(_options.argument_spec(module)) - set(_options.INTERNAL)
    assert set(TABLE[module]["options"]) == specified
    assert set(TABLE[module]["returns"]) == set(returned(module))


@pytest.mark.parametrize(
    ("what", "where"),
    [
        (f"{module}.{name}", where)
        for module, kinds in TABLE.items()
        for names in kinds.values()
        for name, where in names.items()
    ],
)
def test_the_test_is_there_and_speaks_of_it(what: str, where: str) -> None:
    file, _sep, function = where.partition("::")
    text = (TESTS / file).read_text()
    functions = {
        node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)
    }
    assert function in functions
    # Results as a whole are compared with the documentation, field by field.
    name = what.rpartition(".")[2]
    assert name in text or "undocumented(returned(" in text
