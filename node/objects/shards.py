"""Streams of shard frames: from this node's drives, and from a peer's; and what a peer's side serves.

A message of a download carries some of one stripe's frames: stripe (u32), index of the first shard in
the request's order (u8), their count (u8), a mask of those that could be read (u16), then those frames.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from erasure.stripe import StripeLayout
from node.errors import HoldfastError, TargetFailed
from node.limits import BUFFER_WAIT_S, PEER_FRAME_BYTES, SHARD_READ_AHEAD, TRANSFER_LIMIT_S
from node.objects import messages
from node.objects.sets import Cluster
from node.protocol import verbs
from node.runtime.arena import Arena, Share, Slab
from node.runtime.ports import Clock
from node.store.drive_gate import DriveGate

_MESSAGE = struct.Struct("<IBBH")


@dataclass(slots=True)
class Frames:
    """One stripe's frames of one stream, by position in the stream's order; None: not to be had."""

    stripe: int
    frames: list[bytes | memoryview | None]
    slab: Slab | None = None

    def release(self) -> None:
        if self.slab is not None:
            self.slab.release()
            self.slab = None


async def read_frames(
    gate: DriveGate,
    arena: Arena,
    clock: Clock,
    data_id: bytes,
    drives: Sequence[bytes],
    layout: StripeLayout,
    stripe: int,
    share: Share = Share.CLIENT,
) -> Frames:
    """Reads one stripe's frames from local drives into one slab; release it after use."""
    size, offset = layout.frame_bytes(stripe), layout.frame_offset(stripe)
    now = clock.monotonic()
    slab = await arena.alloc(size * len(drives), deadline=now + BUFFER_WAIT_S, share=share)
    try:
        answers = await gate.together(
            [
                (
                    drive,
                    verbs.encode(
                        verbs.ShardRead(data_id, offset, size, slab.offset + index * size)
                    ),
                )
                for index, drive in enumerate(drives)
            ],
            tuple,
            operation="ShardRead",
            deadline=now + BUFFER_WAIT_S,
            slabs=(slab,),
        )
        frames: list[bytes | memoryview | None] = []
        for index, answer in enumerate(answers):
            reply = verbs.decode_reply(answer)
            whole = isinstance(reply, verbs.Count) and reply.count == size
            frames.append(slab.view[index * size : (index + 1) * size] if whole else None)
    except BaseException:
        slab.release()
        raise
    return Frames(stripe, frames, slab)


async def serve_download(
    gate: DriveGate, arena: Arena, clock: Clock, header: bytes
) -> AsyncIterator[bytes]:
    """A peer's side of a download: reads the next stripe while one is on the wire."""
    ask = messages.decode_shard_read(header)
    layout = StripeLayout(ask.size, ask.k, ask.stripe_bytes)

    def fetch(stripe: int) -> asyncio.Task[Frames]:
        return asyncio.ensure_future(
            read_frames(gate, arena, clock, ask.data_id, ask.drives, layout, stripe, Share.PEER)
        )

    ahead: asyncio.Task[Frames] | None = fetch(ask.first) if ask.first < ask.last else None
    try:
        for stripe in range(ask.first, ask.last):
            assert ahead is not None
            frames, ahead = await ahead, None
            if stripe + 1 < ask.last:
                ahead = fetch(stripe + 1)
            try:
                group = max(1, PEER_FRAME_BYTES // layout.frame_bytes(stripe))
                for first in range(0, len(frames.frames), group):
                    yield _message(stripe, first, frames.frames[first : first + group])
            finally:
                frames.release()
    finally:
        if ahead is not None:
            ahead.add_done_callback(_release)


def _message(stripe: int, first: int, frames: Sequence[bytes | memoryview | None]) -> bytes:
    mask = sum(1 << index for index, data in enumerate(frames) if data is not None)
    head = _MESSAGE.pack(stripe, first, len(frames), mask)
    return b"".join([head, *(data for data in frames if data is not None)])


def _release(task: asyncio.Future[Frames]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().release()


class ShardStream:
    """Frames of some shards of one node, stripe after stripe, fetched a little ahead."""

    def __init__(self, node: str, shards: tuple[int, ...], first: int, last: int) -> None:
        self.node = node
        self.shards = shards
        self.first = first
        self.last = last
        self._ready: asyncio.Queue[Frames | HoldfastError] = asyncio.Queue(SHARD_READ_AHEAD)
        self._task: asyncio.Task[None] | None = None

    def start(self, frames: AsyncIterator[Frames]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._pump(frames))

    async def _pump(self, frames: AsyncIterator[Frames]) -> None:
        try:
            async for item in frames:
                try:
                    await self._ready.put(item)
                except BaseException:
                    item.release()
                    raise
        except HoldfastError as error:
            await self._ready.put(error)
        except asyncio.CancelledError:
            raise
        else:
            await self._ready.put(TargetFailed(f"{self.node} ended the stream"))
        finally:
            await frames.aclose()  # type: ignore[attr-defined]

    async def next(self, timeout_s: float) -> Frames:
        """The next stripe's frames; HoldfastError when the stream is broken, TimeoutError when it is late."""
        item = await asyncio.wait_for(self._ready.get(), timeout_s)
        if isinstance(item, HoldfastError):
            raise item
        return item

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        while not self._ready.empty():
            item = self._ready.get_nowait()
            if isinstance(item, Frames):
                item.release()


class ShardSources:
    """Opens streams to any node of a set."""

    def __init__(self, cluster: Cluster, gate: DriveGate, arena: Arena) -> None:
        self.cluster = cluster
        self._gate = gate
        self._arena = arena

    def open(
        self,
        node: str,
        drives: Sequence[bytes],
        shards: tuple[int, ...],
        data_id: bytes,
        layout: StripeLayout,
        first: int,
        last: int,
    ) -> ShardStream:
        stream = ShardStream(node, shards, first, last)
        if node == self.cluster.me:
            stream.start(self._local(data_id, drives, layout, first, last))
        else:
            stream.start(self._remote(node, data_id, drives, layout, first, last))
        return stream

    async def _local(
        self, data_id: bytes, drives: Sequence[bytes], layout: StripeLayout, first: int, last: int
    ) -> AsyncIterator[Frames]:
        for stripe in range(first, last):
            yield await read_frames(
                self._gate, self._arena, self.cluster.clock, data_id, drives, layout, stripe
            )

    async def _remote(
        self,
        node: str,
        data_id: bytes,
        drives: Sequence[bytes],
        layout: StripeLayout,
        first: int,
        last: int,
    ) -> AsyncIterator[Frames]:
        header = messages.encode(
            messages.ShardReadHeader(
                data_id,
                layout.size_bytes,
                layout.k,
                layout.stripe_data_bytes,
                first,
                last,
                tuple(drives),
            )
        )
        deadline = self.cluster.clock.monotonic() + TRANSFER_LIMIT_S
        download = self.cluster.peers.open_download(node, header, deadline=deadline)
        expected = first
        frames: list[bytes | memoryview | None] = [None] * len(drives)
        try:
            async for message in download:
                stripe, start, count, mask = _MESSAGE.unpack_from(message)
                if stripe != expected or start + count > len(drives):
                    raise TargetFailed(f"{node} sent frames out of order")
                view, position = memoryview(message), _MESSAGE.size
                size = layout.frame_bytes(stripe)
                for index in range(count):
                    if mask >> index & 1:
                        frames[start + index] = view[position : position + size]
                        position += size
                if start + count == len(drives):
                    yield Frames(stripe, frames)
                    frames = [None] * len(drives)
                    expected += 1
        finally:
            download.close()
