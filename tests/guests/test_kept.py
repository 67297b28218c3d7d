# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Boots that the laboratory keeps: RAM and disks belong together, and who wants one boots."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import DiskSpec, Guest, disk_state, judge, kept

SMALL: dict[str, Any] = {"memory": 128, "buffer": 8}


def test_the_third_of_a_kind_goes_on_from_the_second(make_guest: Callable[..., Guest]) -> None:
    disks = (DiskSpec(), DiskSpec(format="qcow2"))
    with kept.shelf():
        guests = [make_guest(**SMALL, name=f"g{number}", disks=disks) for number in range(3)]
        boots = [guest.witness()["boot"] for guest in guests]
        assert boots[0] != boots[1] == boots[2]
        for guest in guests[1:]:
            guest.counts()
            assert guest.devices().items() >= {"disk0": "ok", "disk1": "ok"}.items()
        last = guests[2]
        with last.look() as qmp:
            nodes = [each["node-name"] for each in qmp.execute("query-named-block-nodes")]
            assert not [node for node in nodes if node.startswith("lab-")]
            assert qmp.execute("query-jobs") == []
        last.shut_down()
        assert judge(None, [disk_state(path) for path in last.disk_paths]) == ""
        # One that has run, or whose disk somebody has changed, boots.
        mark = last.serial_log.stat().st_size
        last.start()
        assert last.wait_counting(mark)["boot"] not in boots
        changed = Guest(**SMALL, disks=disks)
        try:
            changed.disk_paths[0].touch()
            assert changed.start().witness()["boot"] not in boots
        finally:
            changed.stop()


def test_one_that_cannot_be_saved_runs_on(
    make_guest: Callable[..., Guest], tmp_path: Path
) -> None:
    shared = f"memory-backend-file,id=shared,size=1M,share=on,mem-path={tmp_path}/shared"
    args = ("-object", shared, "-device", "ivshmem-plain,memdev=shared,master=off")
    with kept.shelf():
        guests = [make_guest(**SMALL, args=args) for _unused in range(2)]
        assert guests[1].counts()["intact"]
        assert not list(Path(os.environ[kept.SHELF]).glob("*/kept"))
