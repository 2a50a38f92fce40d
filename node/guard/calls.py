"""Calls that the guard watches while they are under way: one alone, or a volley to several targets at once.

A volley is for the drives of a node: one operation asked of each of them, one future with all their answers,
one bound. Each drive is admitted and judged by itself; what one drive does never hides what its
neighbours said: once half of them have answered, the others get `late_s` more, then the
answers are handed over as they are. Those that come later are still judged, by their own bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from node.errors import DeadlineExceeded, HoldfastError
from node.guard.bounds import Bound

if TYPE_CHECKING:
    from node.guard.guard import Guard, Row, Target

T = TypeVar("T")
Answered = Callable[[Any], None]  # with the answer, or with the HoldfastError that it failed with
Send = Callable[[Answered], None]


class Call:
    """One watched future of Guard.start."""

    __slots__ = (
        "began",
        "blames",
        "bound",
        "bound_s",
        "future",
        "guard",
        "name",
        "path",
        "row",
        "target",
        "ticket",
    )
    guard: Guard
    path: str
    name: str
    row: Row
    target: Target | None
    ticket: int
    began: float
    bound_s: float
    blames: bool  # whether an expiry is the target's fault
    future: asyncio.Future[Any]
    bound: Bound | None

    def expire(self) -> None:
        future = self.future
        if not future.done():
            future.set_exception(
                DeadlineExceeded(f"{self.path} {self.name}: no answer in {self.bound_s:.3g} s")
            )

    def fail(self, error: HoldfastError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def finished(self, future: asyncio.Future[Any]) -> None:
        if self.bound is not None:
            self.bound.cancel()
        self.row.running -= 1
        guard = self.guard
        seconds = guard.clock.monotonic() - self.began
        target = self.target
        if target is not None:
            target.waiting.pop(self, None)
        if future.cancelled():
            outcome = "cancelled"
            if target is not None:
                target.breaker.neutral(self.ticket)
        else:
            error = future.exception()
            if error is None:
                outcome = "ok"
                if target is not None:
                    guard.succeeded(target, self.ticket, seconds)
            else:
                outcome = guard.classify(
                    target, self.ticket, error, seconds, expired_blames=self.blames
                )
        guard.observer.guard_outcome(self.path, self.name, outcome, seconds)


class _Pending:
    """Stands where an answer has not come."""


PENDING = _Pending()


class _Sent:
    """One call of a volley that is under way."""

    __slots__ = ("answered", "target", "ticket")

    def __init__(self, target: Target, ticket: int, answered: Answered) -> None:
        self.target = target
        self.ticket = ticket
        self.answered = answered


class Volley(Generic[T]):
    """Made by Guard.volley. `future` ends with made(answers): an answer, a HoldfastError or PENDING each."""

    __slots__ = (
        "_answers",
        "_began",
        "_blames",
        "_bound",
        "_bound_s",
        "_guard",
        "_late",
        "_late_s",
        "_left",
        "_made",
        "_name",
        "_path",
        "_row",
        "_sent",
        "future",
    )

    def __init__(
        self,
        guard: Guard,
        path: str,
        name: str,
        row: Row,
        count: int,
        made: Callable[[Sequence[Any]], T],
        *,
        began: float,
        bound_s: float,
        blames: bool,
        late_s: float,
    ) -> None:
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._guard = guard
        self._path = path
        self._name = name
        self._row = row
        self._made = made
        self._began = began
        self._bound_s = bound_s
        self._blames = blames
        self._late_s = late_s
        self._answers: list[Any] = [PENDING] * count
        self._sent: list[_Sent | None] = [None] * count
        self._left = count
        self._bound: Bound | None = None
        self._late: Bound | None = None

    def launch(self, index: int, target: Target, ticket: int, send: Send) -> None:
        """Sends one call off. Its answer may come at once."""
        answered: Answered = partial(self._answered, index)
        self._sent[index] = _Sent(target, ticket, answered)
        self._row.running += 1
        target.waiting[answered] = answered
        send(answered)

    def refuse(self, index: int, outcome: str, error: HoldfastError) -> None:
        """One call of it is not sent."""
        self._guard.observer.guard_outcome(self._path, self._name, outcome, 0.0)
        self._take(index, error)

    def watch(self) -> None:
        """All calls of it are under way or refused."""
        if self._left:
            self._bound = self._guard.bounds.add(self._began + self._bound_s, self._expire)
        elif not self._answers:
            self._deliver()

    def _answered(self, index: int, answer: Any) -> None:
        self._judge(index, answer, self._blames)

    def _judge(self, index: int, answer: Any, blames: bool) -> None:
        sent = self._sent[index]
        if sent is None:
            return  # its bound was reached, or its target declared dead
        self._sent[index] = None
        self._row.running -= 1
        guard, target = self._guard, sent.target
        target.waiting.pop(sent.answered, None)
        seconds = guard.clock.monotonic() - self._began
        if isinstance(answer, BaseException):
            outcome = guard.classify(target, sent.ticket, answer, seconds, expired_blames=blames)
        else:
            outcome = "ok"
            guard.succeeded(target, sent.ticket, seconds)
        guard.observer.guard_outcome(self._path, self._name, outcome, seconds)
        self._take(index, answer)

    def _take(self, index: int, answer: Any) -> None:
        self._answers[index] = answer
        self._left -= 1
        if not self._left:
            if self._bound is not None:
                self._bound.cancel()
            self._deliver()
        elif self._late is None and self._left <= len(self._answers) // 2:
            at = self._guard.clock.monotonic() + self._late_s
            self._late = self._guard.bounds.add(at, self._deliver)

    def _expire(self) -> None:
        text = f"{self._path} {self._name}: no answer in {self._bound_s:.3g} s"
        for index in range(len(self._sent)):
            self._judge(index, DeadlineExceeded(text), self._blames)

    def _deliver(self) -> None:
        if self._late is not None:
            self._late.cancel()
        if self.future.done():
            return
        try:
            self.future.set_result(self._made(self._answers))
        except Exception as error:  # the caller's, not the target's whose answer came last
            self.future.set_exception(error)
