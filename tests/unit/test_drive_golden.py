"""What format 1 wrote on drives, byte by byte: read by the program of today, and written by it in the same way.

A change here makes drives unreadable, or needs a migration and a golden file of its own beside this one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash

from node.protocol import epoch as ep
from node.protocol import record as rec
from node.protocol.verbs import DriveFault
from node.runtime.drive import layout, rows
from node.runtime.drive.catalog import Catalog
from node.runtime.drive.faults import DriveError
from node.store.format import FormatError, decode_format, encode_format
from tests.fakes.memory_drive import MemoryEngine

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "golden" / "drive" / "format-1.json").read_text()
)
OLD, NEW = ep.make(3, bytes(range(16))), ep.make(4, bytes(range(16, 32)))
DATA = bytes(range(100, 116))
RECORDS = {name: bytes.fromhex(text) for name, text in GOLDEN["records"].items()}
STORED = {
    name: (bytes.fromhex(each["row"]), bytes.fromhex(each["value"]))
    for name, each in GOLDEN["rows"].items()
}


def test_records_are_read_field_by_field_and_written_alike() -> None:
    whole = rec.decode(RECORDS["object"])
    assert (whole.epoch, whole.base, whole.kind) == (NEW, OLD, rec.Kind.OBJECT)
    assert (whole.k, whole.n, whole.rotation, whole.size) == (8, 16, 2, 5_000_000)
    assert whole.mtime_ns == 1_700_000_000_123_456_789 and whole.bucket_generation == 7
    assert [part.data_id for part in whole.parts] == [DATA, DATA[::-1]]
    assert whole.parts[0].checksums == {"CRC32": "AAAAAA=="} and whole.parts[0].etag == "a" * 32
    assert (whole.headers, whole.metadata) == ({"content-type": "text/plain"}, {"colour": "blue"})
    assert (whole.tags, whole.system, whole.owner) == ({"a": "b"}, {"x": "y"}, "root")
    inline = rec.decode(RECORDS["inline"])
    assert inline.inline and inline.parts[0].size == inline.size == 11
    tombstone = rec.decode(RECORDS["tombstone"])
    assert tombstone.kind == rec.Kind.TOMBSTONE and tombstone.base == OLD
    for data in RECORDS.values():
        assert rec.encode(rec.decode(data)) == data


def test_a_record_of_a_newer_format_is_refused_by_name() -> None:
    body = bytes((2,)) + RECORDS["inline"][1:-8]
    with pytest.raises(rec.RecordError, match="format 2 is newer"):
        rec.decode(body + xxhash.xxh3_64_digest(body))


def again(name: str) -> bytes:
    """The row as the program of today writes what it read."""
    row, value = STORED[name]
    match name:
        case "register" | "register_apart":
            return rows.encode(row, rows.decode_register(row, value))
        case "queue":
            return rows.encode(row, rows.decode_queue(row, value))
        case "data":
            return rows.encode(row, rows.decode_data(row, value))
        case "staged":
            return rows.encode(row, rows.decode_staged(row, value))
        case "undecided" | "tombstone_since":
            return rows.encode_since(row, rows.decode_since(row, value))
        case "scrub":
            return rows.encode(row, rows.decode_scrub(row, value))
        case "bucket" | "format" | "view":
            return rows.encode_generation(row, rows.decode_generation(row, value))
        case _:
            return rows.seal(row, rows.unseal(row, value))


@pytest.mark.parametrize("name", STORED)
def test_rows_are_read_and_written_alike_and_any_flip_is_found(name: str) -> None:
    row, value = STORED[name]
    assert again(name) == value
    for at in range(len(value)):
        flipped = bytearray(value)
        flipped[at] ^= 1
        with pytest.raises(DriveError) as found:
            rows.unseal(row, bytes(flipped))
        assert found.value.fault is DriveFault.CORRUPT


def test_what_rows_say() -> None:
    row, value = STORED["register"]
    register = rows.decode_register(row, value)
    assert register.top == NEW and [e.epoch for e in register.entries] == [OLD, NEW]
    assert rows.embedded(register.entries[0].shard) == b"shard"
    assert register.entries[1].record == RECORDS["tombstone"]
    assert rows.split_undecided(STORED["undecided"][0]) == (b"bucket\0key", NEW)
    assert rows.decode_queue(*STORED["queue"]) == rows.QueueRow(NEW, 1_700_000_000.5, (3, 9))
    assert rows.decode_data(*STORED["data"]) == rows.DataRow(123456, 2)
    assert rows.unseal(*STORED["inline_shard"]) == b"a shard of its own row"


def filled() -> MemoryEngine:
    engine = MemoryEngine()
    names = ("register", "undecided", "queue", "data", "bucket", "format", "view", "floor", "drive")
    engine.write(dict(STORED[name] for name in names), {})
    engine.flush()
    return engine


def test_a_catalog_of_format_1_opens_with_everything_in_it() -> None:
    catalog = Catalog(filled(), DATA, lambda: 0.0)  # type: ignore[arg-type]
    assert (catalog.floor, catalog.view, catalog.queue_depth) == (OLD, 4, 1)
    assert catalog.generations == {b"bucket": 9} and not catalog.was_clean and not catalog.filling
    assert catalog.undecided == {b"bucket\0key": {NEW: 1_700_000_000.25}}
    register, bases = catalog.load(b"bucket\0key")
    assert register.top == NEW and bases == {OLD: ep.ZERO, NEW: OLD}
    assert [e.decided for e in register.entries] == [True, False]


def test_a_catalog_of_a_newer_format_is_refused_and_nothing_in_it_changes() -> None:
    engine = filled()
    engine.write({rows.ROW_FORMAT: rows.encode_generation(rows.ROW_FORMAT, 2)}, {})
    engine.write({rows.ROW_CLEAN: rows.seal(rows.ROW_CLEAN, b"")}, {})
    before = dict(engine._rows)
    with pytest.raises(DriveError, match="format is not one of this program"):
        Catalog(engine, DATA, lambda: 0.0)  # type: ignore[arg-type]
    assert engine._rows == before


def test_an_empty_catalog_of_a_drive_that_was_in_use_is_never_taken_for_a_new_one() -> None:
    engine = MemoryEngine()
    with pytest.raises(DriveError, match="holdfast drive rebuild") as found:
        Catalog(engine, DATA, lambda: 0.0, new_cluster=False, fresh=False)  # type: ignore[arg-type]
    assert found.value.fault is DriveFault.CORRUPT and not engine._rows


def test_format_json_is_read_and_written_alike_and_a_newer_one_is_refused() -> None:
    text = GOLDEN["format_json"].encode()
    value = decode_format(text)
    assert encode_format(value) == text
    assert value.pool.nodes == ("node1:9002", "node2:9002") and value.parity == 4
    layout.check_version(text)
    newer = text.replace(b'"version": 1', b'"version": 2')
    with pytest.raises(FormatError, match=r"version 2.*run the Holdfast that wrote it"):
        decode_format(newer)
    with pytest.raises(DriveError, match="version 2") as found:
        layout.check_version(newer)
    assert found.value.fault is DriveFault.FOREIGN, "not one that a rebuild would empty"


def test_every_kind_of_row_has_its_golden_one() -> None:
    prefixes = {value for name, value in vars(rows).items() if name.isupper() and len(name) > 3
                if isinstance(value, bytes) and len(value) == 1 and value.isalpha()}  # fmt: skip
    assert prefixes == {row[:1] for name, (row, _) in STORED.items() if name != "inline_shard"}
    named = {v for k, v in vars(rows).items() if k.startswith("ROW_")}
    assert named == {row for row, _ in STORED.values() if row[:1] == rows.META}


def test_the_program_knows_one_version_of_format_json() -> None:
    from node.store import format as store_format

    assert layout.FORMAT_VERSION == store_format.VERSION
    assert msgspec.json.decode(GOLDEN["format_json"])["version"] == 1
