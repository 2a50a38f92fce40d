"""Taking a body in: digest, encode, stage; inline where the shards are small. Committing is the writer's.

While stripe i is digested and encoded in a thread, stripe i+1 arrives from the client; the buffers of
one upload are bounded by what the sinks may lag (STRIPES_IN_FLIGHT) and two here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from erasure.geometry import Geometry
from erasure.stripe import StripeLayout
from node.errors import QuorumLost, Shed
from node.limits import (
    BUFFER_PATIENCE_S,
    BUFFER_WAIT_S,
    INLINE_SHARD_BYTES,
    LARGE_OBJECT_BYTES,
    LARGE_STRIPE_DATA_BYTES,
    LARGE_STRIPE_UPLOADS,
    SMALL_BODY_BYTES,
    STRIPE_DATA_BYTES,
    TRANSFER_LIMIT_S,
    UPLOAD_TURN_S,
    UPLOADS_AT_ONCE,
    UPLOADS_WAITING,
)
from node.objects import stripes
from node.objects.api import Body, BodyResult
from node.objects.sets import Cluster, SetView
from node.objects.stage import Row, ShardWriters, Stripe
from node.protocol import verbs
from node.protocol.record import Part
from node.runtime.arena import Arena, Share, Slab
from node.runtime.ports import Cpu, Rng
from node.store.drive_gate import DriveGate


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A body that was taken in and is durable or travels with the commit; not visible yet."""

    part: Part
    result: BodyResult
    inline: bool
    shards: dict[int, bytes] | None = None  # framed inline shards by slot
    staged: frozenset[int] | None = None  # slots whose files are durable
    geometry: Geometry = field(default_factory=lambda: Geometry(k=1, n=1))
    rotation: int = 0


class Intake:
    """Stores bodies."""

    def __init__(self, cluster: Cluster, gate: DriveGate, arena: Arena, cpu: Cpu, rng: Rng) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._gate = gate
        self._arena = arena
        self._cpu = cpu
        self._rng = rng
        self._staging = 0  # uploads that hold stripe buffers now
        self._line: deque[asyncio.Future[None]] = deque()

    def check_writable(self, view: SetView, geometry: Geometry) -> None:
        """Refuses at once, before a byte of the body is asked for, when no write can succeed now."""
        alive = self._cluster.reachable_slots(view)
        nodes = 1 + len(self._cluster.membership.alive())
        if alive < geometry.write_quorum or nodes < len(self._cluster.nodes) // 2 + 1:
            raise QuorumLost(
                f"{alive} of {view.n} drives are reachable, {geometry.write_quorum} are needed to write"
            )

    async def store(
        self,
        view: SetView,
        geometry: Geometry,
        rotation: int,
        body: Body,
        *,
        number: int = 1,
        may_inline: bool = True,
        budget_s: float,
    ) -> Stored:
        """Takes `body` in. `budget_s`: what it may take beyond the body's own arrival."""
        self.check_writable(view, geometry)
        data_id = self._rng.bytes(16)
        if body.size == 0 or (may_inline and body.size <= geometry.k * INLINE_SHARD_BYTES):
            return await self._inline(view, geometry, rotation, body, data_id, number)
        await self._enter()
        try:
            return await self._staged(view, geometry, rotation, body, data_id, number, budget_s)
        finally:
            self._leave()

    async def _enter(self) -> None:
        """At most UPLOADS_AT_ONCE hold stripe buffers; the others wait in line before their body flows."""
        if self._staging < UPLOADS_AT_ONCE:
            self._staging += 1
            return
        if len(self._line) >= UPLOADS_WAITING:
            raise Shed("too many uploads wait for their turn")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            async with asyncio.timeout(UPLOAD_TURN_S):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._leave()  # its turn came in the very moment it was given up
            elif turn in self._line:
                self._line.remove(turn)
            if isinstance(error, TimeoutError):
                raise Shed("no upload ended in time for this one to begin") from error
            raise

    def _leave(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)  # the place is handed on
                return
        self._staging -= 1

    async def _inline(
        self,
        view: SetView,
        geometry: Geometry,
        rotation: int,
        body: Body,
        data_id: bytes,
        number: int,
    ) -> Stored:
        data = bytearray(body.size)
        memory = memoryview(data)
        await body.readinto(memory)
        if body.size <= SMALL_BODY_BYTES:
            frames = _digest_inline(body, memory, data_id, geometry)
        else:
            frames = await self._cpu.run(_digest_inline, body, memory, data_id, geometry)
        result = await body.finish()
        return Stored(
            part=Part(
                number, body.size, data_id, max(body.size, 1), result.md5_hex, result.checksums
            ),
            result=result,
            inline=True,
            shards={slot: frames[view.shard_at(slot, rotation)] for slot in range(view.n)},
            geometry=geometry,
            rotation=rotation,
        )

    async def _staged(
        self,
        view: SetView,
        geometry: Geometry,
        rotation: int,
        body: Body,
        data_id: bytes,
        number: int,
        budget_s: float,
    ) -> Stored:
        # Large stripes cost less CPU and four times the memory: only while few uploads share it.
        large = body.size >= LARGE_OBJECT_BYTES and self._staging <= LARGE_STRIPE_UPLOADS
        stripe_bytes = LARGE_STRIPE_DATA_BYTES if large else STRIPE_DATA_BYTES
        layout = StripeLayout(body.size, geometry.k, stripe_bytes)
        rows = [
            Row(shard, shard, slot)
            for shard, slot in sorted(
                (view.shard_at(slot, rotation), slot) for slot in range(view.n)
            )
        ]
        writers = ShardWriters(
            self._cluster,
            self._gate,
            view,
            layout,
            data_id,
            rows,
            needed=geometry.write_quorum,
            deadline=self._clock.monotonic() + TRANSFER_LIMIT_S,
        )
        writers.start()
        try:
            await self._feed(writers, layout, view.n, data_id, body)
            result = await body.finish()
            staged = await writers.sync(self._clock.monotonic() + budget_s)
        finally:
            writers.close()
        return Stored(
            part=Part(number, body.size, data_id, stripe_bytes, result.md5_hex, result.checksums),
            result=result,
            inline=False,
            staged=staged,
            geometry=geometry,
            rotation=rotation,
        )

    async def _feed(
        self, writers: ShardWriters, layout: StripeLayout, n: int, data_id: bytes, body: Body
    ) -> None:
        encoding: asyncio.Task[Stripe] | None = None
        slab: Slab | None = None
        loop = asyncio.get_running_loop()
        try:
            for index in range(layout.stripes):
                frame_bytes = layout.frame_bytes(index)
                slab = await self._arena.alloc(
                    n * frame_bytes,
                    deadline=self._clock.monotonic()
                    + (BUFFER_PATIENCE_S if index else BUFFER_WAIT_S),
                    share=Share.CLIENT,
                )
                rows = stripes.row_views(slab.view, layout.k, frame_bytes)
                for row, carried in layout.data_slices(index):
                    if carried:
                        await body.readinto(rows[row][:carried])
                if encoding is not None:
                    encoded, encoding = await encoding, None
                    await writers.write(encoded)
                stripe = Stripe(index, slab, frame_bytes)
                slab = None
                encoding = loop.create_task(self._encode(stripe, layout, n, data_id, body))
            if encoding is not None:
                encoded, encoding = await encoding, None
                await writers.write(encoded)
        finally:
            if slab is not None:
                slab.release()
            if encoding is not None:
                encoding.add_done_callback(_release)

    async def _encode(
        self, stripe: Stripe, layout: StripeLayout, n: int, data_id: bytes, body: Body
    ) -> Stripe:
        view = stripe.slab.view[: n * stripe.frame_bytes]
        work = asyncio.ensure_future(
            self._cpu.run(stripes.encode, view, layout, stripe.index, n, data_id, body.digest)
        )
        try:
            await asyncio.shield(work)
        except BaseException:
            # A thread cannot be called off: its buffer is free only when it is done with it.
            work.add_done_callback(lambda _done: stripe.slab.release())
            raise
        return stripe

    def abandon(self, view: SetView, stored: Stored) -> None:
        """What was stored is not going to be committed."""
        if stored.staged:
            drop = verbs.StageDrop(stored.part.data_id)
            self._cluster.tell_slots(
                view,
                dict.fromkeys(stored.staged, drop),
                deadline=self._clock.monotonic() + BUFFER_WAIT_S,
            )


def _digest_inline(
    body: Body, memory: memoryview, data_id: bytes, geometry: Geometry
) -> list[bytes]:
    body.digest(memory)
    return stripes.inline_frames(memory, data_id, geometry.k, geometry.n)


def _release(task: asyncio.Task[Stripe]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().slab.release()
