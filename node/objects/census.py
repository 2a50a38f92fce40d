"""The census: per set, how many objects have all their shards, how many fewer. Repair proves itself by it.

Theory of operation. The catalogs of a set's drives are walked in step, a page at a time; a key's shards are the
drives that hold its newest version, shard files of the right size included. What looks short is looked at
again when the walk of its set is over: most of it was being written in that moment. So a cluster that is
written to can be found whole. Bytes are not read here, that is the scrub's.

A walk keeps its place, so that a background census works in turns, rests between pages while clients are
served, and goes on after an error. The last finished one is kept with its date.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from erasure.stripe import StripeLayout
from node.errors import DeadlineExceeded, HoldfastError, QuorumLost
from node.limits import (
    CENSUS_ASK_S,
    CENSUS_CHECKS_AT_ONCE,
    CENSUS_DOUBTS,
    CENSUS_PAGE,
    CENSUS_SECOND_LOOK_S,
    CENSUS_SHORT_KEPT,
    REPAIR_DEADLINE_S,
)
from node.objects.asking import ask_slots
from node.objects.pace import Pace
from node.objects.sets import Cluster, SetView
from node.protocol import record as records
from node.protocol import verbs
from node.protocol.record import Kind, Record
from node.store.drive_gate import DriveGate

_TIMES_ASKED = 3  # a drive that gave no page in time, for that page


@dataclass(frozen=True, slots=True, kw_only=True)
class Short:
    """A key that lacks shards; `missed` slots lack its version `epoch`, `holders` have it."""

    set_index: int
    key: bytes
    epoch: bytes
    holders: frozenset[int]
    missed: frozenset[int]


@dataclass(slots=True, kw_only=True)
class SetCensus:
    """`by_shards`: number of drives with a whole shard -> number of objects."""

    index: int
    n: int
    k: int
    objects: int = 0
    tombstones: int = 0
    tombstones_short: int = 0
    unreadable: int = 0  # objects with fewer shards than their geometry's k
    by_shards: Counter[int] = field(default_factory=Counter)
    every_drive: bool = True  # the catalog of every drive was read

    @property
    def whole(self) -> bool:
        return (
            self.every_drive
            and not self.tombstones_short
            and all(shards == self.n for shards, objects in self.by_shards.items() if objects)
        )


@dataclass(slots=True)
class Census:
    """`sets` in order; `lacking`: some of the keys that lack shards, for repair."""

    sets: list[SetCensus] = field(default_factory=list)
    lacking: list[Short] = field(default_factory=list)
    began_s: float = 0.0
    finished_s: float = 0.0

    @property
    def objects(self) -> int:
        return sum(each.objects for each in self.sets)

    @property
    def tombstones(self) -> int:
        return sum(each.tombstones for each in self.sets)

    @property
    def by_shards(self) -> Counter[int]:
        return sum((each.by_shards for each in self.sets), Counter())

    @property
    def every_drive(self) -> bool:
        return all(each.every_drive for each in self.sets)

    @property
    def whole(self) -> bool:
        """Every drive was read, and nothing lacks a shard: the only word that repair is complete."""
        return all(each.whole for each in self.sets)

    @property
    def short(self) -> list[bytes]:
        """Keys of `lacking`."""
        return [each.key for each in self.lacking]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One key as it was counted."""

    key: bytes
    kind: int
    epoch: bytes
    holders: frozenset[int]
    floored: frozenset[int] = frozenset()  # slots whose floor says that this tombstone was there


@dataclass(slots=True)
class Walk:
    """One census under way."""

    census: Census
    began: float  # monotonic
    expected: int  # keys, at the most, as far as this node's drives know
    keys: int = 0
    at: int = 0  # the set that is walked
    after: bytes = b""
    doubts: list[_Seen] = field(default_factory=list)
    set_began: float = 0.0


class CensusTaker:
    """Counts: at once for whoever waits (`take`), or in the background, in turns (`request`, `turn`)."""

    def __init__(self, cluster: Cluster, gate: DriveGate, pace: Pace) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._gate = gate
        self._pace = pace
        self._wanted = False
        self.walk: Walk | None = None
        self.last: Census | None = None
        self.problem = ""  # why the background census makes no progress

    # ---- taking one -----------------------------------------------------------------------------
    async def take(self, *, deadline: float) -> Census:
        """One of its own, begun now. QuorumLost when too few drives answer; DeadlineExceeded."""
        walk = self._begin()
        while not await self._step(walk):
            if self._clock.monotonic() >= deadline:
                raise DeadlineExceeded(
                    f"the census counted {walk.keys} objects in its time; take it in the background"
                )
        self.last = walk.census
        return walk.census

    def request(self) -> None:
        """A census in the background; one that is under way is as good."""
        self._wanted = True

    @property
    def running(self) -> bool:
        return self._wanted or self.walk is not None

    async def turn(self, until: float) -> Census | None:
        """Goes on with the background census up to `until`; -> it, when it has just been finished."""
        if self.walk is None:
            if not self._wanted:
                return None
            self.walk = self._begin()
        walk = self.walk
        while self._clock.monotonic() < until:
            began = self._clock.monotonic()
            try:
                ended = await self._step(walk)
            except HoldfastError as error:
                self.problem = str(error)  # the next turn tries the same page again
                raise
            self.problem = ""
            if ended:
                self.walk, self._wanted = None, False
                self.last = walk.census
                return walk.census
            await self._pace.rest(self._clock.monotonic() - began)
        return None

    def _begin(self) -> Walk:
        census = Census(began_s=self._clock.now())
        for view in self._cluster.views:
            census.sets.append(SetCensus(index=view.index, n=view.n, k=view.geometry.k))
        now = self._clock.monotonic()
        return Walk(census, now, self._expected(), set_began=now)

    def _expected(self) -> int:
        """An upper bound of the keys: what the fullest drive of each set estimates."""
        most: dict[int, int] = {}
        for drive in self._gate.local_drives():
            view = self._cluster.view_of_drive(drive.drive_id)
            if view is not None and drive.usage is not None:
                most[view.index] = max(most.get(view.index, 0), drive.usage.keys_estimate)
        return sum(most.values())

    # ---- one page -------------------------------------------------------------------------------
    async def _step(self, walk: Walk) -> bool:
        """A page of the set that is under way; -> whether that was the end of the last set."""
        view, census = self._cluster.views[walk.at], walk.census.sets[walk.at]
        pages = await self._pages(view, walk.after)
        horizon = min(
            (p.entries[-1].key for p in pages.values() if p.more and p.entries), default=None
        )
        for seen in await self._looked_at(view, pages, horizon):
            walk.keys += 1
            if _lacks(view, seen) and len(walk.doubts) < CENSUS_DOUBTS:
                walk.doubts.append(seen)
            else:
                _count(view, walk, seen)
        census.every_drive &= len(pages) == view.n
        if horizon is not None:
            walk.after = horizon
            return False
        await self._second_look(view, walk)
        walk.at += 1
        walk.after, walk.set_began = b"", self._clock.monotonic()
        walk.census.finished_s = self._clock.now()
        return walk.at == len(walk.census.sets)

    async def _pages(self, view: SetView, after: bytes) -> dict[int, verbs.RawPage]:
        """A page of each drive; those that answer late are asked again. QuorumLost."""
        pages: dict[int, verbs.RawPage] = {}
        for _ in range(_TIMES_ASKED):
            lacking = [slot for slot in range(view.n) if slot not in pages]
            found = await ask_slots(
                self._cluster,
                view,
                dict.fromkeys(lacking, (verbs.Entries(after, CENSUS_PAGE),)),
                deadline=self._clock.monotonic() + CENSUS_ASK_S,
            )
            for slot, answers in found.items():
                if isinstance(page := answers[0], verbs.RawPage):
                    pages[slot] = page
            if not self._cluster.online(view) - pages.keys():
                break
        if len(pages) < view.read_quorum:
            raise QuorumLost("too few drives answered for a census")
        return pages

    async def _looked_at(
        self, view: SetView, pages: Mapping[int, verbs.RawPage], horizon: bytes | None
    ) -> list[_Seen]:
        """Each key up to `horizon` with the slots that hold its newest version, all its files included."""
        held: dict[bytes, dict[int, verbs.RawEntry]] = {}
        for slot, page in pages.items():
            for entry in page.entries:
                if horizon is None or entry.key <= horizon:
                    held.setdefault(entry.key, {})[slot] = entry
        files: dict[int, list[tuple[bytes, verbs.ShardCheck]]] = {}
        tops: dict[bytes, tuple[bytes, int]] = {}
        for key, entries in held.items():
            # A rotten row has no epoch: it holds nothing, and is counted among the lacking.
            epoch, kind = max((entry.newest, entry.kind) for entry in entries.values())
            tops[key] = (epoch, kind)
            for slot, entry in entries.items():
                if epoch and entry.newest == epoch:
                    for data_id, size in entry.data:
                        files.setdefault(slot, []).append((key, verbs.ShardCheck(data_id, size)))
        lost = await self._lost_files(view, files)
        found = []
        for key, (epoch, kind) in tops.items():
            holders = frozenset(
                slot
                for slot, entry in held[key].items()
                if epoch and entry.newest == epoch and (slot, key) not in lost
            )
            floored = frozenset(slot for slot, page in pages.items() if epoch <= page.floor)
            found.append(_Seen(key, kind, epoch, holders, floored))
        return found

    async def _lost_files(
        self, view: SetView, files: dict[int, list[tuple[bytes, verbs.ShardCheck]]]
    ) -> set[tuple[int, bytes]]:
        """(slot, key) of the shard files that are not there, or not of their size."""
        lost: set[tuple[int, bytes]] = set()
        while any(files.values()):
            batch: dict[int, list[tuple[bytes, verbs.ShardCheck]]] = {}
            for slot, waiting in files.items():
                batch[slot] = waiting[:CENSUS_CHECKS_AT_ONCE]
                files[slot] = waiting[CENSUS_CHECKS_AT_ONCE:]
            answers = await ask_slots(
                self._cluster,
                view,
                {slot: [check for _, check in checks] for slot, checks in batch.items() if checks},
                deadline=self._clock.monotonic() + REPAIR_DEADLINE_S,
            )
            for slot, checks in batch.items():
                answered = answers.get(slot, [])
                for at, (key, _) in enumerate(checks):
                    if at >= len(answered) or not isinstance(answered[at], verbs.Count):
                        lost.add((slot, key))
        return lost

    # ---- what looked short ----------------------------------------------------------------------
    async def _second_look(self, view: SetView, walk: Walk) -> None:
        """Counts what seemed to lack shards, as it is a little later."""
        doubts, walk.doubts = walk.doubts, []
        wait_s = walk.set_began + CENSUS_SECOND_LOOK_S - self._clock.monotonic()
        if doubts and wait_s > 0:
            await self._clock.sleep(wait_s)
        for begin in range(0, len(doubts), CENSUS_PAGE):
            for seen in await self._again(view, doubts[begin : begin + CENSUS_PAGE]):
                _count(view, walk, seen)

    async def _again(self, view: SetView, doubts: list[_Seen]) -> list[_Seen]:
        reads = [verbs.Read(seen.key) for seen in doubts]
        answers = await ask_slots(
            self._cluster,
            view,
            dict.fromkeys(range(view.n), reads),
            deadline=self._clock.monotonic() + REPAIR_DEADLINE_S,
        )
        found: list[_Seen] = []
        files: dict[int, list[tuple[bytes, verbs.ShardCheck]]] = {}
        for at, seen in enumerate(doubts):
            states = {
                slot: state
                for slot, given in answers.items()
                if at < len(given) and isinstance(state := given[at], verbs.State)
            }
            newest = {slot: s.entries[-1] for slot, s in states.items() if s.entries}
            epoch = max((entry.epoch for entry in newest.values()), default=b"")
            record = _record(next((e.record for e in newest.values() if e.epoch == epoch), b""))
            if record is None:
                if len(states) < view.read_quorum or newest or not seen.holders:
                    found.append(seen)  # rotten, or nobody says what became of it
                continue  # else deleted and collected meanwhile
            holders = frozenset(slot for slot, e in newest.items() if e.epoch == epoch)
            floored = frozenset(slot for slot, s in states.items() if epoch <= s.floor)
            found.append(_Seen(seen.key, record.kind, epoch, holders, floored))
            for slot in holders:
                checks = ((seen.key, check) for check in _files_of(record))
                files.setdefault(slot, []).extend(checks)
        lost = await self._lost_files(view, files)
        return [
            replace(seen, holders=frozenset(s for s in seen.holders if (s, seen.key) not in lost))
            for seen in found
        ]


def _files_of(record: Record) -> Iterable[verbs.ShardCheck]:
    if record.inline:
        return
    for part in record.parts:
        if part.data_id and part.size:
            layout = StripeLayout(part.size, record.k, part.stripe_bytes)
            yield verbs.ShardCheck(part.data_id, layout.shard_file_bytes)


def _record(encoded: bytes) -> Record | None:
    try:
        return records.decode(encoded)
    except records.RecordError:
        return None


def _there(seen: _Seen) -> frozenset[int]:
    """Slots that have the version, or had the tombstone and let it go."""
    return seen.holders | seen.floored if seen.kind == Kind.TOMBSTONE else seen.holders


def _lacks(view: SetView, seen: _Seen) -> bool:
    return len(_there(seen)) < view.n


def _count(view: SetView, walk: Walk, seen: _Seen) -> None:
    census = walk.census.sets[walk.at]
    lacks = _lacks(view, seen)
    if seen.kind == Kind.TOMBSTONE:
        census.tombstones += 1
        census.tombstones_short += lacks
    else:
        census.objects += 1
        census.by_shards[len(seen.holders)] += 1
        bucket = seen.key.partition(b"\0")[0].decode(errors="replace")
        census.unreadable += len(seen.holders) < view.geometry_for(bucket).k
    if lacks and len(walk.census.lacking) < CENSUS_SHORT_KEPT:
        walk.census.lacking.append(
            Short(
                set_index=view.index,
                key=seen.key,
                epoch=seen.epoch,
                holders=seen.holders,
                missed=frozenset(range(view.n)) - _there(seen),
            )
        )
