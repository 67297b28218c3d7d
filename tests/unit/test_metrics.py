# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics of stores on real files, judged by Prometheus' own promtool, and alert rules on them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from ansible_collections.livesnap.qemu.plugins.module_utils import _metrics
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._store import listing
from ansible_collections.livesnap.qemu.plugins.module_utils._store.layout import Store
from ansible_collections.livesnap.qemu.plugins.module_utils._store.manifest import TIMINGS
from ansible_collections.livesnap.qemu.plugins.module_utils._verify.verdict import PASSED, make
from debs import Program, Unavailable
from hypothesis import given
from hypothesis import strategies as st
from layout import REPO
from test_prune import put

ALERTS = REPO / "docs" / "livesnap-alerts.yml"
# Debian 12's.
PROMTOOL = Program(
    "promtool",
    "2.42.0",
    "pool/main/p/prometheus/prometheus_2.42.0+ds-5+deb12u1_amd64.deb",
    "81d59a24fce84f7fbe97a45a4f2914b6a5881b5cd1db2a6a0e129e515e1a5f55",
)
FAILED = [{"guest": "web1", "outcome": "failed"}]
TAKEN = [{"guest": "web1", "outcome": "taken"}]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    root = tmp_path / "store"
    root.mkdir(mode=0o711)
    return Store(str(root))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "livesnap.prom"


@pytest.fixture(scope="session")
def promtool() -> Path:
    try:
        return PROMTOOL.path()
    except Unavailable as reason:
        pytest.skip(str(reason))


def run(*argv: str | Path, given: str = "", cwd: Path = REPO) -> str:
    done = subprocess.run(
        [str(word) for word in argv],
        input=given, cwd=cwd, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def values(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line.rsplit(" ", 1) for line in lines)  # type: ignore[misc]


def test_what_the_store_holds(store: Store, path: Path, promtool: Path) -> None:
    checked = [
        make("structure", "failed", "2026-11-20T00:00:00Z", "0.1.0", {}),
        make("drill", PASSED, "2026-11-22T00:00:00Z", "0.1.0", {}),
        "not one",
    ]
    put(store, "old", 9, state={"verdicts": checked})
    timings = dict.fromkeys(TIMINGS, 1.5)
    put(store, "new", 1, timings={**timings, "pause_ms": 12.5, "freeze_ms": None, "total_s": 4.8})
    damaged = put(store, "damaged", 0)
    (damaged / "manifest.json").write_text("{}")
    store.begin("web1", "making")
    found = _metrics.write(str(store.root), str(path), TAKEN, True)
    assert found["changed"] and path.read_text() == found["metrics"]
    assert path.stat().st_mode & 0o777 == 0o644
    label = '{guest="web1",uuid="' + listing.look(store, "web1", "new")["uuid"] + '"}'
    seen = values(found["metrics"])
    assert abs(int(seen["livesnap_last_run_timestamp_seconds"]) - time.time()) < 60
    stamp = float(seen["livesnap_last_snapshot_timestamp_seconds" + label])
    assert abs(stamp - (time.time() - 3600)) < 60
    assert seen["livesnap_last_snapshot_pause_seconds" + label] == "0.012500"
    assert seen["livesnap_last_snapshot_duration_seconds" + label] == "4.800000"
    assert "livesnap_last_snapshot_freeze_seconds" + label not in seen
    assert seen["livesnap_last_snapshot_stored_bytes" + label] == "5"
    assert seen["livesnap_snapshots" + label] == "2"
    assert seen["livesnap_damaged_snapshots" + label] == "1"
    assert seen["livesnap_last_verdict_timestamp_seconds" + label] == "1795305600"
    assert seen["livesnap_last_verdict_ok" + label] == "1"
    assert run(promtool, "check", "metrics", given=found["metrics"]) == ""


def test_counters_go_on_and_check_mode_writes_nothing(store: Store, path: Path) -> None:
    for outcomes in (TAKEN, FAILED, FAILED):
        _metrics.write(str(store.root), str(path), outcomes, True)
    before = path.read_bytes()
    predicted = _metrics.write(str(store.root), str(path), TAKEN, False)
    assert path.read_bytes() == before and predicted["changed"]
    seen = values(path.read_text())
    assert seen['livesnap_runs_total{guest="web1",outcome="failed"}'] == "2"
    assert seen['livesnap_runs_total{guest="web1",outcome="taken"}'] == "1"
    assert seen['livesnap_last_run_failed{guest="web1"}'] == "1"
    after = values(predicted["metrics"])
    assert after['livesnap_runs_total{guest="web1",outcome="taken"}'] == "2"
    assert after['livesnap_last_run_failed{guest="web1"}'] == "0"


def test_only_runs_that_take_snapshots_are_runs(store: Store, path: Path) -> None:
    """What prunes or checks says what the store holds, and no more."""
    assert _metrics.write(str(store.root), str(path), None, True)["metrics"] == ""
    put(store, "new", 1)
    seen = values(_metrics.write(str(store.root), str(path), None, True)["metrics"])
    assert seen and not [name for name in seen if "run" in name]
    text = _metrics.write(str(store.root), str(path), TAKEN, True)["metrics"]
    line = "livesnap_last_run_timestamp_seconds "
    earlier = re.sub(f"^{line}.*$", f"{line}1795309203", text, flags=re.M)
    assert earlier != text
    path.write_text(earlier)
    after = _metrics.write(str(store.root), str(path), None, True)
    assert (after["metrics"], after["changed"]) == (earlier, False)


def test_a_reader_never_sees_half_a_file(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _metrics.write(str(store.root), str(path), TAKEN, True)
    before = path.read_bytes()

    def full(*_words: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(LivesnapError, match="No space left"):
        _metrics.write(str(store.root), str(path), TAKEN, True)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()].count(path.name) == 1
    assert not list(path.parent.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("name", "why"),
    [("livesnap.txt", "ends in .prom"), ("nowhere/livesnap.prom", "does not exist")],
)
def test_paths_that_nobody_reads(store: Store, tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(LivesnapError, match=why):
        _metrics.write(str(store.root), str(tmp_path / name), [], True)


def test_what_is_not_ours_is_not_replaced(store: Store, path: Path, tmp_path: Path) -> None:
    path.write_text("node_foo 1\n")
    with pytest.raises(LivesnapError, match="not written by livesnap"):
        _metrics.write(str(store.root), str(path), [], True)
    path.unlink()
    path.symlink_to(tmp_path / "other")
    (tmp_path / "other").write_text("")
    with pytest.raises(LivesnapError):
        _metrics.write(str(store.root), str(path), [], True)


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.booleans(), max_size=4))
def test_any_name_of_a_guest_comes_back(guests: dict[str, bool]) -> None:
    # Lines end where splitlines() says so; names with such characters are refused elsewhere.
    known = {name: bad for name, bad in guests.items() if len(f"{name}.".splitlines()) == 1}
    runs = _metrics.Runs()
    runs.add([
        {"guest": name, "outcome": "failed" if bad else "taken"} for name, bad in known.items()
    ], 1)  # fmt: skip
    again = _metrics.Runs.of_text(_metrics.render([], runs))
    assert again == runs


def test_the_rules_fire_when_they_should(promtool: Path, tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path)
    shutil.copy(Path(__file__).with_name("alerts_test.yml"), tmp_path)
    assert "SUCCESS" in run(promtool, "check", "rules", ALERTS)
    assert "SUCCESS" in run(promtool, "test", "rules", tmp_path / "alerts_test.yml")
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    tested = (tmp_path / "alerts_test.yml").read_text()
    assert [rule["alert"] for rule in rules if rule["alert"] not in tested] == []


def test_rules_and_documentation_know_every_metric() -> None:
    text = (REPO / "docs" / "metrics.md").read_text()
    assert [name for name in _metrics.METRICS if f"`{name}`" not in text] == []
