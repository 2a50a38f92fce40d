"""A drive in memory: the real catalog code over rows in a sorted dict, shard files in bytearrays.

What was not flushed is gone after `power_off`, as on the real drive; `MemoryEngine` is checked against
RocksDB by tests/contract/test_drive_fake.py.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from node.errors import HoldfastError, TargetFailed
from node.limits import (
    DRIVE_LAZY_SYNC_S,
    DRIVE_STAGE_IDLE_S,
    DRIVE_STAGED_KEEP_S,
    DRIVE_UNLINK_AFTER_S,
)
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from node.runtime.drive.catalog import Catalog
from node.runtime.drive.faults import DriveError
from node.runtime.drive.keys import Keys
from node.runtime.drive.remains import Remains
from node.runtime.drive.scans import Scans
from node.runtime.drive.scrub import Scrubs

DELAY_S = 0.0005


class MemoryEngine:
    """node.runtime.drive.engine.Engine without a disk."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._order: list[bytes] = []
        self._shards: dict[bytes, bytes] = {}
        self._undo: list[list[tuple[bool, bytes, bytes | None]]] = []  # a list for each batch

    def get(self, row: bytes) -> bytes | None:
        return self._rows.get(row)

    def get_shard(self, row: bytes) -> bytes | None:
        return self._shards.get(row)

    def write(
        self, rows: Mapping[bytes, bytes | None], shards: Mapping[bytes, bytes | None]
    ) -> None:
        batch: list[tuple[bool, bytes, bytes | None]] = []
        self._undo.append(batch)
        for name, value in rows.items():
            batch.append((False, name, self._rows.get(name)))
            self._set(name, value)
        for name, value in shards.items():
            batch.append((True, name, self._shards.get(name)))
            self._set_shard(name, value)

    def _set(self, name: bytes, value: bytes | None) -> None:
        there = name in self._rows
        if value is not None:
            self._rows[name] = value
            if not there:
                bisect.insort(self._order, name)
        elif there:
            del self._rows[name]
            del self._order[bisect.bisect_left(self._order, name)]

    def _set_shard(self, name: bytes, value: bytes | None) -> None:
        if value is not None:
            self._shards[name] = value
        else:
            self._shards.pop(name, None)

    @property
    def unsynced(self) -> int:
        """Batches that a power-off may undo."""
        return len(self._undo)

    def flush(self, batches: int | None = None) -> None:
        """Makes the oldest `batches` durable, all of them when no number is given."""
        del self._undo[:batches]

    def forget_unsynced(self, kept: int = 0) -> None:
        """A power-off: what came after the last flush never was, but for its first `kept` batches.

        The log of a catalog is read up to its first broken record, so what is left is a beginning.
        """
        for batch in reversed(self._undo[kept:]):
            for shard, name, value in reversed(batch):
                (self._set_shard if shard else self._set)(name, value)
        self._undo.clear()

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        names = self._order[bisect.bisect_left(self._order, start) :]
        for name in names:
            if name >= end:
                return
            yield name, self._rows[name]

    def cursor(self, end: bytes) -> MemoryCursor:
        return MemoryCursor(self._order, self._rows, end)

    def keys_estimate(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        self.flush()


class MemoryCursor:
    def __init__(self, order: list[bytes], rows: dict[bytes, bytes], end: bytes) -> None:
        self._order, self._rows, self._end = order, rows, end
        self._at = 0

    def seek(self, row: bytes) -> None:
        self._at = bisect.bisect_left(self._order, row)

    def next(self) -> None:
        self._at += 1

    def item(self) -> tuple[bytes, bytes] | None:
        if self._at >= len(self._order):
            return None
        name = self._order[self._at]
        return (name, self._rows[name]) if name < self._end else None


class Disk:
    """What outlives a process: the rows, the shard files, and how sick the drive is."""

    def __init__(self, drive_id: bytes, *, replaced: bool = False) -> None:
        """`replaced`: it joins a formed cluster in the place of a lost one."""
        self.drive_id = drive_id
        self.replaced = replaced
        self.engine = MemoryEngine()
        self.files: dict[bytes, bytearray] = {}
        self.identity = b""
        self.full = False
        self.hung = False
        self.delay_s = DELAY_S
        self.refuse: Callable[[verbs.Verb], DriveFault | None] = lambda verb: None
        self.seen: Callable[[verbs.Verb], None] = lambda verb: None

    # The drive as the catalog's measure of space.
    def need(self, count: int) -> None:
        if self.full:
            raise DriveError(DriveFault.NO_SPACE, "full, for the test")


class MemoryDrive:
    """node.store.drive_gate.DriveService over a Disk: one life of its process."""

    on_change: Callable[[bool], None] | None = None
    on_failed: Callable[[bytes], None] | None = None

    def __init__(self, disk: Disk, arena: memoryview, wall: Callable[[], float]) -> None:
        self.disk = disk
        self.running = False
        self.catalog = Catalog(
            disk.engine,  # type: ignore[arg-type]
            disk.drive_id,
            wall,
            new_cluster=not disk.replaced,
        )
        self._arena = arena
        keys, scans = Keys(self.catalog, disk), Scans(self.catalog)  # type: ignore[arg-type]
        scrubs = Scrubs(self.catalog)
        self._small: dict[type, Callable[[Any], tuple[verbs.Reply, bool]]] = {
            verbs.Read: keys.read,
            verbs.Fence: keys.fence,
            verbs.Commit: keys.commit,
            verbs.Decided: keys.decided,
            verbs.Discard: keys.discard,
            verbs.Repair: keys.repair,
            verbs.Collect: keys.collect,
            verbs.BucketFence: keys.bucket_fence,
            verbs.Adopt: keys.adopt,
            verbs.Promise: keys.promise,
            verbs.Repaired: keys.repaired,
            verbs.Enqueue: keys.enqueue,
            verbs.Scan: scans.scan,
            verbs.Entries: scans.entries,
            verbs.Pending: scans.pending,
            verbs.Tombstones: scans.tombstones,
            verbs.Standing: keys.standing,
            verbs.Filled: keys.filled,
            verbs.Scrub: scrubs.page,
            verbs.ScrubMark: scrubs.mark,
        }
        self._stages: dict[bytes, bytearray] = {}
        self._identity_version = 0
        self._touched: dict[bytes, float] = {}  # when a file being written was last written to
        self._wall = wall
        self._lazy: asyncio.TimerHandle | None = None
        self._remains = Remains(
            self._owned, DRIVE_UNLINK_AFTER_S, lambda: asyncio.get_running_loop().time()
        )
        self._waiting: list[Callable[[], None]] = []
        self.before_submit: Callable[[], bool] = lambda: True  # False: the message is lost
        for data_id in list(disk.files):
            # The sweep: files that no row of the catalog knows.
            if not self._owned(data_id):
                del disk.files[data_id]

    # ---- the service -----------------------------------------------------------------------------
    def start(self) -> None:
        self.running = True
        if self.on_change is not None:
            self.on_change(True)

    def stop(self) -> None:
        self.running = False

    def restart(self) -> None:
        raise AssertionError("a drive in memory is never condemned")

    def power_off(self) -> None:
        self.running = False
        if self._lazy is not None:
            self._lazy.cancel()
        self.disk.engine.forget_unsynced()

    def unhang(self) -> None:
        """What piled up while the drive hung is done now."""
        self.disk.hung = False
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            work()

    def submit(self, frame: bytes) -> asyncio.Future[bytes]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        if not self.before_submit():
            return answer
        if not self.running:
            answer.set_exception(TargetFailed("the drive's process is gone"))
            return answer

        def work() -> None:
            if not self.running:
                return
            if self.disk.hung:
                self._waiting.append(work)
                return
            self._serve(frame, answered)

        def answered(reply: verbs.Reply) -> None:
            encoded = verbs.encode(reply)
            if not answer.done():
                answer.set_result(encoded)
            if isinstance(reply, verbs.Failed) and self.on_failed is not None:
                self.on_failed(encoded)

        loop.call_later(self.disk.delay_s, work)
        return answer

    def _serve(self, frame: bytes, answered: Callable[[verbs.Reply], None]) -> None:
        reply, waits = self._answer(frame)
        self._end_batch(waits)
        answered(reply)

    def send(self, frame: bytes, answered: Callable[[bytes | HoldfastError], None]) -> None:
        self.submit(frame).add_done_callback(lambda f: answered(f.exception() or f.result()))  # type: ignore[arg-type]

    # ---- verbs -----------------------------------------------------------------------------------
    def _answer(self, frame: bytes) -> tuple[verbs.Reply, bool]:
        """-> the answer, and whether it waits for a flush."""
        drive_id, verb = frame[:16], verbs.decode_verb(frame[16:])
        try:
            if drive_id != self.disk.drive_id and not isinstance(verb, verbs.Check):
                raise DriveError(DriveFault.WRONG_DRIVE, "another drive")
            self.disk.seen(verb)
            fault = self.disk.refuse(verb)
            if fault is not None:
                raise DriveError(fault, "refused, for the test")
            small = self._small.get(type(verb))
            return self._large(verb) if small is None else small(verb)
        except DriveError as error:
            return error.reply(), False

    def _end_batch(self, waits: bool) -> None:
        catalog = self.catalog
        changed = catalog.write_out()
        if waits:
            self._flush()
        elif (changed or catalog.unlinks) and self._lazy is None:
            loop = asyncio.get_running_loop()
            self._lazy = loop.call_later(DRIVE_LAZY_SYNC_S, self._flush)

    def _flush(self) -> None:
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None
        if not self.running:
            return
        self.disk.engine.flush()
        self.catalog.durable = self.catalog.written
        unlinks, self.catalog.unlinks = self.catalog.unlinks, []
        if unlinks:
            self._remains.add(unlinks)()
            loop = asyncio.get_running_loop()
            loop.call_later(DRIVE_UNLINK_AFTER_S + 0.1, self._bury)

    def _bury(self) -> None:
        if self.running:
            for data_id in self._remains.due():
                if data_id not in self._stages:
                    self.disk.files.pop(data_id, None)

    def housekeep(self, now_s: float) -> None:
        """What node.runtime.drive.store does every minute; `now_s`: of the wall clock."""
        for data_id, since_s in list(self._touched.items()):
            if since_s < now_s - DRIVE_STAGE_IDLE_S:
                self._touched.pop(data_id)
                self._stages.pop(data_id, None)
        for data_id, staged in list(self.catalog.staged.items()):
            if staged.since_s < now_s - DRIVE_STAGED_KEEP_S:
                self._drop_staged(data_id)
        self._end_batch(False)

    def _drop_staged(self, data_id: bytes) -> None:
        referenced = self.catalog.data(data_id) is not None
        self.catalog.drop_staged(data_id)
        if not referenced:
            self.catalog.unlinks.append(data_id)

    def _owned(self, data_id: bytes) -> bool:
        return data_id in self.catalog.staged or self.catalog.data(data_id) is not None

    def _large(self, verb: verbs.Verb) -> tuple[verbs.Reply, bool]:
        files, catalog = self.disk.files, self.catalog
        match verb:
            case verbs.StageOpen():
                self.disk.need(len(verb.header))
                self._stages[verb.data_id] = bytearray(verb.header)
                self._touched[verb.data_id] = self._wall()
            case verbs.StageWrite():
                self.disk.need(verb.length)
                stage = self._stage(verb.data_id)
                self._touched[verb.data_id] = self._wall()
                end = verb.offset + verb.length
                if len(stage) < end:
                    stage.extend(bytes(end - len(stage)))
                stage[verb.offset : end] = self._arena[
                    verb.arena_offset : verb.arena_offset + verb.length
                ]
            case verbs.StageSync():
                stage = self._stage(verb.data_id)
                if len(stage) != verb.size:
                    raise DriveError(DriveFault.BAD_REQUEST, f"{len(stage)} bytes, not {verb.size}")
                files[verb.data_id] = self._stages.pop(verb.data_id)
                catalog.add_staged(verb.data_id, verb.size)
                return verbs.Done(), True
            case verbs.StageDrop():
                self._stages.pop(verb.data_id, None)
                if verb.data_id in catalog.staged:
                    self._drop_staged(verb.data_id)
            case verbs.ShardRead():
                data = self._file(verb.data_id)[verb.offset : verb.offset + verb.length]
                self._arena[verb.arena_offset : verb.arena_offset + len(data)] = data
                return verbs.Count(len(data)), False
            case verbs.ShardCheck():
                return self._check(verb), False
            case verbs.IdentityRead():
                return verbs.Blob(self.disk.identity), False
            case verbs.IdentityWrite():
                if verb.version >= self._identity_version:
                    self.disk.need(len(verb.data))
                    self.disk.identity = verb.data
                    self._identity_version = verb.version
            case verbs.ShardScan():
                return self._scan(verb), False
            case verbs.Check():
                usage = verbs.Usage(
                    1 << 40, 1 << 39, 0, 0, 0, 0.001, catalog.filling, catalog.scrub
                )
                return usage, False
            case _:
                raise DriveError(DriveFault.BAD_REQUEST, "not for a formatted drive")
        return verbs.Done(), False

    def _check(self, verb: verbs.ShardCheck) -> verbs.Reply:
        data = self._file(verb.data_id)
        if len(data) != verb.size:
            raise DriveError(DriveFault.CORRUPT, f"{len(data)} bytes of {verb.size}")
        if verb.deep:
            check_frames(bytes(data), verb.data_id)
        return verbs.Count(len(data))

    def _scan(self, verb: verbs.ShardScan) -> verbs.Reply:
        data = bytes(self._file(verb.data_id))
        if verb.size and len(data) != verb.size:
            raise DriveError(DriveFault.CORRUPT, f"{len(data)} bytes of {verb.size}")
        return verbs.ShardScanned(*scan_frames(data, verb.data_id, verb.block, verb.max_bytes))

    def _stage(self, data_id: bytes) -> bytearray:
        try:
            return self._stages[data_id]
        except KeyError:
            raise DriveError(DriveFault.NOT_FOUND, "not being written") from None

    def _file(self, data_id: bytes) -> bytearray:
        try:
            return self.disk.files[data_id]
        except KeyError:
            raise DriveError(DriveFault.NOT_FOUND, "no such shard file") from None


def check_frames(data: bytes, data_id: bytes) -> None:
    """What node.runtime.drive.whole does to a file, on bytes."""
    scan_frames(data, data_id, 0, 1 << 62)


def scan_frames(data: bytes, data_id: bytes, block: int, max_bytes: int) -> tuple[int, int]:
    """The same to a piece of it."""
    import os

    from node.runtime.drive.whole import scan_blocks

    descriptor = os.memfd_create("shard")
    try:
        os.write(descriptor, data)
        return scan_blocks(descriptor, data_id, block, max_bytes)
    finally:
        os.close(descriptor)
