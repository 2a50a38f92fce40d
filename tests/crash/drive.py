"""A drive in memory whose syncs take time, and which a power-off may cut at any operation.

What is written is seen at once and durable after the next flush; answers that name it wait for that, as
node.runtime.drive.syncer has it. A power-off keeps, loses or tears what was not flushed: of the catalog
a beginning of its batches is left, since its log is read up to the first broken record; of a shard file that
was being written anything may be left.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from node.limits import DRIVE_LAZY_SYNC_S, DRIVE_UNLINK_AFTER_S
from node.protocol import verbs
from node.store.drive_gate import operation_of
from tests.crash.points import Unsynced
from tests.fakes.memory_drive import Disk, MemoryDrive

SYNC_S = 0.0003
_READING = frozenset(
    {
        *("Read", "Scan", "Entries", "Pending", "Tombstones", "Standing"),
        *("ShardRead", "ShardCheck", "IdentityRead"),
    }
)


class Watch(Protocol):
    """Who numbers the operations of a drive."""

    def before(self, label: str, tells: bool) -> bool:
        """False: the power went, and it does not happen."""
        ...

    def after(self) -> None: ...


class _NoWatch:
    def before(self, label: str, tells: bool) -> bool:
        return True

    def after(self) -> None:
        return None


class CrashDrive(MemoryDrive):
    def __init__(self, disk: Disk, arena: memoryview, wall: Callable[[], float]) -> None:
        super().__init__(disk, arena, wall)
        self.watch: Watch = _NoWatch()
        self.fate: Callable[[], tuple[Unsynced, random.Random]] = lambda: (
            Unsynced.LOST,
            random.Random(0),
        )
        self._flushing = False
        self._unanswered: list[Callable[[], None]] = []
        self._let_go: list[bytes] = []  # files whose last record went in a batch not flushed yet

    @property
    def unsynced(self) -> int:
        """Batches and unfinished files that a power-off decides about."""
        return self.disk.engine.unsynced + len(self._stages)

    # ---- serving ---------------------------------------------------------------------------------
    def _serve(self, frame: bytes, answered: Callable[[verbs.Reply], None]) -> None:
        name = operation_of(frame[16:]) or "unknown"
        counted = name != "Check"  # the drive state check is no part of any story
        if counted and not self.watch.before(name, name not in _READING):
            return
        reply, waits = self._answer(frame)
        self._write_out()
        if counted:
            self.watch.after()
        if not self.running:
            return
        if waits:
            self._unanswered.append(lambda: answered(reply))
            self._flush()
        else:
            answered(reply)
            self._flush_lazily()

    def _write_out(self) -> None:
        self.catalog.write_out()
        self._let_go += self.catalog.unlinks
        self.catalog.unlinks = []

    def _end_batch(self, waits: bool) -> None:
        self._write_out()
        self._flush_lazily()

    # ---- the syncer --------------------------------------------------------------------------------
    def _flush_lazily(self) -> None:
        if self.disk.engine.unsynced and self._lazy is None and not self._flushing:
            self._lazy = asyncio.get_running_loop().call_later(DRIVE_LAZY_SYNC_S, self._flush)

    def _flush(self) -> None:
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None
        if self._flushing or not self.running:
            return
        self._flushing = True
        answers, self._unanswered = self._unanswered, []
        let_go, self._let_go = self._let_go, []
        asyncio.get_running_loop().call_later(
            SYNC_S,
            self._flushed,
            self.disk.engine.unsynced,
            self.catalog.written,
            answers,
            let_go,
        )

    def _flushed(
        self, batches: int, written: int, answers: list[Callable[[], None]], let_go: list[bytes]
    ) -> None:
        if not self.running or not self.watch.before("flush", batches > 0):
            return
        self.disk.engine.flush(batches)
        self.catalog.durable = written
        self._flushing = False
        self.watch.after()
        if not self.running:
            return
        for answer in answers:
            answer()
        if let_go:
            self._remains.add(let_go)()
            asyncio.get_running_loop().call_later(DRIVE_UNLINK_AFTER_S + 0.1, self._bury)
        if self._unanswered:
            self._flush()
        else:
            self._flush_lazily()

    # ---- power -------------------------------------------------------------------------------------
    def power_off(self) -> None:
        self.running = False
        if self._lazy is not None:
            self._lazy.cancel()
        unsynced, rng = self.fate()
        engine = self.disk.engine
        match unsynced:
            case Unsynced.KEPT:
                engine.forget_unsynced(engine.unsynced)
            case Unsynced.LOST:
                engine.forget_unsynced()
            case Unsynced.TORN:
                engine.forget_unsynced(rng.randint(0, engine.unsynced))
        for data_id, written in self._stages.items():
            if unsynced is not Unsynced.LOST:
                # A file that a record names is rebuilt beside itself, and stays as it is.
                self.disk.files.setdefault(data_id, _left(written, unsynced, rng))

    # ---- what the checkers ask ---------------------------------------------------------------------
    def age(self, now_s: float) -> None:
        """As if the wall clock stood at `now_s`: what has a bound goes."""
        self.housekeep(now_s)
        self.disk.engine.flush()
        let_go, self._let_go = self._let_go, []
        if let_go:
            self._remains.add(let_go)()
        for data_id in self._remains.due(all_of_them=True):
            if data_id not in self._stages:
                self.disk.files.pop(data_id, None)

    def leftovers(self) -> list[str]:
        """What should not be on a drive where nothing is under way."""
        catalog = self.catalog
        found = [f"undecided write of {key!r}" for key in catalog.undecided]
        found += [f"staged file {data_id.hex()}" for data_id in catalog.staged]
        found += [f"half-written file {data_id.hex()}" for data_id in self._stages]
        found += [
            f"file {data_id.hex()} without a record"
            for data_id in self.disk.files
            if catalog.data(data_id) is None
        ]
        if catalog.queue_depth:
            found.append(f"{catalog.queue_depth} entries in the repair queue")
        return found


def _left(written: bytearray, unsynced: Unsynced, rng: random.Random) -> bytearray:
    if unsynced is Unsynced.KEPT:
        return bytearray(written)
    left = bytearray(written[: rng.randint(0, len(written))])
    hole = rng.randint(0, len(left))
    left[hole : hole + 4096] = bytes(len(left[hole : hole + 4096]))
    return left
