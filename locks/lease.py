"""Keeping a lock that was won: how long the holder may believe that it holds it.

Theory of operation. A server's lease begins when the server grants or refreshes, so it ends no earlier
than one lease after the holder *began* to ask. The holder therefore counts from the start of the last
round of questions that a quorum answered with yes, and stops a margin before the end: the margin covers
clocks that run at different rates and the time it takes to stop. Within that span no other can hold a
quorum, unless servers passed the holder on purpose (suspicion, a newer incarnation, force); that the
holder learns at its next refresh, when so many servers say no that no quorum is left.

A lease that was over once stays over: between its end and a refresh that comes late, another may have
held the lock and gone.

    lease >= 3 x refresh, so that a round may fail and the next one still comes in time.
"""

from __future__ import annotations


class LeaseKeeper:
    """The holder's side of one lease.

    `servers`, `quorum`: how many servers there are, and how many a lock of this mode needs.
    `start_s`: when the round that won the lock was begun. All times are the holder's monotonic seconds.
    `clock_rate_error`: by which share a server's clock may be faster than the holder's.
    `margin_s`: what the holder needs to stop.
    """

    __slots__ = (
        "_last_refresh_s",
        "_lost",
        "_next_number",
        "_quorum",
        "_refresh_s",
        "_rounds",
        "_servers",
        "_span_s",
        "valid_until_s",
    )

    def __init__(
        self,
        *,
        servers: int,
        quorum: int,
        start_s: float,
        lease_s: float = 9.0,
        refresh_s: float = 3.0,
        clock_rate_error: float = 0.01,
        margin_s: float = 0.2,
    ) -> None:
        assert lease_s >= 3 * refresh_s > 0, "a lease must outlive a refresh round that failed"
        self._servers = servers
        self._quorum = quorum
        self._refresh_s = refresh_s
        self._span_s = lease_s * (1.0 - clock_rate_error) - margin_s
        assert self._span_s > refresh_s, "the margins leave no time to refresh"
        self.valid_until_s = start_s + self._span_s
        self._last_refresh_s = start_s
        self._rounds: dict[int, _RefreshRound] = {}
        self._next_number = 0
        self._lost = False

    def valid(self, now_s: float) -> bool:
        """Whether the holder may still act. Once false it is false for ever."""
        if now_s >= self.valid_until_s:
            self._lost = True
        return not self._lost

    def next_refresh(self, now_s: float) -> float:
        """When the next refresh is to begin; `now_s` if it is due."""
        return max(now_s, self._last_refresh_s + self._refresh_s)

    def begin_refresh(self, now_s: float) -> int:
        """A refresh is sent to all servers now. Returns its number, for the answers."""
        for number in [n for n, r in self._rounds.items() if r.start_s + self._span_s <= now_s]:
            del self._rounds[number]
        number = self._next_number
        self._next_number += 1
        self._rounds[number] = _RefreshRound(now_s)
        self._last_refresh_s = now_s
        return number

    def on_answer(self, number: int, server: str, ok: bool, now_s: float) -> None:
        """What a server said to refresh `number`. Errors and silence need not be told."""
        refresh = self._rounds.get(number)
        if refresh is None or not self.valid(now_s):
            return
        (refresh.ok if ok else refresh.lost).add(server)
        if len(refresh.ok) >= self._quorum:
            self.valid_until_s = max(self.valid_until_s, refresh.start_s + self._span_s)
        elif len(refresh.lost) > self._servers - self._quorum:
            self._lost = True


class _RefreshRound:
    __slots__ = ("lost", "ok", "start_s")

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.ok: set[str] = set()
        self.lost: set[str] = set()
