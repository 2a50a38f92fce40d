"""The census: how many objects have all their shards, how many fewer. What repair has to prove itself by.

Walks the catalogs of every reachable drive of a set in step, key by key, and counts for each object the
drives that hold its newest decided version, shard files included.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from node.errors import DeadlineExceeded, QuorumLost
from node.limits import CENSUS_PAGE, REPAIR_DEADLINE_S
from node.objects.heal import Healer
from node.objects.sets import Cluster, SetView
from node.protocol import verbs
from node.protocol.record import Kind


@dataclass(slots=True)
class Census:
    """`by_shards`: number of drives with a whole shard -> number of objects."""

    objects: int = 0
    tombstones: int = 0
    by_shards: Counter[int] = field(default_factory=Counter)
    width: int = 0  # shards a whole object has (of the widest set)
    short: list[bytes] = field(default_factory=list)  # some keys that lack shards
    every_drive: bool = True  # the catalog of every drive of every set was read
    finished_s: float = 0.0


class CensusTaker:
    """Counts."""

    def __init__(self, cluster: Cluster, healer: Healer) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._healer = healer

    async def take(self, *, deadline: float) -> Census:
        """QuorumLost when too few drives answer; DeadlineExceeded when the walk takes too long."""
        census = Census()
        for view in self._cluster.views:
            census.width = max(census.width, view.n)
            await self._walk(view, census, deadline)
        census.finished_s = self._clock.now()
        return census

    async def _walk(self, view: SetView, census: Census, deadline: float) -> None:
        after = b""
        while True:
            if self._clock.monotonic() >= deadline:
                raise DeadlineExceeded(f"the census counted {census.objects} objects in its time")
            ask = dict.fromkeys(range(view.n), verbs.Entries(after, CENSUS_PAGE))
            answers = await self._healer.ask(view, ask, self._deadline())
            pages = {
                slot: page for slot, page in answers.items() if isinstance(page, verbs.RawPage)
            }
            if len(pages) < view.read_quorum:
                raise QuorumLost("too few drives answered for a census")
            census.every_drive &= len(pages) == view.n
            horizon = min(
                (p.entries[-1].key for p in pages.values() if p.more and p.entries), default=None
            )
            newest = await self._newest(view, pages, horizon)
            for key, (kind, holders) in newest.items():
                if kind == Kind.TOMBSTONE:
                    census.tombstones += 1
                    continue
                census.objects += 1
                census.by_shards[len(holders)] += 1
                if len(holders) < view.n and len(census.short) < 100:
                    census.short.append(key)
            if horizon is None:
                return
            after = horizon

    async def _newest(
        self, view: SetView, pages: dict[int, verbs.RawPage], horizon: bytes | None
    ) -> dict[bytes, tuple[int, set[int]]]:
        """Per key its kind and the slots that hold its newest decided version with all its files."""
        entries: dict[bytes, dict[int, verbs.RawEntry]] = {}
        for slot, page in pages.items():
            for entry in page.entries:
                if entry.newest and (horizon is None or entry.key <= horizon):
                    entries.setdefault(entry.key, {})[slot] = entry
        found: dict[bytes, tuple[int, set[int]]] = {}
        files: dict[int, list[tuple[bytes, verbs.ShardCheck]]] = {}
        for key, held in entries.items():
            top = max(entry.newest for entry in held.values())
            holders = {slot for slot, entry in held.items() if entry.newest == top}
            kind = next(entry.kind for entry in held.values() if entry.newest == top)
            found[key] = (kind, holders)
            for slot in holders:
                for data_id, size in held[slot].data:
                    files.setdefault(slot, []).append((key, verbs.ShardCheck(data_id, size)))
        while any(files.values()):
            batch = {slot: waiting.pop() for slot, waiting in files.items() if waiting}
            answers = await self._healer.ask(
                view, {slot: check for slot, (_, check) in batch.items()}, self._deadline()
            )
            for slot, (key, _) in batch.items():
                if not isinstance(answers.get(slot), verbs.Count):
                    found[key][1].discard(slot)
        return found

    def _deadline(self) -> float:
        return self._clock.monotonic() + REPAIR_DEADLINE_S
