"""The record of a version: what a drive's catalog stores about an object, the same bytes on each drive.

Encoded as MessagePack arrays behind a format byte and before an XXH3-64 of everything in front of it,
so a record that rotted is found when it is read. Fields are only ever appended; a reader of a newer
format is refused (`RecordError`), an older one is migrated by `decode`.
"""

from __future__ import annotations

import enum

import msgspec
import xxhash

from node.protocol import epoch as ep

FORMAT = 1


class RecordError(Exception):
    """Bytes that are not a record of a known format, or a record that rotted."""


class Kind(enum.IntEnum):
    OBJECT = 1
    TOMBSTONE = 2


class Part(msgspec.Struct, array_like=True, frozen=True):
    """One run of data with its own shard files: the whole object, or a part of a multipart upload."""

    number: int
    size: int
    data_id: bytes  # 16 bytes, names the shard files and seeds their checksums (inline ones too)
    stripe_bytes: int  # data bytes a stripe (erasure.stripe.StripeLayout)
    etag: str = ""  # hex MD5 of the part
    checksums: dict[str, str] = {}


class Record(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """One version of one key.

    `k`, `n` and `rotation` give the code and which shard lies at which slot of the set.
    `inline` objects have exactly one part, whose shard travels with the record.
    """

    epoch: bytes
    base: bytes
    kind: int
    mtime_ns: int
    bucket_generation: int = 0
    version_id: str = ""  # "" is the null version
    pool: int = 0
    k: int = 0
    n: int = 0
    rotation: int = 0
    size: int = 0
    etag: str = ""
    inline: bool = False
    parts: tuple[Part, ...] = ()
    headers: dict[str, str] = {}  # content-type and the other stored response headers
    metadata: dict[str, str] = {}  # x-amz-meta-, names without the prefix
    checksums: dict[str, str] = {}  # algorithm -> base64 (composite ones with -N)
    owner: str = ""
    tags: dict[str, str] = {}
    system: dict[str, str] = {}  # the product's own annotations (multipart state, …)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def encode(record: Record) -> bytes:
    """Format byte, MessagePack, XXH3-64 (big-endian)."""
    body = bytes((FORMAT,)) + _encoder.encode(record)
    return body + xxhash.xxh3_64_digest(body)


def decode(data: bytes) -> Record:
    """The record in `data`; RecordError when it is rotten, cut off or of a newer format."""
    if len(data) < 10 or xxhash.xxh3_64_digest(memoryview(data)[:-8]) != data[-8:]:
        raise RecordError("record fails its checksum")
    if data[0] != FORMAT:
        raise RecordError(f"record format {data[0]} is newer than this program's {FORMAT}")
    return _decoder.decode(memoryview(data)[1:-8])


replace = msgspec.structs.replace  # a record with some fields changed


def catalog_key(bucket: str, key: str) -> bytes:
    """The catalog's name of a key: sorts as S3 lists. Bucket names have no NUL; keys may not start a new one."""
    return bucket.encode() + b"\0" + key.encode()


def split_catalog_key(name: bytes) -> tuple[str, str]:
    """(bucket, key) of a catalog key."""
    bucket, _, key = name.partition(b"\0")
    return bucket.decode(), key.decode()


def tombstone(epoch: bytes, base: bytes, mtime_ns: int, bucket_generation: int) -> Record:
    """The record of a delete."""
    assert len(epoch) == ep.EPOCH_BYTES
    return Record(
        epoch=epoch,
        base=base,
        kind=Kind.TOMBSTONE,
        mtime_ns=mtime_ns,
        bucket_generation=bucket_generation,
    )
