"""This node as a member of its sets: what a coordinator, here or at a peer, asks of its drives and lock server.

Every answer comes in a bounded time: once half of the drives have answered, the others get LATE_DRIVE_S
more, so one slow drive never hides what its neighbours said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from node.cluster.lock_server import LockServer
from node.limits import LATE_DRIVE_S
from node.objects import messages
from node.protocol import verbs
from node.store.drive_gate import DriveGate

_LATE = verbs.encode(verbs.Failed(verbs.DriveFault.IO, "no answer in time"))


class Loop(Protocol):
    def call_later(self, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle: ...


def together(
    futures: Sequence[asyncio.Future[bytes]], *, late_s: float = LATE_DRIVE_S
) -> asyncio.Future[tuple[bytes, ...]]:
    """All answers in order; a drive that fails or stays behind its neighbours gives an encoded Failed."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[bytes, ...]] = loop.create_future()
    answers: list[bytes | None] = [None] * len(futures)
    left = len(futures)
    timer: asyncio.TimerHandle | None = None

    def finish() -> None:
        if timer is not None:
            timer.cancel()
        if not done.done():
            done.set_result(tuple(_LATE if a is None else a for a in answers))

    def on_answer(index: int, future: asyncio.Future[bytes]) -> None:
        nonlocal left, timer
        left -= 1
        if future.cancelled():
            answers[index] = _LATE
        elif (error := future.exception()) is not None:
            fault = verbs.Failed(verbs.DriveFault.IO, f"{type(error).__name__}: {error}")
            answers[index] = verbs.encode(fault)
        else:
            answers[index] = future.result()
        if left == 0:
            finish()
        elif timer is None and left <= len(futures) // 2 and not done.done():
            timer = loop.call_later(late_s, finish)

    if not futures:
        done.set_result(())
    for index, future in enumerate(futures):
        if future.done():
            on_answer(index, future)
        else:
            future.add_done_callback(lambda f, i=index: on_answer(i, f))  # type: ignore[misc]
    return done


class Member:
    """Answers for this node's drives and its lock server."""

    def __init__(self, gate: DriveGate, locks: LockServer) -> None:
        self._gate = gate
        self._locks = locks

    async def prepare(self, ask: messages.Prepare, *, deadline: float) -> messages.Prepared:
        """Lock, then read, in this order: what is read is not older than the grant."""
        reply = b""
        if ask.lock:
            granted, reply = await self._locks.ask_encoded(ask.lock)
            if not granted:
                return messages.Prepared(reply)
        read = verbs.encode(verbs.Read(ask.key))
        states = await together(
            [self._gate.call(d, read, operation="Read", deadline=deadline) for d in ask.drives]
        )
        return messages.Prepared(reply, states)

    async def commit(self, ask: messages.CommitAt, *, deadline: float) -> tuple[bytes, ...]:
        calls = []
        for drive, shard in ask.drives:
            verb = verbs.encode(verbs.Commit(ask.key, ask.record, shard))
            calls.append(self._gate.call(drive, verb, operation="Commit", deadline=deadline))
        return await together(calls)

    def finish(self, ask: messages.Finish, *, deadline: float) -> None:
        """Nobody waits for it: a flag that is lost is found again by the settling job."""
        if ask.release:
            self._locks.tell_encoded(ask.release)
        if ask.epoch:
            verb = verbs.encode(verbs.Decided(ask.key, ask.epoch, ask.missed))
            for drive in ask.drives:
                call = self._gate.call(drive, verb, operation="Decided", deadline=deadline)
                call.add_done_callback(_consume)

    async def verbs(
        self, items: Sequence[tuple[bytes, bytes]], *, deadline: float
    ) -> tuple[bytes, ...]:
        return await together(
            [self._gate.call(d, verb, operation=None, deadline=deadline) for d, verb in items]
        )


def _consume(future: asyncio.Future[bytes]) -> None:
    if not future.cancelled():
        future.exception()
