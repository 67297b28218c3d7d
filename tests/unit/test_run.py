# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test runner counts honestly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests"))

import footprint  # noqa: E402
import lanes  # noqa: E402
import run as runner  # noqa: E402

CMOCKA = """[==========] Running 3 test(s).
[ RUN      ] test_good
[       OK ] test_good
[ RUN      ] test_bad
[  FAILED  ] test_bad
[ RUN      ] test_absent
SKIP test_absent: no /dev/userfaultfd
[  SKIPPED ] test_absent
[==========] 3 test(s) run.
[  FAILED  ] test_bad
"""


def test_cmocka_output_is_counted_test_by_test(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(CMOCKA)
    found = {result.name: result for result in runner.native_results("t", log, 1, 2.0)}
    assert {name: result.outcome for name, result in found.items()} == {
        "t::test_good": "passed",
        "t::test_bad": "failed",
        "t::test_absent": "skipped",
    }
    assert found["t::test_absent"].reason == "no /dev/userfaultfd"


def test_a_program_that_leaves_before_its_first_test_is_no_pass(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("SKIP test_attach: needs root\n")
    found = runner.native_results("t", log, 0, 0.1)
    assert [(each.outcome, each.reason) for each in found] == [("skipped", "needs root")]


def test_a_program_that_dies_without_a_word_has_failed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("[       OK ] test_good\n")
    outcomes = [result.outcome for result in runner.native_results("t", log, -11, 0.1)]
    assert "failed" in outcomes


def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    assert runner.run(["sleep", "60"], tmp_path / "log", 1) == 124


def test_an_interrupt_ends_what_runs_and_begins_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "interrupted", threading.Event())
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(runner.run, ["sleep", "60"], tmp_path / "log", 50)
        deadline = time.monotonic() + 5
        while not runner.running:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        runner.interrupt()
        assert code.result(timeout=5) == -signal.SIGINT
    assert runner.run(["touch", str(tmp_path / "begun")], tmp_path / "log", 5) == 130
    assert not (tmp_path / "begun").exists()


def test_footprint_names_what_appeared_and_what_went() -> None:
    lines = footprint.difference({"mounts": {"a", "b"}}, {"mounts": {"b", "c"}})
    assert lines == ["mounts: new: c", "mounts: gone: a"]


def test_a_detached_process_is_found_by_its_mark() -> None:
    process = subprocess.Popen(
        ["sleep", "30"], env={footprint.MARK: "of-this-test"}, start_new_session=True
    )
    try:
        # Popen returns a moment before the kernel shows the new program's arguments.
        deadline = time.monotonic() + 5
        while not any("sleep 30" in line for line in footprint.marked_processes("of-this-test")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert not footprint.marked_processes("of-this-test")


def test_a_lane_leaves_out_what_others_change(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = set(footprint.take())
    monkeypatch.setenv(footprint.OTHERS, "KSM,/dev/shm")
    assert set(footprint.take()) == whole - {"KSM", "/dev/shm"}
    monkeypatch.setenv(footprint.OTHERS, "KSN")
    with pytest.raises(ValueError, match="KSN"):
        footprint.take()
    assert set(lanes.OF_OTHERS.split(",")) < whole


def test_every_file_is_in_one_piece() -> None:
    order = lanes.order(["guests", "integration"])
    pieces = order.merging + order.beside + order.alone
    assert sorted(path for piece in pieces for path in piece.paths) == sorted(
        path
        for tier in ("guests", "integration")
        for path in (REPO / "tests" / tier).glob("test_*.py")
    )
    assert len({piece.name for piece in pieces}) == len(pieces)
    integration = lanes.order(["integration"])
    assert integration.merging + integration.alone == []


def test_what_switches_ksm_meets_no_capture() -> None:
    """There is one KSM for all lanes."""
    merging = {path for piece in lanes.order(["guests"]).merging for path in piece.paths}
    tests = REPO / "tests" / "guests"
    assert merging == {path for path in tests.glob("test_*.py") if "ksm: Ksm" in path.read_text()}
    native = REPO / "native" / "tests"
    assert {path.name for path in native.glob(f"{lanes.MERGING_PREFIX}*.c")} == {
        path.name for path in native.glob("test_*.c") if "ksm_on()" in path.read_text()
    }


def test_steps_hold_every_tier_once() -> None:
    tiers = ["lint", "unit", "native", "guests", "integration"]
    real = ["native", "guests", "integration"]
    assert runner.sequences(tiers) == [[["lint"]], [["unit"], real]]
    assert runner.sequences(["guests"]) == [[["guests"]]]
    assert runner.sequences(["lint"]) == [[["lint"]]]


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
def test_a_lane_has_folders_of_its_own() -> None:
    name = f"livesnap-lane-{os.getpid()}"
    words = subprocess.run(
        [
            str(lanes.LANE),
            "sh",
            "-c",
            f"cd /usr/local && touch /run/{name} {name} && ls /run . && echo ${{LIVESNAP_LANE-no}}",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    ).stdout.split()
    assert words.count(name) == 2 and words[-1] == "no"
    assert not Path("/run", name).exists() and not Path("/usr/local", name).exists()
    failed = subprocess.run([str(lanes.LANE), "sh", "-c", "exit 7"], check=False, timeout=10)
    assert failed.returncode == 7
