"""This node as a member of its sets: what a coordinator, here or at a peer, asks of its drives and lock server.

Every answer comes in a bounded time: once half of the drives have answered, the others get LATE_DRIVE_S
more, so one slow drive never hides what its neighbours said.

Answers are futures without a task behind them; `made` turns what the drives said into what the future
gives (a peer's handler encodes there).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from locks.messages import Reply as LockReply
from node.cluster.lock_server import LockServer
from node.limits import DECIDED_GATHER, DECIDED_GATHER_S, DECIDED_RIDE_S
from node.objects import messages
from node.protocol import verbs
from node.store.drive_gate import DriveGate, operation_of

T = TypeVar("T")
Replies = tuple[bytes, ...]

_NO_VERB = verbs.encode(verbs.Failed(verbs.DriveFault.BAD_REQUEST, "no verb of a drive"))


class Member:
    """Answers for this node's drives and its lock server."""

    def __init__(self, gate: DriveGate, locks: LockServer) -> None:
        self._gate = gate
        self._locks = locks
        self._waiting: set[asyncio.Task[object]] = set()
        self._decided: dict[tuple[bytes, ...], list[verbs.Mark]] = {}  # by drives
        self._decided_until = 0.0
        self._decided_timer: asyncio.TimerHandle | None = None
        self._decided_due = False  # they go with the next verbs

    def prepare(
        self, ask: messages.Prepare, made: Callable[[messages.Prepared], T], *, deadline: float
    ) -> asyncio.Future[T]:
        """Lock, then read, in this order: what is read is not older than the grant."""
        if not ask.lock:
            return self._read(ask, b"", made, deadline)
        answer = self._locks.answer(ask.lock)
        if not isinstance(answer, asyncio.Future):
            return self._prepared(ask, *self._locks.encoded(answer), made, deadline)
        task = asyncio.get_running_loop().create_task(self._queued(ask, answer, made, deadline))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return task

    async def _queued(
        self,
        ask: messages.Prepare,
        answer: asyncio.Future[LockReply],
        made: Callable[[messages.Prepared], T],
        deadline: float,
    ) -> T:
        """The caller stands in line for the lock."""
        granted, reply = self._locks.encoded(await answer)
        return await self._prepared(ask, granted, reply, made, deadline)

    def _prepared(
        self,
        ask: messages.Prepare,
        granted: bool,
        reply: bytes,
        made: Callable[[messages.Prepared], T],
        deadline: float,
    ) -> asyncio.Future[T]:
        if granted:
            return self._read(ask, reply, made, deadline)
        refused: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        refused.set_result(made(messages.Prepared(reply)))
        return refused

    def _read(
        self,
        ask: messages.Prepare,
        reply: bytes,
        made: Callable[[messages.Prepared], T],
        deadline: float,
    ) -> asyncio.Future[T]:
        read = verbs.encode(verbs.Read(ask.key))
        return self._gate.together(
            [(drive, read) for drive in ask.drives],
            lambda states: made(messages.Prepared(reply, states)),
            operation="Read",
            deadline=deadline,
        )

    def commit(
        self, ask: messages.CommitAt, made: Callable[[messages.Replies], T], *, deadline: float
    ) -> asyncio.Future[T]:
        """With a lock request the drives are asked only where it is granted at once."""
        lock = b""
        if ask.lock:
            answer = self._locks.answer(ask.lock)
            # Nobody stands in line with data in hand: who does not get the lock now comes again.
            assert not isinstance(answer, asyncio.Future)
            granted, lock = self._locks.encoded(answer)
            if not granted:
                refused: asyncio.Future[T] = asyncio.get_running_loop().create_future()
                refused.set_result(made(messages.Replies((), lock)))
                return refused
        if self._decided_due:
            self._tell_decided()  # drives that are woken anyway
        return self._gate.together(
            [
                (drive, verbs.encode(verbs.Commit(ask.key, ask.record, shard, ask.view)))
                for drive, shard in ask.drives
            ],
            lambda answers: made(messages.Replies(answers, lock)),
            operation="Commit",
            deadline=deadline,
        )

    def verbs(
        self,
        items: Sequence[tuple[bytes, bytes]],
        made: Callable[[Replies], T],
        *,
        deadline: float,
    ) -> asyncio.Future[T]:
        names = {operation_of(verb) for _, verb in items}
        name = names.pop() if len(names) == 1 else None
        if name is not None:
            return self._gate.together(items, made, operation=name, deadline=deadline)
        task = asyncio.get_running_loop().create_task(self._mixed(items, made, deadline))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return task

    async def _mixed(
        self, items: Sequence[tuple[bytes, bytes]], made: Callable[[Replies], T], deadline: float
    ) -> T:
        """Verbs of several kinds, each under its own policy row."""
        found = [_NO_VERB] * len(items)
        kinds: dict[str, list[int]] = {}
        for index, (_, verb) in enumerate(items):
            name = operation_of(verb)
            if name is not None:
                kinds.setdefault(name, []).append(index)
        asked = [
            self._gate.together([items[i] for i in which], tuple, operation=name, deadline=deadline)
            for name, which in kinds.items()
        ]
        for which, answers in zip(kinds.values(), await asyncio.gather(*asked), strict=True):
            for index, answer in zip(which, answers, strict=True):
                found[index] = answer
        return made(tuple(found))

    # ---- decided -------------------------------------------------------------------------------------
    def finish(self, ask: messages.Finish, *, deadline: float) -> None:
        """Nobody waits for it: a flag that is lost is found again by the settling job.

        The lock goes at once; the flags of some milliseconds reach each drive as one verb, with a commit
        if one comes soon.
        """
        if ask.release:
            self._locks.tell_encoded(ask.release)
        if not ask.epoch or not ask.drives:
            return
        marks = self._decided.setdefault(ask.drives, [])
        marks.append(verbs.Mark(ask.key, ask.epoch, ask.missed))
        self._decided_until = max(self._decided_until, deadline)
        if len(marks) >= DECIDED_GATHER:
            self._tell_decided()
        elif self._decided_timer is None:
            self._decided_timer = asyncio.get_running_loop().call_later(
                DECIDED_GATHER_S, self._now_due
            )

    def _now_due(self) -> None:
        self._decided_due = True
        self._decided_timer = asyncio.get_running_loop().call_later(
            DECIDED_RIDE_S, self._tell_decided
        )

    def _tell_decided(self) -> None:
        self._decided_due = False
        if self._decided_timer is not None:
            self._decided_timer.cancel()
            self._decided_timer = None
        gathered, self._decided = self._decided, {}
        for drives, marks in gathered.items():
            verb = verbs.encode(verbs.Decided.of(marks))
            told = self._gate.together(
                [(drive, verb) for drive in drives],
                len,
                operation="Decided",
                deadline=self._decided_until,
            )
            told.add_done_callback(_consume)


def _consume(future: asyncio.Future[int]) -> None:
    if not future.cancelled():
        future.exception()
