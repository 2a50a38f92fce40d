from __future__ import annotations

import pytest
from xxhash import xxh3_64_digest

from erasure.errors import FrameError, ShardHeaderError
from erasure.frame import (
    CHECKSUM_BYTES,
    HEADER_BYTES,
    ShardHeader,
    seal,
    seal_inline,
    verify,
    verify_inline,
)
from erasure.stripe import StripeLayout

DATA_ID = bytes(range(16))
LAYOUT = StripeLayout(10_000_000, 12, 1 << 20)
HEADER = ShardHeader.of(LAYOUT, data_id=DATA_ID, shard=13, n=16)


def sealed(payload: bytes, *, shard: int = 3, block: int = 7) -> bytearray:
    frame = bytearray(CHECKSUM_BYTES) + payload
    seal(memoryview(frame), data_id=DATA_ID, shard=shard, block=block)
    return frame


def whole(frame: bytes | bytearray | memoryview) -> bool:
    return verify(frame, data_id=DATA_ID, shard=3, block=7)


def test_header_round_trip_gives_the_layout() -> None:
    encoded = HEADER.encode()
    assert len(encoded) == HEADER_BYTES
    decoded = ShardHeader.decode(memoryview(encoded + b"frames follow"))
    assert decoded == HEADER
    assert decoded.layout == LAYOUT


def test_any_flipped_bit_of_a_header_is_found() -> None:
    encoded = HEADER.encode()
    for position in range(HEADER_BYTES):
        damaged = bytearray(encoded)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(ShardHeaderError):
            ShardHeader.decode(damaged)


@pytest.mark.parametrize("encoded", [b"", bytes(HEADER_BYTES), HEADER.encode()[:-1]])
def test_what_is_no_header(encoded: bytes) -> None:
    with pytest.raises(ShardHeaderError):
        ShardHeader.decode(encoded)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("data_id", b"short", "data id"),
        ("shard", 16, "shard 16 of 16"),
        ("k", 3, "more than half"),
        ("n", 17, "1 to 16"),
        ("block_bytes", 64, "blocks of 64"),
        ("size_bytes", -1, "object of -1"),
        ("stripe_data_bytes", 0, "stripes of 0"),
    ],
)
def test_impossible_headers_are_not_written(field: str, value: object, reason: str) -> None:
    fields = {name: getattr(HEADER, name) for name in HEADER.__slots__}
    with pytest.raises(ShardHeaderError, match=reason):
        ShardHeader(**{**fields, field: value}).encode()


def test_a_version_from_the_future_is_named() -> None:
    body = bytearray(HEADER.encode()[:-8])
    body[8] = 2
    with pytest.raises(ShardHeaderError, match="format version 2"):
        ShardHeader.decode(bytes(body) + xxh3_64_digest(body)[::-1])


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096])
def test_any_flipped_bit_of_a_frame_is_found(size: int) -> None:
    frame = sealed(bytes(range(256)) * (size // 256) + bytes(size % 256))
    assert whole(frame)
    assert whole(memoryview(frame).toreadonly())
    for position in {0, 8, 15, 16, len(frame) // 2, len(frame) - 1} & set(range(len(frame))):
        frame[position] ^= 0x10
        assert not whole(frame)
        frame[position] ^= 0x10


def test_a_misplaced_block_is_as_bad_as_a_rotten_one() -> None:
    frame = sealed(b"payload")
    assert verify(frame, data_id=DATA_ID, shard=3, block=7)
    assert not verify(frame, data_id=DATA_ID[::-1], shard=3, block=7)
    assert not verify(frame, data_id=DATA_ID, shard=4, block=7)
    assert not verify(frame, data_id=DATA_ID, shard=3, block=8)


def test_a_torn_or_zeroed_frame_is_found() -> None:
    frame = sealed(b"payload" * 100)
    assert not whole(frame[:-1])
    assert not whole(frame + b"\0")
    assert not whole(bytes(len(frame)))
    assert not whole(frame[: CHECKSUM_BYTES - 1])
    assert not whole(b"")


def test_inline_is_the_same_frame_as_block_0() -> None:
    inline = seal_inline(memoryview(b"payload"), data_id=DATA_ID, shard=3)
    assert inline == sealed(b"payload", block=0)
    assert verify_inline(inline, data_id=DATA_ID, shard=3)
    assert not verify_inline(inline, data_id=DATA_ID, shard=2)
    assert not verify_inline(inline[:-1] + b"X", data_id=DATA_ID, shard=3)


def test_what_cannot_be_sealed() -> None:
    with pytest.raises(FrameError, match="no room"):
        seal(memoryview(bytearray(15)), data_id=DATA_ID, shard=0, block=0)
    with pytest.raises(FrameError, match="15 bytes"):
        seal_inline(b"", data_id=DATA_ID[1:], shard=0)
