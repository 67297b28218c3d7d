# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheme internal on images that no QEMU has open, with snapshots that qemu-img has made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._disks import captured
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.internal import Internal
from ansible_collections.livesnap.qemu.plugins.module_utils._disks.scheme import (
    Making,
    Share,
    Subject,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.disks import Disk
from ansible_collections.livesnap.qemu.plugins.module_utils._guest.process import QemuProcess

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-img") is None, reason="qemu-img is not installed")
NAME = "livesnap-1a2b"
NO_QMP: Any = None


def qemu_img(*argv: str) -> str:
    done = subprocess.run(["qemu-img", *argv], check=True, capture_output=True, text=True,
                          timeout=60)
    return done.stdout


def disk(file: Path | str, kind: str = "qcow2") -> Disk:
    return Disk(device="", node="n0", qdev="d0", serial="", file=str(file), format=kind,
                virtual_bytes=1 << 20, read_only=False, removable=False, inserted=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Its snapshot has ones, and it twos by now."""
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(path), "1M")
    subprocess.run(["qemu-io", "-c", "write -P 1 0 64k", str(path)], check=True, timeout=60,
                   capture_output=True)
    qemu_img("snapshot", "-c", NAME, str(path))
    subprocess.run(["qemu-io", "-c", "write -P 2 0 64k", str(path)], check=True, timeout=60,
                   capture_output=True)
    return path


def making(folder: Path, image: Path) -> Internal:
    subject = Subject("web1", str(folder), QemuProcess.of(os.getpid()))
    whose = {"id": "1a2b", "guest": "web1", "name": "one", "qmp_socket": str(folder / "none")}
    return Internal(Making(subject, "p-", folder, whose), [Share(0, disk(image))])


def inside(path: Path) -> list[str]:
    about: dict[str, Any] = json.loads(qemu_img("info", "--output=json", str(path)))
    return [each["name"] for each in about.get("snapshots", [])]


def test_copied_out_and_removed_by_qemu_img_where_no_qemu_is(tmp_path: Path, image: Path) -> None:
    made = making(tmp_path, image)
    (found,) = made.entries()
    assert made.actions() == [{"type": "blockdev-snapshot-internal-sync",
                               "data": {"device": "n0", "name": NAME}}]
    target = tmp_path / "target"
    target.touch()
    Internal.fetch(made.making.whose, found, str(target), 30.0)
    read = subprocess.run(["qemu-io", "-c", "read -P 1 0 64k", str(target)], check=True,
                          capture_output=True, text=True, timeout=60)
    assert "failed" not in read.stdout
    for _time in range(2):
        Internal.discard(made.making.whose, found)
        assert inside(image) == []
    with pytest.raises(LivesnapError, match=r"cannot be copied out of .* goes with the image"):
        Internal.fetch(made.making.whose, found, str(target), 30.0)
    image.unlink()
    Internal.discard(made.making.whose, found)


def test_an_image_that_somebody_has_open_is_left_alone(tmp_path: Path, image: Path) -> None:
    made = making(tmp_path, image)
    holder = subprocess.Popen(["qemu-io", str(image)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)
    try:
        assert holder.stdin and holder.stdout
        holder.stdin.write(b"read 0 512\n")
        holder.stdin.flush()
        assert b"512" in holder.stdout.readline()
        with pytest.raises(LivesnapError, match=r"cannot be removed from .*lock"):
            Internal.discard(made.making.whose, made.entries()[0])
    finally:
        holder.kill()
        holder.wait()
        for pipe in (holder.stdin, holder.stdout):
            if pipe:
                pipe.close()
    assert inside(image) == [NAME]


def test_what_cannot_have_one_is_refused(tmp_path: Path, image: Path) -> None:
    subject = making(tmp_path, image).making.subject
    Internal.check(subject, NO_QMP, [disk(image)])
    outside = tmp_path / "outside.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", str(outside), "1M")
    for each, why in ((disk(image, "raw"), "its format is 'raw', not qcow2"),
                      (disk("nbd://h/x"), "'nbd://h/x' is not a file"),
                      (disk(outside), "has a data file of its own"),
                      (disk(tmp_path / "none"), "cannot be read")):
        with pytest.raises(RefusedError, match=why):
            Internal.check(subject, NO_QMP, [each])


def test_the_result_will_say_that_it_does_not_survive(image: Path) -> None:
    assert captured.warnings([(disk(image), "internal")]) == [Internal.WARNING]
    assert captured.warnings([(disk(image), "backup")]) == []
