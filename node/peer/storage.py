"""What peers ask of this node's drives and lock server: handlers for node.peer.inbound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from erasure.stripe import StripeLayout
from locks.messages import encode as encode_lock
from node.cluster.lock_server import LockServer, decode_request
from node.errors import TargetFailed
from node.limits import BUFFER_WAIT_S, STRIPES_IN_FLIGHT, SYNC_BUDGET_S
from node.objects import messages, shards
from node.objects.member import Member
from node.peer.inbound import PeerContext
from node.protocol import verbs
from node.runtime.arena import Arena, Share, Slab
from node.runtime.ports import Clock
from node.store.drive_gate import DriveGate

_SKIPPED = verbs.encode(verbs.Failed(verbs.DriveFault.BAD_REQUEST, "not for a drive here"))


class StorageHandlers:
    """PREPARE, COMMIT, FINISH, VERBS, LOCK, and the two byte streams."""

    def __init__(
        self, member: Member, locks: LockServer, gate: DriveGate, arena: Arena, clock: Clock
    ) -> None:
        self._member = member
        self._locks = locks
        self._gate = gate
        self._arena = arena
        self._clock = clock

    def prepare(self, context: PeerContext, payload: bytes) -> asyncio.Future[bytes]:
        ask = messages.decode_prepare(payload)
        return self._member.prepare(ask, messages.encode, deadline=context.deadline)

    def commit(self, context: PeerContext, payload: bytes) -> asyncio.Future[bytes]:
        ask = messages.decode_commit(payload)
        return self._member.commit(ask, messages.encode, deadline=context.deadline)

    def finish(self, context: PeerContext, payload: bytes) -> bytes:
        self._member.finish(messages.decode_finish(payload), deadline=context.deadline)
        return b""

    def verbs(self, context: PeerContext, payload: bytes) -> asyncio.Future[bytes]:
        ask = messages.decode_verbs(payload)
        return self._member.verbs(ask.items, _replies, deadline=context.deadline)

    async def lock(self, _context: PeerContext, payload: bytes) -> bytes:
        return encode_lock(await self._locks.ask(decode_request(payload)))

    async def upload(
        self, _context: PeerContext, header: bytes, data: AsyncIterator[bytes]
    ) -> bytes:
        """Receives this node's rows of every stripe; the reply says which drives hold a durable file."""
        receiver = ShardReceiver(
            messages.decode_shard_write(header), self._gate, self._arena, self._clock
        )
        try:
            answers = await receiver.receive(data)
        except BaseException:
            receiver.abort()
            raise
        return messages.encode(messages.Replies(answers))

    def download(self, _context: PeerContext, header: bytes) -> AsyncIterator[bytes]:
        return shards.serve_download(self._gate, self._arena, self._clock, header)


class ShardReceiver:
    """One inbound upload: fills a slab a stripe, lets the drives write from it while the next one fills."""

    def __init__(
        self,
        header: messages.ShardWriteHeader,
        gate: DriveGate,
        arena: Arena,
        clock: Clock,
    ) -> None:
        self._gate = gate
        self._arena = arena
        self._clock = clock
        self._data_id = header.data_id
        self._layout = StripeLayout(header.size, header.k, header.stripe_bytes)
        self._rows = header.rows
        self._faults: dict[int, bytes] = {
            index: _SKIPPED for index, (drive, _) in enumerate(header.rows) if not drive
        }
        self._writing: list[asyncio.Task[None]] = []

    async def receive(self, data: AsyncIterator[bytes]) -> tuple[bytes, ...]:
        """One encoded reply a row, in order."""
        await self._each(
            {
                index: verbs.StageOpen(self._data_id, head)
                for index, (_, head) in enumerate(self._rows)
            }
        )
        stripe, filled = 0, 0
        slab: Slab | None = None
        try:
            async for message in data:
                view = memoryview(message)
                while view:
                    if stripe >= self._layout.stripes:
                        raise TargetFailed("an upload brought more than it announced")
                    size = self._layout.frame_bytes(stripe) * len(self._rows)
                    if slab is None:
                        slab = await self._arena.alloc(
                            size,
                            deadline=self._clock.monotonic() + BUFFER_WAIT_S,
                            share=Share.PEER,
                        )
                    take = min(len(view), size - filled)
                    slab.view[filled : filled + take] = view[:take]
                    view, filled = view[take:], filled + take
                    if filled == size:
                        full, slab = slab, None
                        await self._start_write(stripe, full)
                        stripe, filled = stripe + 1, 0
        finally:
            if slab is not None:
                slab.release()
        if stripe < self._layout.stripes:
            raise TargetFailed("an upload ended early")
        await asyncio.gather(*self._writing)
        whole = self._layout.shard_file_bytes
        synced = await self._each(
            {index: verbs.StageSync(self._data_id, whole) for index in range(len(self._rows))}
        )
        return tuple(self._faults.get(index) or synced[index] for index in range(len(self._rows)))

    async def _start_write(self, stripe: int, slab: Slab) -> None:
        while len(self._writing) >= STRIPES_IN_FLIGHT:
            await self._writing.pop(0)
        self._writing.append(asyncio.ensure_future(self._write(stripe, slab)))

    async def _write(self, stripe: int, slab: Slab) -> None:
        size, offset = self._layout.frame_bytes(stripe), self._layout.frame_offset(stripe)
        try:
            async with self._gate.bulk:
                await self._each(
                    {
                        index: verbs.StageWrite(
                            self._data_id, offset, slab.offset + index * size, size
                        )
                        for index in range(len(self._rows))
                    },
                    slab,
                )
        finally:
            slab.release()

    async def _each(
        self, wanted: dict[int, verbs.Verb], slab: Slab | None = None
    ) -> dict[int, bytes]:
        """One verb to every row's drive that has not failed yet; a Failed answer takes the row out."""
        chosen = [index for index in wanted if index not in self._faults]
        if not chosen:
            return {}
        answers = await self._gate.together(
            [(self._rows[index][0], verbs.encode(wanted[index])) for index in chosen],
            tuple,
            operation=type(wanted[chosen[0]]).__name__,
            deadline=self._clock.monotonic() + SYNC_BUDGET_S,
            late_s=1.0,
            slabs=(slab,) if slab is not None else (),
        )
        found = dict(zip(chosen, answers, strict=True))
        for index, answer in found.items():
            reply = verbs.decode_reply(answer)
            if isinstance(reply, verbs.Failed):
                self._faults[index] = answer
        return found

    def abort(self) -> None:
        """The sender is gone: nothing of it is wanted."""
        for task in self._writing:
            task.cancel()
        deadline = self._clock.monotonic() + SYNC_BUDGET_S
        for drive, _ in self._rows:
            if drive:
                drop = verbs.StageDrop(self._data_id)
                call = self._gate.call(drive, drop, deadline=deadline)
                call.add_done_callback(_consume)


def _replies(answers: tuple[bytes, ...]) -> bytes:
    return messages.encode(messages.Replies(answers))


def _consume(future: asyncio.Future[bytes]) -> None:
    if not future.cancelled():
        future.exception()
