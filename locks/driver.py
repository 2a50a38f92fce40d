"""The lock service on an event loop: the requester's side, and the server's side.

This is the only module here that waits. It holds no rules of its own: `round`, `lease` and `server`
decide; this sends what they ask for and tells them what comes back.

An acquire makes up to four attempts. An attempt is a direct round; if that found the lock taken, a
queued round follows within the same attempt. What an abandoned round was granted, or may still be
granted, is released in the background: after a timeout, a lost round, a cancel, a regular release, all
in the same way. Callbacks, not sets of tasks, carry the answers, so their order is the order of arrival.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Protocol, TypeVar

from locks.errors import LockBusy, LockFailure, LockLost, LockTimeout
from locks.lease import LeaseKeeper
from locks.messages import (
    Acquire,
    LockMode,
    Locks,
    Owner,
    Refresh,
    Refreshed,
    Release,
    Reply,
    Request,
    TellTable,
    resource_class,
    resource_set,
)
from locks.policy import LockPolicy
from locks.round import LossCause, Round, RoundState
from locks.server import LockServer

T = TypeVar("T")


class LockTransport(Protocol):
    async def call(self, server: str, message: Request, timeout_s: float) -> Reply:
        """One call to one lock server, this node's own among them. Any exception means: no answer."""
        ...


class LockClock(Protocol):
    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class LockRng(Protocol):
    def uniform(self, low: float, high: float) -> float: ...


class LockObserver(Protocol):
    def on_retry(self, resource_class: str) -> None: ...

    def on_timeout(self, resource_class: str) -> None:
        """An acquire gave up, after its retries."""
        ...

    def on_acquired(self, resource_class: str, seconds: float) -> None: ...

    def on_lost(self, resource_class: str) -> None: ...


class HeldLock:
    """A lock that was won. Leaving its `async with` block, or `release`, gives it back in the background.

    `lost` is set when the lease is over or broken while the lock is held. `valid` is exact at any moment.
    """

    def __init__(
        self, service: LockService, pursuit: _Pursuit, keeper: LeaseKeeper, lock_class: str
    ) -> None:
        self.resources = pursuit.resources
        self.mode = pursuit.round.mode
        self.owner = pursuit.owner
        self.lock_class = lock_class
        self.attempts = 1
        self.lost = asyncio.Event()
        self._service = service
        self._pursuit = pursuit
        self._keeper = keeper
        self._released = False

    def valid(self) -> bool:
        """Whether the holder may act on the lock now."""
        return not self._released and self._keeper.valid(self._service.clock.monotonic())

    def check(self) -> None:
        """Raises LockLost unless the lock is valid."""
        if not self.valid():
            raise LockLost(resource_class=self.lock_class, attempts=self.attempts)

    def release(self) -> None:
        """Give the lock back; the calls go on in the background. A second release does nothing."""
        if not self._released:
            self._released = True
            self._service._forget(self)
            self._pursuit.abandon()

    async def __aenter__(self) -> HeldLock:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class LockService:
    """The requester's side on one node. `servers`: all lock servers, in the same order on all nodes.

    `owner_factory` gives an owner with an attempt number never used before, on each call.
    """

    def __init__(
        self,
        transport: LockTransport,
        clock: LockClock,
        rng: LockRng,
        servers: tuple[str, ...],
        owner_factory: Callable[[], Owner],
        observer: LockObserver,
        policy: LockPolicy | None = None,
        doubtful: Callable[[str], bool] = lambda server: False,
    ) -> None:
        """`doubtful`: whether a server keeps silent now, as somebody else knows; see `suspect`."""
        self.clock = clock
        self.policy = policy if policy is not None else LockPolicy()
        self.servers = servers
        self.new_owner = owner_factory
        self._transport = transport
        self._rng = rng
        self._observer = observer
        self._doubtful = doubtful
        self._unwell: set[str] = set()
        self._held: dict[HeldLock, None] = {}
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._refresher: asyncio.Task[None] | None = None

    @property
    def held(self) -> tuple[HeldLock, ...]:
        return tuple(self._held)

    async def acquire(
        self,
        resources: Iterable[str],
        mode: LockMode,
        deadline_s: float,
        lock_class: str | None = None,
        *,
        wait: bool = True,
    ) -> HeldLock:
        """Take all of `resources`, or raise LockBusy, LockTimeout, or LockLost (this process was replaced).

        `deadline_s` is absolute, in the clock's monotonic seconds. `wait` false: never stand in line.
        `lock_class`: what errors and the observer name; by default the class of the first resource.
        """
        wanted = resource_set(resources)
        assert wanted, "nothing to lock"
        named = lock_class if lock_class is not None else resource_class(wanted[0])
        begun_s = self.clock.monotonic()
        delays_s = self.policy.retry_delays_s
        for attempt in range(1, len(delays_s) + 2):
            chase = _Chase(self, wanted, mode, deadline_s)
            pursuit = await chase.run(wait)
            held = self._hold(pursuit, named) if pursuit is not None else None
            if held is not None:
                held.attempts = attempt
                self._observer.on_acquired(named, self.clock.monotonic() - begun_s)
                return held
            last = attempt > len(delays_s) or chase.cause in _NOT_RETRIED
            delay_s = 0.0 if last else self._vary(delays_s[attempt - 1])
            if last or self.clock.monotonic() + delay_s >= deadline_s:
                self._observer.on_timeout(named)
                raise _failure(chase, named, attempt)
            self._observer.on_retry(named)
            await self.clock.sleep(delay_s)
        raise AssertionError("the last attempt returns or raises")

    def suspect(self, server: str, is_suspected: bool) -> None:
        """A suspected server is asked like all others, but is the last to be a gate."""
        (self._unwell.add if is_suspected else self._unwell.discard)(server)

    async def aclose(self, timeout_s: float = 1.0) -> None:
        """Give back what is held; wait for the calls in flight no longer than `timeout_s`."""
        for held in self.held:
            held.release()
        if self._refresher is not None:
            self._refresher.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=timeout_s)
        for task in list(self._tasks):
            task.cancel()

    # ---- for the parts below ---------------------------------------------------------------------

    def full(self) -> bool:
        return len(self._held) >= self.policy.max_held or len(self._tasks) >= self.policy.max_calls

    def in_order_of_health(self) -> tuple[str, ...]:
        return tuple(sorted(self.servers, key=lambda s: s in self._unwell or self._doubtful(s)))

    def call(
        self,
        server: str,
        message: Request,
        timeout_s: float,
        then: Callable[[str, Reply | None], None],
    ) -> None:
        """Call in the background; `then` gets the server and its answer, or None if none came."""

        def answered(task: asyncio.Task[Reply]) -> None:
            failed = task.cancelled() or task.exception() is not None
            self.suspect(server, failed)
            then(server, None if failed else task.result())

        bounded = _within(timeout_s, self._transport.call(server, message, timeout_s))
        self._spawn(bounded).add_done_callback(answered)

    def release_at(self, servers: Iterable[str], message: Release) -> None:
        """Release in the background, with retries: a lost release blocks others for a lease."""
        for server in servers:
            self._release_at(server, message, 0)

    def _release_at(self, server: str, message: Release, failures: int) -> None:
        delays_s = self.policy.release_retry_delays_s

        def then(server: str, reply: Reply | None) -> None:
            if reply is None and failures < len(delays_s):
                self._spawn(self._release_later(server, message, failures + 1))

        self.call(server, message, self.policy.release_timeout_s, then)

    async def _release_later(self, server: str, message: Release, failures: int) -> None:
        await self.clock.sleep(self._vary(self.policy.release_retry_delays_s[failures - 1]))
        self._release_at(server, message, failures)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def _vary(self, seconds: float) -> float:
        spread = self.policy.jitter
        return seconds * self._rng.uniform(1.0 - spread, 1.0 + spread)

    # ---- what is held ----------------------------------------------------------------------------

    def _hold(self, pursuit: _Pursuit, lock_class: str) -> HeldLock | None:
        """The lock of a round that was won, unless so much time went by that its lease is over."""
        lease_s = min(self.policy.lease_s, pursuit.round.lease_s)
        keeper = LeaseKeeper(
            servers=len(self.servers),
            quorum=pursuit.round.quorum,
            start_s=pursuit.begun_s,
            lease_s=lease_s,
            refresh_s=min(self.policy.refresh_s, lease_s / 3),
        )
        if not keeper.valid(self.clock.monotonic()):
            pursuit.abandon()
            return None
        held = HeldLock(self, pursuit, keeper, lock_class)
        self._held[held] = None
        if self._refresher is None:
            self._refresher = asyncio.get_running_loop().create_task(self._refresh_held())
        return held

    def _forget(self, held: HeldLock) -> None:
        self._held.pop(held, None)

    async def _refresh_held(self) -> None:
        """The one task that keeps all locks of this node; it ends when nothing is held."""
        try:
            while self._held:
                now_s = self.clock.monotonic()
                wake_s = now_s + self.policy.refresh_s
                for held in list(self._held):
                    if not held._keeper.valid(now_s):
                        self._lose(held)
                        continue
                    if held._keeper.next_refresh(now_s) <= now_s:
                        self._refresh(held, now_s)
                    due_s = held._keeper.next_refresh(now_s)
                    wake_s = min(wake_s, max(due_s, now_s + _BATCH_S), held._keeper.valid_until_s)
                await self.clock.sleep(max(0.0, wake_s - now_s))
        finally:
            self._refresher = None

    def _refresh(self, held: HeldLock, now_s: float) -> None:
        keeper = held._keeper
        number = keeper.begin_refresh(now_s)
        message = Refresh(held.resources, held.owner, held.mode)

        def then(server: str, reply: Reply | None) -> None:
            if isinstance(reply, Refreshed) and held in self._held:
                now_s = self.clock.monotonic()
                keeper.on_answer(number, server, reply.ok, now_s)
                if not keeper.valid(now_s):
                    self._lose(held)

        held._pursuit.everywhere = True
        for server in self.servers:
            self.call(server, message, self.policy.refresh_s, then)

    def _lose(self, held: HeldLock) -> None:
        self._forget(held)
        held.lost.set()
        self._observer.on_lost(held.lock_class)


class _Pursuit:
    """One round on the wire."""

    def __init__(
        self,
        service: LockService,
        resources: tuple[str, ...],
        mode: LockMode,
        until_s: float,
        *,
        queued: bool,
    ) -> None:
        servers = service.in_order_of_health() if queued else service.servers
        self.resources = resources
        self.owner = service.new_owner()
        self.round = Round(servers, mode, queued=queued)
        self.begun_s = service.clock.monotonic()
        self.everywhere = False  # refreshed: any server may have taken the lock in
        self._service = service
        self._queued = queued
        self._until_s = until_s
        self._decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hurry: asyncio.TimerHandle | None = None

    async def run(self) -> bool:
        """Until the round is decided or its time is up. True if it is won; else it is abandoned."""
        try:
            self._ask()
            left_s = self._until_s - self._service.clock.monotonic()
            await asyncio.wait((self._decided,), timeout=max(0.0, left_s))
            self.round.on_timeout()
        except BaseException:
            self.abandon()
            raise
        finally:
            if self._hurry is not None:
                self._hurry.cancel()
        if self.round.state is not RoundState.WON:
            self.abandon()
            return False
        return True

    def _give_up(self) -> None:
        """Others have it, and who has not said so by now may be dark: better to stand in line."""
        if not self._decided.done():
            self._decided.set_result(None)

    def abandon(self) -> None:
        """The lock is not wanted any more."""
        servers = self.round.close()
        if self.everywhere:
            self.everywhere = False
            servers = self._service.servers
        self._release(servers)

    def _ask(self) -> None:
        servers = self.round.to_ask()
        if not servers:
            return
        service = self._service
        left_s = max(0.0, self._until_s - service.clock.monotonic())
        policy = service.policy
        at_gate = self._queued and not self.round.granted
        waits_s = left_s * (policy.gate_share if at_gate else policy.answer_share)
        message = Acquire(self.resources, self.round.mode, self.owner, waits_s, self._queued)
        for server in servers:
            service.call(server, message, left_s, self._answered)

    def _answered(self, server: str, reply: Reply | None) -> None:
        if reply is None:
            self.round.on_error(server)
        else:
            self.round.on_reply(server, reply)
        self._ask()
        if self.round.state is not RoundState.PENDING:
            if not self._decided.done():
                self._decided.set_result(None)
        elif self._hurry is None and not self._queued and self.round.contended:
            late_s = self._service.policy.late_s
            self._hurry = asyncio.get_running_loop().call_later(late_s, self._give_up)
        self._release(self.round.take_releases())

    def _release(self, servers: tuple[str, ...]) -> None:
        if servers:
            self._service.release_at(servers, Release(self.resources, self.owner))


class _Chase:
    """One attempt: a direct round and, if that found the lock taken, a queued one."""

    def __init__(
        self,
        service: LockService,
        resources: tuple[str, ...],
        mode: LockMode,
        deadline_s: float,
    ) -> None:
        self.cause = LossCause.UNREACHABLE
        self.holder: Owner | None = None
        self._service = service
        self._resources = resources
        self._mode = mode
        self._until_s = min(service.clock.monotonic() + service.policy.attempt_s, deadline_s)

    async def run(self, wait: bool) -> _Pursuit | None:
        service = self._service
        if service.full():
            self.cause = LossCause.OVERLOADED
            return None
        for queued in (False, True) if wait else (False,):
            if service.clock.monotonic() >= self._until_s:
                break
            pursuit = _Pursuit(service, self._resources, self._mode, self._until_s, queued=queued)
            if await pursuit.run():
                return pursuit
            cause = pursuit.round.cause
            self.holder = pursuit.round.holder or self.holder
            if not (queued and cause is LossCause.UNREACHABLE):
                self.cause = cause  # a gate that kept silent does not make the lock untaken
            if cause is not LossCause.TAKEN:
                break
        return None


class LockServerDriver:
    """A lock server on the loop: answers now or by a future, and keeps time with one timer."""

    def __init__(self, server: LockServer, clock: LockClock) -> None:
        self.server = server
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0

    def handle(self, message: Request) -> Reply | asyncio.Future[Reply]:
        """The answer, or a future of it for who stands in line; the future ends by the caller's deadline."""
        answers: list[Reply] = []
        future: asyncio.Future[Reply] | None = None

        def answer(reply: Reply) -> None:
            if future is None:
                answers.append(reply)
            elif not future.done():
                future.set_result(reply)

        self.server.handle(message, answer, self._clock.monotonic())
        if not answers:
            future = asyncio.get_running_loop().create_future()
        if self._timer is None or future is not None or self.server.table.has_results:
            self._keep_time()
        return answers[0] if future is None else future

    def node_incarnation(self, node: str, incarnation: int) -> None:
        self.server.node_incarnation(node, incarnation, self._clock.monotonic())
        self._keep_time()

    def suspected(self, node: str, is_suspected: bool) -> None:
        self.server.suspected(node, is_suspected, self._clock.monotonic())
        self._keep_time()

    async def recover(
        self, transport: LockTransport, peers: Iterable[str], me: str, *, every_s: float = 1.0
    ) -> None:
        """After a start: ask the peers for their tables until this server may grant, a lease at the most."""
        table = self.server.table
        message = TellTable(me, table.incarnation)
        names = tuple(peers)
        while table.recovering:
            asked_s = self._clock.monotonic()
            asked = [
                asyncio.get_running_loop().create_task(
                    _within(every_s, transport.call(peer, message, every_s))
                )
                for peer in names
            ]
            if asked:
                await asyncio.wait(asked)
            now_s = self._clock.monotonic()
            for peer, task in zip(names, asked, strict=True):
                reply = None if task.cancelled() or task.exception() else task.result()
                if isinstance(reply, Locks):
                    table.learn(
                        peer, reply.entries, now_s, asked_s=asked_s, complete=reply.complete
                    )
            self._tick()
            if table.recovering:
                await self._clock.sleep(every_s)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.server.close()

    def _tick(self) -> None:
        self.server.tick(self._clock.monotonic())
        self._keep_time()

    def _rung(self) -> None:
        self._timer = None
        self._tick()

    def _keep_time(self) -> None:
        """Set the timer to the table's next event, if that is sooner than what it is set to."""
        wake_s = self.server.table.wake_at_s()
        if wake_s is None or (self._timer is not None and self._timer_s <= wake_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        now_s = self._clock.monotonic()
        self._timer_s = max(wake_s, now_s)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._timer_s - now_s + _TIMER_SLACK_S, self._rung)


async def _within(timeout_s: float, work: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(timeout_s):
        return await work


def _failure(chase: _Chase, lock_class: str, attempts: int) -> LockFailure:
    if chase.cause is LossCause.UNREACHABLE:
        return LockTimeout(resource_class=lock_class, attempts=attempts)
    if chase.cause is LossCause.STALE:
        return LockLost(resource_class=lock_class, attempts=attempts)
    return LockBusy(resource_class=lock_class, attempts=attempts, holder=chase.holder)


_NOT_RETRIED = (LossCause.STALE, LossCause.DEADLOCK)
_BATCH_S = 0.1  # refreshes that are due within this time are sent together
_TIMER_SLACK_S = 0.005  # a timer that rings early would ring again at once
