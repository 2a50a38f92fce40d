"""The settlement job: writes whose outcome nobody knows yet are completed or proved dead, without a reader.

Theory of operation. A commit leaves an "undecided" row with it on each drive; the word "decided" takes it away. What
is left of a coordinator that died, or whose last words were lost, is older than SETTLE_AFTER_S: then it is looked up
as a read would do it (node.objects.lookup settles what it meets), and the verdict is told to the drives. Rows lie
on drives, so a returning node finds its own old writes like anybody's. Paused repair does not pause this: an
undecided write may keep its key from being read.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from node.errors import HoldfastError
from node.limits import REPAIR_AT_ONCE, SETTLE_AFTER_S, SETTLE_DEADLINE_S
from node.objects.heal import Healer
from node.objects.pending import Pending
from node.objects.sets import Cluster, SetView
from node.protocol import verbs
from node.store.drive_gate import DriveGate


class SettleObserver(Protocol):
    def undecided(self, n: int, oldest_s: float) -> None: ...

    def settled(self, direction: str) -> None:
        """`direction`: forward (completed), back (proved dead), superseded (a newer write came)."""
        ...

    def settle_failed(self) -> None: ...


@dataclass(slots=True, kw_only=True)
class SettleStatus:
    """Of this node's drives: the most undecided writes of one, and the age of the oldest."""

    undecided: int = 0
    oldest_s: float = 0.0
    settled: int = 0
    failed: int = 0
    last_error: str = ""


class Settler:
    """One node's share of settling."""

    def __init__(
        self, cluster: Cluster, gate: DriveGate, healer: Healer, observer: SettleObserver
    ) -> None:
        self._clock = cluster.clock
        self._pending = Pending(cluster, gate, writes=True)
        self._healer = healer
        self._observer = observer
        self.status = SettleStatus()

    async def round(self) -> None:
        """Works once through the undecided writes of this node's drives."""
        depth, oldest_s = 0, 0.0
        seen: set[tuple[bytes, bytes]] = set()
        for first in await self._pending.first():
            page = first
            while True:
                depth = max(depth, page.depth)
                oldest_s = max([oldest_s, *map(self._pending.age_s, page.entries)])
                due = [
                    e
                    for e in page.entries
                    if (e.key, e.epoch) not in seen and self._due(page.view, e)
                ]
                seen.update((entry.key, entry.epoch) for entry in due)
                if due:
                    await self._settle_all(page.view, due)
                following = await self._pending.after(page)
                if following is None:
                    break
                page = following
        self.status.undecided, self.status.oldest_s = depth, oldest_s if depth else 0.0
        self._observer.undecided(depth, self.status.oldest_s)

    def _due(self, view: SetView, entry: verbs.PendingEntry) -> bool:
        wait_s = self._pending.wait_s(view, entry)
        return wait_s is not None and self._pending.age_s(entry) >= SETTLE_AFTER_S + wait_s

    async def _settle_all(self, view: SetView, entries: list[verbs.PendingEntry]) -> None:
        limit = asyncio.Semaphore(REPAIR_AT_ONCE)

        async def one(entry: verbs.PendingEntry) -> None:
            async with limit:
                try:
                    await self._settle(view, entry)
                except HoldfastError as error:
                    # Not to be had now: its row stays for the next round, and the age tells of it.
                    self.status.failed += 1
                    self.status.last_error = f"{type(error).__name__}: {error}"
                    self._observer.settle_failed()

        await asyncio.gather(*map(one, entries))

    async def _settle(self, view: SetView, entry: verbs.PendingEntry) -> None:
        deadline = self._clock.monotonic() + SETTLE_DEADLINE_S
        found = await self._healer.settle(view, entry.key, deadline=deadline)
        self.status.settled += 1
        if found.record is not None and found.record.epoch == entry.epoch:
            self._observer.settled("forward")
        elif found.record is not None and found.record.epoch > entry.epoch:
            self._observer.settled("superseded")
        else:
            self._observer.settled("back")
