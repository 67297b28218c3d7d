# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host merges the guest's pages, or QEMU gives them back, while a whole snapshot is taken.

Both take the protection of RAM away behind the helper's back. It is prevented, or the snapshot is
thrown away with that reason; there is never a torn one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from bracket_kit import clean, in_child, read, run_dir, wait, well
from ksm import Ksm
from lab import Guest
from taking import TestStore, verdict

#: So that the sweep lasts some seconds, and most of RAM is still to be saved in it.
SLOW: dict[str, Any] = {
    "bandwidth": 20 << 20,
    "staging": "32M",
    "compression": "none",
    "freeze": "never",
}
FILL = "/run/fill"
FILL_MIB = 80
PAGES = FILL_MIB << 20 >> 12


@pytest.fixture(scope="module")
def full() -> Iterator[Guest]:
    """A guest whose RAM is mostly a file in memory, all pages of which are equal and not zero.

    Its kernel gives pages to the balloon as they are: by default it would fill them with zeros
    first, and a page that is written to is saved before. The buffer is small: soon saved, and then
    the guest does not wait for the slow sweep any more.
    """
    with Guest(
        name="full",
        cpus=2,
        buffer=16,
        kernel_arguments="init_on_alloc=0",
        args=("-device", "virtio-balloon-pci,id=balloon0"),
    ) as guest:
        with guest.agent() as agent:
            agent.run(
                "/bin/sh",
                "-c",
                "yes | head -c 1048576 >/run/part; "
                f"for i in $(seq {FILL_MIB}); do cat /run/part; done >{FILL}; rm /run/part",
            )
        yield guest


def merged(guest: Guest) -> int:
    """How many of the guest's pages the host has merged."""
    return int(Path(f"/proc/{guest.pid}/ksm_merging_pages").read_text())


@contextlib.contextmanager
def in_the_sweep(guest: Guest, act: Callable[[], Any]) -> Iterator[None]:
    """Around a snapshot: acts when its sweep has begun, and has done so well at the end."""

    def work() -> None:
        folder = wait(lambda: run_dir(guest), 30, 0.005)
        wait(lambda: read(folder / "progress.json").get("phase") == "sweep", 30, 0.005)
        act()

    child = in_child(work)
    try:
        yield
    finally:
        status = os.waitpid(child, 0)[1]
    assert status == 0


def thrown_away(guest: Guest, store: TestStore, name: str) -> None:
    """There is nothing of the snapshot, the guest is well, and the next snapshot is right."""
    folder = store.path / guest.options.name
    assert not folder.exists() or list(folder.iterdir()) == [], name
    well(guest)
    clean(guest)
    result = store.take(guest, "next", freeze="never")
    assert verdict(guest, result, guest.witness()["pages"]) == ""
    guest.counts()


def test_merging_is_paused(full: Guest, store: TestStore, ksm: Ksm) -> None:
    """ksm: pause, the default. RAM that is merged already is captured like any other."""
    ksm.switch_on()
    wait(lambda: merged(full) > PAGES // 2, 30)
    before = full.counts()

    def still_paused() -> None:
        assert not ksm.runs()
        time.sleep(1.0)
        assert run_dir(full), "the sweep was over too early for this test"
        assert not ksm.runs()

    with in_the_sweep(full, still_paused):
        result = store.take(full, "paused", **{**SLOW, "bandwidth": 60 << 20})
    wait(ksm.runs, 5)
    assert result["snapshot"]["complete"]
    assert verdict(full, result, full.witness()["pages"]) == ""
    assert full.counts()["boot"] == before["boot"]
    well(full)
    clean(full)


def test_merging_is_refused(full: Guest, store: TestStore, ksm: Ksm) -> None:
    """ksm: refuse. Nothing is touched, KSM neither."""
    ksm.switch_on()
    with pytest.raises(LivesnapError, match="KSM is running and may merge the guest's RAM"):
        store.take(full, "refused", freeze="never", ksm="refuse")
    assert ksm.runs()
    well(full)
    clean(full)
    assert not (store.path / full.options.name / "refused").exists()


def test_merging_begins_in_the_sweep(full: Guest, store: TestStore, ksm: Ksm) -> None:
    """Somebody switches it on who knows nothing of us: merged pages have no protection any more."""
    assert merged(full) == 0
    with (
        in_the_sweep(full, ksm.switch_on),
        pytest.raises(LivesnapError, match="lost their write protection before they were saved"),
    ):
        store.take(full, "merged", **SLOW)
    # It was not ours to switch off.
    assert ksm.runs()
    thrown_away(full, store, "merged")


def test_the_balloon_is_inflated_in_the_sweep(full: Guest, store: TestStore) -> None:
    """QEMU discards (MADV_DONTNEED) pages that the guest gives up, before they are saved."""
    size = full.options.memory << 20
    with full.agent() as agent:
        agent.run("/bin/rm", "-f", FILL)

    def inflate() -> None:
        with full.look() as qmp:
            qmp.execute("balloon", {"value": size - (96 << 20)})

    with (
        in_the_sweep(full, inflate),
        pytest.raises(
            LivesnapError, match=r"discarded RAM of block 'pc\.ram' .* before it was saved"
        ),
    ):
        store.take(full, "inflated", **SLOW)
    thrown_away(full, store, "inflated")
    with full.look() as qmp:
        assert qmp.execute("query-balloon")["actual"] < size
        qmp.execute("balloon", {"value": size})
        wait(lambda: qmp.execute("query-balloon")["actual"] == size, 10)
    full.counts()
