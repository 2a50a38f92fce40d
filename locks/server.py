"""One lock server's front: messages in, answers out through a callback, now or later.

Pure like the table behind it: who runs it calls `tick` at `wake_at_s` at the latest, and after each step
that leaves results behind (`wake_at_s` is then in the past).
"""

from __future__ import annotations

from collections.abc import Callable

from locks.messages import (
    Acquire,
    ForceRelease,
    ListLocks,
    Locks,
    Refresh,
    RefusalReason,
    Refused,
    Release,
    Released,
    Reply,
    Request,
)
from locks.table import Late, LockTable, Queued

Answer = Callable[[Reply], None]


class LockServer:
    """Dispatches requests to `table` and keeps the callbacks of those who stand in line."""

    def __init__(self, table: LockTable) -> None:
        self.table = table
        self._answers: dict[int, list[Answer]] = {}  # by ticket; a repeated request has two

    def handle(self, message: Request, answer: Answer, now_s: float) -> None:
        """Calls `answer` exactly once: at once, or, for who stands in line, in a later step."""
        table = self.table
        if type(message) is Acquire:
            result = table.acquire(message, now_s)
            if type(result) is Queued:
                self._answers.setdefault(result.ticket, []).append(answer)
            else:
                assert not isinstance(result, Queued)
                answer(result)
        elif type(message) is Release:
            late = table.release(message, now_s)
            answer(_RELEASED)
            if late:
                self._deliver(late)
        elif type(message) is Refresh:
            answer(table.refresh(message, now_s))
        elif type(message) is ListLocks:
            limit = message.limit
            answer(Locks(tuple(table.snapshot(now_s, limit=limit)), table.size <= limit))
        elif type(message) is ForceRelease:
            late = table.force_release(message, now_s)
            answer(_RELEASED)
            self._deliver(late)
        else:
            answer(table.tell(now_s))

    def tick(self, now_s: float) -> None:
        self._deliver(self.table.tick(now_s))

    def node_incarnation(self, node: str, incarnation: int, now_s: float) -> None:
        self._deliver(self.table.node_incarnation(node, incarnation, now_s))

    def suspected(self, node: str, is_suspected: bool, now_s: float) -> None:
        self._deliver(self.table.suspected(node, is_suspected, now_s))

    def close(self) -> None:
        """The server stops: everybody in line is refused."""
        answers, self._answers = self._answers, {}
        for waiting in answers.values():
            for answer in waiting:
                answer(Refused(RefusalReason.RECOVERING))

    def _deliver(self, late: list[Late]) -> None:
        for result in late:
            for answer in self._answers.pop(result.ticket, ()):
                answer(result.reply)


_RELEASED = Released()
