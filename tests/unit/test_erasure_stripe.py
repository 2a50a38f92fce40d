from __future__ import annotations

import pytest

from erasure.errors import LayoutError
from erasure.stripe import HEADER_BYTES, StripeLayout

MIB = 1 << 20


def test_a_large_object_over_eight_rows() -> None:
    layout = StripeLayout(2 * MIB + 1000, 8, MIB)
    assert layout.stripes == 3
    assert layout.full_block_bytes == MIB // 8
    assert [layout.stripe_bytes(i) for i in range(3)] == [MIB, MIB, 1000]
    assert [layout.block_bytes(i) for i in range(3)] == [131072, 131072, 125]
    assert layout.frame_offset(2) == HEADER_BYTES + 2 * (131072 + 16)
    assert layout.shard_file_bytes == layout.frame_offset(2) + 16 + 125


def test_blocks_are_rounded_up_to_64_and_the_last_row_padded() -> None:
    layout = StripeLayout(3 * MIB, 12, MIB)
    assert layout.full_block_bytes == 87_424
    slices = layout.data_slices(0)
    assert slices[:11] == [(row, 87_424) for row in range(11)]
    assert slices[11] == (11, MIB - 11 * 87_424)
    assert layout.block_bytes(2) == 87_382, "the last stripe is as long as its data needs"


def test_rows_beyond_a_short_stripe_are_padding() -> None:
    layout = StripeLayout(9, 8, MIB)
    assert layout.block_bytes(0) == 2
    assert layout.data_slices(0) == [(0, 2), (1, 2), (2, 2), (3, 2), (4, 1), (5, 0), (6, 0), (7, 0)]


@pytest.mark.parametrize("size", [1, 7, 8, 9, 100_000])
def test_inline_needs_no_stripe_size_of_its_own(size: int) -> None:
    for stripe in (size, MIB):
        layout = StripeLayout(size, 8, stripe)
        assert layout.stripes == 1
        assert layout.block_bytes(0) == -(-size // 8)


def test_an_empty_object_is_a_header() -> None:
    layout = StripeLayout(0, 8, MIB)
    assert layout.stripes == 0
    assert layout.shard_file_bytes == HEADER_BYTES
    assert layout.stripes_for(0, 0) == range(0)
    with pytest.raises(LayoutError, match="stripe 0 of 0"):
        layout.block_bytes(0)


def test_stripes_for_ranges() -> None:
    layout = StripeLayout(2 * MIB + 1000, 8, MIB)
    assert layout.stripes_for(0, 1) == range(1)
    assert layout.stripes_for(MIB - 1, MIB + 1) == range(2)
    assert layout.stripes_for(MIB, 2 * MIB) == range(1, 2)
    assert layout.stripes_for(0, layout.size_bytes) == range(3)
    assert list(layout.stripes_for(5, 5)) == []


@pytest.mark.parametrize(("start", "end"), [(-1, 4), (5, 4), (0, 11), (11, 11)])
def test_ranges_outside_the_object(start: int, end: int) -> None:
    with pytest.raises(LayoutError):
        StripeLayout(10, 2, 4).stripes_for(start, end)


@pytest.mark.parametrize("figures", [(-1, 1, 1), (1, 0, 1), (1, 1, 0), (1 << 63, 1, 1)])
def test_impossible_layouts(figures: tuple[int, int, int]) -> None:
    with pytest.raises(LayoutError):
        StripeLayout(*figures)


@pytest.mark.parametrize("stripe", [-1, 3])
def test_stripes_that_do_not_exist(stripe: int) -> None:
    with pytest.raises(LayoutError, match="of 3"):
        StripeLayout(10, 2, 4).frame_offset(stripe)
