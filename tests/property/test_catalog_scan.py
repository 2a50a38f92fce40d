"""Listings of a drive's catalog against a model that sorts a dictionary."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node.protocol import epoch as ep
from node.protocol import record as rec
from node.protocol import verbs
from node.runtime.drive.catalog import Catalog
from node.runtime.drive.engine import Engine
from node.runtime.drive.keys import Keys
from node.runtime.drive.layout import Space
from node.runtime.drive.scans import Scans

OBJECT, TOMBSTONE, UNDECIDED = "object", "tombstone", "undecided"
names = st.text(alphabet="ab/é", min_size=1, max_size=5)
contents = st.dictionaries(
    names, st.sampled_from([OBJECT, OBJECT, TOMBSTONE, UNDECIDED]), max_size=25
)


class Listing:
    """One catalog for all examples: each example has a bucket of its own between two neighbours."""

    def __init__(self, root: Path) -> None:
        self.engine = Engine(str(root / "catalog"))
        self.catalog = Catalog(self.engine, bytes(range(16)), lambda: 0.0)
        self.keys = Keys(self.catalog, Space(str(root), 0.0, 0, 0))
        self.scans = Scans(self.catalog)
        self.attempts = ep.Attempts("test", 1)
        self.number = 0

    def bucket(self, keys: dict[str, str]) -> str:
        self.number += 1
        name = f"bucket{self.number:05d}"
        for neighbour in (name + "!", name[:-1]):
            self.put(neighbour, "a/b", OBJECT)
        for key, kind in keys.items():
            self.put(name, key, kind)
        return name

    def put(self, bucket: str, key: str, kind: str) -> None:
        epoch = ep.make(1, self.attempts.next())
        if kind == TOMBSTONE:
            record = rec.tombstone(epoch, ep.ZERO, 7, 0)
        else:
            record = rec.Record(
                epoch=epoch, base=ep.ZERO, kind=rec.Kind.OBJECT, mtime_ns=7, size=len(key), etag=key
            )
        name = rec.catalog_key(bucket, key)
        self.keys.commit(verbs.Commit(name, rec.encode(record)))
        if kind != UNDECIDED:
            self.keys.decided(verbs.Decided(name, epoch))

    def pages(self, verb: verbs.Scan) -> list[verbs.Listed]:
        """All pages, each taken up after the last entry of the one before."""
        found: list[verbs.Listed] = []
        after = verb.after
        while True:
            page, _ = self.scans.scan(
                verbs.Scan(
                    verb.bucket, verb.prefix, after, verb.delimiter, verb.limit, verb.records
                )
            )
            assert isinstance(page, verbs.Page)
            assert len(page.entries) <= verb.limit + 1
            found.extend(page.entries)
            if not page.more:
                return found
            assert page.entries, "a page that says more must make progress"
            after = page.entries[-1].key


@pytest.fixture(scope="module")
def listing() -> Iterator[Listing]:
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    one = Listing(root)
    yield one
    one.engine.close()
    shutil.rmtree(root)


def model(
    keys: dict[str, str], prefix: bytes, after: bytes, delimiter: bytes
) -> list[tuple[bytes, int, bool]]:
    """(key or common prefix, kind, decided): a group shows once, where its first living key is; what is no
    decided object shows by itself until then."""
    kinds = {OBJECT: 1, TOMBSTONE: 2, UNDECIDED: 1}
    listed: list[tuple[bytes, int, bool]] = []
    seen: set[bytes] = set()
    for key, kind in sorted((k.encode(), v) for k, v in keys.items()):
        if not key.startswith(prefix) or key <= after:
            continue
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        group = key[: cut + len(delimiter)] if cut >= 0 else b""
        if group and (group in seen or group == after):
            continue
        if group and kind == OBJECT:
            seen.add(group)
            listed.append((group, 0, False))
        else:
            listed.append((key, kinds[kind], kind != UNDECIDED))
    return listed


@example({"a": TOMBSTONE, "ba": TOMBSTONE, "bba": UNDECIDED}, "", "a", "", 1)
@example({"a/": TOMBSTONE, "a/b": OBJECT, "b": OBJECT}, "", "/", "", 1)
@settings(max_examples=150, deadline=None, database=None)
@given(
    contents,
    st.sampled_from(["", "a", "a/", "b", "a/é"]),
    st.sampled_from(["", "/", "a"]),
    st.sampled_from(["", "a", "a/", "a/a", "b", "é", "a/b/"]),
    st.integers(1, 6),
)
def test_pages_put_together_are_the_model(
    listing: Listing, keys: dict[str, str], prefix: str, delimiter: str, after: str, limit: int
) -> None:
    bucket = listing.bucket(keys)
    verb = verbs.Scan(bucket, prefix.encode(), after.encode(), delimiter.encode(), limit, True)
    found = listing.pages(verb)
    expected = model(keys, verb.prefix, verb.after, verb.delimiter)
    assert [(e.key, e.kind, e.decided) for e in found] == expected
    for entry in found:
        if entry.kind == 1:
            assert (entry.size, entry.mtime_ns) == (len(entry.key.decode()), 7)
            assert rec.decode(entry.record).etag == entry.etag == entry.key.decode()


def test_the_census_walk_and_what_is_pending_come_in_pages(listing: Listing) -> None:
    bucket = listing.bucket({f"k{i}": UNDECIDED if i % 3 else OBJECT for i in range(20)})
    start = bucket.encode() + b"\0"
    walked: list[verbs.RawEntry] = []
    after = start
    while not walked or walked[-1].key < start + b"k9":
        page, _ = listing.scans.entries(verbs.Entries(after, 7))
        assert isinstance(page, verbs.RawPage)
        walked.extend(page.entries)
        after = page.entries[-1].key
    mine = {e.key[len(start) :].decode(): e for e in walked if e.key.startswith(start)}
    assert sorted(mine) == sorted(f"k{i}" for i in range(20))
    assert all(e.alone and e.kind == 1 for e in mine.values())
    assert {k for k, e in mine.items() if not e.decided} == {f"k{i}" for i in range(20) if i % 3}

    queued = rec.catalog_key(bucket, "k0")
    listing.keys.enqueue(verbs.Enqueue(queued, mine["k0"].newest, (4, 2)))
    listing.keys.enqueue(verbs.Enqueue(queued, mine["k0"].newest, (3,)))
    pending: list[verbs.PendingEntry] = []
    after = start
    while True:
        one, _ = listing.scans.pending(verbs.Pending(after, 3))
        assert isinstance(one, verbs.PendingPage)
        pending.extend(one.entries)
        if not one.more:
            break
        after = one.entries[-1].key
    ours = [e for e in pending if e.key.startswith(start)]
    assert {e.key for e in ours if not e.decided} == {
        rec.catalog_key(bucket, f"k{i}") for i in range(20) if i % 3
    }
    assert [(e.key, e.missed) for e in ours if e.decided] == [(queued, (2, 3, 4))]
    depth = one.depth_repair
    listing.keys.repaired(verbs.Repaired(queued, mine["k0"].newest))
    listing.keys.repaired(verbs.Repaired(queued, mine["k0"].newest))
    after_repair, _ = listing.scans.pending(verbs.Pending(start, 100))
    assert isinstance(after_repair, verbs.PendingPage)
    assert after_repair.depth_repair == depth - 1
