"""The repair queue at work: bring what was missed, until the queue is empty.

Theory of operation. The queue lies on the drives: a commit leaves an "undecided" row with it, which the
word "decided" removes or turns into an entry that names the slots that missed the write (what stays
undecided is node.objects.settle's). So whatever dies, the work is found again; node.objects.pending says
whose turn it is. Of what is due, the objects with the smallest margin come first. An entry goes when its
slots have the version, never because an error was absent; and that all is done is for a census to say
(node.objects.proof).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Protocol

from node.errors import HoldfastError
from node.limits import REPAIR_AT_ONCE, REPAIR_BATCH, REPAIR_DEADLINE_S, REPAIR_TURN_S
from node.objects.buckets import Buckets, write_renewed
from node.objects.documents import DocumentConflict
from node.objects.heal import Healer
from node.objects.pace import Pace
from node.objects.pause import PauseSwitch
from node.objects.pending import Page, Pending
from node.objects.sets import Cluster, SetView
from node.objects.write import Condition, Writer
from node.protocol import record as records
from node.protocol import verbs
from node.protocol.record import Kind, Record
from node.store.drive_gate import DriveGate


class RepairObserver(Protocol):
    def repair_queue(self, depth: int, oldest_s: float) -> None: ...

    def repaired(self, n: int) -> None: ...

    def recommitted(self) -> None: ...

    def census_failures(self, n: int) -> None:
        """Repairs of drives in reach after which shards were still missing."""
        ...


class Log(Protocol):
    def warning(self, event: str, **fields: object) -> object: ...


@dataclass(slots=True, kw_only=True)
class RepairStatus:
    """What the console and the metrics show. Depths are of this node's drives (the deepest of them)."""

    queue: int = 0
    oldest_s: float = 0.0
    repaired: int = 0
    failed: int = 0
    working: bool = False
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class _Work:
    """`margin`: shards that the object may still lose."""

    margin: int
    since_s: float
    view: SetView
    entry: verbs.PendingEntry


class Repairs:
    """One node's share of the repair work."""

    def __init__(
        self,
        cluster: Cluster,
        gate: DriveGate,
        healer: Healer,
        writer: Writer,
        buckets: Buckets,
        observer: RepairObserver,
        log: Log,
        pause: PauseSwitch,
        pace: Pace,
    ) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._pending = Pending(cluster, gate, writes=False)
        self._healer = healer
        self._writer = writer
        self._buckets = buckets
        self._observer = observer
        self._log = log
        self._pace = pace
        self.pause = pause
        self.status = RepairStatus()

    async def round(self, until: float | None = None) -> bool:
        """Works through the queues of this node's drives, up to `until`; -> whether anything was done."""
        if until is None:
            until = self._clock.monotonic() + REPAIR_TURN_S
        self.status.working = True
        try:
            work = await self._collect()
            if self.pause.paused:
                work = []
            done = await self._pace.each(work, self._try, at_once=REPAIR_AT_ONCE, until=until)
        finally:
            self.status.working = False
        return any(done)

    async def _collect(self) -> list[_Work]:
        """What is due of this node's queues, the smallest margin first; REPAIR_BATCH of it at the most."""
        depth, oldest_s = 0, 0.0
        found: dict[bytes, _Work] = {}
        for first in await self._pending.first():
            page: Page | None = first
            online = self._cluster.online(first.view)
            while page is not None:
                depth = max(depth, page.depth)
                oldest_s = max([oldest_s, *map(self._pending.age_s, page.entries)])
                for entry in page.entries:
                    if entry.key not in found and self._due(page.view, entry):
                        margin = _margin(page.view, entry, online)
                        found[entry.key] = _Work(margin, entry.since_s, page.view, entry)
                if len(found) > 2 * REPAIR_BATCH:
                    found = _most_urgent(found)
                page = await self._pending.after(page)
        self.status.queue, self.status.oldest_s = depth, oldest_s if depth else 0.0
        self._observer.repair_queue(depth, self.status.oldest_s)
        return list(_most_urgent(found).values())

    def _due(self, view: SetView, entry: verbs.PendingEntry) -> bool:
        wait_s = self._pending.wait_s(view, entry)
        return wait_s is not None and self._pending.age_s(entry) >= wait_s

    async def _try(self, work: _Work) -> bool:
        try:
            return await self._one(work.view, work.entry)
        except DocumentConflict:
            return True  # a newer version: whoever missed that is in its own entry
        except HoldfastError as error:
            # One failing object never stops the others; its entry stays for the next round.
            self.status.failed += 1
            self.status.last_error = f"{type(error).__name__}: {error}"
            return False

    async def _one(self, view: SetView, entry: verbs.PendingEntry) -> bool:
        deadline = self._clock.monotonic() + REPAIR_DEADLINE_S
        missed = set(entry.missed) - self._cluster.filling(view)
        if not missed:
            return False
        healed = await self._healer.repair(view, entry.key, missed, deadline=deadline)
        if healed.below_floor:
            await self._recommit(view, entry.key, deadline)
        mended = tuple(sorted(healed.whole | healed.below_floor))
        if mended or not healed.lacking:
            # Only these: another drive's entry may name slots that nobody has looked at yet.
            forget = verbs.Repaired(entry.key, entry.epoch, mended)
            self._cluster.tell_slots(view, dict.fromkeys(range(view.n), forget), deadline=deadline)
        if healed.lacking:
            if not healed.lacking <= healed.unreachable:
                self._observer.census_failures(1)
            return False
        self.status.repaired += 1
        self._observer.repaired(len(healed.whole))
        return True

    async def _recommit(self, view: SetView, key: bytes, deadline: float) -> None:
        """A version at or below a drive's floor: the same data again as a new version of its own.

        Under the bucket's generation of today: a DeleteBucket that came to nothing has closed the older ones.
        """
        found = await self._healer.look(view, key, deadline=deadline)
        record = found.record
        if record is None:
            return
        shards = self._healer.inline_shards(found, range(view.n))
        bucket, name = records.split_catalog_key(key)
        await write_renewed(
            self._writer,
            self._buckets,
            view,
            await self._buckets.get(bucket, fresh=True, deadline=deadline),
            name,
            lambda epoch, base: records.replace(record, epoch=epoch, base=base),
            shards={slot: shards.get(slot, b"") for slot in range(view.n)},
            condition=_unchanged(record),
            deadline=deadline,
        )
        self._observer.recommitted()


def _unchanged(record: Record) -> Condition:
    """What is there is still this version, or nothing where it is a tombstone."""

    def condition(there: Record | None) -> None:
        same = there is None if record.kind == Kind.TOMBSTONE else there is not None
        if not same or (there is not None and there.epoch != record.epoch):
            raise DocumentConflict("the key was written again while it was repaired")

    return condition


def _margin(view: SetView, entry: verbs.PendingEntry, online: frozenset[int]) -> int:
    bucket = entry.key.partition(b"\0")[0].decode(errors="replace")
    return len(online.difference(entry.missed)) - view.geometry_for(bucket).k


def _most_urgent(found: dict[bytes, _Work]) -> dict[bytes, _Work]:
    """The REPAIR_BATCH with the smallest margins, in that order; of equal ones the oldest first."""
    urgent = heapq.nsmallest(
        REPAIR_BATCH, found.items(), key=lambda item: (item[1].margin, item[1].since_s)
    )
    return dict(urgent)
