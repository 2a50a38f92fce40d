"""How an object is cut into stripes, rows, blocks and frames. Arithmetic only.

An object is cut into stripes of `stripe_data_bytes`; the last may be shorter. A stripe is k rows,
filled one after the other, so that a stripe read from its healthy data rows is sent without joining
anything. Row r of stripe i is the payload of block i of shard r. What the data does not fill of the
rows is zero, and parity is computed over it: whoever encodes must clear it.

Blocks of every stripe but the last have `full_block_bytes`, a multiple of 64, so that frames start
at fixed, aligned offsets; those of the last are just as long as its data needs. An object small
enough for one stripe therefore has blocks of ceil(size/k) bytes, whatever the stripe size, which is
what inline shards are. An empty object has no stripes.
"""

from __future__ import annotations

from dataclasses import dataclass

from erasure.errors import LayoutError

HEADER_BYTES = 256
CHECKSUM_BYTES = 16
BLOCK_ALIGN_BYTES = 64

_MAX_BYTES = 1 << 62


@dataclass(frozen=True, slots=True)
class StripeLayout:
    """The layout of `size_bytes` of data over k data rows; see the head of the module.

    Raises LayoutError if a figure is out of range.
    """

    size_bytes: int
    k: int
    stripe_data_bytes: int

    def __post_init__(self) -> None:
        if not 0 <= self.size_bytes <= _MAX_BYTES:
            raise LayoutError(f"an object of {self.size_bytes} bytes")
        if self.k < 1:
            raise LayoutError(f"{self.k} data rows")
        if not 1 <= self.stripe_data_bytes <= _MAX_BYTES:
            raise LayoutError(f"stripes of {self.stripe_data_bytes} bytes")

    @property
    def stripes(self) -> int:
        """Number of stripes."""
        return -(-self.size_bytes // self.stripe_data_bytes)

    @property
    def full_block_bytes(self) -> int:
        """Payload of a block of any stripe but the last; no block is longer."""
        row = -(-self.stripe_data_bytes // self.k)
        return -(-row // BLOCK_ALIGN_BYTES) * BLOCK_ALIGN_BYTES

    @property
    def shard_file_bytes(self) -> int:
        """Length of each shard file, header included; equal for all n shards."""
        if not self.stripes:
            return HEADER_BYTES
        last = self.stripes - 1
        return self.frame_offset(last) + self.frame_bytes(last)

    def stripe_start(self, stripe: int) -> int:
        """Offset in the object of a stripe's first data byte."""
        self._check(stripe)
        return stripe * self.stripe_data_bytes

    def stripe_bytes(self, stripe: int) -> int:
        """Data bytes that a stripe carries."""
        return min(self.stripe_data_bytes, self.size_bytes - self.stripe_start(stripe))

    def block_bytes(self, stripe: int) -> int:
        """Payload length of each of a stripe's n blocks: the length of its rows."""
        carried = self.stripe_bytes(stripe)
        if stripe < self.stripes - 1:
            return self.full_block_bytes
        return -(-carried // self.k)

    def frame_bytes(self, stripe: int) -> int:
        """Length of a stripe's frame in each shard: checksum and payload."""
        return CHECKSUM_BYTES + self.block_bytes(stripe)

    def frame_offset(self, stripe: int) -> int:
        """Offset of a stripe's frame in a shard file."""
        self._check(stripe)
        return HEADER_BYTES + stripe * (CHECKSUM_BYTES + self.full_block_bytes)

    def stripes_for(self, start: int, end: int) -> range:
        """The stripes that hold bytes [start, end) of the object; an empty range for none."""
        if not 0 <= start <= end <= self.size_bytes:
            raise LayoutError(f"bytes {start} to {end} of {self.size_bytes}")
        if start == end:
            return range(0)
        return range(start // self.stripe_data_bytes, (end - 1) // self.stripe_data_bytes + 1)

    def data_slices(self, stripe: int) -> list[tuple[int, int]]:
        """(row, data bytes in the row) for each of the k rows; the rest of a row is padding."""
        carried, row_bytes = self.stripe_bytes(stripe), self.block_bytes(stripe)
        return [(row, min(max(carried - row * row_bytes, 0), row_bytes)) for row in range(self.k)]

    def range_slices(self, stripe: int, start: int, end: int) -> list[tuple[int, int, int]]:
        """What bytes [start, end) of the object take from a stripe, in order.

        (row, first, past) are positions in the payloads of the rows; rows that give nothing are
        left out. The range may begin before or end after the stripe.
        """
        origin, row_bytes = self.stripe_start(stripe), self.block_bytes(stripe)
        slices = []
        for row, carried in self.data_slices(stripe):
            row_origin = origin + row * row_bytes
            first = max(start - row_origin, 0)
            past = min(end - row_origin, carried)
            if first < past:
                slices.append((row, first, past))
        return slices

    def _check(self, stripe: int) -> None:
        if not 0 <= stripe < self.stripes:
            raise LayoutError(f"stripe {stripe} of {self.stripes}")
