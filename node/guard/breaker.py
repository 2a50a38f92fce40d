"""A circuit breaker: stops asking a target that is sick, and finds out when it is well.

Theory of operation. Three states. CLOSED lets every call pass. `failures` failures in a row, or a
window of calls of which too large a share was slow, OPEN it: calls are refused without being sent.
After a while (from `open_s`, growing with each reopening, never beyond `open_cap_s`, shortened by a
random part so that nodes do not probe in step) the next call is let through alone: HALF_OPEN, with
exactly one probe. Its success closes the breaker, its failure opens it again.

Two verdicts come from outside, from membership: `force_open` (the target is dead) opens it without
a time limit, so that no client's request has to be the probe of a machine without power; `release`
(its heartbeats are back) makes it half-open at once.

A call carries the ticket it was admitted with. Results that arrive after the state has moved on are
recognised by their ticket and change nothing: a success sent before the breaker opened does not
close it, and an old probe does not decide for a new one. A neutral result (the caller gave up, the
target was not to blame) returns the probe's place without a verdict.

Whoever owns many breakers may withhold the permission to open one by failures (never a dead
verdict's), so that breakers do not take away so many targets that a quorum is lost by our own choice.

Pure: time and randomness come in as values.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

REFUSED = -1
PASS = 0  # tickets above it are probes


class BreakerState(enum.IntEnum):
    """Values are those of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRules:
    """`slow_share` of `slow_window` calls that took `slow_s` or longer open the breaker."""

    failures: int = 3
    slow_s: float = 1.0
    slow_window: int = 32
    slow_share: float = 0.5
    open_s: float = 1.0
    open_cap_s: float = 2.0
    growth: float = 1.5
    jitter: float = 0.2

    def __post_init__(self) -> None:
        assert self.failures > 0 and self.slow_window > 0 and 0 < self.slow_share <= 1
        assert 0 < self.open_s <= self.open_cap_s and self.growth >= 1 and 0 <= self.jitter < 1


def always() -> bool:
    return True


class Breaker:
    __slots__ = (
        "_calls",
        "_failures",
        "_next_probe",
        "_openings",
        "_permit",
        "_probe",
        "_reopen_at",
        "_rules",
        "_slow",
        "state",
    )

    def __init__(self, rules: BreakerRules, permit: Callable[[], bool] = always) -> None:
        """`permit` is asked before failures open a closed breaker; while it says no, it stays closed."""
        self.state = BreakerState.CLOSED
        self._rules = rules
        self._permit = permit
        self._failures = 0
        self._calls = 0
        self._slow = 0
        self._openings = 0  # in a row, without a close in between
        self._reopen_at = 0.0
        self._probe = 0  # ticket of the probe under way, 0: none
        self._next_probe = 1

    def admit(self, now: float) -> int:
        """REFUSED, PASS, or the ticket of a probe. Every admitted call must end in one result."""
        if self.state is BreakerState.CLOSED:
            return PASS
        if self.state is BreakerState.OPEN:
            if now < self._reopen_at:
                return REFUSED
            self.state = BreakerState.HALF_OPEN
        if self._probe:
            return REFUSED
        self._probe = self._next_probe
        self._next_probe += 1
        return self._probe

    def would_refuse(self, now: float) -> bool:
        """Whether `admit` would refuse, without taking the probe's place."""
        if self.state is BreakerState.CLOSED:
            return False
        if self.state is BreakerState.OPEN:
            return now < self._reopen_at
        return self._probe != 0

    def succeeded(self, ticket: int, now: float, seconds: float) -> None:
        """The target answered, after `seconds`."""
        if self.state is BreakerState.CLOSED:
            self._failures = 0
            self._calls += 1
            if seconds >= self._rules.slow_s:
                self._slow += 1
            if self._calls >= self._rules.slow_window:
                too_slow = self._slow >= self._rules.slow_share * self._calls
                self._calls = self._slow = 0
                if too_slow and self._permit():
                    self._open(now, 0.0)
        elif ticket > PASS and ticket == self._probe:
            self._close()

    def failed(self, ticket: int, now: float, jitter: float) -> None:
        """The target is to blame. `jitter` is in [0, 1)."""
        if self.state is BreakerState.CLOSED:
            self._failures += 1
            if self._failures >= self._rules.failures and self._permit():
                self._open(now, jitter)
        elif ticket > PASS and ticket == self._probe:
            self._open(now, jitter)

    def neutral(self, ticket: int) -> None:
        """Nobody learned anything about the target."""
        if ticket > PASS and ticket == self._probe:
            self._probe = 0

    def force_open(self) -> None:
        """The target is dead: refuse everything until `release`."""
        self.state = BreakerState.OPEN
        self._reopen_at = math.inf
        self._probe = 0

    def release(self) -> None:
        """The target gives signs of life: let one probe through at once."""
        if self.state is BreakerState.OPEN:
            self.state = BreakerState.HALF_OPEN
            self._probe = 0

    def proved_well(self) -> None:
        """Something other than a call showed that the target works; a dead verdict stands nevertheless."""
        if self.state is BreakerState.HALF_OPEN or self._reopen_at != math.inf:
            self._close()

    def reopens_in(self, now: float) -> float:
        """Seconds until a probe is let through; 0 when one is now, infinite while forced open."""
        if self.state is not BreakerState.OPEN:
            return 0.0
        return max(0.0, self._reopen_at - now)

    def _open(self, now: float, jitter: float) -> None:
        rules = self._rules
        pause_s = min(rules.open_cap_s, rules.open_s * rules.growth**self._openings)
        self._openings = min(self._openings + 1, 32)  # the power stays finite; the cap rules anyway
        self._reopen_at = now + pause_s * (1 - rules.jitter * jitter)
        self._probe = 0
        self.state = BreakerState.OPEN

    def _close(self) -> None:
        self.state = BreakerState.CLOSED
        self._failures = self._calls = self._slow = self._openings = 0
        self._probe = 0
        self._reopen_at = 0.0
