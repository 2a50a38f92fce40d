"""The numbers of the requester's side, and the relations between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LockPolicy:
    """`attempt_s` bounds one attempt, a direct round and a queued one together.

    `retry_delays_s`: what is waited before each retry of an attempt that found the lock taken or ran out of
    time; each is varied by up to `jitter` of itself, so that those who met do not meet again.
    `gate_share` and `answer_share`: the parts of an attempt after which a server refuses who still stands
    in line, at the gate and behind it, so that its answer arrives in time.
    `late_s`: once a server has refused a direct round, what the others get to answer; they do so at once.
    """

    lease_s: float = 9.0
    refresh_s: float = 3.0
    attempt_s: float = 1.0
    late_s: float = 0.25
    retry_delays_s: tuple[float, ...] = (0.1, 0.2, 0.4)
    jitter: float = 0.2
    gate_share: float = 0.7
    answer_share: float = 0.9
    release_timeout_s: float = 1.0
    release_retry_delays_s: tuple[float, ...] = (0.2, 0.8)
    max_held: int = 20_000
    max_calls: int = 100_000  # calls in flight, those of releases and refreshes among them

    def __post_init__(self) -> None:
        assert self.lease_s >= 3 * self.refresh_s > 0
        assert 0 < self.late_s <= self.attempt_s < self.lease_s
        assert 0 <= self.jitter < 1
        assert 0 < self.gate_share <= self.answer_share <= 1
