# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine that a libvirtd of the tests sees; lab.libvirtd runs this program, nobody imports it.

virthost.py FOLDER kvm|nokvm [ROOT], as root and in a mount namespace of its own. It puts the
folder's parts where libvirt has its own, starts a libvirtd for each line that it reads, answers
with the pid, and at the end of its input kills whatever came of them. With ROOT, the tree of
another system, libvirtd is that one's, and sees nothing of this machine but its devices and /tmp.

It is also what init is to them: QEMU belongs to no libvirtd, and outlives it. libvirt waits for
each QEMU that it ends until nothing is left of it, and the init of a container may take seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

PLACES = {"etc": "/etc/libvirt", "run": "/run/libvirt", "lib": "/var/lib/libvirt",
          "log": "/var/log/libvirt", "cache": "/var/cache/libvirt"}
_PR_SET_CHILD_SUBREAPER = 36


def _mount(*argv: str) -> None:
    subprocess.run(["mount", *argv], stdin=subprocess.DEVNULL, check=True)


def _cover(parent: Path, room: Path) -> None:
    """What is made in parent from now on is nobody else's."""
    room.mkdir(parents=True)
    # On a tmpfs, as the upper layer cannot be on every file system; it goes with the namespace.
    _mount("-t", "tmpfs", "livesnap-lab", str(room))
    for name in ("upper", "work"):
        (room / name).mkdir()
    _mount("-t", "overlay", "-o", f"lowerdir={parent},upperdir={room}/upper,workdir={room}/work",
           "livesnap-lab", str(parent))


def _other_system(folder: Path, tree: Path) -> Path:
    """That tree with a machine around it; what is written to it goes with the namespace."""
    root = folder / "system"
    root.mkdir()
    _mount("--bind", str(tree), str(root))
    _cover(root, folder / "covers" / "system")
    for name in ("proc", "sys", "dev"):
        _mount("--rbind", f"/{name}", str(root / name))
    _mount("--bind", "/tmp", str(root / "tmp"))
    _mount("-t", "tmpfs", "livesnap-lab", str(root / "run"))
    return root


def arrange(folder: Path, kvm: bool, tree: Path | None) -> Path:
    """All mounts; the root of whoever is started."""
    root = Path("/")
    if not kvm and os.path.exists("/dev/kvm"):
        # A KVM that root can open and QEMU's user cannot makes libvirt probe QEMU again and again.
        hidden = folder / "nokvm"
        hidden.touch(mode=0o000)
        _mount("--bind", str(hidden), "/dev/kvm")
    if tree is not None:
        root = _other_system(folder, tree)
    for name, target in PLACES.items():
        place = root / target.lstrip("/")
        if tree is not None:
            place.mkdir(parents=True, exist_ok=True)
        elif not place.is_dir():
            # Made on the machine itself, it would have to be removed again, and that takes
            # everybody's mounts off it: of another test run, too.
            _cover(place.parent, folder / "covers" / name)
            place.mkdir()
        _mount("--bind", str(folder / name), str(place))
    return root


def _children() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                stat = (entry / "stat").read_text(errors="replace")
                if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(entry.name))
    return found


def _reap() -> bool:
    """All the dead; False if there are no living either."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def serve(folder: Path, root: Path) -> None:
    """Until the end of input."""
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_unused: None)
    with (folder / "out").open("ab") as out:
        while True:
            ready = select.select([0, awake], [], [])[0]
            if awake in ready:
                os.read(awake, 4096)
                _reap()
            if 0 in ready:
                if not os.read(0, 4096):
                    return
                within = ["chroot", str(root)] if root != Path("/") else []
                process = subprocess.Popen(
                    [*within, "libvirtd", "--config", "/etc/libvirt/libvirtd.conf",
                     "--pid-file", "/run/libvirt/libvirtd.pid"],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out)
                print(process.pid, flush=True)


def main() -> None:
    folder = Path(sys.argv[1])
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    root = arrange(
        folder, sys.argv[2] == "kvm", Path(sys.argv[3]) if len(sys.argv) > 3 else None)
    try:
        serve(folder, root)
    finally:
        # The children of those that are killed come here, and are next.
        while _reap():
            for pid in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)


if __name__ == "__main__":
    main()
