"""Walks over a catalog: listings, the census walk, and what is pending."""

from __future__ import annotations

import heapq

from node.protocol import epoch as ep
from node.protocol import record as rec
from node.protocol import verbs
from node.protocol.register import Entry
from node.protocol.verbs import DriveFault
from node.runtime.drive import rows
from node.runtime.drive.catalog import Catalog, data_ids
from node.runtime.drive.faults import DriveError

MAX_PAGE = 10_000
_MAX_TOMBSTONES_SEEN = 5_000  # rows that one question for old tombstones looks at
_MAX_PAGE_DATA = 20_000  # shard files named in one page of the census walk


class Scans:
    """Answers walks over one drive's keys. A walk sees the gathered batch, so it writes it out first."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def scan(self, verb: verbs.Scan) -> tuple[verbs.Reply, bool]:
        if self._catalog.filling:
            raise DriveError(DriveFault.FILLING, "this drive was replaced and is being rebuilt")
        self._catalog.write_out()
        return self._page(verb), self._catalog.anything_unsynced()

    def _page(self, verb: verbs.Scan) -> verbs.Page:
        base = rows.REGISTER + verb.bucket.encode() + b"\0"
        prefix, delimiter = verb.prefix, verb.delimiter
        limit = min(max(verb.limit, 0), MAX_PAGE)
        cursor = self._catalog.engine.cursor(rows.after(base + prefix))
        cursor.seek(base + _start(verb))
        undecided = self._catalog.undecided
        skip = len(base)
        listed: list[verbs.Listed] = []
        while (item := cursor.item()) is not None:
            row, value = item
            if len(listed) >= limit and not _splits_group(listed, row[skip:], verb):
                return verbs.Page(tuple(listed), True)
            entries = rows.decode_register(row, value).entries
            if not entries:
                cursor.next()
                continue
            key, newest = row[skip:], entries[-1]
            record = rec.decode(newest.record)
            decided = newest.epoch not in undecided.get(row[1:], ())
            if delimiter and decided and record.kind == rec.Kind.OBJECT:
                # Only a decided object proves that its common prefix is not empty. Undecided keys and
                # tombstones before it are listed one by one, for the reader that merges drives.
                cut = key.find(delimiter, len(prefix))
                if cut >= 0:
                    common = key[: cut + len(delimiter)]
                    listed.append(verbs.Listed(common, 0, newest.epoch))
                    beyond = rows.after(common)
                    if not beyond:
                        return verbs.Page(tuple(listed), False)
                    cursor.seek(base + beyond)
                    continue
            listed.append(_listed(key, newest, record, decided=decided, whole=verb.records))
            cursor.next()
        return verbs.Page(tuple(listed), False)

    def entries(self, verb: verbs.Entries) -> tuple[verbs.Reply, bool]:
        """Keys with entries. A key whose row is rotten has kind 0 and an empty epoch: it needs a repair."""
        catalog = self._catalog
        catalog.write_out()
        limit = min(max(verb.limit, 0), MAX_PAGE)
        cursor = catalog.engine.cursor(rows.after(rows.REGISTER))
        cursor.seek(rows.REGISTER + (verb.after + b"\0" if verb.after else b""))
        found: list[verbs.RawEntry] = []
        named = 0
        more = False
        while (item := cursor.item()) is not None:
            if len(found) >= limit or named > _MAX_PAGE_DATA:
                more = True
                break
            entry = self._raw(*item, tops=verb.tops)
            if entry is not None:
                found.append(entry)
                named += len(entry.data)
            cursor.next()
        return verbs.RawPage(tuple(found), catalog.floor, more), catalog.anything_unsynced()

    def _raw(self, row: bytes, value: bytes, *, tops: bool) -> verbs.RawEntry | None:
        key = row[1:]
        try:
            register = rows.decode_register(row, value)
            if not register.entries:
                return verbs.RawEntry(key, register.top, b"", False, 0, False) if tops else None
            newest = register.entries[-1]
            record = rec.decode(newest.record)
        except (DriveError, rec.RecordError):
            return verbs.RawEntry(key, ep.ZERO, b"", False, 0, False)
        data = []
        for data_id in sorted(data_ids(record)):
            known = self._catalog.data(data_id)
            data.append((data_id, known.size if known is not None else 0))
        decided = newest.epoch not in self._catalog.undecided.get(key, ())
        alone = len(register.entries) == 1
        return verbs.RawEntry(
            key, register.top, newest.epoch, decided, record.kind, alone, tuple(data)
        )

    def tombstones(self, verb: verbs.Tombstones) -> tuple[verbs.Reply, bool]:
        """Candidates for the collector. Rows whose key was written again, or is gone, are dropped on the way."""
        catalog = self._catalog
        catalog.write_out()
        limit = min(max(verb.limit, 1), MAX_PAGE)
        start = rows.TOMBSTONE + (verb.after + b"\0" if verb.after else b"")
        found: list[tuple[bytes, bytes, float]] = []
        after = b""
        for seen, (row, value) in enumerate(
            catalog.engine.scan(start, rows.after(rows.TOMBSTONE)), start=1
        ):
            key = row[1:]
            since_s = self._since(row, value)
            if since_s <= verb.before_s:
                epoch = self._old_tombstone(key)
                if epoch is not None:
                    found.append((key, epoch, since_s))
            if len(found) >= limit or seen >= _MAX_TOMBSTONES_SEEN:
                after = key
                break
        page = verbs.TombstonePage(tuple(found), after, catalog.tombstones)
        return page, False

    def _old_tombstone(self, key: bytes) -> bytes | None:
        """The epoch of a tombstone that stands decided and alone. A hint that is none any more is dropped."""
        try:
            register, _ = self._catalog.load(key)
            buried = [entry for entry in register.entries if _buried(entry)]
        except (DriveError, rec.RecordError):
            return None  # a rotten row is found by the scrub and rebuilt by repair
        if not buried:
            self._catalog.drop_tombstone(key)
            return None
        alone = len(register.entries) == 1 and buried[0].decided
        return buried[0].epoch if alone else None

    @staticmethod
    def _since(row: bytes, value: bytes) -> float:
        try:
            return rows.decode_since(row, value)
        except DriveError:
            return 0.0  # the row is a hint; whether it is old enough hangs on nothing

    def pending(self, verb: verbs.Pending) -> tuple[verbs.Reply, bool]:
        """Undecided writes and repair entries by key; all of one key stand on one page."""
        catalog = self._catalog
        catalog.write_out()
        limit = min(max(verb.limit, 1), MAX_PAGE)
        start = rows.QUEUE + (verb.after + b"\0" if verb.after else b"")
        queued: dict[bytes, rows.QueueRow] = {}
        writes: list[bytes] = []
        if verb.repairs and catalog.queue_depth:
            for row, value in catalog.engine.scan(start, rows.after(rows.QUEUE)):
                queued[row[1:]] = rows.decode_queue(row, value)
                if len(queued) > limit:
                    break
        if verb.writes:
            writes = heapq.nsmallest(limit + 1, (k for k in catalog.undecided if k > verb.after))
        keys = sorted({*queued, *writes})
        found: list[verbs.PendingEntry] = []
        for key in keys[:limit]:
            for epoch, since_s in sorted(
                catalog.undecided.get(key, {}).items() if verb.writes else ()
            ):
                found.append(verbs.PendingEntry(key, epoch, False, since_s))
            if (entry := queued.get(key)) is not None:
                found.append(
                    verbs.PendingEntry(key, entry.epoch, True, entry.since_s, entry.missed)
                )
        page = verbs.PendingPage(
            tuple(found),
            len(keys) > limit,
            sum(len(epochs) for epochs in catalog.undecided.values()),
            catalog.queue_depth,
        )
        return page, catalog.anything_unsynced()


def _buried(entry: Entry) -> bool:
    return rec.decode(entry.payload[0]).kind == rec.Kind.TOMBSTONE


def _start(verb: verbs.Scan) -> bytes:
    """The first key a scan may list. After a common prefix it goes on behind all keys that share it."""
    if not verb.after or verb.after < verb.prefix:
        return verb.prefix
    if verb.delimiter and verb.after.startswith(verb.prefix):
        cut = verb.after.find(verb.delimiter, len(verb.prefix))
        if cut >= 0 and cut + len(verb.delimiter) == len(verb.after):
            return rows.after(verb.after) or verb.after + b"\0"
    return verb.after + b"\0"


def _splits_group(listed: list[verbs.Listed], following: bytes, verb: verbs.Scan) -> bool:
    """Whether a page would end with a key that is itself the common prefix of the key that follows.

    The next page, asked for what comes after it, would take it for a group that was listed, and skip it.
    """
    if not verb.delimiter or not listed or listed[-1].kind == 0:
        return False
    last = listed[-1].key
    cut = last.find(verb.delimiter, len(verb.prefix))
    return cut >= 0 and cut + len(verb.delimiter) == len(last) and following.startswith(last)


def _listed(
    key: bytes, newest: rows.EntryRow, record: rec.Record, *, decided: bool, whole: bool
) -> verbs.Listed:
    return verbs.Listed(
        key,
        int(record.kind),
        newest.epoch,
        decided,
        record.size,
        record.mtime_ns,
        record.etag,
        record.owner,
        newest.record if whole else b"",
    )
