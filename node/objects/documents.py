"""Small documents of the cluster itself (buckets, identity, configuration) as inline system objects.

A document's version is the number of its epoch: it grows with each write of it, on every drive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.errors import PreconditionFailed, QuorumLost
from node.objects import stripes
from node.objects.lookup import Found, Lookup
from node.objects.sets import SYSTEM_BUCKET, Cluster, SetView
from node.objects.write import Writer
from node.protocol import epoch as ep
from node.protocol import record as records
from node.protocol.record import Kind, Part, Record
from node.runtime.ports import Rng

OnBad = Callable[[int, str], None]  # (slot, reason: "rotten", "missing")


class DocumentConflict(PreconditionFailed):
    """The document changed since it was read."""


@dataclass(frozen=True, slots=True)
class Document:
    data: bytes
    version: int
    mtime_ns: int


class Documents:
    """Reads and conditionally writes documents."""

    def __init__(self, cluster: Cluster, lookup: Lookup, writer: Writer, rng: Rng) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._lookup = lookup
        self._writer = writer
        self._rng = rng

    async def read(self, name: str, *, deadline: float) -> Document | None:
        """None: there is none. Unavailable when that cannot be known now."""
        view = self._cluster.view(SYSTEM_BUCKET, name)
        key = records.catalog_key(SYSTEM_BUCKET, name)
        found = await self._lookup.find(view, key, inline=True, deadline=deadline)
        record = found.record
        if record is None or record.kind != Kind.OBJECT:
            return None
        data = await inline_bytes(self._lookup, found, deadline=deadline)
        return Document(data, ep.number(record.epoch), record.mtime_ns)

    async def write(
        self, name: str, data: bytes, *, expected: int | None, deadline: float
    ) -> Document:
        """`expected`: the version that is replaced, 0 for none, None for any; DocumentConflict otherwise."""
        view = self._cluster.view(SYSTEM_BUCKET, name)
        geometry = view.system_geometry
        rotation = self._cluster.rotation(view, SYSTEM_BUCKET, name)
        data_id = self._rng.bytes(16)
        frames = stripes.inline_frames(data, data_id, geometry.k, geometry.n)
        now_ns = int(self._clock.now() * 1e9)

        def make(epoch: bytes, base: bytes) -> Record:
            return Record(
                epoch=epoch,
                base=base,
                kind=Kind.OBJECT,
                mtime_ns=now_ns,
                k=geometry.k,
                n=geometry.n,
                rotation=rotation,
                size=len(data),
                inline=True,
                parts=(Part(1, len(data), data_id, max(len(data), 1)),),
            )

        written = await self._writer.write(
            view,
            (SYSTEM_BUCKET, name),
            make,
            shards={slot: frames[view.shard_at(slot, rotation)] for slot in range(view.n)},
            condition=expecting(expected),
            deadline=deadline,
        )
        assert written is not None
        return Document(data, ep.number(written.epoch), now_ns)

    async def delete(self, name: str, *, expected: int | None, deadline: float) -> None:
        view = self._cluster.view(SYSTEM_BUCKET, name)
        now_ns = int(self._clock.now() * 1e9)
        await self._writer.write(
            view,
            (SYSTEM_BUCKET, name),
            lambda epoch, base: records.tombstone(epoch, base, now_ns, 0),
            condition=expecting(expected),
            skip_absent=True,
            deadline=deadline,
        )


def expecting(expected: int | None) -> Callable[[Record | None], None] | None:
    """A writer's condition: the version there is `expected`."""
    if expected is None:
        return None

    def condition(record: Record | None) -> None:
        version = ep.number(record.epoch) if record is not None else 0
        if version != expected:
            raise DocumentConflict(f"version {version} is there, {expected} was expected")

    return condition


async def inline_bytes(
    lookup: Lookup, found: Found, on_bad: OnBad = lambda slot, reason: None, *, deadline: float
) -> bytes:
    """The data of an inline version that was looked up with its shards.

    Where some of those are lost or rotten, the other drives are asked as well. QuorumLost.
    """
    try:
        return _joined(found, on_bad)
    except stripes.NotEnoughShards:
        assert found.record is not None
        again = await lookup.find(
            found.view, found.key, inline=True, everywhere=True, deadline=deadline
        )
        if again.record is None or again.record.epoch != found.record.epoch:
            raise QuorumLost("the object changed while its shards were gathered") from None
        try:
            return _joined(again, lambda slot, reason: None)
        except stripes.NotEnoughShards as error:
            raise QuorumLost(f"the object cannot be read now: {error}") from error


def _joined(found: Found, on_bad: OnBad) -> bytes:
    record = found.record
    assert record is not None and record.inline
    if not record.size:
        return b""
    view: SetView = found.view
    part = record.parts[0]
    slots = {view.shard_at(slot, record.rotation): slot for slot in found.holders}
    shards = {shard: data for shard, slot in slots.items() if (data := found.shard(slot))}
    good = stripes.verified(shards, part.data_id, 0)
    for shard, slot in slots.items():
        if shard not in good:
            on_bad(slot, "rotten" if shard in shards else "missing")
    return bytes(stripes.joined(good, record.size, record.k, record.n))
