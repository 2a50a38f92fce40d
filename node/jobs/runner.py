"""The clock's way in: jobs that run again and again, each through the guard with its own policy row."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from node.errors import HoldfastError
from node.guard.guard import Guard
from node.guard.policy import JOBS
from node.runtime.ports import Clock, Rng


class Log(Protocol):
    def warning(self, event: str, **fields: object) -> object: ...

    def exception(self, event: str, **fields: object) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`work(deadline)`; `name` is the key of its row in JOBS. `pause_s` lies between the end of a run and the next."""

    name: str
    pause_s: float
    work: Callable[[float], Awaitable[object]]


class Runner:
    """One of the four chokepoints: what a job raises ends that run, never the job."""

    def __init__(self, guard: Guard, clock: Clock, rng: Rng, log: Log) -> None:
        self._guard = guard
        self._clock = clock
        self._rng = rng
        self._log = log
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, job: Job) -> None:
        self._tasks.append(
            asyncio.get_running_loop().create_task(self._run(job), name=f"job {job.name}")
        )

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self, job: Job) -> None:
        policy = JOBS[job.name]
        while True:
            deadline = self._clock.monotonic() + policy.total_s
            try:
                await self._guard.run("job", job.name, policy, None, job.work, deadline=deadline)
            except HoldfastError as error:
                self._log.warning("a job failed", job=job.name, error=str(error))
            except Exception:
                self._log.exception("a job failed unexpectedly", job=job.name)
            # Jitter keeps the nodes from doing the same thing at the same moment.
            await self._clock.sleep(job.pause_s * self._rng.uniform(0.8, 1.2))
