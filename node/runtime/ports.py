"""The seams to the machine: five protocols. Production has one implementation of each, a simulation another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from node.errors import HoldfastError

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

    def submit(self, frame: bytes) -> asyncio.Future[bytes]:
        """Queue a verb, behind the 16-byte id of the drive it is meant for.

        The future fails with node.errors.TargetFailed when the drive's process is gone. It never
        times out by itself (the gate's guard does that); a cancelled future only drops the answer.
        """
        ...

    def send(self, frame: bytes, answered: Callable[[bytes | HoldfastError], None]) -> None:
        """The same without a future: `answered` is called once, with the reply or the error.

        It may be called before `send` returns, and must not raise.
        """
        ...


class WireStream(Protocol):
    """Messages both ways, in order, each at most limits.PEER_MAX_MESSAGE_BYTES. One reader, one writer.

    `send` and `receive` raise node.errors.TargetFailed once the stream is broken or aborted; cancelling
    one of them may break the stream.
    """

    async def send(self, message: bytes) -> None:
        """Returns when flow control lets the next message go; it never bounds the wait itself."""
        ...

    async def receive(self) -> bytes | None:
        """The next message; None at the end of the stream.

        On the dialling side None means a good end. On the listening side it may also mean that the
        caller is gone: where that matters, the protocol on top needs an end mark of its own.
        """
        ...

    async def end(self) -> None:
        """The dialling side sends nothing more (it may still receive)."""
        ...

    def abort(self) -> None:
        """Break the stream now, both ways. May be called at any time, more than once."""
        ...


class WireConnection(Protocol):
    """One connection to one peer; streams on it share its fate."""

    def open(self, kind: str) -> WireStream:
        """A stream of this kind (frames, upload, download); never blocks, failures show on first use."""
        ...

    def close(self) -> None:
        """Break every stream on it and let it go. Never blocks."""
        ...


class Wire(Protocol):
    """To the peers: bytes in streams. node.rpc makes calls, authentication and uploads of them."""

    def dial(self, peer: str, lane: str) -> WireConnection:
        """A fresh connection for this lane (node.rpc.methods.Lane); never blocks, never raises."""
        ...


class Pulse(Protocol):
    """Sends heartbeats on time whatever the event loop does."""

    def start(
        self,
        peers: Sequence[str],
        interval_s: float,
        make: Callable[[str], bytes],
        answered: Callable[[str, bytes, float], None],
    ) -> None:
        """Every interval, send `make(peer)` to each peer and give its answer to `answered(peer, answer, rtt_s)`.

        `make` may be called from another thread; `answered` is called on the event loop.
        """
        ...

    def kick(self, peer: str) -> None:
        """Send one to this peer now."""
        ...

    def stop(self) -> None: ...
