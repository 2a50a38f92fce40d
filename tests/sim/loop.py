"""Virtual time: an event loop on which nothing waits, and lives that can be frozen or end between two steps.

Theory of operation. A handle belongs to the Life that is in its context. The loop runs ready handles in
order; when none is ready, time jumps to the next timer. A handle of a frozen life is held until it thaws,
one of a life that has ended never runs again: no `finally`, no callback, as when power fails. Nothing
scheduled at all is a Deadlock. Descriptors, executors and other threads do not exist here: they raise.

The order of everything follows from the seed alone: tasks hash by a number, so that a set of tasks is
walked in the order of a run and not of addresses, and the collector of cycles is off while a seed runs.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

START_S = 1000.0
# So many handles without time going on is a loop that spins, not work.
_SPIN = 3_000_000

_life: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)


class Deadlock(RuntimeError):
    """Nothing is scheduled: whoever waits now waits for ever."""


class Spinning(RuntimeError):
    """Time stands still while handles go on."""


class Life:
    """One run of a process: what it schedules runs while it is alive and not frozen."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen = False
        self.running = True
        self.held: list[asyncio.Handle] = []
        # Never run and never freed before the end, so that no destructor runs at a time of its own.
        self.dropped: list[asyncio.Handle] = []
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.context = contextvars.copy_context()
        self.context.run(_life.set, self)

    def end(self) -> None:
        """At once: nothing of it runs any more."""
        self.alive = self.running = False
        self.dropped += self.held
        self.held = []

    def freeze(self) -> None:
        self.frozen = True
        self.running = False

    def thaw(self) -> None:
        if self.frozen:
            self.frozen = False
            self.running = self.alive
            held, self.held = self.held, []
            loop = asyncio.get_running_loop()
            assert isinstance(loop, SimLoop)
            loop.again(held)

    def spawn(self, work: Coroutine[Any, Any, T], name: str = "") -> asyncio.Task[T]:
        """A task of this life."""
        loop = asyncio.get_running_loop()
        context = self.context.copy()
        return loop.create_task(work, name=name or None, context=context)

    def soon(self, work: Callable[..., object], *arguments: Any) -> None:
        asyncio.get_running_loop().call_soon(work, *arguments, context=self.context)

    def after(self, delay_s: float, work: Callable[..., object], *arguments: Any) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(delay_s, work, *arguments, context=self.context)


def current_life() -> Life | None:
    """Whose code is running."""
    return _life.get()


class SimTask(asyncio.Task):  # type: ignore[type-arg]
    """A task whose place in a set depends on when it was made."""

    numbers = itertools.count(1)

    def __new__(cls, *_arguments: Any, **_options: Any) -> SimTask:
        task = super().__new__(cls)
        task.number = next(cls.numbers)  # type: ignore[attr-defined]
        return task

    def __hash__(self) -> int:
        number: int = self.number  # type: ignore[attr-defined]
        return number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimLoop(asyncio.BaseEventLoop):
    """See the module. `steps` counts handles run; `trace(life name, what)` may be set to see each."""

    _ready: Any
    _scheduled: Any

    def __init__(self) -> None:
        super().__init__()
        self._now = START_S
        self.steps = 0
        self.problems: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.problems.append(context))
        SimTask.numbers = itertools.count(1)

    def time(self) -> float:
        return self._now

    def again(self, handles: list[asyncio.Handle]) -> None:
        """What was held is run now, in its old order."""
        self._ready.extend(handles)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        if context is None:
            task: asyncio.Task[T] = SimTask(coro, loop=self, name=name)
            life = _life.get()
        else:
            task = SimTask(coro, loop=self, name=name, context=context)
            life = context.get(_life)
        if life is not None:
            life.tasks[task] = None
            task.add_done_callback(life.tasks.pop)
        return task

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        self._drop_cancelled(scheduled)
        if not ready:
            if not scheduled:
                raise Deadlock("nothing is scheduled: whoever waits now waits for ever")
            self._now = max(self._now, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self._now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        began, count = self._now, 0
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            life = handle._context.get(_life)
            if life is None or life.running:
                handle._run()
                count += 1
            elif life.frozen and life.alive:
                life.held.append(handle)
            else:
                life.dropped.append(handle)
        self.steps += count
        if self._now != began or count == 0:
            return
        if began == self._still_since:
            self._still += count
            if self._still > _SPIN:
                raise Spinning(f"{self._still} handles at {began:.6f} s")
        else:
            self._still_since, self._still = began, 0

    _still_since = 0.0
    _still = 0

    def _drop_cancelled(self, scheduled: list[Any]) -> None:
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
            heapq.heappop(scheduled)._scheduled = False
        if self._timer_cancelled_count > 200 and 2 * self._timer_cancelled_count > len(scheduled):  # type: ignore[attr-defined]
            kept = []
            for handle in scheduled:
                if handle._cancelled:
                    handle._scheduled = False
                else:
                    kept.append(handle)
            heapq.heapify(kept)
            scheduled[:] = kept
            self._timer_cancelled_count = 0

    # ---- what there is not ---------------------------------------------------------------------------
    def call_soon_threadsafe(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no other thread in a simulation")

    def run_in_executor(self, *_: Any) -> Any:
        raise RuntimeError("no executor in a simulation: work goes through the Cpu port")

    def _process_events(self, _events: Any) -> None:
        raise RuntimeError("no descriptors in a simulation")

    def _write_to_self(self) -> None:
        raise RuntimeError("no other thread in a simulation")


def run(main: Coroutine[Any, Any, T]) -> tuple[T, SimLoop]:
    """Runs `main` to its end in virtual time; -> its result and the loop, whose `problems` nobody looked at."""
    loop = SimLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main), loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()
