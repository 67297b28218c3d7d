# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a test run may leave behind on a machine, so that before and after can be compared."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

# Every process of a run inherits this variable, detached ones too: that tells its own from others'.
MARK = "LIVESNAP_TEST_RUN"
# Kinds, parted by commas, that others on the machine change at the same time.
OTHERS = "LIVESNAP_TEST_OTHERS"


def _tree(root: str) -> set[str]:
    return {str(path) for path in Path(root).rglob("*")} if Path(root).exists() else set()


def _files(root: str) -> set[str]:
    """All but folders: the empty rooms of a program in /run stay until the machine is rebooted."""
    return {name for name in _tree(root) if os.path.islink(name) or not os.path.isdir(name)}


def _lines(*argv: str) -> set[str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return set(done.stdout.splitlines()) if done.returncode == 0 else set()


def _mounts() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="ascii", errors="replace").splitlines()
    return {" ".join(line.split()[3:5]) for line in lines}


def _ksm() -> set[str]:
    """How the machine merges pages: tests switch it on, and snapshots off."""
    names = ("run", "pages_to_scan", "sleep_millisecs", "smart_scan")
    paths = [Path("/sys/kernel/mm/ksm") / name for name in names]
    return {f"{path.name} is {path.read_text().strip()}" for path in paths if path.exists()}


def marked_processes(mark: str) -> set[str]:
    """Processes that carry the run's mark, other than this one and its ancestors."""
    own = set()
    pid = os.getpid()
    while pid > 1:
        own.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    found = set()
    # A lane's mark begins with that of the run.
    needle = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in own:
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            if not any(variable.startswith(needle) for variable in variables):
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if command:
            found.add(f"{entry.name}: {command[:120]}")
    return found


_KINDS: dict[str, Callable[[], set[str]]] = {
    "mounts": _mounts,
    "loop devices": lambda: _lines("losetup", "--noheadings", "--output", "NAME,BACK-FILE"),
    "network namespaces": lambda: _lines("ip", "netns", "list"),
    "/run/livesnap": lambda: _files("/run/livesnap"),
    "/usr/local": lambda: _tree("/usr/local"),
    "/var/lib/livesnap": lambda: _tree("/var/lib/livesnap"),
    "/dev/shm": lambda: _tree("/dev/shm"),
    # The tests' libvirtd has its own.
    "libvirt": lambda: _tree("/etc/libvirt") | _tree("/var/lib/libvirt") | _tree("/run/libvirt"),
    "KSM": _ksm,
}


def take() -> dict[str, set[str]]:
    """Everything but processes and what others change, as sets of names."""
    others = set(filter(None, os.environ.get(OTHERS, "").split(",")))
    if others - set(_KINDS):
        raise ValueError(f"{OTHERS} names what is not compared: {others - set(_KINDS)}")
    return {kind: find() for kind, find in _KINDS.items() if kind not in others}


def difference(before: dict[str, set[str]], after: dict[str, set[str]]) -> list[str]:
    """One line for each thing that appeared or went."""
    found = []
    for kind, names in before.items():
        found += [f"{kind}: new: {name}" for name in sorted(after[kind] - names)]
        found += [f"{kind}: gone: {name}" for name in sorted(names - after[kind])]
    return found
