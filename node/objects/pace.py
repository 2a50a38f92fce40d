"""How fast background work may go: it yields to clients.

Theory of operation. `clients` counts the requests of about the last half second, here or at the busiest other
node (their drives do most of what repair asks for). While there are none, work goes on as fast as it can,
`at_once` pieces beside each other. With the first request one piece is left, and after each piece it rests for
PACE_REST_FACTOR times as long as that took: at most a quarter of one stream of work meets the clients. A rest
is bounded, so repair never stands still, however busy the cluster is; and a piece that was slow because the
drives were busy makes the rest longer, which is the adaptation to observed latency.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from node.limits import PACE_REST_FACTOR, PACE_REST_MAX_S
from node.runtime.ports import Clock

T = TypeVar("T")
R = TypeVar("R")


class Pace:
    """Shared by all background work of a node that reads or writes drives."""

    def __init__(self, clock: Clock, clients: Callable[[], int]) -> None:
        self._clock = clock
        self._clients = clients

    def busy(self) -> bool:
        return self._clients() > 0

    async def rest(self, worked_s: float) -> None:
        """After a piece of work that took so long: nothing while no client is served."""
        if self.busy():
            await self._clock.sleep(min(worked_s * PACE_REST_FACTOR, PACE_REST_MAX_S))

    async def each(
        self,
        items: Sequence[T],
        work: Callable[[T], Awaitable[R]],
        *,
        at_once: int,
        until: float,
    ) -> list[R]:
        """`work` on each item, begun in their order; items not begun at `until` (monotonic) are left out."""
        results: list[R] = []
        begun = 0

        async def worker(number: int) -> None:
            nonlocal begun
            while begun < len(items) and self._clock.monotonic() < until:
                if number and self.busy():
                    await self._clock.sleep(PACE_REST_MAX_S)
                    continue
                item = items[begun]
                begun += 1
                began = self._clock.monotonic()
                results.append(await work(item))
                await self.rest(self._clock.monotonic() - began)

        await asyncio.gather(*map(worker, range(min(at_once, len(items)))))
        return results


class Clients:
    """How many client requests there are. `tick` now and then; `others` is what peers last said of theirs."""

    def __init__(
        self, activity: Callable[[], tuple[int, int]], others: Callable[[], Iterable[int]]
    ) -> None:
        """`activity`: requests under way at this node, and how many there were since its start."""
        self._activity = activity
        self._others = others
        self._begun = 0
        self.own = 0

    def tick(self) -> int:
        """-> requests of this node since the last tick, to be told to peers."""
        running, begun = self._activity()
        self.own = max(running, begun - self._begun)
        self._begun = begun
        return self.own

    def count(self) -> int:
        """At this node or at the busiest other one."""
        return max(self.own, self._activity()[0], max(self._others(), default=0))
