# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Role retention and playbook simulate.yml say the same of a policy as the one table of options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible_collections.livesnap.qemu.plugins.module_utils import _options
from test_options import described

REPO = Path(__file__).resolve().parents[2]
ROLE = REPO / "roles" / "retention"
KEEP = {option.name: option for option in _options.KEEP}


def specified() -> dict[str, Any]:
    specs = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())
    options: dict[str, Any] = specs["argument_specs"]["main"]["options"]
    return options


def test_the_role_has_every_option_with_the_tables_default() -> None:
    options = specified()
    of_guest = {
        key: described(value) for key, value in options.pop("retention_guests")["options"].items()
    }
    assert described(options.pop("retention_metrics")) == {"type": "str", "default": ""}
    assert {key: described(value) for key, value in options.items()} == {
        f"retention_{option.name}": option.spec() for option in (_options.STORE, *_options.KEEP)
    }
    assert of_guest.pop("name") == {"type": "str", "required": True}
    assert of_guest == {
        name: {key: value for key, value in option.spec().items() if key != "default"}
        for name, option in KEEP.items()
    }


def test_the_role_hands_every_option_to_the_module() -> None:
    tasks = yaml.safe_load((ROLE / "tasks" / "guest.yml").read_text())
    handed = tasks[0]["block"][0]["livesnap.qemu.livesnap_prune"]
    assert set(handed) == {"store", "guest", *KEEP}
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    for name, option in KEEP.items():
        assert f"retention_own.{name} | default(retention_{name})" in handed[name]
        if option.default is None:
            assert f"| default(livesnap_{name}) | default(omit)" in handed[name]
            continue
        shown = repr(option.default) if option.type == "str" else str(option.default).lower()
        assert defaults[f"retention_{name}"] == f"{{{{ livesnap_{name} | default({shown}) }}}}"


def test_the_simulation_is_given_every_rule() -> None:
    (play,) = yaml.safe_load((REPO / "playbooks" / "simulate.yml").read_text())
    rules = {name for name in KEEP if name.startswith("keep_")} - {"keep_when"}
    assert set(play["vars"]["simulate_policy"]) == rules | {"group_by"}
    for name, value in play["vars"]["simulate_policy"].items():
        assert f"livesnap_{name} | default(" in value
