"""Stripe work that runs beside the loop: encode, seal, verify, reconstruct. No waiting in here.

A stripe buffer holds n frames (16 bytes of checksum, then the block) one after the other in shard
order, so what one peer stores is one slice of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from erasure import frame
from erasure.codec import get_codec
from erasure.errors import NotEnoughShards
from erasure.stripe import CHECKSUM_BYTES, StripeLayout

__all__ = [
    "NotEnoughShards",
    "encode",
    "fill",
    "inline_data",
    "inline_frames",
    "joined",
    "rebuild",
    "row_views",
    "verified",
]


def row_views(buffer: memoryview, rows: int, frame_bytes: int) -> list[memoryview]:
    """The payload (behind the checksum) of each row of a stripe buffer."""
    return [
        buffer[row * frame_bytes + CHECKSUM_BYTES : (row + 1) * frame_bytes] for row in range(rows)
    ]


def encode(
    buffer: memoryview,
    layout: StripeLayout,
    stripe: int,
    n: int,
    data_id: bytes,
    digest: Callable[[memoryview], None] | None,
) -> None:
    """Digest the data rows, clear the padding, compute parity and seal all n frames in place."""
    k, frame_bytes = layout.k, layout.frame_bytes(stripe)
    rows = row_views(buffer, n, frame_bytes)
    for row, carried in layout.data_slices(stripe):
        if digest is not None and carried:
            digest(rows[row][:carried])
        padding = len(rows[row]) - carried
        if padding:
            rows[row][carried:] = bytes(padding)
    if n > k:
        get_codec(k, n).encode(rows[:k], rows[k:])
    for shard in range(n):
        begin = shard * frame_bytes
        frame.seal(buffer[begin : begin + frame_bytes], data_id=data_id, shard=shard, block=stripe)


def inline_frames(
    data: bytes | bytearray | memoryview, data_id: bytes, k: int, n: int
) -> list[bytes]:
    """The n framed shards of an object of one stripe."""
    layout = StripeLayout(len(data), k, max(len(data), 1))
    if not layout.stripes:
        return [b""] * n
    size = layout.frame_bytes(0)
    buffer = memoryview(bytearray(size * n))
    position = 0
    for view in row_views(buffer, k, size):
        take = min(len(view), len(data) - position)
        view[:take] = memoryview(data)[position : position + take]
        position += take
    encode(buffer, layout, 0, n, data_id, None)
    return [bytes(buffer[shard * size : (shard + 1) * size]) for shard in range(n)]


def verified(
    frames: Mapping[int, bytes | memoryview], data_id: bytes, stripe: int
) -> dict[int, memoryview]:
    """The payloads of the frames whose checksum is right, by shard; rotten ones are left out."""
    good = {}
    for shard, data in frames.items():
        view = memoryview(data)
        if frame.verify(view, data_id=data_id, shard=shard, block=stripe):
            good[shard] = view[CHECKSUM_BYTES:]
    return good


def fill(target: memoryview, payload: memoryview, data_id: bytes, shard: int, stripe: int) -> None:
    """Makes `target` the sealed frame of a payload."""
    target[CHECKSUM_BYTES:] = payload
    frame.seal(target, data_id=data_id, shard=shard, block=stripe)


def rebuild(
    payloads: Mapping[int, memoryview], k: int, n: int, wanted: Sequence[int]
) -> dict[int, memoryview]:
    """The wanted shards out of any k payloads; NotEnoughShards when there are fewer."""
    size = len(next(iter(payloads.values()), b""))
    out = {shard: memoryview(bytearray(size)) for shard in wanted}
    get_codec(k, n).reconstruct(payloads, list(wanted), list(out.values()))
    return out


def inline_data(
    shards: Mapping[int, bytes], data_id: bytes, size: int, k: int, n: int
) -> bytearray:
    """The object out of k good inline frames or more; NotEnoughShards when rot left fewer."""
    return joined(verified(shards, data_id, 0), size, k, n)


def joined(payloads: Mapping[int, memoryview], size: int, k: int, n: int) -> bytearray:
    """An object of one stripe out of k payloads or more; NotEnoughShards when there are fewer."""
    layout = StripeLayout(size, k, max(size, 1))
    missing = [shard for shard in range(k) if shard not in payloads]
    if missing:
        payloads = {**payloads, **rebuild(payloads, k, n, missing)}
    data = bytearray()
    for row, carried in layout.data_slices(0):
        data += payloads[row][:carried]
    return data
