"""Waiting for enough of many answers, in the order they come, without tasks.

asyncio.wait hands out sets, whose order changes from run to run; this does not, and it can stop
early for success, stop early because success has become impossible, and linger a little for margin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from node.runtime.ports import Clock

K = TypeVar("K")
T = TypeVar("T")

Enough = Callable[[Mapping[K, T], Mapping[K, BaseException]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fan(Generic[K, T]):
    """Results and errors in the order they came; `pending` goes on by itself, its errors are consumed."""

    results: dict[K, T]
    errors: dict[K, BaseException]
    pending: dict[K, asyncio.Future[T]]


class _Gathering(Generic[K, T]):
    __slots__ = ("_enough", "_waiter", "errors", "pending", "results")

    def __init__(self, calls: Mapping[K, asyncio.Future[T]]) -> None:
        self.results: dict[K, T] = {}
        self.errors: dict[K, BaseException] = {}
        self.pending: dict[K, asyncio.Future[T]] = dict(calls)
        self._enough: Enough[K, T] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def land(self, key: K, future: asyncio.Future[T]) -> None:
        # Always look at the outcome, so that a late failure is never reported as forgotten.
        error: BaseException | None
        if future.cancelled():
            error = asyncio.CancelledError()
        else:
            error = future.exception()
        if self.pending.pop(key, None) is None:
            return  # the fan has been handed out already
        if error is None:
            self.results[key] = future.result()
        else:
            self.errors[key] = error
        waiter = self._waiter
        if waiter is not None and not waiter.done() and self._satisfied():
            waiter.set_result(None)

    def _satisfied(self) -> bool:
        return not self.pending or (
            self._enough is not None and self._enough(self.results, self.errors)
        )

    async def wait(self, enough: Enough[K, T], seconds: float) -> None:
        self._enough = enough
        if self._satisfied() or seconds <= 0:
            return
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(seconds, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def hand_out(self) -> Fan[K, T]:
        fan = Fan(results=self.results, errors=self.errors, pending=self.pending)
        self.pending = {}  # late answers find nothing to change
        return fan


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def fan(
    calls: Mapping[K, asyncio.Future[T]],
    *,
    enough: Enough[K, T],
    deadline: float,
    clock: Clock,
    grace_s: float = 0.0,
    grace_enough: Enough[K, T] | None = None,
) -> Fan[K, T]:
    """Wait until `enough(results, errors)`, or all are in, or the deadline is there.

    `enough` also says yes when success has become impossible: it sees the errors. Then, for up to
    `grace_s` more (never beyond the deadline), wait for `grace_enough`: the margin. Calls that have
    not ended go on; they are in `pending`.
    """
    gathering: _Gathering[K, T] = _Gathering(calls)
    for key, future in calls.items():
        if future.done():
            gathering.land(key, future)
        else:
            future.add_done_callback(lambda done, key=key: gathering.land(key, done))  # type: ignore[misc]
    await gathering.wait(enough, deadline - clock.monotonic())
    if grace_s > 0 and grace_enough is not None and gathering.pending:
        await gathering.wait(grace_enough, min(grace_s, deadline - clock.monotonic()))
    return gathering.hand_out()
