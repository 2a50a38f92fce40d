"""Deadlines are absolute values of Clock.monotonic(); these say what is left of one."""

from __future__ import annotations

NEVER = float("inf")


def bound_s(now: float, attempt_s: float, deadline: float) -> float:
    """How long one attempt may take: its own limit, or what the caller has left. 0 or less: nothing."""
    left_s = deadline - now
    return left_s if left_s < attempt_s else attempt_s


def narrower(deadline: float, now: float, total_s: float) -> float:
    """The earlier of the caller's deadline and a policy's total."""
    return min(deadline, now + total_s)


def for_callee(received_at: float, bound_ms: int) -> float:
    """A callee's deadline: a tenth before its caller loses patience, so that its own error arrives first."""
    return received_at + bound_ms * 0.0009
