"""The format of a shard: a header, then blocks, each behind its checksum.

    shard file := header (256 bytes) frame*
    frame      := XXH3-128 of the payload (16 bytes, big endian) payload
    header     := magic version shard k n block_bytes stripe_data_bytes size_bytes data_id
                  zeros XXH3-64 of all before it (8 bytes, little endian)

The checksum of a block is seeded by what the block is (data id, shard, block number), so that a
good block in the wrong place fails like a rotten one. XXH3 finds accidents; it is no defence
against somebody who can write to the drive. Small objects keep the same frame, without header, in
the catalog ("inline"), as block 0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from xxhash import xxh3_64_digest, xxh3_64_intdigest, xxh3_128_digest

from erasure.errors import FrameError, GeometryError, LayoutError, ShardHeaderError
from erasure.geometry import Geometry
from erasure.stripe import CHECKSUM_BYTES, HEADER_BYTES, StripeLayout

__all__ = [
    "CHECKSUM_BYTES",
    "DATA_ID_BYTES",
    "FORMAT_VERSION",
    "HEADER_BYTES",
    "MAGIC",
    "ShardHeader",
    "seal",
    "seal_inline",
    "verify",
    "verify_inline",
]

MAGIC = b"HFSHARD1"
FORMAT_VERSION = 1
DATA_ID_BYTES = 16

_HEADER = struct.Struct("<8sHHHHQQQ16s")
_BODY_BYTES = HEADER_BYTES - 8
_SEED = struct.Struct("<16sHQ")

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardHeader:
    """What a shard file says it is.

    `data_id` names one upload of one object or part, unique for ever in the cluster; `shard` is
    the index in the code (0 <= shard < n); `size_bytes` is the size of the object or part, and
    `stripe_data_bytes` what a full stripe carries of it, so that the header alone gives the layout.
    """

    data_id: bytes
    shard: int
    k: int
    n: int
    block_bytes: int
    stripe_data_bytes: int
    size_bytes: int

    @classmethod
    def of(cls, layout: StripeLayout, *, data_id: bytes, shard: int, n: int) -> ShardHeader:
        """The header of one shard of an object laid out as `layout`."""
        return cls(
            data_id=data_id,
            shard=shard,
            k=layout.k,
            n=n,
            block_bytes=layout.full_block_bytes,
            stripe_data_bytes=layout.stripe_data_bytes,
            size_bytes=layout.size_bytes,
        )

    @property
    def layout(self) -> StripeLayout:
        """The stripes and frames of this shard."""
        return StripeLayout(
            size_bytes=self.size_bytes, k=self.k, stripe_data_bytes=self.stripe_data_bytes
        )

    def encode(self) -> bytes:
        """HEADER_BYTES bytes. Raises ShardHeaderError where `decode` would refuse them."""
        self._check()
        packed = _HEADER.pack(
            MAGIC,
            FORMAT_VERSION,
            self.shard,
            self.k,
            self.n,
            self.block_bytes,
            self.stripe_data_bytes,
            self.size_bytes,
            self.data_id,
        )
        body = packed.ljust(_BODY_BYTES, b"\0")
        return body + _header_checksum(body)

    @classmethod
    def decode(cls, encoded: Buffer) -> ShardHeader:
        """Reads the first HEADER_BYTES of `encoded`; raises ShardHeaderError."""
        if len(encoded) < HEADER_BYTES:
            raise ShardHeaderError(f"{len(encoded)} bytes of {HEADER_BYTES}")
        raw = bytes(encoded[:HEADER_BYTES])
        magic, version, shard, k, n, block, stripe, size, data_id = _HEADER.unpack_from(raw)
        if magic != MAGIC:
            raise ShardHeaderError("not a shard file")
        if raw[_BODY_BYTES:] != _header_checksum(raw[:_BODY_BYTES]):
            raise ShardHeaderError("checksum mismatch")
        if version != FORMAT_VERSION:
            raise ShardHeaderError(f"format version {version}, this is {FORMAT_VERSION}")
        header = cls(
            data_id=data_id,
            shard=shard,
            k=k,
            n=n,
            block_bytes=block,
            stripe_data_bytes=stripe,
            size_bytes=size,
        )
        header._check()
        return header

    def _check(self) -> None:
        if len(self.data_id) != DATA_ID_BYTES:
            raise ShardHeaderError(f"data id of {len(self.data_id)} bytes")
        try:
            Geometry(k=self.k, n=self.n)
            layout = self.layout
        except (GeometryError, LayoutError) as refused:
            raise ShardHeaderError(str(refused)) from refused
        if not 0 <= self.shard < self.n:
            raise ShardHeaderError(f"shard {self.shard} of {self.n}")
        if self.block_bytes != layout.full_block_bytes:
            raise ShardHeaderError(
                f"blocks of {self.block_bytes} bytes where stripes give {layout.full_block_bytes}"
            )


def seal(frame: memoryview, *, data_id: bytes, shard: int, block: int) -> None:
    """Writes the checksum of a frame's payload into its first CHECKSUM_BYTES, in place.

    `frame` is writable, contiguous, CHECKSUM_BYTES longer than the payload. No copy is made.
    """
    if len(frame) < CHECKSUM_BYTES:
        raise FrameError(f"a frame of {len(frame)} bytes has no room for its checksum")
    seed = _seed(data_id, shard, block)
    frame[:CHECKSUM_BYTES] = xxh3_128_digest(frame[CHECKSUM_BYTES:], seed=seed)


def verify(frame: Buffer, *, data_id: bytes, shard: int, block: int) -> bool:
    """True if the frame is whole and is this block of this shard of this data. Copies nothing."""
    if len(frame) < CHECKSUM_BYTES:
        return False
    view = memoryview(frame)
    expected = xxh3_128_digest(view[CHECKSUM_BYTES:], seed=_seed(data_id, shard, block))
    return view[:CHECKSUM_BYTES] == expected


def seal_inline(payload: Buffer, *, data_id: bytes, shard: int) -> bytes:
    """The frame (checksum and payload) of an inline shard, which is a single block 0."""
    return xxh3_128_digest(payload, seed=_seed(data_id, shard, 0)) + bytes(payload)


def verify_inline(frame: Buffer, *, data_id: bytes, shard: int) -> bool:
    """True if the frame of an inline shard is whole and is this shard of this data."""
    return verify(frame, data_id=data_id, shard=shard, block=0)


def _seed(data_id: bytes, shard: int, block: int) -> int:
    # struct would silently cut or pad an id of another length, and two ids would share a seed.
    if len(data_id) != DATA_ID_BYTES:
        raise FrameError(f"data id of {len(data_id)} bytes, not {DATA_ID_BYTES}")
    return xxh3_64_intdigest(_SEED.pack(data_id, shard, block))


def _header_checksum(body: bytes) -> bytes:
    return xxh3_64_digest(body)[::-1]
