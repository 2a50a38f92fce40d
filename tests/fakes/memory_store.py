"""An object store in memory: a fake of node.objects.api.ObjectStore for tests of the faces.

tests/contract/test_s3_botocore.py says through a real client what a store has to do; it runs over this one.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
import itertools
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from awscrt import checksums as crt

from node import errors, limits
from node.objects.api import (
    NO_CONDITIONS,
    Body,
    BodyResult,
    BucketInfo,
    ByteRange,
    CompletedPart,
    Conditions,
    ListedObject,
    Listing,
    NewObject,
    PartInfo,
    PartListing,
    UploadInfo,
    UploadListing,
)
from node.protocol import epoch as ep
from node.protocol.record import Kind, Part, Record
from node.s3.codec import http_date

CHUNK_BYTES = 64 * limits.KIB


@dataclass
class _Object:
    record: Record
    data: bytes


@dataclass
class _Part:
    info: PartInfo
    data: bytes


@dataclass
class _Upload:
    info: UploadInfo
    new: NewObject
    parts: dict[int, _Part] = field(default_factory=dict)


@dataclass
class _Bucket:
    info: BucketInfo
    objects: dict[str, _Object] = field(default_factory=dict)
    uploads: dict[str, _Upload] = field(default_factory=dict)


class MemoryReading:
    """`break_after` bytes the stream fails, as a cluster that loses its drives would."""

    def __init__(self, record: Record, data: bytes, start: int, end: int, break_after: int | None):
        self.record = record
        self.start = start
        self.end = end
        self.closed = False
        self._data = data
        self._break_after = break_after

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        buffer = bytearray(CHUNK_BYTES)
        view = memoryview(buffer)
        sent = 0
        for place in range(self.start, self.end, CHUNK_BYTES):
            if self._break_after is not None and sent >= self._break_after:
                raise errors.QuorumLost("the drives went away")
            part = self._data[place : min(place + CHUNK_BYTES, self.end)]
            view[: len(part)] = part
            yield view[: len(part)]
            view[: len(part)] = bytes(len(part))  # a chunk is valid until the next one is asked for
            sent += len(part)

    async def close(self) -> None:
        self.closed = True


class MemoryStore:
    def __init__(self, now: Callable[[], float] = lambda: 1_700_000_000.25) -> None:
        self._now = now
        self._buckets: dict[str, _Bucket] = {}
        self._serial = itertools.count(1)
        self.failure: BaseException | None = None  # raised by the next calls until it is cleared
        self.break_after: int | None = None
        self.readings: list[MemoryReading] = []
        self.bodies_read = 0

    # ---- inside ---------------------------------------------------------------------------------
    def _bucket(self, name: str) -> _Bucket:
        if self.failure is not None:
            raise self.failure
        try:
            return self._buckets[name]
        except KeyError:
            raise errors.NoSuchBucket(BucketName=name) from None

    def _object(self, bucket: str, key: str) -> _Object:
        try:
            return self._bucket(bucket).objects[key]
        except KeyError:
            raise errors.NoSuchKey(Key=key) from None

    def _upload(self, bucket: str, key: str, upload_id: str) -> _Upload:
        found = self._bucket(bucket).uploads.get(upload_id)
        if found is None or found.info.key != key:
            raise errors.NoSuchUpload(UploadId=upload_id)
        return found

    def _stamp_ns(self) -> int:
        return round(self._now() * 1e9)

    async def _read(self, body: Body) -> tuple[bytes, BodyResult]:
        self.bodies_read += 1
        data = bytearray(body.size)
        view = memoryview(data)
        place = 0
        while place < body.size:
            piece = view[place : place + CHUNK_BYTES]
            count = await body.readinto(piece)
            body.digest(piece[:count])
            place += count
            if count < len(piece):
                break
        return bytes(data[:place]), await body.finish()

    def _record(self, size: int, etag: str, new: NewObject, **more: object) -> Record:
        return Record(
            epoch=next(self._serial).to_bytes(ep.EPOCH_BYTES, "big"),
            base=bytes(ep.EPOCH_BYTES),
            kind=Kind.OBJECT,
            mtime_ns=self._stamp_ns(),
            size=size,
            etag=etag,
            headers=dict(new.headers),
            metadata=dict(new.metadata),
            tags=dict(new.tags),
            owner=new.owner,
            **more,  # type: ignore[arg-type]
        )

    # ---- buckets --------------------------------------------------------------------------------
    async def list_buckets(self, *, deadline: float) -> tuple[BucketInfo, ...]:
        if self.failure is not None:
            raise self.failure
        return tuple(self._buckets[name].info for name in sorted(self._buckets))

    async def create_bucket(self, bucket: str, owner: str, *, deadline: float) -> BucketInfo:
        if self.failure is not None:
            raise self.failure
        if bucket in self._buckets:
            raise errors.BucketAlreadyExists(BucketName=bucket)
        info = BucketInfo(name=bucket, created_s=self._now(), generation=1, owner=owner)
        self._buckets[bucket] = _Bucket(info)
        return info

    async def head_bucket(self, bucket: str, *, deadline: float) -> BucketInfo:
        return self._bucket(bucket).info

    async def delete_bucket(self, bucket: str, *, deadline: float) -> None:
        if self._bucket(bucket).objects:
            raise errors.BucketNotEmpty(BucketName=bucket)
        del self._buckets[bucket]

    # ---- objects --------------------------------------------------------------------------------
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
        found = self._bucket(bucket)
        data, result = await self._read(body)
        _check_write(found.objects.get(key), conditions)
        record = self._record(len(data), result.md5_hex, new, checksums=result.checksums)
        found.objects[key] = _Object(record, data)
        return record

    async def head(
        self,
        bucket: str,
        key: str,
        *,
        conditions: Conditions = NO_CONDITIONS,
        deadline: float,
    ) -> Record:
        found = self._object(bucket, key)
        _check_read(found.record, conditions)
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
    ) -> MemoryReading:
        found = self._object(bucket, key)
        record = found.record
        _check_read(record, conditions)
        start, end = 0, record.size
        if byte_range is not None:
            start, end = _resolve(byte_range, record.size)
        elif part_number is not None:
            start, end = _part_range(record, part_number)
        reading = MemoryReading(record, found.data, start, end, self.break_after)
        self.readings.append(reading)
        return reading

    async def delete(
        self,
        bucket: str,
        key: str,
        *,
        conditions: Conditions = NO_CONDITIONS,
        deadline: float,
    ) -> None:
        found = self._bucket(bucket)
        if conditions:
            _check_write(found.objects.get(key), conditions)
        found.objects.pop(key, None)

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
        source = self._object(source_bucket, source_key)
        _check_source(source.record, source_conditions)
        target = self._bucket(bucket)
        _check_write(target.objects.get(key), conditions)
        old = source.record
        if new is None:
            new = NewObject(
                headers=old.headers, metadata=old.metadata, tags=old.tags, owner=old.owner
            )
        etag = hashlib.md5(source.data).hexdigest()
        checksums = {name: checksum(name, source.data) for name in old.checksums}
        record = self._record(len(source.data), etag, new, checksums=checksums)
        target.objects[key] = _Object(record, source.data)
        return record

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
        objects = self._bucket(bucket).objects
        if limit <= 0:
            return Listing(objects=(), common_prefixes=(), next_after=None)
        keys = sorted((key for key in objects if key.startswith(prefix)), key=str.encode)
        found: list[ListedObject] = []
        prefixes: list[str] = []
        last = ""
        for key in keys[bisect.bisect_right([k.encode() for k in keys], after.encode()) :]:
            common = _common_prefix(key, prefix, delimiter)
            if common and (common == after or (prefixes and prefixes[-1] == common)):
                continue
            if len(found) + len(prefixes) == limit:
                return Listing(
                    objects=tuple(found), common_prefixes=tuple(prefixes), next_after=last
                )
            if common:
                prefixes.append(common)
                last = common
                continue
            record = objects[key].record
            found.append(
                ListedObject(
                    key=key,
                    size=record.size,
                    etag=record.etag,
                    mtime_ns=record.mtime_ns,
                    owner=record.owner,
                )
            )
            last = key
        return Listing(objects=tuple(found), common_prefixes=tuple(prefixes), next_after=None)

    # ---- multipart ------------------------------------------------------------------------------
    async def create_upload(
        self, bucket: str, key: str, new: NewObject, *, deadline: float
    ) -> UploadInfo:
        found = self._bucket(bucket)
        info = UploadInfo(
            key=key,
            upload_id=f"upload-{next(self._serial):06d}",
            initiated_s=self._now(),
            owner=new.owner,
            checksum_algorithm=new.checksum_algorithm,
            checksum_type=new.checksum_type,
        )
        found.uploads[info.upload_id] = _Upload(info, new)
        return info

    async def upload_part(
        self, bucket: str, key: str, upload_id: str, number: int, body: Body, *, deadline: float
    ) -> PartInfo:
        upload = self._upload(bucket, key, upload_id)
        data, result = await self._read(body)
        return self._keep_part(upload, number, data, result.checksums)

    def _keep_part(
        self, upload: _Upload, number: int, data: bytes, checksums: dict[str, str]
    ) -> PartInfo:
        algorithm = upload.info.checksum_algorithm
        if algorithm and algorithm not in checksums:
            checksums = {**checksums, algorithm: checksum(algorithm, data)}
        info = PartInfo(
            number=number,
            size=len(data),
            etag=hashlib.md5(data).hexdigest(),
            mtime_ns=self._stamp_ns(),
            checksums=checksums,
        )
        upload.parts[number] = _Part(info, data)
        return info

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
        upload = self._upload(bucket, key, upload_id)
        source = self._object(source_bucket, source_key)
        _check_source(source.record, source_conditions)
        start, end = 0, len(source.data)
        if byte_range is not None:
            if byte_range.last is None or byte_range.last >= len(source.data):
                raise errors.CodedError("InvalidArgument", "Range specified is not valid")
            start, end = _resolve(byte_range, len(source.data))
        return self._keep_part(upload, number, source.data[start:end], {})

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
        upload = self._upload(bucket, key, upload_id)
        chosen: list[_Part] = []
        for wanted in parts:
            part = upload.parts.get(wanted.number)
            if part is None or part.info.etag != wanted.etag:
                raise errors.InvalidPart(PartNumber=str(wanted.number))
            for name, value in wanted.checksums.items():
                if part.info.checksums.get(name, value) != value:
                    raise errors.InvalidPart(PartNumber=str(wanted.number))
            if wanted is not parts[-1] and part.info.size < limits.MIN_PART_BYTES:
                raise errors.EntityTooSmall(PartNumber=str(wanted.number))
            chosen.append(part)
        target = self._bucket(bucket)
        _check_write(target.objects.get(key), conditions)
        data = b"".join(part.data for part in chosen)
        computed = _upload_checksums(upload, chosen, data)
        for name, value in checksums.items():
            if computed.get(name, value) != value:
                raise errors.CodedError("BadDigest", f"The {name} you specified did not match")
        digests = b"".join(bytes.fromhex(part.info.etag) for part in chosen)
        etag = f"{hashlib.md5(digests).hexdigest()}-{len(chosen)}"
        record = self._record(
            len(data),
            etag,
            upload.new,
            checksums=computed,
            parts=tuple(
                Part(
                    number=part.info.number,
                    size=part.info.size,
                    data_id=bytes(16),
                    stripe_bytes=limits.STRIPE_DATA_BYTES,
                    etag=part.info.etag,
                    checksums=part.info.checksums,
                )
                for part in chosen
            ),
        )
        target.objects[key] = _Object(record, data)
        del target.uploads[upload_id]
        return record

    async def abort_upload(self, bucket: str, key: str, upload_id: str, *, deadline: float) -> None:
        self._upload(bucket, key, upload_id)
        del self._bucket(bucket).uploads[upload_id]

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
        upload = self._upload(bucket, key, upload_id)
        left = [upload.parts[n].info for n in sorted(upload.parts) if n > after]
        page = left[:limit]
        more = len(left) > limit
        return PartListing(
            upload=upload.info,
            parts=tuple(page),
            next_number=page[-1].number if more else None,
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
        uploads = sorted(
            (upload.info for upload in self._bucket(bucket).uploads.values()),
            key=lambda info: (info.key.encode(), info.upload_id),
        )
        found: list[UploadInfo] = []
        prefixes: list[str] = []
        last: tuple[str, str] = ("", "")
        for info in uploads:
            if not info.key.startswith(prefix) or not _is_behind(info, after_key, after_upload_id):
                continue
            common = _common_prefix(info.key, prefix, delimiter)
            if common and (common == after_key or (prefixes and prefixes[-1] == common)):
                continue
            if len(found) + len(prefixes) == limit:
                return UploadListing(
                    uploads=tuple(found),
                    common_prefixes=tuple(prefixes),
                    next_key=last[0],
                    next_upload_id=last[1],
                )
            if common:
                prefixes.append(common)
                last = (common, "")
            else:
                found.append(info)
                last = (info.key, info.upload_id)
        return UploadListing(
            uploads=tuple(found),
            common_prefixes=tuple(prefixes),
            next_key=None,
            next_upload_id=None,
        )


def _is_behind(info: UploadInfo, after_key: str, after_upload_id: str) -> bool:
    if not after_key:
        return True
    if info.key == after_key:
        return bool(after_upload_id) and info.upload_id > after_upload_id
    return info.key.encode() > after_key.encode()


def _common_prefix(key: str, prefix: str, delimiter: str) -> str:
    if not delimiter:
        return ""
    place = key.find(delimiter, len(prefix))
    return key[: place + len(delimiter)] if place >= 0 else ""


def _resolve(wanted: ByteRange, size: int) -> tuple[int, int]:
    if wanted.first is None:
        start, end = max(0, size - (wanted.last or 0)), size
    else:
        start = wanted.first
        end = size if wanted.last is None else min(size, wanted.last + 1)
    if start >= end:
        raise errors.InvalidRange(ActualObjectSize=str(size))
    return start, end


def _part_range(record: Record, number: int) -> tuple[int, int]:
    if "-" not in record.etag and number == 1:
        return 0, record.size
    start = 0
    for part in record.parts:
        if part.number == number:
            return start, start + part.size
        start += part.size
    raise errors.InvalidRange("The requested partnumber is not satisfiable")


def _matches(etag: str, wanted: tuple[str, ...]) -> bool:
    return "*" in wanted or etag in wanted


def _read_failure(record: Record, conditions: Conditions) -> str:
    """ "" | "failed" | "unmodified", by the precedence of RFC 9110."""
    second = record.mtime_ns // 1_000_000_000
    if conditions.if_match:
        if not _matches(record.etag, conditions.if_match):
            return "failed"
    elif conditions.if_unmodified_since_s is not None and second > conditions.if_unmodified_since_s:
        return "failed"
    if conditions.if_none_match:
        if _matches(record.etag, conditions.if_none_match):
            return "unmodified"
    elif conditions.if_modified_since_s is not None and second <= conditions.if_modified_since_s:
        return "unmodified"
    return ""


def _check_read(record: Record, conditions: Conditions) -> None:
    failure = _read_failure(record, conditions)
    if failure == "failed":
        raise errors.PreconditionFailed()
    if failure == "unmodified":
        raise errors.NotModified(
            **{
                "ETag": f'"{record.etag}"',
                "Last-Modified": http_date(record.mtime_ns // 1_000_000_000),
            }
        )


def _check_source(record: Record, conditions: Conditions) -> None:
    if _read_failure(record, conditions):
        raise errors.PreconditionFailed()


def _check_write(existing: _Object | None, conditions: Conditions) -> None:
    if conditions.if_match:
        if existing is None:
            raise errors.NoSuchKey()
        if not _matches(existing.record.etag, conditions.if_match):
            raise errors.PreconditionFailed()
    if (
        conditions.if_none_match
        and existing is not None
        and _matches(existing.record.etag, conditions.if_none_match)
    ):
        raise errors.PreconditionFailed()


def raw_checksum(algorithm: str, data: bytes) -> bytes:
    match algorithm:
        case "CRC32":
            return zlib.crc32(data).to_bytes(4, "big")
        case "CRC32C":
            return int(crt.crc32c(data)).to_bytes(4, "big")
        case "CRC64NVME":
            return int(crt.crc64nvme(data)).to_bytes(8, "big")
        case _:
            return hashlib.new(algorithm, data).digest()


def checksum(algorithm: str, data: bytes) -> str:
    return base64.b64encode(raw_checksum(algorithm, data)).decode()


def _upload_checksums(upload: _Upload, parts: list[_Part], data: bytes) -> dict[str, str]:
    algorithm = upload.info.checksum_algorithm
    if not algorithm:
        return {}
    if upload.info.checksum_type == "FULL_OBJECT":
        return {algorithm: checksum(algorithm, data)}
    joined = b"".join(raw_checksum(algorithm, part.data) for part in parts)
    return {algorithm: f"{checksum(algorithm, joined)}-{len(parts)}"}


__all__ = ["MemoryReading", "MemoryStore", "checksum", "raw_checksum"]
