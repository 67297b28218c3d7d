# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test guest's kernel and initramfs, and whether it boots under KVM."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .errors import LabError

REPO = Path(__file__).resolve().parents[3]
OUT = REPO / "build" / "images"
# A guest that works under KVM prints its first line well within a second.
KVM_LIMIT = 10.0


@dataclass(frozen=True)
class Images:
    """Where kernel and initramfs are. packed: the kernel as distributed, a bzImage."""

    kernel: Path
    packed: Path
    initrd: Path


@functools.cache
def images() -> Images:
    """Kernel and initramfs; builds them first, from apt's sources, if their inputs changed."""
    done = subprocess.run(
        [str(REPO / "tests" / "images" / "build"), str(OUT)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise LabError(f"the test guest could not be built:\n{done.stdout}{done.stderr}")
    return Images(OUT / "kernel.img", OUT / "vmlinuz", OUT / "initrd.img")


def put_images(folder: Path, packed: bool = False) -> None:
    """Kernel and initramfs into the folder: the checkout need not be readable for QEMU."""
    found = images()
    kernel = found.packed if packed else found.kernel
    # cp leaves out the holes, which are two fifths of a kernel.
    subprocess.run(["cp", kernel, folder / "kernel.img"], check=True, timeout=60)
    subprocess.run(["cp", found.initrd, folder / "initrd.img"], check=True, timeout=60)


def _boots_under_kvm() -> bool:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    found = images()
    with tempfile.NamedTemporaryFile(prefix="livesnap-kvm-") as log:
        argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "pc,accel=kvm",
                "-cpu", "host", "-m", "128", "-display", "none", "-no-reboot",
                "-kernel", str(found.kernel), "-initrd", str(found.initrd),
                "-append", "console=ttyS0 quiet lab.mib=4", "-serial", "stdio"]
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log.fileno(), stderr=subprocess.DEVNULL,
            start_new_session=True)
        try:
            # Some hosts hang in the firmware, some abort: only the guest's own words count.
            process.wait(timeout=KVM_LIMIT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.wait()
        return b"lab up after" in Path(log.name).read_bytes()


@functools.cache
def kvm_works() -> bool:
    """True if a test guest really boots under KVM; asked once for each boot of the machine."""
    answer = OUT / "kvm.json"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        known = json.loads(answer.read_text())
        if known["boot"] == boot:
            return bool(known["works"])
    except (OSError, ValueError, KeyError):
        pass
    works = _boots_under_kvm()
    answer.write_text(json.dumps({"boot": boot, "works": works}))
    return works
