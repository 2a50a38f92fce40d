"""Small documents of the cluster itself (buckets, identity, configuration) as inline system objects.

A document's version is the number of its epoch: it grows with each write of it, on every drive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.errors import PreconditionFailed
from node.objects import stripes
from node.objects.lookup import Found, Lookup
from node.objects.sets import SYSTEM_BUCKET, Cluster, SetView
from node.objects.write import Writer
from node.protocol import epoch as ep
from node.protocol import record as records
from node.protocol.record import Kind, Part, Record
from node.runtime.ports import Rng


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
        return Document(inline_bytes(found), ep.number(record.epoch), record.mtime_ns)

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


def inline_bytes(found: Found) -> bytes:
    """The data of an inline version that was looked up with its shards."""
    record = found.record
    assert record is not None and record.inline
    if not record.size:
        return b""
    view: SetView = found.view
    shards = {
        view.shard_at(slot, record.rotation): shard
        for slot in found.holders
        if (shard := found.shard(slot))
    }
    part = record.parts[0]
    return bytes(stripes.inline_data(shards, part.data_id, record.size, record.k, record.n))
