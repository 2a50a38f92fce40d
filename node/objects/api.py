"""What the faces may ask of the object layer: the types of every use case.

Errors are those of node.errors: ClientError subclasses for what a client did or met, Unavailable
subclasses (503) for what the cluster cannot do now.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from node.protocol.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyResult:
    """What a body turned out to be, once its last byte was digested and everything it promised was verified."""

    md5_hex: str
    checksums: dict[str, str] = field(default_factory=dict)  # algorithm -> base64


class Body(Protocol):
    """A request's payload, framing already removed. Its decoded size is always known.

    The object layer fills its own stripe buffers from it: `readinto` fills `view` wholly unless the body
    ends (returns the count); then `digest` is called on the same bytes, in order, in a worker thread,
    and `finish` once after the last of them. `readinto` and `finish` raise ClientError (IncompleteBody,
    BadDigest, XAmzContentSHA256Mismatch, …); nothing is committed before `finish` returned.
    """

    size: int

    def want(self, algorithm: str) -> None:
        """Compute this checksum too ("" : none), before any byte is read; it comes with the result."""
        ...

    async def readinto(self, view: memoryview) -> int: ...

    def digest(self, view: memoryview) -> None: ...

    async def finish(self) -> BodyResult: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """RFC 9110 conditions, ETags without quotes, times in seconds since 1970; '*' stands for any."""

    if_match: tuple[str, ...] = ()
    if_none_match: tuple[str, ...] = ()
    if_modified_since_s: float | None = None
    if_unmodified_since_s: float | None = None

    def __bool__(self) -> bool:
        return bool(
            self.if_match
            or self.if_none_match
            or self.if_modified_since_s is not None
            or self.if_unmodified_since_s is not None
        )


NO_CONDITIONS = Conditions()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewObject:
    """What a client says about the object it writes."""

    headers: dict[str, str] = field(default_factory=dict)  # content-type, cache-control, …
    metadata: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    owner: str = ""
    checksum_algorithm: str = ""  # of a multipart upload: CRC32, CRC32C, CRC64NVME, SHA1, SHA256
    checksum_type: str = ""  # COMPOSITE or FULL_OBJECT
    checksums: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """`first` None: the last `last` bytes (suffix range). `last` None: to the end. Both inclusive."""

    first: int | None
    last: int | None


class Reading(Protocol):
    """An open object: `start` (inclusive) and `end` (exclusive) are the bytes that `chunks` gives.

    `chunks` raises in mid-stream when the bytes cannot be had: the face must abort the connection then,
    never end the body cleanly. Close it in any case.
    """

    record: Record
    start: int
    end: int

    def chunks(self) -> AsyncIterator[bytes | memoryview]:
        """Each chunk is valid until the next one is asked for."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketInfo:
    name: str
    created_s: float
    generation: int
    owner: str
    region: str = ""
    settings: dict[str, str] = field(
        default_factory=dict
    )  # versioning, policy, … documents by name


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedObject:
    key: str
    size: int
    etag: str
    mtime_ns: int
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """One page. `next_after`: the key (or common prefix) to go on behind, None on the last page."""

    objects: tuple[ListedObject, ...]
    common_prefixes: tuple[str, ...]
    next_after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadInfo:
    key: str
    upload_id: str
    initiated_s: float
    owner: str
    checksum_algorithm: str = ""
    checksum_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartInfo:
    number: int
    size: int
    etag: str
    mtime_ns: int
    checksums: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletedPart:
    number: int
    etag: str
    checksums: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadListing:
    uploads: tuple[UploadInfo, ...]
    common_prefixes: tuple[str, ...]
    next_key: str | None
    next_upload_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartListing:
    upload: UploadInfo
    parts: tuple[PartInfo, ...]
    next_number: int | None


class ObjectStore(Protocol):
    """All use cases. `deadline` is absolute on the node's monotonic clock."""

    # buckets
    async def list_buckets(self, *, deadline: float) -> tuple[BucketInfo, ...]: ...
    async def create_bucket(self, bucket: str, owner: str, *, deadline: float) -> BucketInfo: ...
    async def head_bucket(self, bucket: str, *, deadline: float) -> BucketInfo: ...
    async def delete_bucket(self, bucket: str, *, deadline: float) -> None: ...

    # objects
    async def put(
        self,
        bucket: str,
        key: str,
        body: Body,
        new: NewObject,
        *,
        conditions: Conditions = NO_CONDITIONS,
        deadline: float,
    ) -> Record: ...
    async def head(
        self,
        bucket: str,
        key: str,
        *,
        conditions: Conditions = NO_CONDITIONS,
        deadline: float,
    ) -> Record: ...
    async def get(
        self,
        bucket: str,
        key: str,
        *,
        byte_range: ByteRange | None = None,
        part_number: int | None = None,
        conditions: Conditions = NO_CONDITIONS,
        deadline: float,
    ) -> Reading: ...
    async def delete(
        self,
        bucket: str,
        key: str,
        *,
        conditions: Conditions = NO_CONDITIONS,
        deadline: float,
    ) -> None:
        """Deleting what is not there succeeds, as S3 has it."""
        ...

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
        """`new` None: metadata is copied with the data (COPY directive)."""
        ...

    async def list_objects(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        after: str = "",
        limit: int = 1000,
        deadline: float,
    ) -> Listing: ...

    # multipart
    async def create_upload(
        self, bucket: str, key: str, new: NewObject, *, deadline: float
    ) -> UploadInfo: ...
    async def upload_part(
        self, bucket: str, key: str, upload_id: str, number: int, body: Body, *, deadline: float
    ) -> PartInfo: ...
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
    ) -> PartInfo: ...
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
    ) -> Record: ...
    async def abort_upload(
        self, bucket: str, key: str, upload_id: str, *, deadline: float
    ) -> None: ...
    async def list_parts(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        *,
        after: int = 0,
        limit: int = 1000,
        deadline: float,
    ) -> PartListing: ...
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
    ) -> UploadListing: ...
