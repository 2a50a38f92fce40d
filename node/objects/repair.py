"""The repair queue at work: settle what is undecided, bring what was missed, until the queue is empty.

Theory of operation. The queue lies on the drives: a commit leaves an "undecided" row with it, which the
word "decided" removes or turns into an entry that names the slots that missed the write. So whatever
dies, the work is found again. Every node looks at the entries of its own drives; of the nodes that
hold an entry's key the first alive one in an order hashed from the key works on it, the others only when
it has had its time. Of what is due, the objects with the smallest margin come first. An entry goes when its
slots have the version, never because an error was absent; and that all is done is for a census to say
(node.objects.proof).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

from node.errors import HoldfastError
from node.limits import (
    REPAIR_AT_ONCE,
    REPAIR_BATCH,
    REPAIR_DEADLINE_S,
    REPAIR_PAGE,
    REPAIR_TURN_S,
    SETTLE_AFTER_S,
    SETTLE_TURN_S,
)
from node.objects.documents import expecting
from node.objects.heal import Healer
from node.objects.pace import Pace
from node.objects.pause import PauseSwitch
from node.objects.sets import Cluster, SetView
from node.objects.write import Writer
from node.protocol import epoch as ep
from node.protocol import record as records
from node.protocol import verbs
from node.protocol.record import Kind
from node.store.drive_gate import DriveGate, DriveState


class RepairObserver(Protocol):
    def repair_queue(self, depth: int, oldest_s: float) -> None: ...

    def undecided(self, n: int, oldest_s: float) -> None: ...

    def settled(self, direction: str) -> None: ...

    def repaired(self, n: int) -> None: ...


class Log(Protocol):
    def warning(self, event: str, **fields: object) -> object: ...


@dataclass(slots=True, kw_only=True)
class RepairStatus:
    """What the console and the metrics show. Depths are of this node's drives (the deepest of them)."""

    queue: int = 0
    undecided: int = 0
    oldest_s: float = 0.0
    repaired: int = 0
    settled: int = 0
    failed: int = 0
    working: bool = False
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class _Work:
    """`margin`: shards that the object may still lose; undecided writes come before everything."""

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
        observer: RepairObserver,
        log: Log,
        pause: PauseSwitch,
        pace: Pace,
    ) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._gate = gate
        self._healer = healer
        self._writer = writer
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
                work = [each for each in work if not each.entry.decided]
            done = await self._pace.each(work, self._try, at_once=REPAIR_AT_ONCE, until=until)
        finally:
            self.status.working = False
        return any(done)

    async def _collect(self) -> list[_Work]:
        """What is due of this node's queues, the smallest margin first; REPAIR_BATCH of it at the most."""
        depth = undecided = 0
        oldest = self._clock.now()
        found: dict[tuple[bytes, bool], _Work] = {}
        for drive in self._gate.local_drives():
            view = self._cluster.view_of_drive(drive.drive_id)
            if drive.state is not DriveState.ONLINE or view is None:
                continue
            online = self._cluster.online(view)
            cursor = b""
            while True:
                page = await self._page(drive.drive_id, cursor)
                if page is None:
                    break
                depth = max(depth, page.depth_repair)
                undecided = max(undecided, page.depth_undecided)
                oldest = min([oldest, *(entry.since_s for entry in page.entries)])
                for entry in page.entries:
                    if (entry.key, entry.decided) not in found and self._due(view, entry):
                        margin = _margin(view, entry, online)
                        found[entry.key, entry.decided] = _Work(margin, entry.since_s, view, entry)
                if len(found) > 2 * REPAIR_BATCH:
                    found = _most_urgent(found)
                if not page.more or not page.entries:
                    break
                cursor = page.entries[-1].key
        self._note(depth, undecided, max(self._clock.now() - oldest, 0.0))
        return list(_most_urgent(found).values())

    def _note(self, depth: int, undecided: int, age_s: float) -> None:
        self.status.queue, self.status.undecided, self.status.oldest_s = depth, undecided, age_s
        self._observer.repair_queue(depth, age_s if depth else 0.0)
        self._observer.undecided(undecided, age_s if undecided else 0.0)

    async def _page(self, drive_id: bytes, cursor: bytes) -> verbs.PendingPage | None:
        try:
            reply = await self._gate.ask(
                drive_id,
                verbs.Pending(cursor, REPAIR_PAGE),
                deadline=self._clock.monotonic() + REPAIR_DEADLINE_S,
            )
        except HoldfastError as error:
            self.status.last_error = str(error)
            return None
        return reply if isinstance(reply, verbs.PendingPage) else None

    def _due(self, view: SetView, entry: verbs.PendingEntry) -> bool:
        alive = {member.node for member in self._cluster.reachable(view)}
        # A drive that is being filled gets all it lacks by that; what it misses meanwhile waits for the end.
        missed = set(entry.missed) - self._cluster.filling(view)
        if entry.decided and not any(view.node_of[slot] in alive for slot in missed):
            return False  # nobody is there to be repaired
        able = [
            member.node
            for member in view.members
            if member.node in alive and not missed.issuperset(member.slots)
        ]
        order = sorted(able, key=lambda node: _rank(entry.key, node))
        turn = order.index(self._cluster.me) if self._cluster.me in order else len(order)
        age = self._clock.now() - entry.since_s
        wait = turn * SETTLE_TURN_S + (0.0 if entry.decided else SETTLE_AFTER_S)
        return age >= wait

    async def _try(self, work: _Work) -> bool:
        try:
            return await self._one(work.view, work.entry)
        except HoldfastError as error:
            # One failing object never stops the others; its entry stays for the next round.
            self.status.failed += 1
            self.status.last_error = f"{type(error).__name__}: {error}"
            return False

    async def _one(self, view: SetView, entry: verbs.PendingEntry) -> bool:
        deadline = self._clock.monotonic() + REPAIR_DEADLINE_S
        if not entry.decided:
            found = await self._healer.settle(view, entry.key, deadline=deadline)
            forward = found.record is not None and found.record.epoch == entry.epoch
            self.status.settled += 1
            self._observer.settled("forward" if forward else "back")
            return True
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
            return False
        self.status.repaired += 1
        self._observer.repaired(len(healed.whole))
        return True

    async def _recommit(self, view: SetView, key: bytes, deadline: float) -> None:
        """A live key at or below a drive's floor: the same data again as a new version of its own."""
        found = await self._healer.look(view, key, deadline=deadline)
        record = found.record
        if record is None or record.kind != Kind.OBJECT:
            return
        shards = self._healer.inline_shards(found, range(view.n))
        bucket, name = records.split_catalog_key(key)
        await self._writer.write(
            view,
            (bucket, name),
            lambda epoch, base: records.replace(record, epoch=epoch, base=base),
            shards={slot: shards.get(slot, b"") for slot in range(view.n)},
            condition=expecting(ep.number(record.epoch)),
            deadline=deadline,
        )


def _margin(view: SetView, entry: verbs.PendingEntry, online: frozenset[int]) -> int:
    if not entry.decided:
        return -view.n
    bucket = entry.key.partition(b"\0")[0].decode(errors="replace")
    return len(online.difference(entry.missed)) - view.geometry_for(bucket).k


def _most_urgent(found: dict[tuple[bytes, bool], _Work]) -> dict[tuple[bytes, bool], _Work]:
    """The REPAIR_BATCH with the smallest margins, in that order; of equal ones the oldest first."""
    urgent = heapq.nsmallest(
        REPAIR_BATCH, found.items(), key=lambda item: (item[1].margin, item[1].since_s)
    )
    return dict(urgent)


def _rank(key: bytes, node: str) -> bytes:
    return blake2b(key + b"\0" + node.encode(), digest_size=8).digest()
