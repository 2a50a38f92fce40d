"""What the scrub asks of a drive: rows and inline shards are verified here, shard files are named.

Theory of operation. The node walks over the registers of a drive, a page at a time; a page is bounded by keys and
by the inline bytes that it reads, so that no client's verb waits long behind it. A row that fails its checksum is
named with its key, whose row name is all that is left of it. Every held version is looked at, not the newest alone.
"""

from __future__ import annotations

from erasure import frame
from erasure.placement import shard_of_slot
from node.protocol import epoch as ep
from node.protocol import record as rec
from node.protocol import verbs
from node.protocol.register import Entry
from node.runtime.drive import rows
from node.runtime.drive.catalog import Catalog, data_ids
from node.runtime.drive.faults import DriveError

_MAX_FILES = 10_000  # named on one page


class Scrubs:
    """Answers the scrub's walk over one drive, and keeps its progress."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def mark(self, verb: verbs.ScrubMark) -> tuple[verbs.Reply, bool]:
        self._catalog.scrub = verb.state
        self._catalog.put(rows.ROW_SCRUB, rows.encode(rows.ROW_SCRUB, verb.state))
        return verbs.Done(), False

    def page(self, verb: verbs.Scrub) -> tuple[verbs.Reply, bool]:
        catalog = self._catalog
        catalog.write_out()
        faults: list[tuple[bytes, bytes, str]] = []
        files: list[tuple[bytes, bytes, bytes, int]] = []
        start = rows.REGISTER + (verb.after + b"\0" if verb.after else b"")
        keys = size_bytes = 0
        after = b""
        for row, value in catalog.engine.scan(start, rows.after(rows.REGISTER)):
            key = row[1:]
            keys += 1
            size_bytes += len(value)
            try:
                register, _ = catalog.load(key)
                records = [(entry, rec.decode(entry.payload[0])) for entry in register.entries]
            except (DriveError, rec.RecordError):
                faults.append((key, ep.ZERO, "row"))
                records = []
            for entry, record in records:
                if record.kind == rec.Kind.TOMBSTONE:
                    catalog.hint_tombstone(key)
                elif record.inline and record.size:
                    good, read = self._inline(key, entry, record, verb)
                    size_bytes += read
                    if not good:
                        faults.append((key, entry.epoch, "inline"))
                else:
                    files += self._files(key, entry, record)
            if keys >= verb.keys or size_bytes >= verb.inline_bytes or len(files) >= _MAX_FILES:
                after = key
                break
        return verbs.ScrubPage(tuple(faults), tuple(files), after, keys, size_bytes), False

    def _inline(
        self, key: bytes, entry: Entry, record: rec.Record, verb: verbs.Scrub
    ) -> tuple[bool, int]:
        shard = self._catalog.shard_of(key, entry)
        index = shard_of_slot(verb.slot, record.rotation, verb.drives_per_node, record.n)
        good = bool(shard) and frame.verify_inline(
            shard, data_id=record.parts[0].data_id, shard=index
        )
        return good, len(shard)

    def _files(
        self, key: bytes, entry: Entry, record: rec.Record
    ) -> list[tuple[bytes, bytes, bytes, int]]:
        found = []
        for data_id in sorted(data_ids(record)):
            try:
                known = self._catalog.data(data_id)
            except DriveError:
                known = None
            found.append((key, entry.epoch, data_id, known.size if known is not None else 0))
        return found
