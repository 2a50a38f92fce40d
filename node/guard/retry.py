"""A retry budget: retries may be a share of the calls, never a multiplier of a failure.

Each first attempt earns a fraction of a token, each retry costs a whole one. While things work the
budget is full and a hiccup is retried at once; when everything fails, retries add at most
`earn_per_call` to the load.
"""

from __future__ import annotations


class RetryBudget:
    __slots__ = ("_cap", "_earn", "tokens")

    def __init__(self, *, cap: float = 10.0, earn_per_call: float = 0.1) -> None:
        assert cap >= 1 and 0 < earn_per_call <= 1
        self.tokens = cap
        self._cap = cap
        self._earn = earn_per_call

    def earn(self) -> None:
        """A first attempt was made."""
        self.tokens = min(self._cap, self.tokens + self._earn)

    def spend(self) -> bool:
        """Whether a retry may be made; takes its token."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


def backoff_s(backoffs: tuple[float, ...], retry: int, jitter: float) -> float:
    """Pause before retry number `retry` (0 is the first), up to a fifth shorter by `jitter` in [0, 1)."""
    if not backoffs:
        return 0.0
    return backoffs[min(retry, len(backoffs) - 1)] * (1 - 0.2 * jitter)
