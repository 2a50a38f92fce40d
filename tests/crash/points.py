"""Crash points: which node loses power, at which step of a story, and what becomes of what it had not synced.

Theory of operation. Everything that happens at a node in a story is an event with a number: the operations of
its drives (verbs, and flushes of a catalog), and the messages it sends and receives. Virtual time and seeded
randomness give the same numbers in every run, so (story, node, kind, k) names one moment for good.

    before k   the power goes before the k-th operation touches the drive, before the k-th message has left
    after k    the operation is applied and nobody was told; the message is on its way

Two moments differ for the rest of the world only if between them a drive of the node changed or a message left
it; all else a node knows is in its memory and goes with it. `distinct` has every moment of that kind: once with what
was unsynced lost, once with it kept or torn; once the node returns early, once late. `every` is all there is.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_SECOND_WITHIN = 60  # events of a node that the second of two power-offs waits for


class Victim(enum.StrEnum):
    COORDINATOR = "coordinator"  # the node that serves the request
    OTHER = "other"  # a member of the set
    ALL = "all"  # every node, in a moment of the coordinator's


class Kind(enum.StrEnum):
    DRIVE = "drive"
    MESSAGE = "message"


class When(enum.StrEnum):
    BEFORE = "before"
    AFTER = "after"


class Unsynced(enum.StrEnum):
    """What a power-off leaves of what was written and not synced."""

    KEPT = "kept"
    LOST = "lost"
    TORN = "torn"  # on each drive a beginning of it, drawn by the point's own seed


class Back(enum.StrEnum):
    EARLY = "early"  # the node returns before anybody looked
    LATE = "late"  # after everybody looked


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened at a node. `tells`: a drive changed, or a message left."""

    kind: Kind
    k: int
    label: str
    tells: bool
    unsynced: int  # what a power-off right before it would decide about


@dataclass(frozen=True, slots=True)
class Point:
    """One way to lose power. Its text form replays it."""

    victim: Victim
    kind: Kind
    k: int
    when: When
    unsynced: Unsynced
    back: Back

    def __str__(self) -> str:
        return ":".join((self.victim, self.kind, str(self.k), self.when, self.unsynced, self.back))

    @classmethod
    def parse(cls, text: str) -> Point:
        victim, kind, k, when, unsynced, back = text.split(":")
        return cls(Victim(victim), Kind(kind), int(k), When(when), Unsynced(unsynced), Back(back))


def distinct(victim: Victim, events: Iterable[Event]) -> Iterator[Point]:
    """For each moment that the rest of the world can tell from the others: both returns, two outcomes."""
    last: Event | None = None
    for event in events:
        if event.tells:
            yield from _pairs(victim, event.kind, event.k, When.BEFORE, event.unsynced)
            last = event
    if last is not None:
        yield from _pairs(victim, last.kind, last.k, When.AFTER, 2)


def _pairs(victim: Victim, kind: Kind, k: int, when: When, unsynced: int) -> Iterator[Point]:
    other = Unsynced.LOST
    if unsynced:
        other = Unsynced.TORN if unsynced > 1 and k % 3 == 0 else Unsynced.KEPT
    lost_first = k % 2 == 0
    yield Point(victim, kind, k, when, Unsynced.LOST if lost_first else other, Back.EARLY)
    yield Point(victim, kind, k, when, other if lost_first else Unsynced.LOST, Back.LATE)


def every(victim: Victim, events: Iterable[Event]) -> Iterator[Point]:
    """All moments, before and after each event, with every outcome."""
    for event in events:
        for when in When:
            for outcome in Unsynced:
                for back in Back:
                    yield Point(victim, event.kind, event.k, when, outcome, back)


def pairs(events: Sequence[Event], rng: random.Random, count: int) -> Iterator[tuple[Point, Point]]:
    """Two power-offs, drawn: the first in the story of the coordinator, the second counted from the first on."""
    telling = [event for event in events if event.tells]
    for _ in range(count):
        event = rng.choice(telling)
        first = Point(
            Victim.COORDINATOR, event.kind, event.k, rng.choice(list(When)), *_outcome(rng)
        )
        second = Point(
            rng.choice((Victim.COORDINATOR, Victim.OTHER)),
            rng.choice(list(Kind)),
            rng.randint(1, _SECOND_WITHIN),
            rng.choice(list(When)),
            *_outcome(rng),
        )
        yield first, second


def _outcome(rng: random.Random) -> tuple[Unsynced, Back]:
    return rng.choice(list(Unsynced)), rng.choice(list(Back))
