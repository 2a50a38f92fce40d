"""Recognises failures that pull others along: events of two kinds within a window are one pattern.

Theory of operation. Only the last moment of each kind of event is kept, so memory is constant. An
event that may be the effect of another kind, and comes within the pattern's window after the last event
of that kind, makes the pattern ACTIVE. It is counted then, once: further effects only prolong it. A window
without another effect clears it by itself, and the next recognition counts anew.

Pure: the time comes in as a value, seconds of a monotonic clock.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Event(enum.StrEnum):
    PEER_UNREACHABLE = "peer_unreachable"
    LOCK_TIMEOUT = "lock_timeout"
    DRIVE_CHECK_TIMEOUT = "drive_check_timeout"
    IDENTITY_TIMEOUT = "identity_timeout"
    UPLOAD_FAILED = "upload_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """`effect` at most `window_s` after `cause`."""

    cause: Event
    effect: Event
    window_s: float

    @property
    def name(self) -> str:
        """The metric's label."""
        return f"{self.cause}_to_{self.effect}"


PATTERNS: tuple[Pattern, ...] = (
    Pattern(cause=Event.PEER_UNREACHABLE, effect=Event.LOCK_TIMEOUT, window_s=30.0),
    Pattern(cause=Event.PEER_UNREACHABLE, effect=Event.IDENTITY_TIMEOUT, window_s=30.0),
    Pattern(cause=Event.LOCK_TIMEOUT, effect=Event.DRIVE_CHECK_TIMEOUT, window_s=60.0),
    Pattern(cause=Event.LOCK_TIMEOUT, effect=Event.UPLOAD_FAILED, window_s=60.0),
    Pattern(cause=Event.PEER_UNREACHABLE, effect=Event.DRIVE_CHECK_TIMEOUT, window_s=45.0),
)


class Correlator:
    """`note` every event; `active` says what is going on."""

    def __init__(self, patterns: tuple[Pattern, ...] = PATTERNS) -> None:
        self._patterns = patterns
        self._last: dict[Event, float] = {}
        self._until: dict[str, float] = {}

    def note(self, event: Event, now: float) -> tuple[str, ...]:
        """-> the patterns that this event made active: to be counted."""
        began = []
        for pattern in self._patterns:
            if pattern.effect is not event:
                continue
            cause = self._last.get(pattern.cause)
            if cause is None or now - cause > pattern.window_s:
                continue
            if not self.is_active(pattern.name, now):
                began.append(pattern.name)
            self._until[pattern.name] = now + pattern.window_s
        self._last[event] = now
        return tuple(began)

    def is_active(self, pattern: str, now: float) -> bool:
        until = self._until.get(pattern)
        return until is not None and now <= until

    def active(self, now: float) -> tuple[str, ...]:
        return tuple(p.name for p in self._patterns if self.is_active(p.name, now))
