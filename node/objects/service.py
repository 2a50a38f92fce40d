"""The use cases of the object layer (node.objects.api.ObjectStore), put together from its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from node.errors import (
    ClientError,
    CodedError,
    InvalidRange,
    LockContended,
    NoSuchBucket,
    NoSuchKey,
    QuorumLost,
    Undecided,
)
from node.objects.api import (
    NO_CONDITIONS,
    Body,
    BucketInfo,
    ByteRange,
    CompletedPart,
    Conditions,
    Listing,
    NewObject,
    PartInfo,
    PartListing,
    Reading,
    UploadInfo,
    UploadListing,
)
from node.objects.bodies import ReadingBody
from node.objects.buckets import Buckets, write_renewed
from node.objects.conditions import check_read, check_source, check_write
from node.objects.documents import inline_bytes
from node.objects.get import MemoryReading, ObjectReading
from node.objects.listing import Lister, Slots
from node.objects.lookup import Found, Lookup
from node.objects.multipart import Multipart
from node.objects.put import Intake, Stored
from node.objects.sets import SYSTEM_BUCKET, Cluster, SetView
from node.objects.shards import ShardSources
from node.objects.write import Condition, Writer
from node.protocol import record as records
from node.protocol import verbs
from node.protocol.record import Kind, Record


class ReadObserver(Protocol):
    """What is counted about reads."""

    def shard_replaced(self, reason: str) -> None: ...

    def rotten_block(self, drive: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the use cases are made of."""

    cluster: Cluster
    lookup: Lookup
    writer: Writer
    intake: Intake
    sources: ShardSources
    lister: Lister
    buckets: Buckets
    multipart: Multipart
    observer: ReadObserver


class Objects:
    """node.objects.api.ObjectStore."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._cluster = parts.cluster
        self._clock = parts.cluster.clock

    # ---- buckets --------------------------------------------------------------------------------
    async def list_buckets(self, *, deadline: float) -> tuple[BucketInfo, ...]:
        names = []
        cursor = b""
        while True:
            entries, end = await self._parts.lister.entries(
                SYSTEM_BUCKET, prefix=b"buckets/", after=cursor, limit=1000, deadline=deadline
            )
            names += [entry.key.decode().removeprefix("buckets/") for entry in entries]
            if end is None:
                break
            cursor = end
        found = []
        for name in names:
            try:
                found.append(await self._parts.buckets.get(name, deadline=deadline))
            except NoSuchBucket:
                continue  # deleted since it was listed
        return tuple(found)

    async def create_bucket(self, bucket: str, owner: str, *, deadline: float) -> BucketInfo:
        return await self._parts.buckets.create(bucket, owner, deadline=deadline)

    async def head_bucket(self, bucket: str, *, deadline: float) -> BucketInfo:
        return await self._parts.buckets.get(bucket, fresh=True, deadline=deadline)

    async def configure_bucket(
        self, bucket: str, change: Callable[[dict[str, str]], None], *, deadline: float
    ) -> BucketInfo:
        return await self._parts.buckets.configure(bucket, change, deadline=deadline)

    async def delete_bucket(self, bucket: str, *, deadline: float) -> None:
        async def is_empty(only: Slots | None) -> bool:
            return not await self._parts.lister.any_key(bucket, only=only, deadline=deadline)

        await self._parts.buckets.delete(bucket, is_empty, deadline=deadline)
        self._cluster.spawn(self._parts.multipart.sweep_bucket(bucket))

    # ---- writing --------------------------------------------------------------------------------
    async def put(
        self,
        bucket: str,
        key: str,
        body: Body,
        new: NewObject,
        *,
        conditions: Conditions = NO_CONDITIONS,
        deadline: float,
    ) -> Record:
        budget_s = deadline - self._clock.monotonic()
        info = await self._parts.buckets.get(bucket, deadline=deadline)
        view = self._cluster.view(bucket, key)
        geometry = view.geometry_for(bucket)
        stored = await self._parts.intake.store(
            view,
            geometry,
            self._cluster.rotation(view, bucket, key),
            body,
            budget_s=budget_s,
        )
        # The body took its own time; what is left to do has the whole budget again.
        deadline = self._clock.monotonic() + budget_s
        return await self._commit_stored(view, info, key, stored, new, conditions, deadline)

    async def _commit_stored(
        self,
        view: SetView,
        info: BucketInfo,
        key: str,
        stored: Stored,
        new: NewObject,
        conditions: Conditions,
        deadline: float,
    ) -> Record:
        now_ns = int(self._clock.now() * 1e9)
        geometry = stored.geometry

        def make(epoch: bytes, base: bytes) -> Record:
            return Record(
                epoch=epoch,
                base=base,
                kind=Kind.OBJECT,
                mtime_ns=now_ns,
                bucket_generation=info.generation,
                k=geometry.k,
                n=geometry.n,
                rotation=stored.rotation,
                size=stored.part.size,
                etag=stored.part.etag,
                inline=stored.inline,
                parts=(stored.part,),
                headers=new.headers,
                metadata=new.metadata,
                tags=new.tags,
                owner=new.owner or info.owner,
                checksums={**new.checksums, **stored.result.checksums},
            )

        try:
            written = await self._write(
                view,
                info,
                key,
                make,
                shards=stored.shards,
                staged=stored.staged,
                condition=write_condition(conditions),
                deadline=deadline,
            )
        except (ClientError, LockContended, QuorumLost, Undecided):
            # Nothing was sent, or every attempt was proved dead. After OutcomeUnknown it must stay.
            self._parts.intake.abandon(view, stored)
            raise
        assert written is not None
        return written

    async def _write(
        self,
        view: SetView,
        info: BucketInfo,
        key: str,
        make: Callable[[bytes, bytes], Record],
        *,
        shards: dict[int, bytes] | None = None,
        staged: frozenset[int] | None = None,
        condition: Condition | None = None,
        skip_absent: bool = False,
        deadline: float,
    ) -> Record | None:
        return await write_renewed(
            self._parts.writer,
            self._parts.buckets,
            view,
            info,
            key,
            make,
            shards=shards,
            staged=staged,
            condition=condition,
            skip_absent=skip_absent,
            deadline=deadline,
        )

    async def delete(
        self,
        bucket: str,
        key: str,
        *,
        conditions: Conditions = NO_CONDITIONS,
        deadline: float,
    ) -> None:
        info = await self._parts.buckets.get(bucket, deadline=deadline)
        view = self._cluster.view(bucket, key)
        now_ns = int(self._clock.now() * 1e9)
        await self._write(
            view,
            info,
            key,
            lambda epoch, base: records.tombstone(epoch, base, now_ns, info.generation),
            condition=write_condition(conditions),
            skip_absent=not conditions,
            deadline=deadline,
        )

    async def copy(
        self,
        source_bucket: str,
        source_key: str,
        bucket: str,
        key: str,
        new: NewObject | None,
        *,
        source_conditions: Conditions = NO_CONDITIONS,
        conditions: Conditions = NO_CONDITIONS,
        deadline: float,
    ) -> Record:
        budget_s = deadline - self._clock.monotonic()
        info = await self._parts.buckets.get(bucket, deadline=deadline)
        found = await self._find_object(source_bucket, source_key, True, deadline)
        source = found.record
        assert source is not None
        check_source(source, source_conditions)
        if new is None:
            new = NewObject(headers=source.headers, metadata=source.metadata, tags=source.tags)
        reading = await self._reading(found, 0, source.size, deadline)
        view = self._cluster.view(bucket, key)
        try:
            body = ReadingBody(reading)
            for algorithm in (*source.checksums, new.checksum_algorithm):
                body.want(algorithm)
            stored = await self._parts.intake.store(
                view,
                view.geometry_for(bucket),
                self._cluster.rotation(view, bucket, key),
                body,
                budget_s=budget_s,
            )
        finally:
            await reading.close()
        deadline = self._clock.monotonic() + budget_s
        return await self._commit_stored(view, info, key, stored, new, conditions, deadline)

    # ---- reading --------------------------------------------------------------------------------
    async def head(
        self,
        bucket: str,
        key: str,
        *,
        conditions: Conditions = NO_CONDITIONS,
        deadline: float,
    ) -> Record:
        found = await self._find_object(bucket, key, False, deadline)
        assert found.record is not None
        check_read(found.record, conditions)
        return found.record

    async def get(
        self,
        bucket: str,
        key: str,
        *,
        byte_range: ByteRange | None = None,
        part_number: int | None = None,
        conditions: Conditions = NO_CONDITIONS,
        deadline: float,
    ) -> Reading:
        found = await self._find_object(bucket, key, True, deadline)
        record = found.record
        assert record is not None
        check_read(record, conditions)
        start, end = resolve_range(record, byte_range, part_number)
        return await self._reading(found, start, end, deadline)

    async def _find_object(self, bucket: str, key: str, inline: bool, deadline: float) -> Found:
        view = self._cluster.view(bucket, key)
        found = await self._parts.lookup.find(
            view, records.catalog_key(bucket, key), inline=inline, deadline=deadline
        )
        if found.record is None or found.record.kind != Kind.OBJECT:
            await self._parts.buckets.get(bucket, deadline=deadline)  # or NoSuchBucket
            raise NoSuchKey(key=key)
        return found

    async def _reading(self, found: Found, start: int, end: int, deadline: float) -> Reading:
        record = found.record
        assert record is not None
        if record.inline:
            data = await inline_bytes(
                self._parts.lookup,
                found,
                lambda slot, reason: self._on_bad(found, slot, reason),
                deadline=deadline,
            )
            return MemoryReading(record, data, start, end)
        return ObjectReading(
            self._parts.sources,
            found,
            start,
            end,
            lambda slot, reason: self._on_bad(found, slot, reason),
        )

    def _on_bad(self, found: Found, slot: int, reason: str) -> None:
        """A shard that could not be had: counted; rot and loss become a durable repair entry."""
        self._parts.observer.shard_replaced(reason)
        record = found.record
        assert record is not None
        if reason not in ("rotten", "missing"):
            return
        if reason == "rotten":
            place = found.view.slots[slot]
            self._parts.observer.rotten_block(f"{place.node}{place.path}")
        if slot in found.answers and slot not in found.holders:
            return  # it never had the version; the writer queued that already
        entry = verbs.Enqueue(found.key, record.epoch, (slot,))
        self._cluster.tell_slots(
            found.view,
            dict.fromkeys(found.holders, entry),
            deadline=self._clock.monotonic() + 5.0,
        )

    async def list_objects(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        after: str = "",
        limit: int = 1000,
        deadline: float,
    ) -> Listing:
        await self._parts.buckets.get(bucket, deadline=deadline)
        return await self._parts.lister.page(
            bucket, prefix=prefix, delimiter=delimiter, after=after, limit=limit, deadline=deadline
        )

    # ---- multipart ------------------------------------------------------------------------------
    async def create_upload(
        self, bucket: str, key: str, new: NewObject, *, deadline: float
    ) -> UploadInfo:
        info = await self._parts.buckets.get(bucket, deadline=deadline)
        return await self._parts.multipart.create(info, key, new, deadline=deadline)

    async def upload_part(
        self, bucket: str, key: str, upload_id: str, number: int, body: Body, *, deadline: float
    ) -> PartInfo:
        return await self._parts.multipart.upload_part(
            bucket, key, upload_id, number, body, deadline=deadline
        )

    async def copy_part(
        self,
        source_bucket: str,
        source_key: str,
        byte_range: ByteRange | None,
        bucket: str,
        key: str,
        upload_id: str,
        number: int,
        *,
        source_conditions: Conditions = NO_CONDITIONS,
        deadline: float,
    ) -> PartInfo:
        found = await self._find_object(source_bucket, source_key, True, deadline)
        source = found.record
        assert source is not None
        check_source(source, source_conditions)
        if byte_range is not None and (byte_range.last is None or byte_range.last >= source.size):
            raise CodedError(
                "InvalidArgument",
                f"Range specified is not valid for source object of size: {source.size}",
            )
        start, end = resolve_range(source, byte_range, None)
        reading = await self._reading(found, start, end, deadline)
        try:
            return await self._parts.multipart.upload_part(
                bucket, key, upload_id, number, ReadingBody(reading), deadline=deadline
            )
        finally:
            await reading.close()

    async def complete_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: tuple[CompletedPart, ...],
        *,
        checksums: dict[str, str],
        conditions: Conditions = NO_CONDITIONS,
        deadline: float,
    ) -> Record:
        info = await self._parts.buckets.get(bucket, deadline=deadline)

        async def write(
            view: SetView, make: Callable[[bytes, bytes], Record], deadline: float
        ) -> Record:
            written = await self._write(
                view,
                info,
                key,
                make,
                condition=write_condition(conditions),
                deadline=deadline,
            )
            assert written is not None
            return written

        return await self._parts.multipart.complete(
            info, key, upload_id, parts, checksums, write, deadline=deadline
        )

    async def abort_upload(self, bucket: str, key: str, upload_id: str, *, deadline: float) -> None:
        await self._parts.multipart.abort(bucket, key, upload_id, deadline=deadline)

    async def list_parts(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        *,
        after: int = 0,
        limit: int = 1000,
        deadline: float,
    ) -> PartListing:
        return await self._parts.multipart.list_parts(
            bucket, key, upload_id, after=after, limit=limit, deadline=deadline
        )

    async def list_uploads(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        after_key: str = "",
        after_upload_id: str = "",
        limit: int = 1000,
        deadline: float,
    ) -> UploadListing:
        await self._parts.buckets.get(bucket, deadline=deadline)
        return await self._parts.multipart.list_uploads(
            bucket,
            prefix=prefix,
            delimiter=delimiter,
            after_key=after_key,
            after_upload_id=after_upload_id,
            limit=limit,
            deadline=deadline,
        )


def write_condition(conditions: Conditions) -> Condition | None:
    """The condition of a conditional write, None when there is none."""
    if not conditions:
        return None
    return lambda record: check_write(record, conditions)


def resolve_range(
    record: Record, byte_range: ByteRange | None, part_number: int | None
) -> tuple[int, int]:
    """-> (start, end exclusive); InvalidRange where it is not satisfiable."""
    if part_number is not None:
        start = 0
        for part in record.parts:
            if part.number == part_number:
                return start, start + part.size
            start += part.size
        raise InvalidRange(ActualObjectSize=str(record.size))
    if byte_range is None:
        return 0, record.size
    if byte_range.first is None:
        suffix = byte_range.last or 0
        if suffix == 0 or record.size == 0:
            raise InvalidRange(ActualObjectSize=str(record.size))
        return max(record.size - suffix, 0), record.size
    if byte_range.first >= record.size:
        raise InvalidRange(ActualObjectSize=str(record.size))
    last = record.size - 1 if byte_range.last is None else min(byte_range.last, record.size - 1)
    return byte_range.first, last + 1
