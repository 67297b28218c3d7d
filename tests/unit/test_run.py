# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test runner counts honestly."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests"))

import footprint  # noqa: E402
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
