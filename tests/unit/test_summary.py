# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run tells of its guests, and when it counts as failed."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.plugin_utils._summary import (
    OUTCOMES,
    outcome,
    summary,
)
from hypothesis import given
from hypothesis import strategies as st

SNAPSHOT: dict[str, Any] = {
    "id": "4a6f1f5e",
    "name": "hourly-20261123T0100Z",
    "consistency": {"level": "filesystem"},
    "timings": {"freeze_ms": 41.24, "pause_ms": 12.9, "total_s": 4.82},
    "memory": {"stored_bytes": 1 << 20, "fault_us": {"max": 402.0}},
    "disks": [{"stored_bytes": 1 << 20}, {"stored_bytes": 0}],
}
TOOK = {"snapshot": SNAPSHOT, "actions": ["took snapshot 'x' of guest 'web1'"]}


def test_each_outcome() -> None:
    taken = outcome(TOOK, "web1")
    assert (taken["outcome"], taken["stall_ms"], taken["stored_bytes"]) == ("taken", 0.402, 2 << 20)
    assert outcome({**TOOK, "actions": ["set labels"]}, "web1")["outcome"] == "unchanged"
    check = {**TOOK, "snapshot": {**SNAPSHOT, "id": None, "timings": None, "memory": None}}
    assert outcome(check, "web1")["outcome"] == "predicted"
    skipped = outcome({"skip_reason": "off", "snapshot": None, "skipped": True}, "web1")
    assert (skipped["outcome"], skipped["reason"]) == ("skipped", "off")
    by_condition = {"skip_reason": "Conditional result was False", "false_condition": "x"}
    skipped = outcome({**by_condition, "skipped": True}, "web1")
    assert skipped["reason"] == "its turn came outside of the time window"
    assert outcome({"failed": True, "msg": "locked"}, "web1")["reason"] == "locked"
    assert outcome({"unreachable": True}, "web1")["outcome"] == "failed"
    late = outcome({"failed": True, "msg": "x", "timedout": {"period": 60}}, "web1")
    assert "within 60 s" in late["reason"] and "livesnap_info" in late["reason"]


def test_failures_are_last_and_loud() -> None:
    broken = outcome({"failed": True, "msg": "locked"}, "app1")
    told = summary([broken, outcome(TOOK, "web1")])
    assert told["lines"] == [
        "taken      web1: hourly-20261123T0100Z, filesystem, frozen 41.2 ms, paused 12.9 ms,"
        " stalled 0.4 ms, 2.0 MiB, 4.8 s",
        "FAILED     app1: locked",
    ]
    assert told["failures"] == ["app1: locked"]
    assert told["counted"] == [
        {"guest": "web1", "outcome": "taken"},
        {"guest": "app1", "outcome": "failed"},
    ]
    assert told["guests"]["app1"]["reason"] == "locked"


@pytest.mark.parametrize(
    ("policy", "broken", "failed"),
    [
        ("any", 0, False), ("any", 1, True), ("none", 4, False), ("25%", 1, False),
        ("25%", 2, True), ("0%", 1, True), ("100%", 4, False), ("0 %", 0, False),
    ],
)  # fmt: skip
def test_policies_of_four_guests(policy: str, broken: int, failed: bool) -> None:
    outcomes = [outcome({"failed": True} if n < broken else TOOK, f"g{n}") for n in range(4)]
    assert summary(outcomes, policy)["failed"] is failed


@pytest.mark.parametrize("policy", ["", "some", "101%", "-1%", "1.5%", "%", "25"])
def test_what_is_no_policy_is_an_error(policy: str) -> None:
    with pytest.raises(ValueError, match="any, none or a percentage"):
        summary([], policy)


@given(st.lists(st.booleans(), max_size=20), st.integers(0, 100))
def test_no_more_than_the_share_may_fail(broken: list[bool], share: int) -> None:
    outcomes = [outcome({"failed": True} if bad else TOOK, f"g{n}") for n, bad in enumerate(broken)]
    told = summary(outcomes, f"{share}%")
    assert told["failed"] is (sum(broken) * 100 > share * len(broken))
    kinds = [one["outcome"] for one in told["counted"]]
    assert kinds == sorted(kinds, key=OUTCOMES.index)
    assert sum(told["counts"].values()) == len(broken)
