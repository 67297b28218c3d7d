# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules, roles and documentation say the same of an option as the one table."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.livesnap.qemu.plugins.module_utils import _options
from ansible_collections.livesnap.qemu.plugins.module_utils._bracket.spec import SnapshotSpec

REPO = Path(__file__).resolve().parents[2]
ROLE = REPO / "roles" / "snapshot"
SNAPSHOT = {option.name: option for option in _options.SNAPSHOT}


def module(name: str) -> Any:
    return importlib.import_module(f"ansible_collections.livesnap.qemu.plugins.modules.{name}")


def described(documented: dict[str, Any]) -> dict[str, Any]:
    """An option of documentation or of a role's specification, as an argument spec has it."""
    spec: dict[str, Any] = {"type": documented.get("type", "str")}
    for key in ("required", "default", "elements", "choices"):
        if documented.get(key) is not None:
            spec[key] = documented[key]
    inner = documented.get("suboptions", documented.get("options"))
    if inner:
        spec["options"] = {name: described(value) for name, value in inner.items()}
    return spec


def documented_options(name: str) -> dict[str, Any]:
    """The options that ansible-doc shows for a module: its own, and those of its fragments."""
    own = yaml.safe_load(module(name).DOCUMENTATION)
    found: dict[str, Any] = {}
    for fragment in own["extends_documentation_fragment"]:
        file, _dot, part = fragment.removeprefix("livesnap.qemu.").partition(".")
        where = f"ansible_collections.livesnap.qemu.plugins.doc_fragments.{file}"
        text = getattr(
            importlib.import_module(where).ModuleDocFragment, (part or "documentation").upper()
        )
        found.update(yaml.safe_load(text)["options"])
    assert not set(found) & set(own.get("options") or {})
    found.update(own.get("options") or {})
    return {key: value for key, value in found.items() if key not in _options.INTERNAL}


@pytest.mark.parametrize("name", sorted(_options.MODULES))
def test_documentation_says_what_the_table_says(name: str) -> None:
    documented = documented_options(name)
    assert {key: described(value) for key, value in documented.items()} == {
        option.name: option.spec() for option in _options.MODULES[name]
    }


@pytest.mark.parametrize("name", sorted(_options.MODULES))
def test_every_module_has_examples_and_a_sample_for_each_return_value(name: str) -> None:
    assert yaml.safe_load(module(name).EXAMPLES)

    def check(values: dict[str, Any], path: str) -> None:
        for key, value in values.items():
            assert value.get("description"), f"{path}{key}"
            assert "sample" in value or "contains" in value, f"{path}{key}"
            check(value.get("contains") or {}, f"{path}{key}.")

    check(yaml.safe_load(module(name).RETURN), "")


def test_every_module_is_routed_to_the_action_plugin() -> None:
    routed = yaml.safe_load((REPO / "meta" / "runtime.yml").read_text())["plugin_routing"][
        "modules"
    ]
    modules = {path.stem for path in (REPO / "plugins" / "modules").glob("livesnap*.py")}
    assert set(routed) == modules == set(_options.MODULES)
    assert {value["action_plugin"] for value in routed.values()} == {"livesnap.qemu.livesnap"}


def test_the_snapshot_takes_every_option_with_the_tables_default() -> None:
    params = {option.name: option.default for option in _options.SNAPSHOT}
    spec = SnapshotSpec.of({**params, "guest": "g", "name": "n", "qmp_socket": "/q", "disks": []})
    for option in _options.SNAPSHOT:
        if option.name in ("state", "staging", "disks", "guest", "name", "qmp_socket"):
            continue
        assert getattr(spec, option.name) == option.default, option.name


def test_the_role_has_every_option_with_the_tables_default() -> None:
    options = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"][
        "main"
    ]["options"]
    own = {
        "snapshot_auto",
        "snapshot_fail_when",
        "snapshot_guest_timeout",
        "snapshot_guests",
        "snapshot_interval",
        "snapshot_jitter",
        "snapshot_metrics",
        "snapshot_slot",
        "snapshot_name",
        "snapshot_parallel",
        "snapshot_schedule",
        "snapshot_select",
        "snapshot_timezone",
        "snapshot_window",
    }
    of_role = {
        f"snapshot_{name}": option.spec()
        for name, option in SNAPSHOT.items()
        if option.role and name not in ("qmp_socket", "agent_socket", "schedule")
    }
    assert {key: described(value) for key, value in options.items() if key not in own} == of_role
    assert set(options) - set(of_role) == own


def test_a_guest_of_the_role_has_every_option() -> None:
    options = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"][
        "main"
    ]["options"]
    of_guest = {
        name: {key: value for key, value in option.spec().items() if key != "default"}
        for name, option in SNAPSHOT.items()
        if name not in ("guest", "name", "state", "slot", "schedule")
    }
    found = {key: described(value) for key, value in options["snapshot_guests"]["options"].items()}
    assert found.pop("name") == {"type": "str", "required": True}
    assert found.pop("guest_timeout") == {"type": "int"}
    assert found == of_guest


def test_the_role_hands_every_option_to_the_module() -> None:
    tasks = yaml.safe_load((ROLE / "tasks" / "guest.yml").read_text())
    handed = tasks[0]["block"][0]["livesnap.qemu.livesnap"]
    assert set(handed) == set(SNAPSHOT) - {"state"}
    for name, option in SNAPSHOT.items():
        if option.role and name != "schedule":
            assert f"snapshot_guest.{name} | default(" in handed[name]


def test_the_roles_defaults_are_the_tables() -> None:
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    for name, option in SNAPSHOT.items():
        if option.role and option.default is not None:
            shown = option.default
            if isinstance(shown, bool):
                shown = str(shown).lower()
            text = f"'{shown}'" if option.type in ("str", "path") else str(shown)
            assert defaults[f"snapshot_{name}"] == f"{{{{ livesnap_{name} | default({text}) }}}}"
