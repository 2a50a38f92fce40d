"""Multipart uploads: an upload is a system record, a part is a system record whose shards lie in the set of the key.

Complete writes one record that refers to the parts' shard files, and lets part records go only after that
commit; a drive unlinks a file when no record of its own names it, so neither the order of the clean-up
nor an Abort that races with Complete can take data from a committed object. Repeating Complete gives the same
result: the object says which upload it came from.

    multipart/<bucket>/<key> NUL <upload id>      the upload: headers, metadata, checksum algorithm
    part/<upload id>/<number, five digits>        a part; written again, the newer one counts
"""

from __future__ import annotations

import asyncio
import binascii
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise

from node.errors import (
    EntityTooLarge,
    EntityTooSmall,
    HoldfastError,
    InvalidPart,
    InvalidPartOrder,
    NoSuchUpload,
)
from node.limits import (
    MAX_OBJECT_BYTES,
    MAX_PARTS,
    MIN_PART_BYTES,
    SWEEP_AT_ONCE,
    SWEEP_DEADLINE_S,
)
from node.objects.api import (
    Body,
    BucketInfo,
    CompletedPart,
    NewObject,
    PartInfo,
    PartListing,
    UploadInfo,
    UploadListing,
)
from node.objects.checksums import combine
from node.objects.listing import Lister, decoded
from node.objects.lookup import Lookup
from node.objects.part_mending import PartMender
from node.objects.put import Intake
from node.objects.sets import SYSTEM_BUCKET, Cluster, SetView
from node.objects.write import Writer
from node.protocol import record as records
from node.protocol.record import Kind, Part, Record
from node.runtime.ports import Rng

UPLOAD_PREFIX, PART_PREFIX = "multipart/", "part/"
Write = Callable[[SetView, Callable[[bytes, bytes], Record], float], Awaitable[Record]]
_ID_BYTES = 24


class Multipart:
    """The multipart use cases."""

    def __init__(
        self,
        cluster: Cluster,
        lookup: Lookup,
        writer: Writer,
        intake: Intake,
        lister: Lister,
        rng: Rng,
        mender: PartMender,
    ) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._lookup = lookup
        self._writer = writer
        self._intake = intake
        self._lister = lister
        self._rng = rng
        self._mender = mender

    # ---- the upload -----------------------------------------------------------------------------
    async def create(
        self, info: BucketInfo, key: str, new: NewObject, *, deadline: float
    ) -> UploadInfo:
        view = self._cluster.view(info.name, key)
        self._intake.check_writable(view, view.system_geometry)
        upload_id = self._rng.bytes(_ID_BYTES).hex()
        system = {
            "generation": str(info.generation),
            "checksum_algorithm": new.checksum_algorithm,
            "checksum_type": new.checksum_type,
        }
        now_ns = int(self._clock.now() * 1e9)
        geometry = view.system_geometry

        def make(epoch: bytes, base: bytes) -> Record:
            return Record(
                epoch=epoch,
                base=base,
                kind=Kind.OBJECT,
                mtime_ns=now_ns,
                k=geometry.k,
                n=geometry.n,
                inline=True,
                headers=new.headers,
                metadata=new.metadata,
                tags=new.tags,
                owner=new.owner,
                system=system,
            )

        name = _upload_name(info.name, key, upload_id)
        written = await self._writer.write(
            view,
            (SYSTEM_BUCKET, name),
            make,
            shards=dict.fromkeys(range(view.n), b""),
            deadline=deadline,
        )
        assert written is not None
        return _upload_info(key, upload_id, written)

    async def _upload(self, bucket: str, key: str, upload_id: str, deadline: float) -> Record:
        if not _valid_id(upload_id):
            raise NoSuchUpload(upload=upload_id)
        view = self._cluster.view(bucket, key)
        name = _upload_name(bucket, key, upload_id)
        found = await self._lookup.find(
            view, records.catalog_key(SYSTEM_BUCKET, name), deadline=deadline
        )
        if found.record is None or found.record.kind != Kind.OBJECT:
            raise NoSuchUpload(upload=upload_id)
        return found.record

    async def upload_part(
        self, bucket: str, key: str, upload_id: str, number: int, body: Body, *, deadline: float
    ) -> PartInfo:
        budget_s = deadline - self._clock.monotonic()
        upload = await self._upload(bucket, key, upload_id, deadline)
        body.want(upload.system.get("checksum_algorithm", ""))
        view = self._cluster.view(bucket, key)
        geometry = view.geometry_for(bucket)
        stored = await self._intake.store(
            view,
            geometry,
            self._cluster.rotation(view, bucket, key),
            body,
            number=number,
            may_inline=False,
            budget_s=budget_s,
        )
        now_ns = int(self._clock.now() * 1e9)

        def make(epoch: bytes, base: bytes) -> Record:
            return Record(
                epoch=epoch,
                base=base,
                kind=Kind.OBJECT,
                mtime_ns=now_ns,
                k=geometry.k,
                n=geometry.n,
                rotation=stored.rotation,
                size=stored.part.size,
                etag=stored.part.etag,
                inline=stored.inline,
                parts=(stored.part,),
                checksums=stored.result.checksums,
            )

        written = await self._writer.write(
            view,
            (SYSTEM_BUCKET, _part_name(upload_id, number)),
            make,
            shards=stored.shards,
            staged=stored.staged,
            deadline=self._clock.monotonic() + budget_s,
        )
        assert written is not None
        return PartInfo(
            number=number,
            size=written.size,
            etag=written.etag,
            mtime_ns=now_ns,
            checksums=written.checksums,
        )

    # ---- the end of an upload -------------------------------------------------------------------
    async def complete(
        self,
        info: BucketInfo,
        key: str,
        upload_id: str,
        parts: tuple[CompletedPart, ...],
        checksums: dict[str, str],
        write: Write,
        *,
        deadline: float,
    ) -> Record:
        view = self._cluster.view(info.name, key)
        try:
            upload = await self._upload(info.name, key, upload_id, deadline)
        except NoSuchUpload:
            return await self._completed_before(view, info.name, key, upload_id, deadline)
        try:
            chosen = self._chosen(parts, await self._parts(upload_id, deadline))
        except InvalidPart:
            # A repetition may meet its own clean-up half done, or one that a power-off cut short.
            with suppress(NoSuchUpload):
                done = await self._completed_before(view, info.name, key, upload_id, deadline)
                self._cluster.spawn(self.clean_up(view, info.name, key, upload_id))
                return done
            raise
        algorithm = upload.system.get("checksum_algorithm", "")
        combined = combine(algorithm, upload.system.get("checksum_type", ""), chosen, checksums)
        geometry = view.geometry_for(info.name)
        now_ns = int(self._clock.now() * 1e9)
        etag = hashlib.md5(
            b"".join(binascii.unhexlify(part.etag) for part in chosen), usedforsecurity=False
        ).hexdigest()

        def make(epoch: bytes, base: bytes) -> Record:
            return Record(
                epoch=epoch,
                base=base,
                kind=Kind.OBJECT,
                mtime_ns=now_ns,
                bucket_generation=info.generation,
                k=geometry.k,
                n=geometry.n,
                rotation=self._cluster.rotation(view, info.name, key),
                size=sum(part.size for part in chosen),
                etag=f"{etag}-{len(chosen)}",
                parts=tuple(chosen),
                headers=upload.headers,
                metadata=upload.metadata,
                tags=upload.tags,
                owner=upload.owner or info.owner,
                checksums=combined,
                system={
                    "upload_id": upload_id,
                    "checksum_type": upload.system.get("checksum_type", ""),
                },
            )

        written = await self._mender.commit(
            view,
            records.catalog_key(info.name, key),
            geometry.k,
            [
                (records.catalog_key(SYSTEM_BUCKET, _part_name(upload_id, part.number)), part)
                for part in chosen
            ],
            lambda: write(view, make, deadline),
            deadline=deadline,
        )
        self._cluster.spawn(self.clean_up(view, info.name, key, upload_id))
        return written

    async def _completed_before(
        self, view: SetView, bucket: str, key: str, upload_id: str, deadline: float
    ) -> Record:
        found = await self._lookup.find(view, records.catalog_key(bucket, key), deadline=deadline)
        record = found.record
        if (
            record is None
            or record.kind != Kind.OBJECT
            or record.system.get("upload_id") != upload_id
        ):
            raise NoSuchUpload(upload=upload_id)
        return record

    @staticmethod
    def _chosen(parts: tuple[CompletedPart, ...], there: dict[int, Record]) -> list[Part]:
        if not parts:
            raise InvalidPart()
        numbers = [part.number for part in parts]
        if any(a >= b for a, b in pairwise(numbers)):
            raise InvalidPartOrder()
        chosen: list[Part] = []
        for wanted in parts:
            record = there.get(wanted.number)
            if record is None or record.etag != wanted.etag.strip('"'):
                raise InvalidPart(part=str(wanted.number))
            for algorithm, value in wanted.checksums.items():
                if record.checksums.get(algorithm, value) != value:
                    raise InvalidPart(part=str(wanted.number))
            chosen += record.parts or (Part(wanted.number, 0, b"", 1, record.etag),)
        for part in chosen[:-1]:
            if part.size < MIN_PART_BYTES:
                raise EntityTooSmall(part=str(part.number), size=str(part.size))
        if sum(part.size for part in chosen) > MAX_OBJECT_BYTES:
            raise EntityTooLarge()
        return chosen

    async def abort(self, bucket: str, key: str, upload_id: str, *, deadline: float) -> None:
        await self._upload(bucket, key, upload_id, deadline)
        view = self._cluster.view(bucket, key)
        await self._forget(view, _upload_name(bucket, key, upload_id), deadline)
        self._cluster.spawn(self.clean_up(view, bucket, key, upload_id))

    async def clean_up(self, view: SetView, bucket: str, key: str, upload_id: str) -> None:
        """Part records, then the upload's; what a power-off leaves is found by node.objects.upload_sweep."""
        if await self.clean_up_parts(view, upload_id):
            name = _upload_name(bucket, key, upload_id)
            await self._forget(view, name, self._clock.monotonic() + SWEEP_DEADLINE_S)

    async def clean_up_parts(self, view: SetView, upload_id: str) -> bool:
        """-> whether all that are there are gone."""
        limit = asyncio.Semaphore(SWEEP_AT_ONCE)

        async def forget(name: str) -> None:
            async with limit:
                await self._forget(view, name, self._clock.monotonic() + SWEEP_DEADLINE_S)

        there = await self._parts(upload_id, self._clock.monotonic() + SWEEP_DEADLINE_S)
        names = [_part_name(upload_id, number) for number in there]
        outcomes = await asyncio.gather(*map(forget, names), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, HoldfastError):
                raise outcome
        return not any(isinstance(outcome, BaseException) for outcome in outcomes)

    async def _forget(self, view: SetView, name: str, deadline: float) -> None:
        now_ns = int(self._clock.now() * 1e9)
        await self._writer.write(
            view,
            (SYSTEM_BUCKET, name),
            lambda epoch, base: records.tombstone(epoch, base, now_ns, 0),
            skip_absent=True,
            deadline=deadline,
        )

    async def sweep_bucket(self, bucket: str) -> None:
        """Aborts what was under way in a bucket that is gone."""
        cursor = b""
        prefix = f"multipart/{bucket}/".encode()
        while True:
            deadline = self._clock.monotonic() + SWEEP_DEADLINE_S
            live, end = await self._lister.entries(
                SYSTEM_BUCKET, prefix=prefix, after=cursor, limit=1000, deadline=deadline
            )
            for entry in live:
                key, upload_id = split_upload(bucket, entry.key)
                view = self._cluster.view(bucket, key)
                await self._forget(view, entry.key.decode(), deadline)
                await self.clean_up(view, bucket, key, upload_id)
            if end is None:
                return
            cursor = end

    # ---- lists ----------------------------------------------------------------------------------
    async def _parts(
        self, upload_id: str, deadline: float, *, after: int = 0, limit: int = MAX_PARTS
    ) -> dict[int, Record]:
        found: dict[int, Record] = {}
        prefix = f"part/{upload_id}/".encode()
        cursor = _part_name(upload_id, after).encode() if after else b""
        while len(found) < limit:
            live, end = await self._lister.entries(
                SYSTEM_BUCKET,
                prefix=prefix,
                after=cursor,
                limit=min(1000, limit - len(found) + 1),
                with_records=True,
                deadline=deadline,
            )
            for entry in live:
                found[int(entry.key[len(prefix) :])] = decoded(entry)
            if end is None:
                break
            cursor = end
        return found

    async def list_parts(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        *,
        after: int,
        limit: int,
        deadline: float,
    ) -> PartListing:
        upload = await self._upload(bucket, key, upload_id, deadline)
        there = await self._parts(upload_id, deadline, after=after, limit=limit + 1)
        numbers = sorted(there)
        shown = numbers[:limit]
        return PartListing(
            upload=_upload_info(key, upload_id, upload),
            parts=tuple(
                PartInfo(
                    number=number,
                    size=there[number].size,
                    etag=there[number].etag,
                    mtime_ns=there[number].mtime_ns,
                    checksums=there[number].checksums,
                )
                for number in shown
            ),
            next_number=shown[-1] if len(numbers) > limit and shown else None,
        )

    async def list_uploads(
        self,
        bucket: str,
        *,
        prefix: str,
        delimiter: str,
        after_key: str,
        after_upload_id: str,
        limit: int,
        deadline: float,
    ) -> UploadListing:
        root = f"multipart/{bucket}/"
        cursor = b""
        if after_key:
            # Without an upload id: behind every upload of that key.
            behind = after_upload_id or "\x7f"
            cursor = f"{root}{after_key}\0{behind}".encode()
        uploads: list[UploadInfo] = []
        prefixes: list[str] = []
        last: tuple[str, str | None] = ("", None)
        while True:
            live, end = await self._lister.entries(
                SYSTEM_BUCKET,
                prefix=(root + prefix).encode(),
                after=cursor,
                limit=1000,
                with_records=True,
                deadline=deadline,
            )
            for entry in live:
                key, upload_id = split_upload(bucket, entry.key)
                rolled = _rolled_up(key, prefix, delimiter)
                if rolled is not None and (prefixes[-1:] == [rolled] or rolled == after_key):
                    continue
                if len(uploads) + len(prefixes) == limit:
                    return UploadListing(
                        uploads=tuple(uploads),
                        common_prefixes=tuple(prefixes),
                        next_key=last[0] or None,
                        next_upload_id=last[1],
                    )
                if rolled is not None:
                    prefixes.append(rolled)
                    last = (rolled, None)
                else:
                    uploads.append(_upload_info(key, upload_id, decoded(entry)))
                    last = (key, upload_id)
            if end is None:
                return UploadListing(
                    uploads=tuple(uploads),
                    common_prefixes=tuple(prefixes),
                    next_key=None,
                    next_upload_id=None,
                )
            cursor = end


def _rolled_up(key: str, prefix: str, delimiter: str) -> str | None:
    if not delimiter:
        return None
    position = key.find(delimiter, len(prefix))
    return key[: position + len(delimiter)] if position >= 0 else None


def _upload_name(bucket: str, key: str, upload_id: str) -> str:
    return f"multipart/{bucket}/{key}\0{upload_id}"


def split_upload(bucket: str, name: bytes) -> tuple[str, str]:
    """-> (key, upload id)."""
    key, _, upload_id = name.decode().removeprefix(f"multipart/{bucket}/").rpartition("\0")
    return key, upload_id


def _part_name(upload_id: str, number: int) -> str:
    return f"part/{upload_id}/{number:05d}"


def _valid_id(upload_id: str) -> bool:
    try:
        return len(bytes.fromhex(upload_id)) == _ID_BYTES
    except ValueError:
        return False


def _upload_info(key: str, upload_id: str, record: Record) -> UploadInfo:
    return UploadInfo(
        key=key,
        upload_id=upload_id,
        initiated_s=record.mtime_ns / 1e9,
        owner=record.owner,
        checksum_algorithm=record.system.get("checksum_algorithm", ""),
        checksum_type=record.system.get("checksum_type", ""),
    )
