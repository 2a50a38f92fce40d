"""Buckets: documents with a generation that every commit carries.

A bucket that is deleted fences its generation at the drives first, so no write is acknowledged into a
bucket that is gone; a bucket made anew has a higher one. What this node remembers of buckets may be
old: a write under an old generation is refused by the drives, and the reader of a deleted bucket finds
no keys; so a memory of BUCKET_MEMORY_S is harmless, and absence is never remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Protocol

import msgspec

from node.errors import (
    BucketAlreadyExists,
    BucketNotEmpty,
    CodedError,
    DeadlineExceeded,
    NoSuchBucket,
    QuorumLost,
)
from node.guard.guard import Guard
from node.guard.policy import ADMIN
from node.limits import BUCKET_MEMORY_ENTRIES, BUCKET_MEMORY_S
from node.objects.api import BucketInfo
from node.objects.documents import Document, DocumentConflict, Documents
from node.objects.gathering import Gathering
from node.objects.listing import Slots
from node.objects.sets import SYSTEM_BUCKET, Cluster, SetView, replies
from node.objects.write import Condition, Make, Writer
from node.protocol import record as records
from node.protocol import verbs
from node.protocol.record import Record

_PREFIX = "buckets/"


class ConfigObserver(Protocol):
    def config_read(self, operation: str, seconds: float) -> None: ...

    def config_read_timeout(self, operation: str) -> None: ...


class _Stored(msgspec.Struct):
    name: str
    created_s: float
    owner: str
    region: str = ""
    fenced: int = 0  # generations up to this one are refused by the drives
    settings: dict[str, str] = {}


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Stored)


class Buckets:
    """Bucket documents and what this node remembers of them."""

    def __init__(
        self,
        cluster: Cluster,
        documents: Documents,
        region: str,
        guard: Guard,
        observer: ConfigObserver,
    ) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._documents = documents
        self._region = region
        self._guard = guard
        self._observer = observer
        self._known: dict[str, tuple[float, BucketInfo]] = {}
        self._reading: dict[str, asyncio.Future[BucketInfo]] = {}

    async def get(self, name: str, *, fresh: bool = False, deadline: float) -> BucketInfo:
        """NoSuchBucket only on a quorum's word."""
        if name == SYSTEM_BUCKET:
            return BucketInfo(name=name, created_s=0.0, generation=0, owner="")
        known = self._known.get(name)
        if known is not None and not fresh and self._clock.monotonic() < known[0]:
            return known[1]
        # Many requests that miss at once share one read.
        reading = self._reading.get(name)
        if reading is None:
            reading = self._cluster.spawn(self._read(name, deadline))
            self._reading[name] = reading
            reading.add_done_callback(lambda _: self._reading.pop(name, None))
        return await asyncio.shield(reading)

    async def _read(self, name: str, deadline: float) -> BucketInfo:
        """A configuration read: 3 s an attempt, 10 s in all, measured; a timeout is 503, never "not found"."""
        policy = ADMIN["config_read"]
        began = self._clock.monotonic()

        async def attempt(until: float) -> Document | None:
            return await self._documents.read(_PREFIX + name, deadline=until)

        try:
            document = await self._guard.run(
                "config",
                "config_read",
                policy,
                None,
                attempt,
                deadline=min(deadline, began + policy.total_s),
            )
        except DeadlineExceeded:
            self._observer.config_read_timeout("config")
            raise
        finally:
            self._observer.config_read("config", self._clock.monotonic() - began)
        if document is None:
            self._known.pop(name, None)
            raise NoSuchBucket(bucket=name)
        return self._remember(_info(document))

    def _remember(self, info: BucketInfo) -> BucketInfo:
        if len(self._known) >= BUCKET_MEMORY_ENTRIES:
            self._known.pop(next(iter(self._known)))
        self._known[info.name] = (self._clock.monotonic() + BUCKET_MEMORY_S, info)
        return info

    def forget(self, name: str) -> None:
        self._known.pop(name, None)

    async def create(self, name: str, owner: str, *, deadline: float) -> BucketInfo:
        now = self._clock.now()
        stored = _Stored(name, now, owner, self._region)
        try:
            document = await self._documents.write(
                _PREFIX + name, _encoder.encode(stored), expected=0, deadline=deadline
            )
        except DocumentConflict as error:
            raise BucketAlreadyExists(bucket=name) from error
        return self._remember(_info(document))

    async def configure(
        self, name: str, change: Callable[[dict[str, str]], None], *, deadline: float
    ) -> BucketInfo:
        """Changes a bucket's settings; its generation grows with it, which open writes survive by a retry."""
        for _attempt in range(3):
            document = await self._documents.read(_PREFIX + name, deadline=deadline)
            if document is None:
                raise NoSuchBucket(bucket=name)
            stored = _decoder.decode(document.data)
            settings = dict(stored.settings)
            change(settings)
            stored.settings = settings
            try:
                written = await self._documents.write(
                    _PREFIX + name,
                    _encoder.encode(stored),
                    expected=document.version,
                    deadline=deadline,
                )
            except DocumentConflict:
                continue
            return self._remember(_info(written))
        raise QuorumLost("the bucket is being changed by others too fast")

    async def delete(
        self, name: str, is_empty: Callable[[Slots | None], Awaitable[bool]], *, deadline: float
    ) -> None:
        """Look, fence, look again, delete: nothing acknowledged can be in it when it goes.

        The second look is at fenced drives alone: another one may take a write right after it was asked.
        """
        document = await self._documents.read(_PREFIX + name, deadline=deadline)
        if document is None:
            raise NoSuchBucket(bucket=name)
        if not await is_empty(None):
            raise BucketNotEmpty(bucket=name)
        fenced = await self._fence(name, document.version, deadline)
        self.forget(name)
        try:
            empty = await is_empty(fenced)
        except BaseException:
            self._cluster.spawn(self._reopen(name, document, deadline))
            raise
        if not empty:
            await self._reopen(name, document, deadline)
            raise BucketNotEmpty(bucket=name)
        try:
            await self._documents.delete(
                _PREFIX + name, expected=document.version, deadline=deadline
            )
        except DocumentConflict as error:
            if await self._documents.read(_PREFIX + name, deadline=deadline) is None:
                raise NoSuchBucket(bucket=name) from error
            raise CodedError(
                "OperationAborted",
                "A conflicting operation is in progress against this bucket. Try again.",
            ) from error
        self.forget(name)

    async def reopen(self, name: str, generation: int, *, deadline: float) -> BucketInfo:
        """For a write that finds the bucket there and its generation closed: by a DeleteBucket that died,
        or that this write overtakes (its delete is conditional on the document it read). NoSuchBucket.
        """
        document = await self._documents.read(_PREFIX + name, deadline=deadline)
        if document is None:
            self.forget(name)
            raise NoSuchBucket(bucket=name)
        if document.version != generation:
            return self._remember(_info(document))
        try:
            await self._reopen(name, document, deadline)
        except DocumentConflict:
            self.forget(name)  # another one was faster, or the bucket has gone
        return await self.get(name, deadline=deadline)

    async def _reopen(self, name: str, document: Document, deadline: float) -> None:
        """Not deleted after all: the same document again has a generation above the fence."""
        written = await self._documents.write(
            _PREFIX + name, document.data, expected=document.version, deadline=deadline
        )
        self._remember(_info(written))

    async def _fence(self, name: str, generation: int, deadline: float) -> Slots:
        """So many drives of every set that none can accept the generation by a quorum any more; -> which."""
        fenced: dict[int, set[int]] = {}
        verb = verbs.encode(verbs.BucketFence(name, generation))
        for view in self._cluster.views:
            gathering: Gathering[str, tuple[bytes, ...] | bytes] = Gathering()
            done = fenced[view.index] = set()
            for member in self._cluster.reachable(view):
                items = tuple((drive, verb) for drive in member.drives)
                gathering.add(member.node, self._cluster.verbs_at(member, items, deadline=deadline))
            await gathering.until(lambda: False, deadline - self._clock.monotonic())
            for node, answer in gathering.results.items():
                for slot, data in zip(view.by_node[node].slots, replies(answer), strict=False):
                    if isinstance(verbs.decode_reply(data), verbs.Done):
                        done.add(slot)
            if len(done) < view.n // 2 + 1:
                raise QuorumLost(f"{len(done)} of {view.n} drives closed the bucket")
        return fenced


async def write_renewed(
    writer: Writer,
    buckets: Buckets,
    view: SetView,
    info: BucketInfo,
    key: str,
    make: Make,
    *,
    shards: Mapping[int, bytes] | None = None,
    staged: Collection[int] | None = None,
    condition: Condition | None = None,
    skip_absent: bool = False,
    deadline: float,
) -> Record | None:
    """A write under a generation that may be old: when it is refused, the bucket is read anew. See Writer.write."""
    generation = info.generation

    def renewed(epoch: bytes, base: bytes) -> Record:
        record = make(epoch, base)
        if record.bucket_generation == generation:
            return record
        return records.replace(record, bucket_generation=generation)

    for left in (2, 1, 0):
        try:
            return await writer.write(
                view,
                (info.name, key),
                renewed,
                shards=shards,
                staged=staged,
                condition=condition,
                skip_absent=skip_absent,
                deadline=deadline,
            )
        except NoSuchBucket:
            if not left:
                raise
            fresh = await buckets.get(info.name, fresh=True, deadline=deadline)
            if fresh.generation == generation:
                fresh = await buckets.reopen(info.name, generation, deadline=deadline)
            generation = fresh.generation
    raise NoSuchBucket(bucket=info.name)


def _info(document: Document) -> BucketInfo:
    stored = _decoder.decode(document.data)
    return BucketInfo(
        name=stored.name,
        created_s=stored.created_s,
        generation=document.version,
        owner=stored.owner,
        region=stored.region,
        settings=stored.settings,
    )
