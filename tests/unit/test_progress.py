# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the action plugin waits, and when it says something."""

from __future__ import annotations

import itertools
import subprocess
import time
from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.plugin_utils import _progress


def poll(path: Path, job: str, seconds: float) -> str:
    line = _progress.poll_line(str(path), job, seconds)
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, check=True, timeout=20
    )
    return _progress.read_poll(done.stdout)[0]


def test_waits_grow_from_two_to_thirty_seconds() -> None:
    waits = list(itertools.islice(_progress.waits(), 12))
    assert waits[0] == 2
    assert waits[-1] == 30
    assert waits == sorted(waits)


def test_a_line_at_each_ten_percent() -> None:
    steps = _progress.Steps()
    due = [
        percent for percent in (0, 3, 9.9, 10, 12, 19, 35, 36, 100, 100, 101) if steps.due(percent)
    ]
    assert due == [10, 35, 100]


def test_what_a_line_says() -> None:
    pace = _progress.Pace()
    assert pace.left(0.0, 100.0) is None
    assert pace.left(0.0, 110.0) is None
    assert pace.left(25.0, 120.0) == 60.0
    assert pace.left(75.0, 130.0) == 10.0
    assert pace.left(101.0, 140.0) == 0.0
    found = {"percent": 40.2, "done_bytes": 40 << 20, "total_bytes": 100 << 20}
    assert _progress.describe(found, None) == "40 %, 40 of 100 MiB"
    assert _progress.describe(found, 9.4) == "40 %, 40 of 100 MiB, 9 s left"
    assert _progress.describe({"percent": 1}, 125.0) == "1 %, 2 min 5 s left"


def test_a_job_that_ended_is_seen_at_once(tmp_path: Path) -> None:
    file = tmp_path / "job"
    file.write_text('{"changed": true, "note": "started"}')
    since = time.monotonic()
    assert poll(file, "j1.2", 10) == "done"
    assert time.monotonic() - since < 2


def test_a_job_that_runs_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "job"
    file.write_text('{"started": true, "finished": false}')
    with subprocess.Popen(["sh", "-c", "sleep 20; :", "j4711"]) as process:
        try:
            since = time.monotonic()
            assert poll(file, "j4711.99", 1) == "running"
            assert time.monotonic() - since >= 0.9
        finally:
            process.kill()


def test_a_job_that_was_killed_is_told_from_one_that_runs(tmp_path: Path) -> None:
    file = tmp_path / "job"
    file.write_text('{"started": true, "finished": false}')
    assert poll(file, "j998877.1", 1) == "gone"


def test_progress_that_is_half_written_is_left_for_the_next_poll() -> None:
    state, found = _progress.read_poll(
        'state=running\n{"guest": "a", "percent": 10}\n{"guest": "b", "per\n'
    )
    assert state == "running"
    assert found == [{"guest": "a", "percent": 10}]


@pytest.mark.parametrize("job", ["", "j1; reboot", "1", "j1.2.3"])
def test_what_is_no_job_never_reaches_a_shell(job: str) -> None:
    with pytest.raises(ValueError, match="job id"):
        _progress.poll_line("/x", job, 1)


def test_progress_of_snapshots_and_of_checks_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "RUN_ROOT", str(tmp_path))
    for folder, name in (("guest/7-1", "made"), ("verify/web1/checked", "checked")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "progress.json").write_text(f'{{\n"name": "{name}"}}\n')
    (tmp_path / "job").write_text("{}")
    line = _progress.poll_line(str(tmp_path / "job"), "j1.2", 1)
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True)
    assert [one["name"] for one in _progress.read_poll(done.stdout)[1]] == ["made", "checked"]
