"""What the guard and the peers' layer report; node.observe.metrics.Metrics is the real one."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    def guard_outcome(self, path: str, name: str, outcome: str, seconds: float) -> None: ...

    def breaker_state(self, peer: str, klass: str, state: int) -> None:
        """0 closed, 1 half-open, 2 open."""
        ...

    def peer_state(self, peer: str, up: bool, suspicion: float, incarnation: int) -> None: ...

    def heartbeat_rtt(self, peer: str, s: float) -> None: ...


class NullObserver:
    """Reports nothing."""

    def guard_outcome(self, path: str, name: str, outcome: str, seconds: float) -> None:
        pass

    def breaker_state(self, peer: str, klass: str, state: int) -> None:
        pass

    def peer_state(self, peer: str, up: bool, suspicion: float, incarnation: int) -> None:
        pass

    def heartbeat_rtt(self, peer: str, s: float) -> None:
        pass
