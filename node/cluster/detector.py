"""When silence means death: the failure detector for one peer.

Theory of operation. Signs of life come in (heartbeats, and any batch the peer sends); `verdict` judges
the silence since the last one. Beyond `suspect` the peer is SUSPECT, beyond `dead` it is DEAD. Both
limits adapt: a peer whose heartbeats arrive raggedly, as on a starved machine, is given the mean gap
plus four deviations, but never more than the caps, so that the promise (dead within 3 s of a power
cut) holds whatever was learned.

Three things are told apart from silence:
- Our own loop stood still. Then the silence is ours: `forgive` moves the last sign of life forward.
- The peer's loop stands still while its heartbeat thread goes on. Its beats carry the lag: SUSPECT
  beyond `suspect_s`, DEAD beyond `max_lag_s`.
- The peer does not hear us (a one-way cut). Its beats carry how long; beyond `dead` it counts as DEAD
  too, unless we ourselves have not been talking for that long.

From DEAD only a heartbeat leads back, never a stray batch. UNKNOWN is a peer never heard of.

Pure: time comes in as values.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from node import limits

_WEIGHT = 0.1  # of the newest gap in the running mean and deviation
_DEVIATIONS = 4.0


class Status(enum.StrEnum):
    UNKNOWN = "unknown"
    UP = "up"
    SUSPECT = "suspect"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorRules:
    interval_s: float = limits.HEARTBEAT_INTERVAL_S
    suspect_s: float = limits.SUSPECT_AFTER_S
    suspect_cap_s: float = limits.SUSPECT_AFTER_S + 0.4
    dead_s: float = limits.DEAD_AFTER_S
    dead_cap_s: float = limits.DEAD_AFTER_S + 0.4
    max_lag_s: float = limits.HEARTBEAT_MAX_LAG_S

    def __post_init__(self) -> None:
        assert 2 * self.interval_s <= self.suspect_s <= self.suspect_cap_s < self.dead_s
        assert self.dead_s <= self.dead_cap_s < self.max_lag_s


class Detector:
    __slots__ = (
        "_deviation_s",
        "_last_beat_at",
        "_life_at",
        "_mean_s",
        "_rules",
        "_talking_since",
        "_unheard_s",
        "lag_s",
        "status",
    )

    def __init__(self, rules: DetectorRules, now: float) -> None:
        self.status = Status.UNKNOWN
        self.lag_s = 0.0
        self._rules = rules
        self._life_at = now
        self._last_beat_at: float | None = None
        self._mean_s = rules.interval_s
        self._deviation_s = 0.0
        self._unheard_s = 0.0  # for how long the peer has not heard us, as it says
        self._talking_since = now

    def beat(self, now: float, lag_s: float, unheard_s: float | None) -> Status:
        """A heartbeat came. `unheard_s`: since when the peer has not heard us; None: it never has."""
        if self._last_beat_at is not None and self.status is not Status.DEAD:
            gap_s = now - self._last_beat_at
            self._deviation_s += _WEIGHT * (abs(gap_s - self._mean_s) - self._deviation_s)
            self._mean_s += _WEIGHT * (gap_s - self._mean_s)
        self._last_beat_at = now
        self._life_at = now
        self.lag_s = lag_s
        self._unheard_s = 0.0 if unheard_s is None else unheard_s
        if self.status is not Status.UP:
            self.status = self._judge(now)
        return self.status

    def life(self, now: float) -> None:
        """Some other message came: evidence of life, if the peer is not dead already."""
        self._life_at = max(self._life_at, now)

    def forgive(self, seconds: float, now: float) -> None:
        """Our own loop stood still for so long: that silence was ours."""
        self._life_at = min(now, self._life_at + seconds)
        if self._last_beat_at is not None:
            self._last_beat_at = min(now, self._last_beat_at + seconds)
        if seconds >= self._rules.suspect_s:
            self._talking_since = now

    def verdict(self, now: float) -> Status:
        """The status now; call it often (every 100 ms)."""
        if self.status in (Status.UP, Status.SUSPECT):
            self.status = self._judge(now)
        return self.status

    def silence_s(self, now: float) -> float:
        """Since the last sign of life."""
        return now - self._life_at

    def suspicion(self, now: float) -> float:
        """0: just heard; 1: as good as dead."""
        if self.status is Status.UNKNOWN:
            return 1.0
        if self.status is Status.DEAD:
            return 1.0
        silence = (now - self._life_at) / self._dead_after_s()
        return min(1.0, max(silence, self.lag_s / self._rules.max_lag_s))

    def _judge(self, now: float) -> Status:
        rules = self._rules
        silence_s = now - self._life_at
        dead_s = self._dead_after_s()
        deaf = self._unheard_s > dead_s and now - self._talking_since > rules.dead_cap_s
        if silence_s >= dead_s or self.lag_s >= rules.max_lag_s or deaf:
            return Status.DEAD
        if silence_s >= self._suspect_after_s() or self.lag_s >= rules.suspect_s:
            return Status.SUSPECT
        return Status.UP

    def _patience_s(self) -> float:
        return self._mean_s + _DEVIATIONS * self._deviation_s

    def _suspect_after_s(self) -> float:
        return min(self._rules.suspect_cap_s, max(self._rules.suspect_s, self._patience_s()))

    def _dead_after_s(self) -> float:
        return min(self._rules.dead_cap_s, max(self._rules.dead_s, 1.0 + self._patience_s()))
