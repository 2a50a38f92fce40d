"""Rows of a drive's catalog, byte by byte.

    r key          register: top and entries, small inline shards embedded
    u key epoch    an undecided entry: when it was accepted. So deciding a plain write is one delete
    q key          repair entry: the newest epoch known to be missing somewhere, since when, on which slots
    d data_id      a shard file that records refer to: its size and how many entries name it
    s data_id      a shard file that is whole and synced, but that no record refers to yet
    t key          a tombstone was accepted here, when: a hint for the collector, the register is the truth
    b bucket       the bucket's fenced generation
    m name         format of the catalog, floor, clean shutdown
    (shards) key epoch   inline shards too large to be embedded, in a column family with blob files

Every value ends with an XXH3-64 of what stands before it, seeded by the row's key: a rotten row and a
row in the wrong place both fail.
"""

from __future__ import annotations

import struct

import msgspec
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from node.protocol import epoch as ep
from node.protocol.verbs import DriveFault, ScrubState
from node.runtime.drive.faults import DriveError

CATALOG_FORMAT = 1

REGISTER, UNDECIDED, QUEUE, DATA, STAGED, BUCKET, META = b"r", b"u", b"q", b"d", b"s", b"b", b"m"
TOMBSTONE = b"t"
ROW_FORMAT = META + b"format"
ROW_FLOOR = META + b"floor"
ROW_CLEAN = META + b"clean"
ROW_FILLING = META + b"filling"  # a replaced drive until it is rebuilt
ROW_VIEW = META + b"view"  # the newest view of the set that was adopted
ROW_DRIVE = META + b"drive"
ROW_SCRUB = META + b"scrub"

SHARD_NONE = b""
SHARD_APART = b"\x01"  # in a row of its own
_EMBEDDED = b"\x00"


class EntryRow(msgspec.Struct, array_like=True, frozen=True):
    epoch: bytes
    base: bytes
    record: bytes
    shard: bytes  # SHARD_NONE, SHARD_APART or a zero byte and the shard


class RegisterRow(msgspec.Struct, array_like=True, frozen=True):
    top: bytes
    entries: tuple[EntryRow, ...]


class QueueRow(msgspec.Struct, array_like=True, frozen=True):
    epoch: bytes
    since_s: float
    missed: tuple[int, ...]


class DataRow(msgspec.Struct, array_like=True, frozen=True):
    size: int
    references: int


class StagedRow(msgspec.Struct, array_like=True, frozen=True):
    size: int
    since_s: float


_encoder = msgspec.msgpack.Encoder()
_register = msgspec.msgpack.Decoder(RegisterRow)
_queue = msgspec.msgpack.Decoder(QueueRow)
_scrub = msgspec.msgpack.Decoder(ScrubState)
_data = msgspec.msgpack.Decoder(DataRow)
_staged = msgspec.msgpack.Decoder(StagedRow)
_SINCE = struct.Struct(">d")
_GENERATION = struct.Struct(">q")


def seal(row: bytes, payload: bytes) -> bytes:
    """The value of `row`: payload and checksum."""
    return payload + xxh3_64_digest(payload, seed=xxh3_64_intdigest(row))


def unseal(row: bytes, value: bytes) -> bytes:
    """The payload of a row; DriveError(CORRUPT) when it is rotten."""
    payload = value[:-8]
    if len(value) < 8 or xxh3_64_digest(payload, seed=xxh3_64_intdigest(row)) != value[-8:]:
        raise DriveError(DriveFault.CORRUPT, f"catalog row {row[:1].decode()}:{row[1:].hex()}")
    return payload


def encode(row: bytes, value: msgspec.Struct) -> bytes:
    return seal(row, _encoder.encode(value))


def _decode(row: bytes, value: bytes, decoder: msgspec.msgpack.Decoder[msgspec.Struct]) -> object:
    payload = unseal(row, value)
    try:
        return decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise DriveError(
            DriveFault.CORRUPT, f"catalog row {row[:1].decode()}:{row[1:].hex()}: {error}"
        ) from error


def decode_register(row: bytes, value: bytes) -> RegisterRow:
    return _decode(row, value, _register)  # type: ignore[arg-type,return-value]


def decode_queue(row: bytes, value: bytes) -> QueueRow:
    return _decode(row, value, _queue)  # type: ignore[arg-type,return-value]


def decode_data(row: bytes, value: bytes) -> DataRow:
    return _decode(row, value, _data)  # type: ignore[arg-type,return-value]


def decode_staged(row: bytes, value: bytes) -> StagedRow:
    return _decode(row, value, _staged)  # type: ignore[arg-type,return-value]


def decode_scrub(row: bytes, value: bytes) -> ScrubState:
    return _decode(row, value, _scrub)  # type: ignore[arg-type,return-value]


def encode_since(row: bytes, since_s: float) -> bytes:
    return seal(row, _SINCE.pack(since_s))


def decode_since(row: bytes, value: bytes) -> float:
    since_s: float = _SINCE.unpack(unseal(row, value))[0]
    return since_s


def encode_generation(row: bytes, generation: int) -> bytes:
    return seal(row, _GENERATION.pack(generation))


def decode_generation(row: bytes, value: bytes) -> int:
    generation: int = _GENERATION.unpack(unseal(row, value))[0]
    return generation


def undecided_row(key: bytes, epoch: bytes) -> bytes:
    return UNDECIDED + key + epoch


def split_undecided(row: bytes) -> tuple[bytes, bytes]:
    """(key, epoch) of an undecided row."""
    return row[1 : -ep.EPOCH_BYTES], row[-ep.EPOCH_BYTES :]


def embed(shard: bytes) -> bytes:
    """A shard as it stands inside an entry."""
    return _EMBEDDED + shard


def embedded(field: bytes) -> bytes:
    """The shard inside an entry's field that is neither none nor apart."""
    return field[1:]


def after(prefix: bytes) -> bytes:
    """The smallest byte string above everything that starts with `prefix` (b"" when there is none)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,)) if stripped else b""
