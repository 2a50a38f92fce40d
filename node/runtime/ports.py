"""The seams to the machine: five protocols. Production has one implementation of each, a simulation another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds that only grow; deadlines are values of this clock."""
        ...

    def now(self) -> float:
        """Wall clock, seconds since 1970. For Last-Modified and signatures, never for order."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class Rng(Protocol):
    def bytes(self, count: int) -> bytes:
        """Unpredictable bytes."""
        ...

    def uniform(self, low: float, high: float) -> float: ...

    def choice(self, items: Sequence[T]) -> T: ...


class Cpu(Protocol):
    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Run a C-heavy function that releases the GIL beside the loop."""
        ...


class Drive(Protocol):
    """One local drive: node.protocol.verbs in, replies out, both encoded."""

    def submit(self, verb: bytes) -> asyncio.Future[bytes]:
        """Queue a verb; the future fails with node.errors.TargetFailed when the drive's process is gone.

        It never times out by itself (the gate's guard does that); a cancelled future only drops the answer.
        """
        ...


class Wire(Protocol):
    """To one peer: see node.rpc.client for the promises made on top of it."""

    def call(self, peer: str, channel: str, frame: bytes) -> asyncio.Future[bytes]: ...
