# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every kind of memory that QEMU gives a guest: of one instant, and the same memory afterwards.

Huge pages are not broken, and holes are holes in the guest and in the image.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hugepages import NoHugePages, free_pages, hugetlbfs, pool
from lab import Guest, ram_state
from lab.thp import collapse
from taking import TestStore, folder_of, helper, verdict

MIB = 1 << 20
MEMORY = 256
# What a guest of that size that does nothing but count takes for itself meanwhile.
GROWTH = 16 * MIB
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Memory:
    """What a QEMU has of its guest's RAM in memory, by the kernel's count. Bytes.

    RAM is every mapping of half of it or more that is not code: QEMU's heap and the translations of
    TCG, which come and go, are left out.
    """

    def __init__(self, guest: Guest) -> None:
        self.mapped = 0
        self.huge = 0  # of transparent huge pages
        self.files = 0  # what the files hold that are mapped, by any process
        inside = False
        for line in Path(f"/proc/{guest.pid}/smaps").read_text().splitlines():
            key, _unused, rest = line.partition(" ")
            if re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", key):
                start, end = (int(text, 16) for text in key.split("-"))
                inside = end - start >= MEMORY // 2 * MIB and rest.startswith("rw-")
                if inside and rest.split()[3] != "0":
                    file = os.stat(f"/proc/{guest.pid}/map_files/{start:x}-{end:x}")
                    self.files += file.st_blocks * 512
            elif inside and rest.endswith(" kB"):
                size = int(rest.split()[0]) * 1024
                self.huge += size if key == "AnonHugePages:" else 0
                if key in ("Rss:", "Shared_Hugetlb:", "Private_Hugetlb:"):
                    self.mapped += size


def image_of(result: dict[str, Any]) -> dict[str, Any]:
    """What the helper says of a snapshot's RAM image."""
    done = subprocess.run([helper(), "info", str(folder_of(result))], check=True,
                          capture_output=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def take(guest: Guest, store: TestStore) -> tuple[dict[str, Any], Memory]:
    """A snapshot that is right and leaves the memory as it was; and how that was.

    RAM has holes before, and they are neither filled nor in the image.
    """
    pages = guest.witness()["pages"]
    before = Memory(guest)
    assert 96 * MIB < before.mapped < (MEMORY - 32) * MIB, "no holes: the test would show nothing"
    result = store.take(guest, "one", freeze="never")
    after = Memory(guest)
    assert result["snapshot"]["engine"] == "uffd"
    assert verdict(guest, result, pages) == ""
    guest.counts()
    print(f"{guest.options.name}: before {vars(before)}, after {vars(after)}")
    # Less would be memory that was lost, or a mapping that was cut into pieces.
    assert before.mapped <= after.mapped <= before.mapped + GROWTH
    assert before.files <= after.files <= before.files + GROWTH
    assert after.huge >= before.huge * 0.95
    info = image_of(result)
    assert info["ram_bytes"] - info["zero_bytes"] <= before.mapped + GROWTH
    assert info["file_bytes"] <= before.mapped + GROWTH
    return result, before


def test_anonymous_in_huge_pages(make_guest: Callable[..., Guest], store: TestStore) -> None:
    if "[never]" in THP.read_text():
        pytest.skip(f"{THP} says never")
    guest = make_guest(name="thp", memory=MEMORY, buffer=96)
    collapse(guest)  # the host may have had no free ones when it booted
    _unused, before = take(guest, store)
    assert before.huge > 96 * MIB, "QEMU's RAM is not in huge pages"


def test_anonymous_in_small_pages(make_guest: Callable[..., Guest], store: TestStore) -> None:
    guest = make_guest(name="small", memory=MEMORY, buffer=96, thp=False)
    _unused, before = take(guest, store)
    assert before.huge == 0


def test_memfd(make_guest: Callable[..., Guest], store: TestStore) -> None:
    guest = make_guest(
        name="memfd", memory=MEMORY, buffer=96, machine_options="memory-backend=ram0",
        args=("-object", f"memory-backend-memfd,id=ram0,size={MEMORY}M,share=on"))
    _unused, before = take(guest, store)
    assert before.files > before.mapped * 0.9, "RAM is not in a file"


def nodes(first: str, second: str) -> tuple[str, ...]:
    """Two NUMA nodes of half of the memory, each with a backend of its own."""
    size = f"size={MEMORY // 2}M"
    return ("-object", f"{first},id=ram0,{size}", "-numa", "node,nodeid=0,memdev=ram0",
            "-object", f"{second},id=ram1,{size}", "-numa", "node,nodeid=1,memdev=ram1")


def on_both_nodes(result: dict[str, Any]) -> None:
    """The witness had pages in either backend: the verdict was about both."""
    with tempfile.TemporaryDirectory(prefix="livesnap-nodes-", dir="/tmp") as raw:
        out = Path(raw) / "blocks"
        subprocess.run([helper(), "export", "--format", "raw", str(folder_of(result)), str(out)],
                       check=True, capture_output=True, timeout=60)
        for name in ("ram0", "ram1"):
            (block,) = [path for path in out.iterdir() if path.name.endswith(name)]
            assert block.stat().st_size == MEMORY // 2 * MIB
            assert ram_state(block).pages, f"the witness has no page in {name}"


def brought_back(guest: Guest, store: TestStore) -> None:
    """A clone counts on."""
    before = guest.counts()
    with store.clone(guest, "one") as clone:
        assert clone.counts(limit=30.0)["boot"] == before["boot"]


def test_numa_with_tmpfs(make_guest: Callable[..., Guest], store: TestStore) -> None:
    with tempfile.TemporaryDirectory(prefix="livesnap-ram-", dir="/dev/shm") as folder:
        file = Path(folder) / "ram"
        guest = make_guest(
            name="numa", memory=MEMORY, buffer=112,
            args=nodes("memory-backend-ram", f"memory-backend-file,mem-path={file},share=on"))
        result, before = take(guest, store)
        on_both_nodes(result)
        assert 16 * MIB < before.files < (MEMORY // 2 - 24) * MIB, "the file has no holes"
        assert file.stat().st_blocks * 512 <= before.files + GROWTH
        brought_back(guest, store)


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """A pool that the guest's RAM fits in, holes and all."""
    try:
        with pool(MEMORY // 2):
            yield
    except NoHugePages as err:
        pytest.skip(str(err))


@pytest.mark.usefixtures("huge_pages")
def test_numa_with_hugetlbfs(store: TestStore) -> None:
    with hugetlbfs() as folder, Guest(
        name="huge", memory=MEMORY, buffer=112,
        args=nodes(f"memory-backend-file,mem-path={folder},share=off",
                   "memory-backend-memfd,hugetlb=on,hugetlbsize=2M,share=on"),
    ) as guest:
        free = free_pages()
        result, before = take(guest, store)
        on_both_nodes(result)
        # The private node has nothing in its file, the shared one has holes.
        assert 16 * MIB < before.files < (MEMORY // 2 - 24) * MIB
        assert free - GROWTH // (2 * MIB) <= free_pages() <= free
        sizes = {block["name"].rpartition("/")[2]: block["page_size"]
                 for block in image_of(result)["blocks"]}
        assert sizes["ram0"] == sizes["ram1"] == 2 * MIB
        brought_back(guest, store)
