# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for jobs of Ansible's async wrapper: who has ended, who was killed, who still runs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils import _jobs
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError

Begin = Callable[[str, str], dict[str, str]]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """A job that runs: a process with its id among its arguments, and the wrapper's first file."""
    begun = []

    def start(guest: str, number: str) -> dict[str, str]:
        name = f"j{number}.7"
        job = {"guest": guest, "ansible_job_id": name, "results_file": f"{tmp_path}/{guest}"}
        Path(job["results_file"]).write_text(
            json.dumps({"started": 1, "finished": 0, "ansible_job_id": job["ansible_job_id"]})
        )
        # One process, so that its end is the end of it.
        code = "import time; time.sleep(60)"
        begun.append(subprocess.Popen([sys.executable, "-c", code, f"j{number}"]))
        # It is there a moment before the arguments of its program can be seen.
        limit = time.monotonic() + 10
        while f"j{number}" not in Path(f"/proc/{begun[-1].pid}/cmdline").read_text():
            assert time.monotonic() < limit
            time.sleep(0.01)
        return job

    yield start
    for process in begun:
        process.kill()
        process.wait()


def finish(job: dict[str, str], **result: Any) -> None:
    Path(job["results_file"]).write_text(json.dumps({**result, "ansible_job_id": "x"}))


def test_whoever_ends_first(begin: Begin) -> None:
    slow, quick = begin("slow", "881"), begin("quick", "882")
    threading.Timer(0.5, finish, [quick], {"changed": True, "snapshot": {"name": "n"}}).start()
    begun = time.monotonic()
    ended, running = _jobs.wait([slow, quick], 1, 20)
    assert time.monotonic() - begun < 10
    assert ended == [{**quick, "result": {"changed": True, "snapshot": {"name": "n"}}}]
    assert running == [slow]
    assert not Path(quick["results_file"]).exists() and Path(slow["results_file"]).exists()


def test_it_gives_up_and_loses_nothing(begin: Begin) -> None:
    slow, quick = begin("slow", "883"), begin("quick", "884")
    finish(quick, failed=True, msg="locked")
    assert _jobs.wait([slow, quick], 0, seconds=0.3) == ([], [slow, quick])
    assert _jobs.wait([slow, quick], 1, 0)[0][0]["result"] == {"failed": True, "msg": "locked"}


def test_one_that_was_killed_has_failed(begin: Begin, tmp_path: Path) -> None:
    job = {"guest": "web1", "ansible_job_id": "j885.7", "results_file": str(tmp_path / "web1")}
    finish(job, started=1, finished=0)
    lost = {"guest": "db1", "ansible_job_id": "j886.7", "results_file": str(tmp_path / "none")}
    torn = {"guest": "app1", "ansible_job_id": "j887.7", "results_file": str(tmp_path / "torn")}
    Path(torn["results_file"]).write_text('{"changed": tr')
    ended, running = _jobs.wait([job, lost, torn], 0, 0)
    assert running == [] and all(each["result"]["failed"] for each in ended)
    assert ended[0]["result"]["msg"] == ended[1]["result"]["msg"] == _jobs.KILLED
    assert "not valid JSON" in ended[2]["result"]["msg"]


def test_one_that_ends_while_it_is_looked_at_was_not_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"guest": "web1", "ansible_job_id": "j888.7", "results_file": str(tmp_path / "web1")}
    finish(job, started=1, finished=0)

    def ends(_job: Any) -> bool:
        finish(job, changed=True)
        return False

    monkeypatch.setattr(_jobs, "_lives", ends)
    assert _jobs.wait([job], 0, 0)[0] == [{**job, "result": {"changed": True}}]


def test_what_is_no_job_is_refused(tmp_path: Path) -> None:
    bad = {"guest": "web1", "ansible_job_id": "x", "results_file": str(tmp_path / "web1")}
    with pytest.raises(LivesnapError, match="not a job id"):
        _jobs.wait([bad], 0, 0)
