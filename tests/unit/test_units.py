# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes."""

from __future__ import annotations

import pytest
from ansible_collections.livesnap.qemu.plugins.module_utils._errors import LivesnapError
from ansible_collections.livesnap.qemu.plugins.module_utils._units import format_size, parse_size
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (4096, 4096),
        ("512", 512),
        ("64M", 64 << 20),
        ("64m", 64 << 20),
        ("64 MiB", 64 << 20),
        ("64MB", 64 << 20),
        ("1.5G", 3 << 29),
        ("9007199254740993", 9007199254740993),
        ("512B", 512),
        ("2T", 2 << 40),
    ],
)
def test_parse(text: object, size: int) -> None:
    assert parse_size(text) == size  # type: ignore[arg-type]


def test_default_unit() -> None:
    assert parse_size("256", "M") == 256 << 20
    assert parse_size("256k", "M") == 256 << 10


@pytest.mark.parametrize("text", ["", "M", "-1", "1X", "1.M", "1e3", "8E", "0x10", "1 0", True])
def test_refuse(text: object) -> None:
    with pytest.raises(LivesnapError) as caught:
        parse_size(text, what="staging")  # type: ignore[arg-type]
    assert f"staging '{text}'" in caught.value.msg


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (256 << 20, "256 MiB"),
        (1234567, "1.18 MiB"),
        (1 << 62, "4 EiB"),
    ],
)
def test_format(count: int, text: str) -> None:
    assert format_size(count) == text


@given(st.integers(0, (1 << 63) - 1))
def test_format_is_near(count: int) -> None:
    if count < (1 << 63) - (1 << 58):
        assert abs(parse_size(format_size(count)) - count) <= count * 0.01
