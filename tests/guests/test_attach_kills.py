# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The attacher dies at each of its steps, in a guest that works: nobody notices.

The steps are those that the helper lists itself; one that no case here passes fails the last test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import layout
import pytest
from bracket_kit import open_files
from capture_by_hand import Capture, CaptureFailed
from lab import Guest

DEVICE = "livesnap-test-uffd"
LS_ABORTED = 3
# Calls that only one way makes; every other step is on all of them.
ONLY = {
    "attach.socketpair.": "inject",
    "attach.recvmsg.": "inject",
    "attach.sent": "inject",
    "attach.userfaultfd.": "syscall",
}
_tested: set[str] = set()


@pytest.fixture(scope="module")
def faulty() -> Path:
    """The helper with fault points."""
    layout.make_native("faults")
    return layout.NATIVE / "build" / "livesnap-helper-faults"


@pytest.fixture(scope="module")
def deviceless(faulty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same where there is no /dev/userfaultfd, as before Linux 6.1."""
    script = tmp_path_factory.mktemp("deviceless") / "helper"
    script.write_text(
        "#!/bin/sh\n"
        "exec unshare -m sh -c 'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && "
        f'exec {faulty} "$@"\' sh "$@"\n'
    )
    script.chmod(0o755)
    return script


@pytest.fixture(scope="module")
def victim(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A guest at work, as an ordinary user in QEMU's sandbox, or as root."""
    options = {"user": "nobody", "sandbox": True} if request.param == "sandboxed" else {}
    with Guest(memory=128, **options) as guest:
        yield guest


def points(helper: Path) -> list[str]:
    """Every step of attaching."""
    listed = subprocess.run([str(helper), "faults"], check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.split() if name.startswith("attach.")]


def on_the_way(point: str, way: str) -> bool:
    if way == "syscall" and point.startswith("attach.ioctl."):
        return False
    return all(way == only for start, only in ONLY.items() if point.startswith(start))


def descriptors(guest: Guest) -> dict[str, str]:
    """Number and target of each open file of QEMU, but for connections of monitors."""
    return {
        name: what
        for name, what in open_files(guest.pid).items()
        if not what.startswith("socket:") or _is_seqpacket(guest, what[8:-1])
    }


def _is_seqpacket(guest: Guest, inode: str) -> bool:
    """Stream sockets come and go with the tests' own monitor; an attacher leaves type 5."""
    for line in Path(f"/proc/{guest.pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[6] == inode:
            return fields[4] == "0005"
    return False


def masks(guest: Guest) -> dict[str, str]:
    """Blocked signals of each thread."""
    found = {}
    for task in Path(f"/proc/{guest.pid}/task").iterdir():
        try:
            text = (task / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[task.name] = text.partition("SigBlk:")[2].split()[0]
    return found


def threads(guest: Guest) -> dict[str, int]:
    with guest.look() as qmp:
        cpu = qmp.execute("query-cpus-fast")[0]["thread-id"]
    assert guest.pid is not None
    return {"main": guest.pid, "vcpu": cpu}


def eventually_equal(
    read: Callable[[], dict[str, str]], wanted: dict[str, str], what: str, when: str
) -> None:
    """Worker threads come and go, so only what was there before counts."""
    for _try in range(100):
        now = read()
        common = {key: value for key, value in now.items() if key in wanted}
        if all(common[key] == wanted[key] for key in common) and (what == "masks" or now == wanted):
            return
        time.sleep(0.02)
    gone = {key: value for key, value in wanted.items() if now.get(key) != value}
    new = {key: value for key, value in now.items() if wanted.get(key) != value}
    raise AssertionError(f"{what}: {gone} became {new}, {when}")


@dataclass(frozen=True)
class Attempt:
    """To capture a guest, attaching one way."""

    helper: Path
    guest: Guest
    image: Path
    way: str

    def _capture(self, env: dict[str, str] | None = None) -> Capture:
        attach = "inject" if self.way == "inject" else "device"
        return Capture(self.helper, self.guest, self.image, attach=attach, env=env)

    def die(self, thread: int, point: str, action: str) -> None:
        """It loses its attacher, and perhaps itself, at the point."""
        capture = self._capture(
            {"LIVESNAP_FAULT": f"{point}:{action}", "LIVESNAP_ATTACH_THREAD": str(thread)}
        )
        if action == "kill":
            with pytest.raises(CaptureFailed) as caught:
                capture.expect("attached")
            assert caught.value.event["reason"] == "attacher", (point, caught.value.event)
            assert capture.wait() != 0
        else:
            assert capture.wait() == -signal.SIGKILL, point
        assert not self.image.exists()
        with self.guest.look() as qmp:
            assert qmp.execute("query-status")["running"], point
            if self.way != "inject":
                qmp.execute("closefd", {"fdname": DEVICE})

    def succeed(self) -> None:
        """The next run finds nothing in its way, and leaves nothing."""
        capture = self._capture()
        capture.attached()
        capture.say(request="abort")
        with pytest.raises(CaptureFailed):
            capture.expect("done")
        assert capture.wait() == LS_ABORTED
        assert not self.image.exists()


# userfaultfd(2) is not for an ordinary user, so that way is tested as root; the others on the
# guest that makes it harder, and on both in the long run.
CASES = [("sandboxed", "device"), ("sandboxed", "inject"), ("root", "syscall")]
if os.environ.get("ROUNDS", "short") != "short":
    CASES += [("root", "device"), ("root", "inject")]


@pytest.mark.parametrize(("victim", "way"), CASES, indirect=["victim"])
@pytest.mark.parametrize("thread", ["main", "vcpu"])
def test_each_step(
    request: pytest.FixtureRequest, victim: Guest, tmp_path: Path, way: str, thread: str
) -> None:
    faulty: Path = request.getfixturevalue("faulty")
    helper = request.getfixturevalue("deviceless") if way == "syscall" else faulty
    attempt = Attempt(helper, victim, tmp_path / "ram.lsnap", way)
    tid = threads(victim)[thread]
    opened, blocked = descriptors(victim), masks(victim)
    for number, point in enumerate(points(faulty)):
        if not on_the_way(point, way):
            continue
        action = ("kill", "killboth")[(number + (thread == "vcpu")) % 2]
        attempt.die(tid, point, action)
        _tested.add(point)
        eventually_equal(lambda: masks(victim), blocked, "masks", point)
        if action == "kill":  # otherwise the next run closes what was left
            eventually_equal(lambda: descriptors(victim), opened, "descriptors", point)
    assert victim.counts()["intact"]
    attempt.succeed()
    eventually_equal(lambda: masks(victim), blocked, "masks", "at the end")
    eventually_equal(lambda: descriptors(victim), opened, "descriptors", "at the end")
    assert victim.counts()["intact"]


def test_every_point_has_a_case(faulty: Path) -> None:
    assert set(points(faulty)) == _tested
