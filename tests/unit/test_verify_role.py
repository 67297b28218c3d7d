# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which snapshots are checked, and that role and module say the same of the options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.livesnap.qemu.plugins.filter import to_check as filter_plugin
from ansible_collections.livesnap.qemu.plugins.filter.to_check import to_check
from ansible_collections.livesnap.qemu.plugins.module_utils import _options
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.verdict import LEVELS
from test_options import described

REPO = Path(__file__).resolve().parents[2]
ROLE = REPO / "roles" / "consistency_check"
OF_MODULE = {
    option.name: option
    for option in _options.VERIFY
    if option.name not in ("guest", "snapshot", "store")
}
OWN = {"which", "sample", "on_failure", "report", "metrics", "guests", "name", "store", "parallel"}


def snapshot(guest: str, day: int, *verdicts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "guest": guest,
        "name": f"s{day}",
        "created": f"2026-11-{day:02}T01:00:00Z",
        "path": f"/store/{guest}/s{day}",
        "complete": True,
        "in_progress": None,
        "verdicts": list(verdicts),
        **changes,
    }


PASSED = {"level": "structure", "result": "passed", "when": "2026-11-27T01:00:00Z"}
FAILED = {"level": "drill", "result": "failed", "when": "2026-11-27T01:00:00Z"}
STORE = [
    snapshot("a", 4, complete=False, created=None),
    snapshot("a", 9, complete=False, created=None, in_progress={"percent": 3}),
    snapshot("a", 8, complete=False, created=None, path="/store/a/s8.partial"),
    snapshot("a", 3, PASSED),
    snapshot("b", 2, FAILED, PASSED),
    snapshot("a", 2),
    snapshot("b", 1, {**PASSED, "level": "drill"}),
]


def chosen(*options: Any) -> list[str]:
    return [f"{each['guest']}{each['name']}" for each in to_check(STORE, *options)]


def test_which_are_checked() -> None:
    assert chosen() == ["as4", "as3", "bs2"]
    assert chosen("unverified") == ["as4", "bs2", "as2"]
    assert chosen("unverified", "checksum") == ["as4", "bs2", "as2"]
    assert chosen("unverified", "drill") == ["as4", "as3", "bs2", "as2"]
    assert chosen("all") == ["as4", "as3", "bs2", "as2", "bs1"]
    assert chosen("sample", "drill", 9) == chosen("all")
    drawn = {tuple(chosen("sample")) for _unused in range(200)}
    assert drawn == {("as4", a, b) for a in ("as3",) for b in ("bs2", "bs1")} | {
        ("as4", "bs2", "as2"),
        ("as4", "as2", "bs1"),
    }
    assert to_check([]) == []


@pytest.mark.parametrize("wrong", [("some",), ("all", "magic"), ("sample", "drill", 0)])
def test_what_is_no_choice(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(AnsibleFilterError, match="is no choice"):
        to_check(STORE, *wrong)


def specified() -> dict[str, Any]:
    specs = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())
    options: dict[str, Any] = specs["argument_specs"]["main"]["options"]
    return options


def test_the_role_has_every_option_with_the_tables_default() -> None:
    options = {key.removeprefix("consistency_check_"): value for key, value in specified().items()}
    assert set(options) == OWN | set(OF_MODULE)
    assert described(options["store"]) == _options.STORE.spec()
    for name, option in OF_MODULE.items():
        assert described(options[name]) == option.spec(), name
    of_guest = {key: described(value) for key, value in options["guests"]["options"].items()}
    assert of_guest.pop("name") == {"type": "str", "required": True}
    assert of_guest == {
        name: {key: value for key, value in option.spec().items() if key != "default"}
        for name, option in OF_MODULE.items()
    }


def test_the_role_hands_every_option_to_the_module() -> None:
    tasks = yaml.safe_load((ROLE / "tasks" / "check.yml").read_text())
    handed = tasks[0]["block"][0]["livesnap.qemu.livesnap_verify"]
    assert set(handed) == {"guest", "snapshot", "store", *OF_MODULE}
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    for name, option in OF_MODULE.items():
        own = f"consistency_check_own.{name} | default(consistency_check_{name})"
        assert own in handed[name]
        if option.default is None:
            assert f"| default(livesnap_{name}) | default(omit)" in " ".join(handed[name].split())
            continue
        shown = repr(option.default)
        assert defaults[f"consistency_check_{name}"] == (
            f"{{{{ livesnap_{name} | default({shown}) }}}}"
        )


def test_the_filter_knows_the_levels() -> None:
    options = yaml.safe_load(filter_plugin.DOCUMENTATION)["options"]
    assert tuple(options["level"]["choices"]) == LEVELS
    assert tuple(options["which"]["choices"]) == filter_plugin.WHICH
