"""A bulkhead: so many run, so many wait, the rest is refused at once."""

from __future__ import annotations

import asyncio
import collections

from node.errors import Shed


class Bulkhead:
    """First come, first served. Used on one event loop."""

    __slots__ = ("_max_running", "_max_waiting", "_queue", "name", "running")

    def __init__(self, name: str, max_running: int, max_waiting: int) -> None:
        assert max_running > 0 and max_waiting >= 0
        self.name = name
        self.running = 0
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._queue: collections.deque[asyncio.Future[None]] = collections.deque()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def capacity(self) -> int:
        return self._max_running + self._max_waiting

    def try_enter(self) -> bool:
        """Take a place without waiting."""
        if self.running >= self._max_running or self._queue:
            return False
        self.running += 1
        return True

    async def enter(self) -> None:
        """Take a place, waiting in line; Shed when the line is full. The caller bounds the wait."""
        if self.try_enter():
            return
        if len(self._queue) >= self._max_waiting:
            raise Shed(f"{self.name}: {self.running} running and {len(self._queue)} waiting")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the place was handed over in the same moment: pass it on
            else:
                self._queue.remove(turn)
            raise

    def leave(self) -> None:
        """Give the place to the next in line."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)  # `running` stays: the place changes hands
                return
        self.running -= 1
        assert self.running >= 0
