"""A guard on virtual time, with a note of everything it reported."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

from node.guard.guard import Guard
from node.guard.policy import Policy

T = TypeVar("T")


class LoopClock:
    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> float:
        return 1_700_000_000.0 + self.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class StillRng:
    """No jitter at all."""

    def bytes(self, count: int) -> bytes:
        return bytes(count)

    def uniform(self, low: float, high: float) -> float:
        return low

    def choice(self, items: Sequence[T]) -> T:
        return items[0]


class Notes:
    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.breakers: list[tuple[str, str, int]] = []
        self.peers: list[tuple[str, bool]] = []

    def guard_outcome(self, path: str, name: str, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        self.outcomes.append(outcome)

    def breaker_state(self, peer: str, klass: str, state: int) -> None:
        self.breakers.append((peer, klass, state))

    def peer_state(self, peer: str, up: bool, suspicion: float, incarnation: int) -> None:
        assert 0 <= suspicion <= 1
        self.peers.append((peer, up))

    def heartbeat_rtt(self, peer: str, s: float) -> None:
        pass


def make_guard(**options: Any) -> tuple[Guard, Notes]:
    notes = Notes()
    return Guard(LoopClock(), StillRng(), notes, **options), notes


def policy(**changes: Any) -> Policy:
    fields: dict[str, Any] = {
        "attempt_s": 2.0,
        "total_s": 5.0,
        "retries": 0,
        "backoff_s": (),
        "max_running": 100,
        "max_waiting": 0,
        "idempotent": True,
    }
    return Policy(**{**fields, **changes})
