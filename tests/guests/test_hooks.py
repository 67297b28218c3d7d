# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An operator's commands around a snapshot: when they run, what bounds them, and who owes what."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _recover
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from bracket_kit import Place, clean, fault, helper, well
from lab import Guest

QUICK = {"deadline": 3, "freeze_timeout": 2}


@pytest.fixture
def place(tmp_path: Path, guest: Guest) -> Iterator[Place]:
    yield Place(tmp_path / "store", guest)
    _recover.recover(str(tmp_path / "store"), None, helper())


def host(text: str, **more: Any) -> dict[str, Any]:
    return {"command": ["/bin/sh", "-c", text], **more}


def inside(text: str, **more: Any) -> dict[str, Any]:
    return {**host(text, **more), "where": "guest"}


def said(guest: Guest, path: str) -> str:
    with guest.agent() as agent:
        return str(agent.run("/bin/cat", path))


def test_around_the_instant(guest: Guest, place: Place, tmp_path: Path) -> None:
    log = tmp_path / "log"
    taken = place.take(
        "one",
        before=[inside("echo begun >/tmp/hooks"), host(f"echo $LIVESNAP_GUEST >>{log}")],
        after=[inside("echo ended >>/tmp/hooks"), host(f"date +%s.%N >>{log}"), host("exit 3")],
        **QUICK,
    )
    assert "begun" in said(guest, "/tmp/hooks") and "ended" in said(guest, "/tmp/hooks")
    name, moment = log.read_text().split()
    assert name == "web1"
    created = taken["snapshot"]["created"]
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(float(moment)))
    # After the instant; and one that fails then costs no snapshot.
    assert created[:19] <= stamp
    assert [each for each in taken["warnings"] if "'/bin/sh -c exit 3' ended with status 3" in each]
    assert taken["snapshot"]["consistency"]["level"] == "filesystem"
    well(guest)
    clean(guest)


def test_one_that_fails_or_hangs_before(guest: Guest, place: Place, tmp_path: Path) -> None:
    for number, (bad, why) in enumerate((
        (host("echo no room >&2; exit 4"), "ended with status 4: no room"),
        (host("sleep 60 & sleep 60", timeout=1), "did not end within 1 s"),
        (inside("exit 5"), "in the guest ended with status 5"),
        (inside("sleep 3", timeout=1), "did not end within"),
        ({"command": ["/nowhere/at/all"]}, "No such file"),
    )):  # fmt: skip
        log = tmp_path / f"log{number}"
        begun = time.monotonic()
        with pytest.raises(LivesnapError, match=why):
            place.take("one", before=[bad], after=[host(f"echo x >>{log}")], **QUICK)
        assert time.monotonic() - begun < 10
        assert log.read_text() == "x\n"
        assert place.left() == []
    well(guest)
    clean(guest)


def test_what_cannot_be_is_refused_before_anything(guest: Guest, place: Place) -> None:
    for given, why in (
        ({"before": [{"command": ["fsync"]}]}, "whole path"),
        ({"after": [{"command": []}]}, "whole path"),
        ({"after": [host("true", timeout=0)]}, "too small"),
        ({"before": [inside("true")], "agent_socket": None}, "no agent_socket"),
    ):
        with pytest.raises(LivesnapError, match=why):
            place.spec("one", **given)


@pytest.mark.parametrize(("step", "owed"), [("targets", False), ("freeze", True), ("sweep", False)])
def test_who_dies_owes_what_comes_after(
    step: str, owed: bool, guest: Guest, place: Place, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    hooks = {"before": [host("true")], "after": [host(f"echo x >>{log}")]}
    with fault(step, "KILL"), pytest.raises(LivesnapError):
        place.take("one", **hooks, **QUICK)
    before = log.read_text() if log.exists() else ""
    recovered = place.take("two", **QUICK)["recovered"]
    after = log.read_text() if log.exists() else ""
    assert (len(after) > len(before)) is owed
    told = [line for line in recovered if "ran 1 commands after snapshot 'one'" in line]
    assert bool(told) is owed
    well(guest)
    clean(guest)
