"""The bounds of many calls on one timer.

Theory of operation. Nearly every call ends long before its bound, so a timer of the loop for each is made
only to be cancelled. Here bounds lie in slots of TICK_S; a slot is looked at when its time has come, and
by then it is nearly always empty. A bound is met up to TICK_S late, never early. One timer of the
loop stands while anything waits. When it fires, empty slots are thrown away as far as the first that is
not: a node that has little to do is not woken for each call that ended long ago.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from node.runtime.ports import Clock

TICK_S = 0.01
_ROUND_UP = 0.999999  # what lies on a slot's time but for the last digits belongs to that slot


class Bound:
    """One bound. `action` runs when it is reached."""

    __slots__ = ("_slot", "action")

    def __init__(self, slot: dict[Bound, None], action: Callable[[], None]) -> None:
        self._slot = slot
        self.action = action

    def cancel(self) -> None:
        """Again, or after it was reached, is harmless."""
        self._slot.pop(self, None)


class Bounds:
    """For one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slots: dict[int, dict[Bound, None]] = {}
        self._order: list[int] = []  # a heap of the slots there are
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0

    def add(self, at: float, action: Callable[[], None]) -> Bound:
        """`action()` once clock.monotonic() has reached `at`."""
        number = int(at / TICK_S + _ROUND_UP)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = {}
            heapq.heappush(self._order, number)
            if self._timer is None or number < self._timer_at:
                self._arm()
        bound = Bound(slot, action)
        slot[bound] = None
        return bound

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._order[0]
        delay_s = self._timer_at * TICK_S - self._clock.monotonic()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, delay_s), self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._clock.monotonic() + TICK_S / 100  # the loop's clock may be rounded
        while self._order and self._order[0] * TICK_S <= now:
            slot = self._slots.pop(heapq.heappop(self._order))
            while slot:
                slot.popitem()[0].action()
        while self._order and not self._slots[self._order[0]]:
            del self._slots[heapq.heappop(self._order)]
        if self._order and self._timer is None:
            self._arm()
