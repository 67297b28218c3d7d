# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the checkout is, the tree in which it is found as a collection, and what tests import."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
COLLECTIONS = REPO / "build" / "collections"
NATIVE = REPO / "native"


def link_collection() -> None:
    """A tree with one symbolic link, in which Python and Ansible find the collection."""
    link = COLLECTIONS / "ansible_collections" / "livesnap" / "qemu"
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.resolve() == REPO:
        return
    fresh = link.with_name(f"qemu.{os.getpid()}")
    fresh.symlink_to(REPO)
    fresh.replace(link)


def make_native(target: str) -> None:
    """Has native/ up to date; RuntimeError with make's words if it can't be built."""
    build = NATIVE / "build"
    build.mkdir(exist_ok=True)
    # Tests that run side by side would write the same objects.
    with (build / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            ["make", "-s", "-j2", "-C", str(NATIVE), target],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"make {target} failed:\n{done.stdout}{done.stderr}")


def reach_libvirt() -> None:
    """Makes the distribution's python3-libvirt importable, if nothing else brings a libvirt.

    The package is built for the libvirt that is installed; pip would have to compile one, for
    which nothing else needs the headers. Its folder has much more in it: last in the path, it
    replaces nothing of the virtual environment, and pytest has found its plugins before.
    """
    if importlib.util.find_spec("libvirt") is None:
        sys.path.append("/usr/lib/python3/dist-packages")
