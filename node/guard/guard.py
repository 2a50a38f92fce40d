"""The one implementation behind every path into and out of the node.

Order, always: deadline (nothing left: fail at once) - bulkhead (full: Shed) - breaker of the target
(open: TargetDown, nothing sent) - the attempt under its bound - classify - retry where the policy, the
retry budget and the deadline allow it - one outcome, one latency observation.

Three entrances share these parts. `start` is one attempt of a call that is already a future (peer
calls, drive verbs): no task, no coroutine, the future itself is returned and the guard watches it.
`volley` is one attempt at each of several targets with one future for all (node.guard.calls).
`run` is the whole order around a coroutine (requests, jobs).

Classification: TargetFailed and an expired attempt are the target's sickness. An error that the
target itself answered with (`answered` is set on it) shows that the target is well. A ClientError is
an answer. The caller's own cancel or a deadline shorter than the attempt's bound blames nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from node.errors import (
    ClientError,
    DeadlineExceeded,
    HoldfastError,
    QuorumLost,
    Shed,
    TargetDown,
    TargetFailed,
    Unavailable,
)
from node.guard.bounds import Bounds
from node.guard.breaker import REFUSED, Breaker, BreakerRules, BreakerState
from node.guard.bulkhead import Bulkhead
from node.guard.calls import Call, Send, Volley
from node.guard.deadline import bound_s, narrower
from node.guard.observer import NullObserver, Observer
from node.guard.policy import Policy
from node.guard.retry import RetryBudget, backoff_s
from node.runtime.ports import Clock, Rng

T = TypeVar("T")

# A wait that ended before this share of the attempt's bound says nothing about the target.
BLAME_SHARE = 0.5

RETRYABLE: tuple[type[HoldfastError], ...] = (TargetFailed, DeadlineExceeded, QuorumLost)

RULES: dict[str, BreakerRules] = {
    "heartbeat": BreakerRules(slow_s=1.0),
    "lock": BreakerRules(slow_s=0.8),
    "fast": BreakerRules(slow_s=1.5),
    "control": BreakerRules(slow_s=1.5),
    "bulk": BreakerRules(slow_s=2.5),
    "drive": BreakerRules(slow_s=1.5),
}
_DEFAULT_RULES = BreakerRules()


def is_answer(error: BaseException) -> bool:
    """Whether the target itself answered with this error, and so is well."""
    return isinstance(error, ClientError) or bool(getattr(error, "answered", False))


class Target:
    """Something that can be sick on its own: a peer's lane or a drive. Made by Guard.target."""

    __slots__ = ("breaker", "kind", "klass", "name", "waiting")

    def __init__(self, kind: str, name: str, klass: str, breaker: Breaker) -> None:
        self.kind = kind
        self.name = name
        self.klass = klass
        self.breaker = breaker
        # What fails at once when the target is declared dead: each entry ends one call.
        self.waiting: dict[object, Callable[[HoldfastError], None]] = {}

    def __repr__(self) -> str:
        return f"<Target {self.kind} {self.name} {self.klass} {self.breaker.state.name}>"


class Row:
    """What a policy row needs at run time."""

    __slots__ = ("begun", "budget", "bulkhead", "running")

    def __init__(self, path: str, name: str, policy: Policy) -> None:
        self.running = 0  # calls of `start`, which never wait
        self.begun = 0  # calls of `run` so far
        self.bulkhead = Bulkhead(f"{path} {name}", policy.max_running, policy.max_waiting)
        self.budget = RetryBudget()


class Guard:
    """`enabled=False` is for benchmarks only: it measures what the protections cost."""

    def __init__(
        self,
        clock: Clock,
        rng: Rng,
        observer: Observer | None = None,
        *,
        enabled: bool = True,
    ) -> None:
        self.clock = clock
        self.observer: Observer = observer if observer is not None else NullObserver()
        self._rng = rng
        self._enabled = enabled
        self._targets: dict[tuple[str, str, str], Target] = {}
        self._rows: dict[tuple[str, str], Row] = {}
        self._may_open: Callable[[Target], bool] | None = None
        self.bounds = Bounds(clock)

    # ---- targets ------------------------------------------------------------------------------------
    def target(self, kind: str, name: str, klass: str) -> Target:
        """The target of this name, always the same one. `kind`: peer or drive."""
        key = (kind, name, klass)
        found = self._targets.get(key)
        if found is None:
            target: Target

            def permit() -> bool:
                return self._may_open is None or self._may_open(target)

            rules = RULES.get(klass, RULES.get(kind, _DEFAULT_RULES))
            target = found = Target(kind, name, klass, Breaker(rules, permit))
            self._targets[key] = target
            self._publish(target)
        return found

    def targets(self, kind: str | None = None) -> tuple[Target, ...]:
        """All targets so far, for the console."""
        return tuple(t for t in self._targets.values() if kind is None or t.kind == kind)

    def activity(self, path: str) -> tuple[int, int]:
        """Of a path's calls of `run`: how many are under way, and how many there were so far."""
        rows = [row for (of, _), row in self._rows.items() if of == path]
        return sum(row.bulkhead.running for row in rows), sum(row.begun for row in rows)

    def ask_before_opening(self, may_open: Callable[[Target], bool]) -> None:
        """`may_open` may keep a breaker closed that errors would open (never one of a dead target)."""
        self._may_open = may_open

    def fail_waiting(self, name: str) -> None:
        """A peer is declared dead: everything that waits for it fails now, its breakers open."""
        error = TargetDown(f"{name} is down")
        for target in list(self._targets.values()):
            if target.name == name:
                before = target.breaker.state
                target.breaker.force_open()
                self._moved(target, before)
                for fail in list(target.waiting.values()):
                    fail(error)

    def allow(self, name: str) -> None:
        """A peer gives signs of life again: its breakers let one probe through at once."""
        for target in self._targets.values():
            if target.name == name:
                before = target.breaker.state
                target.breaker.release()
                self._moved(target, before)

    # ---- one attempt --------------------------------------------------------------------------------
    def start(
        self,
        path: str,
        name: str,
        policy: Policy,
        target: Target | None,
        begin: Callable[[], asyncio.Future[T]],
        *,
        deadline: float,
    ) -> asyncio.Future[T]:
        """One guarded attempt of a call that `begin` sends off.

        Returns the future that `begin` made, or one that has failed already. The guard may complete
        it first (bound reached, target dead), so whoever answers it must look whether it is done.
        """
        if not self._enabled:
            return begin()
        loop = asyncio.get_running_loop()
        now = self.clock.monotonic()
        bound = bound_s(now, policy.attempt_s, deadline)
        if bound <= 0:
            return self._refuse(loop, path, name, DeadlineExceeded(f"{path} {name}: no time left"))
        row = self._rows.get((path, name)) or self._row(path, name, policy)
        if row.running >= policy.max_running + policy.max_waiting:
            return self._refuse(loop, path, name, Shed(f"{path} {name}: {row.running} under way"))
        ticket = 0
        if target is not None:
            before = target.breaker.state
            ticket = target.breaker.admit(now)
            if target.breaker.state is not before:
                self._moved(target, before)
            if ticket == REFUSED:
                down = TargetDown(
                    f"{target.kind} {target.name} ({target.klass}) is known to be down"
                )
                return self._refuse(loop, path, name, down)
        try:
            future = begin()
        except HoldfastError as error:
            future = loop.create_future()
            future.set_exception(error)
        call = Call()
        call.guard = self
        call.path = path
        call.name = name
        call.row = row
        call.target = target
        call.ticket = ticket
        call.began = now
        call.bound_s = bound
        call.blames = bound >= BLAME_SHARE * policy.attempt_s
        call.future = future
        row.running += 1
        if target is not None:
            target.waiting[call] = call.fail
        if future.done():
            # Judged here and now: whoever asks in a circle may never let the loop run callbacks.
            call.bound = None
            call.finished(future)
        else:
            call.bound = self.bounds.add(now + bound, call.expire)
            future.add_done_callback(call.finished)
        return future

    def volley(
        self,
        path: str,
        name: str,
        policy: Policy,
        sends: Sequence[tuple[Target, Send] | HoldfastError],
        made: Callable[[Sequence[Any]], T],
        *,
        late_s: float,
        deadline: float,
    ) -> asyncio.Future[T]:
        """One guarded attempt at each of several targets; -> made(their answers, in order).

        `sends`: the target and how to send to it, or why nothing is sent there. In place of an answer stands
        the HoldfastError that it failed with, or PENDING where one stays behind the others by `late_s`.
        """
        now = self.clock.monotonic()
        bound = bound_s(now, policy.attempt_s, deadline) if self._enabled else policy.attempt_s
        row = self._rows.get((path, name)) or self._row(path, name, policy)
        volley = Volley(
            self,
            path,
            name,
            row,
            len(sends),
            made,
            began=now,
            bound_s=bound,
            blames=bound >= BLAME_SHARE * policy.attempt_s,
            late_s=late_s,
        )
        most = policy.max_running + policy.max_waiting
        for index, item in enumerate(sends):
            if isinstance(item, HoldfastError):
                volley.refuse(index, _outcome(item), item)
                continue
            target, send = item
            try:
                if bound <= 0:
                    raise DeadlineExceeded(f"{path} {name}: no time left")
                if row.running >= most:
                    raise Shed(f"{path} {name}: {row.running} under way")
                ticket = self._admit(target, now) if self._enabled else 0
            except HoldfastError as error:
                volley.refuse(index, _outcome(error), error)
            else:
                volley.launch(index, target, ticket, send)
        volley.watch()
        return volley.future

    def _refuse(
        self, loop: asyncio.AbstractEventLoop, path: str, name: str, error: HoldfastError
    ) -> asyncio.Future[T]:
        self.observer.guard_outcome(path, name, _outcome(error), 0.0)
        refused: asyncio.Future[T] = loop.create_future()
        refused.set_exception(error)
        return refused

    # ---- the whole order -----------------------------------------------------------------------------
    async def run(
        self,
        path: str,
        name: str,
        policy: Policy,
        target: Target | None,
        attempt: Callable[[float], Awaitable[T]],
        *,
        deadline: float,
        retry_on: tuple[type[HoldfastError], ...] = RETRYABLE,
    ) -> T:
        """Run `attempt(deadline of the attempt)` under everything the policy says."""
        if not self._enabled:
            return await attempt(deadline)
        clock = self.clock
        deadline = narrower(deadline, clock.monotonic(), policy.total_s)
        row = self._rows.get((path, name)) or self._row(path, name, policy)
        row.begun += 1
        began = clock.monotonic()
        outcome = "error"
        try:
            await self._enter(row, path, name, deadline)
            try:
                result = await self._attempts(
                    row, path, name, policy, target, attempt, deadline, retry_on
                )
                outcome = "ok"
                return result
            finally:
                row.bulkhead.leave()
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except HoldfastError as error:
            outcome = _outcome(error)
            raise
        finally:
            self.observer.guard_outcome(path, name, outcome, clock.monotonic() - began)

    async def _enter(self, row: Row, path: str, name: str, deadline: float) -> None:
        if row.bulkhead.try_enter():
            return
        left_s = deadline - self.clock.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded(f"{path} {name}: no time left")
        timeout = asyncio.timeout(left_s)
        try:
            async with timeout:
                await row.bulkhead.enter()
        except TimeoutError:
            raise Shed(f"{path} {name}: waited {left_s:.3g} s for a place") from None

    async def _attempts(
        self,
        row: Row,
        path: str,
        name: str,
        policy: Policy,
        target: Target | None,
        attempt: Callable[[float], Awaitable[T]],
        deadline: float,
        retry_on: tuple[type[HoldfastError], ...],
    ) -> T:
        row.budget.earn()
        retry = 0
        while True:
            try:
                return await self._attempt(path, name, policy, target, attempt, deadline)
            except retry_on:
                if retry >= policy.retries or not policy.idempotent:
                    raise
                pause_s = backoff_s(policy.backoff_s, retry, self._rng.uniform(0.0, 1.0))
                if self.clock.monotonic() + pause_s >= deadline:
                    raise
                if not row.budget.spend():
                    raise
                self.observer.guard_outcome(path, name, "retried", 0.0)
            retry += 1
            await self.clock.sleep(pause_s)

    async def _attempt(
        self,
        path: str,
        name: str,
        policy: Policy,
        target: Target | None,
        attempt: Callable[[float], Awaitable[T]],
        deadline: float,
    ) -> T:
        now = self.clock.monotonic()
        bound = bound_s(now, policy.attempt_s, deadline)
        if bound <= 0:
            raise DeadlineExceeded(f"{path} {name}: no time left")
        ticket = 0 if target is None else self._admit(target, now)
        timeout = asyncio.timeout(bound)
        failed: list[HoldfastError] = []

        def fail(error: HoldfastError) -> None:
            if not failed:
                failed.append(error)
                timeout.reschedule(asyncio.get_running_loop().time())

        if target is not None:
            target.waiting[fail] = fail
        try:
            async with timeout:
                result = await attempt(now + bound)
        except asyncio.CancelledError:
            if target is not None:
                target.breaker.neutral(ticket)
            raise
        except TimeoutError as error:
            if not timeout.expired():
                raise
            ended: HoldfastError = (
                failed[0]
                if failed
                else DeadlineExceeded(f"{path} {name}: not done in {bound:.3g} s")
            )
            seconds = self.clock.monotonic() - now
            blame = bound >= BLAME_SHARE * policy.attempt_s
            self.classify(target, ticket, ended, seconds, expired_blames=blame)
            raise ended from error
        except HoldfastError as error:
            # An expiry further in has judged its own target already.
            self.classify(target, ticket, error, self.clock.monotonic() - now, expired_blames=False)
            raise
        except BaseException:
            if target is not None:
                target.breaker.neutral(ticket)
            raise
        finally:
            if target is not None:
                target.waiting.pop(fail, None)
        if target is not None:
            self.succeeded(target, ticket, self.clock.monotonic() - now)
        return result

    # ---- verdicts --------------------------------------------------------------------------------------
    def _admit(self, target: Target, now: float) -> int:
        before = target.breaker.state
        ticket = target.breaker.admit(now)
        if target.breaker.state is not before:
            self._moved(target, before)
        if ticket == REFUSED:
            raise TargetDown(f"{target.kind} {target.name} ({target.klass}) is known to be down")
        return ticket

    def admit(self, target: Target) -> int:
        """A ticket for work that is judged later by `succeeded` or `classify`; TargetDown when refused."""
        return self._admit(target, self.clock.monotonic())

    def succeeded(self, target: Target, ticket: int, seconds: float) -> None:
        """The target answered."""
        breaker = target.breaker
        before = breaker.state
        breaker.succeeded(ticket, self.clock.monotonic(), seconds)
        if breaker.state is not before:
            self._moved(target, before)

    def classify(
        self,
        target: Target | None,
        ticket: int,
        error: BaseException,
        seconds: float,
        *,
        expired_blames: bool = True,
    ) -> str:
        """Tell the target's breaker what an error means for it; the outcome's name for the metrics."""
        outcome = _outcome(error)
        if target is None:
            return outcome
        breaker = target.breaker
        before = breaker.state
        if is_answer(error):
            breaker.succeeded(ticket, self.clock.monotonic(), seconds)
        elif isinstance(error, TargetFailed) or (
            isinstance(error, DeadlineExceeded) and expired_blames
        ):
            breaker.failed(ticket, self.clock.monotonic(), self._rng.uniform(0.0, 1.0))
        else:
            breaker.neutral(ticket)
        if breaker.state is not before:
            self._moved(target, before)
        return outcome

    def probe_succeeded(self, target: Target) -> None:
        """Something outside the calls (a link that opened) showed that the target is well."""
        before = target.breaker.state
        if before is not BreakerState.CLOSED:
            target.breaker.proved_well()
            self._moved(target, before)

    def _moved(self, target: Target, before: BreakerState) -> None:
        if target.breaker.state is not before:
            self._publish(target)

    def _publish(self, target: Target) -> None:
        if target.kind == "peer":
            self.observer.breaker_state(target.name, target.klass, int(target.breaker.state))

    def _row(self, path: str, name: str, policy: Policy) -> Row:
        row = self._rows[(path, name)] = Row(path, name, policy)
        return row


def _outcome(error: BaseException) -> str:
    """A closed set of names, for the metric's label."""
    if isinstance(error, ClientError):
        return "client_error"
    if isinstance(error, Shed):
        return "shed"
    if isinstance(error, TargetDown):
        return "refused"
    if isinstance(error, DeadlineExceeded):
        return "timeout"
    if isinstance(error, TargetFailed):
        return "target_failed"
    if isinstance(error, Unavailable):
        return "unavailable"
    return "error"
