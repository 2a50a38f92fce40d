"""Giving an object out: k shard streams a part, replaced in mid-read, decoded where data shards are missing.

Theory of operation. A part is read stripe by stripe from k shards, near ones and data shards first
(erasure.plan). A stream that breaks, is late, or whose frame is rotten or missing is replaced by others from
that stripe on, at a block boundary, and the client does not notice; when fewer than k shards can be had
the reading fails, and the face must abort the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from erasure.errors import NotEnoughShards
from erasure.plan import ReadPlan, ShardSource, plan_read, replace
from erasure.stripe import StripeLayout
from node.errors import HoldfastError, QuorumLost
from node.limits import SHARD_READER_LAG_S
from node.objects import stripes
from node.objects.lookup import Found
from node.objects.sets import SetView
from node.objects.shards import Frames, ShardSources, ShardStream
from node.protocol.record import Part, Record

_QUIET_COST = 100.0  # so much dearer than the others that it is asked when nothing else is left
OnBad = Callable[[int, str], None]  # (slot, reason: "rotten", "missing", "late", "failed")


@dataclass(frozen=True, slots=True)
class PartSlice:
    """Bytes [start, end) of one part."""

    part: Part
    start: int
    end: int


def slices(record: Record, start: int, end: int) -> list[PartSlice]:
    """The runs of parts that make up bytes [start, end) of the object."""
    found, origin = [], 0
    for part in record.parts:
        first, past = max(start - origin, 0), min(end - origin, part.size)
        if first < past:
            found.append(PartSlice(part, first, past))
        origin += part.size
    return found


class StripeReader:
    """Reads stripes [first, last) of one part: `next` gives the payloads of the wanted shards."""

    def __init__(
        self,
        sources: ShardSources,
        view: SetView,
        record: Record,
        part: Part,
        holders: Iterable[int],
        first: int,
        last: int,
        on_bad: OnBad,
        *,
        exclude: Iterable[int] = (),
    ) -> None:
        """`holders`: slots known to have the version; other reachable slots are tried after them."""
        self._sources = sources
        self._view = view
        self._record = record
        self._part = part
        self.layout = StripeLayout(part.size, record.k, part.stripe_bytes)
        self._stripe, self._last = first, last
        self._on_bad = on_bad
        self._slot_of = {view.shard_at(slot, record.rotation): slot for slot in range(view.n)}
        self._bad: set[int] = set()
        self._streams: list[ShardStream] = []
        me, known, barred = sources.cluster.me, set(holders), set(exclude)
        reachable = {member.node for member in sources.cluster.reachable(view)}
        quiet = {node for node in reachable if sources.cluster.is_quiet(node)}
        self._available = [
            ShardSource(
                shard=shard,
                node=view.node_of[slot],
                local=view.node_of[slot] == me,
                cost=(1.0 if slot in known else 2.0)
                * (_QUIET_COST if view.node_of[slot] in quiet else 1.0),
            )
            for shard, slot in self._slot_of.items()
            if slot not in barred and view.node_of[slot] in reachable
        ]
        self._plan = self._planned()
        self._open(self._plan.chosen)

    def _planned(self) -> ReadPlan:
        try:
            return plan_read(self._available, self._record.k)
        except NotEnoughShards as error:
            raise QuorumLost(f"the object cannot be read now: {error}") from error

    def _open(self, chosen: Iterable[ShardSource]) -> None:
        by_node: dict[str, list[int]] = {}
        for source in chosen:
            by_node.setdefault(str(source.node), []).append(source.shard)
        for node, shards in by_node.items():
            shards.sort()
            self._streams.append(
                self._sources.open(
                    node,
                    [self._view.drive_of[self._slot_of[shard]] for shard in shards],
                    tuple(shards),
                    self._part.data_id,
                    self.layout,
                    self._stripe,
                    self._last,
                )
            )

    async def next(self, wanted: Iterable[int]) -> tuple[dict[int, memoryview], list[Frames]]:
        """The next stripe's payloads of the `wanted` shards; release the frames when done with them."""
        stripe, k = self._stripe, self._record.k
        held: list[Frames] = []
        good: dict[int, memoryview] = {}
        try:
            asked: set[ShardStream] = set()
            while len(good) < k:
                waiting = [s for s in self._streams if s not in asked]
                if not waiting:
                    self._replace(self._lost(good), stripe)
                    continue
                asked.update(waiting)
                await self._collect(waiting, held, good)
                lost = self._lost(good)
                if lost and len(good) < k:
                    self._replace(lost, stripe)
            missing = [shard for shard in wanted if shard not in good]
            if missing:
                good |= stripes.rebuild(dict(list(good.items())), k, self._view.n, missing)
        except BaseException:
            for frames in held:
                frames.release()
            raise
        self._stripe += 1
        return good, held

    def _lost(self, good: dict[int, memoryview]) -> set[int]:
        """Chosen shards that gave nothing for this stripe."""
        return {source.shard for source in self._plan.chosen} - good.keys()

    async def _collect(
        self, streams: list[ShardStream], held: list[Frames], good: dict[int, memoryview]
    ) -> None:
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(stream.next(SHARD_READER_LAG_S)) for stream in streams]
        try:
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        except BaseException:
            for task in tasks:  # what came before the reader was called off is nobody's now
                task.add_done_callback(_release)
            raise
        for stream, answer in zip(streams, answers, strict=True):
            if isinstance(answer, Frames):
                held.append(answer)
                self._take(stream, answer, good)
            elif isinstance(answer, TimeoutError | HoldfastError):
                late = isinstance(answer, TimeoutError)
                self._fail(stream.shards, "late" if late else "failed")
                stream.close()
                self._streams.remove(stream)
            else:
                raise answer

    def _take(self, stream: ShardStream, frames: Frames, good: dict[int, memoryview]) -> None:
        came = {
            shard: data
            for shard, data in zip(stream.shards, frames.frames, strict=True)
            if data is not None and shard not in self._bad
        }
        whole = stripes.verified(came, self._part.data_id, frames.stripe)
        good |= whole
        missing = [s for s in stream.shards if s not in came and s not in self._bad]
        rotten = [s for s in came if s not in whole]
        if missing:
            self._fail(missing, "missing")
        if rotten:
            self._fail(rotten, "rotten")

    def _fail(self, shards: Iterable[int], reason: str) -> None:
        for shard in shards:
            if shard not in self._bad:
                self._bad.add(shard)
                self._on_bad(self._slot_of[shard], reason)

    def _replace(self, lost: set[int], stripe: int) -> None:
        others = replace(self._plan, lost | self._bad, self._available)
        if len(self._plan.chosen) - len(lost) + len(others) < self._record.k:
            raise QuorumLost(
                f"fewer than {self._record.k} good shards of stripe {stripe} can be had now"
            )
        kept = tuple(s for s in self._plan.chosen if s.shard not in lost)
        self._plan = ReadPlan(chosen=(*kept, *others), k=self._plan.k)
        self._open(others)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._streams.clear()


def _release(task: asyncio.Task[Frames]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().release()


class ObjectReading:
    """node.objects.api.Reading over shard files."""

    def __init__(
        self, sources: ShardSources, found: Found, start: int, end: int, on_bad: OnBad
    ) -> None:
        assert found.record is not None
        self.record = found.record
        self.start = start
        self.end = end
        self._sources = sources
        self._found = found
        self._on_bad = on_bad
        self._reader: StripeReader | None = None

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        """Views are read-only where they may be kept; those into shared buffers are not (copy them)."""
        record, found = self.record, self._found
        data_rows = range(record.k)
        try:
            for piece in slices(record, self.start, self.end):
                layout = StripeLayout(piece.part.size, record.k, piece.part.stripe_bytes)
                wanted = layout.stripes_for(piece.start, piece.end)
                self._reader = StripeReader(
                    self._sources,
                    found.view,
                    record,
                    piece.part,
                    found.holders,
                    wanted.start,
                    wanted.stop,
                    self._on_bad,
                )
                for stripe in wanted:
                    payloads, held = await self._reader.next(data_rows)
                    try:
                        for row, first, past in layout.range_slices(stripe, piece.start, piece.end):
                            yield payloads[row][first:past]
                    finally:
                        for frames in held:
                            frames.release()
                self._reader.close()
                self._reader = None
        finally:
            await self.close()

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class MemoryReading:
    """node.objects.api.Reading over an object that is already here."""

    def __init__(self, record: Record, data: bytes | bytearray, start: int, end: int) -> None:
        self.record = record
        self.start = start
        self.end = end
        self._data = memoryview(data).toreadonly()

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        if self.start < self.end:
            yield self._data[self.start : self.end]

    async def close(self) -> None:
        return None
