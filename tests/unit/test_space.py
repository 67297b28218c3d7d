# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a snapshot fits, and how much of the store has to stay free."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import (
    LivesnapError,
    RefusedError,
)
from ansible_collections.livesnap.qemu.plugins.module_utils._store import space
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(0, 1 << 45), st.integers(0, 1 << 45))
def test_estimate_is_never_below_the_data(allocated: int, virtual: int) -> None:
    assert space.qcow2_bytes(allocated, virtual) >= min(allocated, virtual)


def test_space_is_refused_with_all_figures(tmp_path: Path) -> None:
    space.check(tmp_path, 0, 0, "0")
    with pytest.raises(RefusedError, match=r"RAM 8 EiB.*disks 1 GiB.*free are \S+ \S+;"):
        space.check(tmp_path, 8 << 60, 1 << 30, "0")
    with pytest.raises(RefusedError, match=r"RAM 1 KiB.*are to stay free \(reserve '100%'\)"):
        space.check(tmp_path, 1 << 10, 0, "100%")


@pytest.mark.parametrize(("reserve", "bytes_"), [
    ("0", 0), ("20G", 20 << 30), ("5%", 50), (" 2.5 % ", 25), ("100%", 1000),
])  # fmt: skip
def test_a_reserve_is_a_size_or_a_part(reserve: str, bytes_: int) -> None:
    assert space.reserved(reserve, 1000) == bytes_


@pytest.mark.parametrize("reserve", ["101%", "-1", "much", "%", "5%%", "5 % of it"])
def test_other_reserves_are_quoted(reserve: str) -> None:
    with pytest.raises(LivesnapError, match=f"reserve '{reserve}'"):
        space.reserved(reserve, 1000)


def images(folder: Path, **sizes: int) -> dict[str, str]:
    for name, size in sizes.items():
        (folder / name).write_bytes(b"x" * size)
    return {name: str(folder / name) for name in sizes}


def test_images_of_the_guest_count_as_far_as_others_have_them(tmp_path: Path) -> None:
    store = tmp_path / "one"
    store.mkdir()
    images(store, ram=4096)
    here = images(tmp_path, golden=40960, base=16384, above=8192)
    layer = images(tmp_path, **{"base.livesnap-0123abcd.qcow2": 12288})
    source = {"file": here["base"], "format": "qcow2", "below": [here["golden"], "/gone"]}
    disk = {"scheme": "overlay", "source": source, "covered": here["base"]}
    both = 16384 + 40960
    # Merged, the two give back the smaller one at most.
    over = {**disk, "overlay": here["above"]}
    assert space.held(store, [over]) == space.Held(4096 + 8192, both - 8192)
    # Nothing covers it: the first image of the disk stays.
    assert space.held(store, [{**disk, "overlay": None}]) == space.Held(4096, both)
    left = {**disk, "overlay": None, "covered": layer["base.livesnap-0123abcd.qcow2"]}
    assert space.held(store, [left]) == space.Held(4096 + 12288, 40960)
    # What is inside of an image leaves it as long as it was.
    inside = {"scheme": "internal", "source": source}
    assert space.held(store, [inside]) == space.Held(4096, both)
    for scheme in ("backup", "command", "reflink"):
        assert space.held(store, [{"scheme": scheme, "source": source}]) == space.Held(4096, 0)
    device = {"scheme": "internal", "source": {"file": "/dev/null", "format": "raw"}}
    network = {"scheme": "internal", "source": {"file": "nbd://h/x", "format": "raw"}}
    assert space.held(store, [device, network, over, over]).own == 4096 + 2 * 8192
