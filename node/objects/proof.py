"""When repair may be called complete: when a census that began after the last of its work found nothing short.

Theory of operation. Something happened (a repair, a drive that was filled, a node or drive that came back) makes
the last census worth nothing. The first living node of the list then takes a new one as soon as the queues have
run dry and every drive is there. What it finds short goes into the repair queue of the drives that hold it,
and so on, until a census finds nothing: repair ends on a count of shards, never on the absence of errors.
The share of the time that goes into censuses is bounded by PROOF_REST_FACTOR.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from node.limits import (
    CENSUS_PAGE,
    PROOF_PAUSE_S,
    PROOF_QUEUE_AGE_S,
    PROOF_REST_FACTOR,
    REPAIR_DEADLINE_S,
)
from node.objects.asking import ask_slots
from node.objects.census import Census, CensusTaker, Short
from node.objects.repair import Repairs
from node.objects.sets import Cluster
from node.protocol import verbs


class ProofObserver(Protocol):
    def census_failures(self, n: int) -> None: ...


class Log(Protocol):
    def info(self, event: str, **fields: object) -> object: ...

    def warning(self, event: str, **fields: object) -> object: ...


class Proof:
    """One node's part in it."""

    def __init__(
        self,
        cluster: Cluster,
        census: CensusTaker,
        repairs: Repairs,
        filling: Callable[[], bool],
        observer: ProofObserver,
        log: Log,
    ) -> None:
        """`filling`: whether any node is known to fill a drive."""
        self._cluster = cluster
        self._clock = cluster.clock
        self._census = census
        self._repairs = repairs
        self._filling = filling
        self._observer = observer
        self._log = log
        self._wanted = False
        self._all_there = True
        self._repaired = 0
        self._not_before = 0.0

    async def turn(self, until: float) -> None:
        """Requests a census when one is due, and goes on with the one under way."""
        self._look_around()
        if self._wanted and self._may_count():
            self._wanted = False
            self._census.request()
        census = await self._census.turn(until)
        if census is not None:
            await self._judge(census)

    def _look_around(self) -> None:
        status = self._repairs.status
        there = all(len(self._cluster.online(v)) == v.n for v in self._cluster.views)
        back = there and not self._all_there
        if status.queue or status.repaired != self._repaired or back or self._filling():
            self._wanted = True
        self._repaired, self._all_there = status.repaired, there

    def _may_count(self) -> bool:
        alive = {self._cluster.me, *self._cluster.membership.alive()}
        first = next(node for node in self._cluster.nodes if node in alive)
        status = self._repairs.status
        return (
            first == self._cluster.me
            and self._all_there
            and not self._repairs.pause.paused
            and not self._filling()
            and not self._census.running
            and (not status.queue or status.oldest_s < PROOF_QUEUE_AGE_S)
            and self._clock.monotonic() >= self._not_before
        )

    async def _judge(self, census: Census) -> None:
        took_s = census.finished_s - census.began_s
        self._not_before = self._clock.monotonic() + max(PROOF_PAUSE_S, took_s * PROOF_REST_FACTOR)
        if census.whole:
            self._log.info("a census found every object whole", objects=census.objects)
            return
        self._wanted = True
        self._observer.census_failures(len(census.lacking))
        self._log.warning(
            "a census found objects that lack shards: they are repaired",
            lacking=len(census.lacking),
            unreadable=sum(each.unreadable for each in census.sets),
        )
        for begin in range(0, len(census.lacking), CENSUS_PAGE):
            await self._enqueue(census.lacking[begin : begin + CENSUS_PAGE])

    async def _enqueue(self, lacking: list[Short]) -> None:
        for view in self._cluster.views:
            wanted: dict[int, list[verbs.Verb]] = {}
            for short in lacking:
                if short.set_index == view.index and short.holders:
                    entry = verbs.Enqueue(short.key, short.epoch, tuple(sorted(short.missed)))
                    for slot in short.holders:
                        wanted.setdefault(slot, []).append(entry)
            if wanted:
                deadline = self._clock.monotonic() + REPAIR_DEADLINE_S
                await ask_slots(self._cluster, view, wanted, deadline=deadline)
