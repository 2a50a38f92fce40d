"""Bringing shards to the drives of a set: one stream a node, dropped when it fails or stays behind.

Theory of operation. The producer hands over stripe buffers; every node of the set has a sink of its
own that takes its slice of each: this node's sink lets its drives write straight from the shared buffer,
a peer's sends the slice over one stream. A buffer goes back to the arena when the last sink is done
with it. A sink that fails, or that stays SHARD_WRITER_LAG_S behind while enough others are ahead (less when its
node has gone quiet), is dropped: the producer waits for W drives, never for all. `sync` asks every sink that
is left to make its shards durable and says which slots have them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from erasure.frame import ShardHeader
from erasure.stripe import StripeLayout
from node.errors import DeadlineExceeded, HoldfastError, QuorumLost, TargetFailed
from node.limits import (
    PEER_FRAME_BYTES,
    SHARD_SYNC_GRACE_S,
    SHARD_WRITER_LAG_S,
    STRAGGLER_BOUND_S,
    STRIPES_IN_FLIGHT,
)
from node.objects import messages
from node.objects.gathering import Gathering
from node.objects.sets import Cluster, SetView
from node.protocol import verbs
from node.rpc.transfer import Upload
from node.runtime.arena import Slab
from node.store.drive_gate import DriveGate


@dataclass(slots=True)
class Stripe:
    """A full stripe buffer on its way to the sinks."""

    index: int
    slab: Slab
    frame_bytes: int
    users: int = 0

    def done(self) -> None:
        self.users -= 1
        if self.users == 0:
            self.slab.release()


@dataclass(frozen=True, slots=True)
class Row:
    """One shard to write: its row in the stripe buffers, its shard number, its slot."""

    row: int
    shard: int
    slot: int


class Sink:
    """One node's shards. `rows` follow each other in the buffer."""

    def __init__(self, node: str, rows: tuple[Row, ...]) -> None:
        self.node = node
        self.rows = rows
        self.error: BaseException | None = None
        self.written = 0  # stripes taken and done
        self.queue: deque[Stripe] = deque()
        self.arrived = asyncio.Event()
        self.ended = False

    async def open(self) -> None:
        raise AssertionError("a sink defines its own way to open")

    async def write(self, stripe: Stripe) -> None:
        raise AssertionError("a sink defines its own way to write")

    async def sync(self) -> tuple[int, ...]:
        """-> the slots whose shards are durable."""
        raise AssertionError("a sink defines its own way to sync")

    def abort(self) -> None:
        """Nothing of it is wanted."""


class LocalSink(Sink):
    """This node's drives write from the arena."""

    def __init__(
        self,
        node: str,
        rows: tuple[Row, ...],
        view: SetView,
        layout: StripeLayout,
        data_id: bytes,
        gate: DriveGate,
        deadline: float,
    ) -> None:
        super().__init__(node, rows)
        self._view = view
        self._layout = layout
        self._data_id = data_id
        self._gate = gate
        self._deadline = deadline
        self._good = {row.slot: view.drive_of[row.slot] for row in rows}

    async def open(self) -> None:
        await self._each(
            {
                row.slot: verbs.StageOpen(
                    self._data_id,
                    ShardHeader.of(
                        self._layout, data_id=self._data_id, shard=row.shard, n=self._view.n
                    ).encode(),
                )
                for row in self.rows
            }
        )

    async def write(self, stripe: Stripe) -> None:
        size = stripe.frame_bytes
        offset = self._layout.frame_offset(stripe.index)
        async with self._gate.bulk:
            await self._each(
                {
                    row.slot: verbs.StageWrite(
                        self._data_id, offset, stripe.slab.offset + row.row * size, size
                    )
                    for row in self.rows
                    if row.slot in self._good
                },
                stripe.slab,
            )

    async def sync(self) -> tuple[int, ...]:
        whole = self._layout.shard_file_bytes
        await self._each({slot: verbs.StageSync(self._data_id, whole) for slot in list(self._good)})
        return tuple(self._good)

    def abort(self) -> None:
        for drive in self._good.values():
            drop = verbs.encode(verbs.StageDrop(self._data_id))
            call = self._gate.call(drive, drop, operation="StageDrop", deadline=self._deadline)
            call.add_done_callback(_consume)

    async def _each(self, wanted: dict[int, verbs.Verb], slab: Slab | None = None) -> None:
        """One verb to each slot's drive, all the same kind. A drive that fails or stays behind is out."""
        answers = await self._gate.together(
            [(self._good[slot], verbs.encode(verb)) for slot, verb in wanted.items()],
            tuple,
            operation=type(next(iter(wanted.values()))).__name__,
            deadline=self._deadline,
            late_s=SHARD_WRITER_LAG_S,
            slabs=(slab,) if slab is not None else (),
        )
        for slot, answer in zip(list(wanted), answers, strict=True):
            if isinstance(verbs.decode_reply(answer), verbs.Failed):
                del self._good[slot]
        if not self._good:
            raise TargetFailed("no local drive takes the shards")


class PeerSink(Sink):
    """One stream of raw bytes to a peer, its rows of every stripe in order."""

    def __init__(
        self,
        node: str,
        rows: tuple[Row, ...],
        view: SetView,
        layout: StripeLayout,
        data_id: bytes,
        cluster: Cluster,
        deadline: float,
    ) -> None:
        super().__init__(node, rows)
        self._cluster = cluster
        self._deadline = deadline
        self._header = messages.encode(
            messages.ShardWriteHeader(
                data_id,
                layout.size_bytes,
                layout.k,
                layout.stripe_data_bytes,
                tuple(
                    (
                        view.drive_of[row.slot],
                        ShardHeader.of(layout, data_id=data_id, shard=row.shard, n=view.n).encode(),
                    )
                    for row in rows
                ),
            )
        )
        self._upload: Upload | None = None

    async def open(self) -> None:
        self._upload = await self._cluster.peers.open_upload(
            self.node, self._header, deadline=self._deadline
        )

    async def write(self, stripe: Stripe) -> None:
        assert self._upload is not None
        begin = self.rows[0].row * stripe.frame_bytes
        end = begin + len(self.rows) * stripe.frame_bytes
        for position in range(begin, end, PEER_FRAME_BYTES):
            past = min(position + PEER_FRAME_BYTES, end)
            await self._upload.send(bytes(stripe.slab.view[position:past]))

    async def sync(self) -> tuple[int, ...]:
        assert self._upload is not None
        answers = messages.decode_replies(await self._upload.finish()).replies
        return tuple(
            row.slot
            for row, answer in zip(self.rows, answers, strict=True)
            if isinstance(verbs.decode_reply(answer), verbs.Done)
        )

    def abort(self) -> None:
        if self._upload is not None:
            self._upload.abort()


class ShardWriters:
    """All sinks of one run of data."""

    def __init__(
        self,
        cluster: Cluster,
        gate: DriveGate,
        view: SetView,
        layout: StripeLayout,
        data_id: bytes,
        rows: Sequence[Row],
        *,
        needed: int,
        deadline: float,
    ) -> None:
        """`needed`: drives that must end up with a durable shard; fewer is QuorumLost."""
        self._cluster = cluster
        self._clock = cluster.clock
        self._needed = needed
        self._tasks: list[asyncio.Task[None]] = []
        self._progress = asyncio.Event()
        self._synced = False
        self.sinks: list[Sink] = []
        by_node: dict[str, list[Row]] = {}
        reachable = {member.node for member in cluster.reachable(view)}
        for row in rows:
            node = view.node_of[row.slot]
            if node in reachable:
                by_node.setdefault(node, []).append(row)
        for node, mine in by_node.items():
            if node == cluster.me:
                self.sinks.append(
                    LocalSink(node, tuple(mine), view, layout, data_id, gate, deadline)
                )
            else:
                self.sinks.append(
                    PeerSink(node, tuple(mine), view, layout, data_id, cluster, deadline)
                )
        self._check()

    def _live(self) -> list[Sink]:
        return [sink for sink in self.sinks if sink.error is None]

    def _check(self) -> None:
        if sum(len(sink.rows) for sink in self._live()) < self._needed:
            causes = [str(sink.error) for sink in self.sinks if sink.error is not None]
            raise QuorumLost(
                f"fewer than {self._needed} drives take the data"
                + (f" ({causes[0]})" if causes else "")
            )

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run(sink)) for sink in self.sinks]
        for sink, task in zip(self.sinks, self._tasks, strict=True):
            task.add_done_callback(lambda done, sink=sink: self._on_end(sink, done))  # type: ignore[misc]

    def _on_end(self, sink: Sink, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._drop(sink, error)

    async def _run(self, sink: Sink) -> None:
        try:
            await sink.open()
            while True:
                while not sink.queue:
                    if sink.ended:
                        return
                    sink.arrived.clear()
                    await sink.arrived.wait()
                await sink.write(sink.queue[0])
                sink.queue.popleft().done()
                sink.written += 1
                self._progress.set()
        except (HoldfastError, asyncio.CancelledError) as error:
            self._drop(sink, error)

    def _drop(self, sink: Sink, error: BaseException) -> None:
        if sink.error is None:
            sink.error = error
            sink.abort()
        while sink.queue:
            sink.queue.popleft().done()
        self._progress.set()

    async def write(self, stripe: Stripe) -> None:
        """Hands a full buffer over; waits while the sinks have STRIPES_IN_FLIGHT of them to do."""
        live = self._live()
        stripe.users = len(live) + 1
        for sink in live:
            sink.queue.append(stripe)
            sink.arrived.set()
        stripe.done()
        await self._until_at_most(STRIPES_IN_FLIGHT - 1)

    async def _until_at_most(self, stripes: int) -> None:
        """Until no live sink has more than `stripes` to do; who lags behind enough others is dropped."""
        lagging_since = self._clock.monotonic()
        while True:
            self._check()
            behind = [sink for sink in self._live() if len(sink.queue) > stripes]
            if not behind:
                return
            ahead = sum(len(s.rows) for s in self._live()) - sum(len(s.rows) for s in behind)
            left: float | None = None
            if ahead >= self._needed:
                left = lagging_since + self._patience_s(behind) - self._clock.monotonic()
                if left <= 0:
                    self._cancel(behind)
                    continue
                left = min(left, STRAGGLER_BOUND_S)  # by then somebody may be known to be quiet
            self._progress.clear()
            try:
                await asyncio.wait_for(self._progress.wait(), left)
            except TimeoutError:
                continue

    def _patience_s(self, behind: Iterable[Sink]) -> float:
        quiet = all(self._cluster.is_quiet(sink.node) for sink in behind)
        return STRAGGLER_BOUND_S if quiet else SHARD_WRITER_LAG_S

    def _cancel(self, sinks: Iterable[Sink]) -> None:
        for sink in sinks:
            self._drop(sink, DeadlineExceeded(f"{sink.node} fell behind the other shard writers"))
            self._tasks[self.sinks.index(sink)].cancel()

    async def sync(self, deadline: float) -> frozenset[int]:
        """All stripes were handed over: drain, make durable; -> the slots that hold a shard."""
        await self._until_at_most(0)
        for sink in self.sinks:
            sink.ended = True
            sink.arrived.set()
        gathering: Gathering[str, tuple[int, ...]] = Gathering()
        loop = asyncio.get_running_loop()
        tasks = {sink.node: loop.create_task(self._sync(sink)) for sink in self._live()}
        gathering.add_all(tasks)

        def slots() -> set[int]:
            return {slot for found in gathering.results.values() for slot in found}

        await gathering.until(
            lambda: len(slots()) >= self._needed, deadline - self._clock.monotonic()
        )
        if len(slots()) >= self._needed:
            await self._grace(gathering)
        for task in tasks.values():
            task.cancel()
        if len(slots()) < self._needed:
            raise QuorumLost(f"{len(slots())} drives hold the data, {self._needed} are needed")
        self._synced = True
        return frozenset(slots())

    async def _grace(self, gathering: Gathering[str, tuple[int, ...]]) -> None:
        """A quorum of shards is durable: the slower drives get a little more, quiet nodes hardly any."""
        until = self._clock.monotonic() + SHARD_SYNC_GRACE_S
        while (left := until - self._clock.monotonic()) > 0:
            await gathering.until(lambda: False, min(left, STRAGGLER_BOUND_S))
            late = [sink.node for sink in self.sinks if gathering.is_pending(sink.node)]
            if all(map(self._cluster.is_quiet, late)):
                return

    async def _sync(self, sink: Sink) -> tuple[int, ...]:
        await self._tasks[self.sinks.index(sink)]
        return await sink.sync()

    def close(self) -> None:
        """Ends the streams; what was not synced as a whole is aborted. Safe to call at any time."""
        if self._synced:
            return
        for sink, task in zip(self.sinks, self._tasks, strict=False):
            if not task.done():
                task.cancel()
            self._drop(sink, DeadlineExceeded("the upload was given up"))


def _consume(future: asyncio.Future[bytes]) -> None:
    if not future.cancelled():
        future.exception()
