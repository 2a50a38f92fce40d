"""Waiting for enough of many answers, with bounds and without a task for each.

One ordered place for all fan-outs of the object layer: results come in the order of their arrival,
what is still pending when the wait ends is left running and its error is consumed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Gathering(Generic[K, T]):
    """Answers by key. Futures may be added while others are waited for."""

    def __init__(self) -> None:
        self.results: dict[K, T] = {}
        self.errors: dict[K, BaseException] = {}
        self._pending: set[K] = set()
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[bool] | None = None
        self._enough: Callable[[], bool] = lambda: False

    @property
    def pending(self) -> int:
        return len(self._pending)

    def is_pending(self, key: K) -> bool:
        return key in self._pending

    def add(self, key: K, future: asyncio.Future[T]) -> None:
        """A further answer to wait for; its key is new, or the one of an answer that came before."""
        assert key not in self._pending
        self._pending.add(key)
        if future.done():
            self._on_done(key, future)
        else:
            future.add_done_callback(lambda done: self._on_done(key, done))

    def add_all(self, futures: Mapping[K, asyncio.Future[T]]) -> None:
        for key, future in futures.items():
            self.add(key, future)

    async def until(self, enough: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until `enough()` or until nothing is pending (-> `enough()`), or the time is up (-> False)."""
        if enough() or not self._pending:
            return enough()
        if timeout_s <= 0:
            return False
        assert self._waiter is None
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiter, self._enough = waiter, enough
        timer = self._loop.call_later(timeout_s, self._wake, False)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self, outcome: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(outcome)

    def _on_done(self, key: K, future: asyncio.Future[T]) -> None:
        self._pending.discard(key)
        if future.cancelled():
            self.errors[key] = asyncio.CancelledError()
        elif (error := future.exception()) is not None:
            self.errors[key] = error
        else:
            self.results[key] = future.result()
            self.errors.pop(key, None)
        if self._waiter is not None:
            if self._enough():
                self._wake(True)
            elif not self._pending:
                self._wake(False)
