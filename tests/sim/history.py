"""Recorded requests, and what they have to have in common: for each key one order explains them all.

Theory of operation. Every value written is unique, and a read names the value it saw (0: absent). The
checker walks the invocations and answers of one key in the order of time, with the set of all
configurations that are still possible: the value, and which requests under way have taken effect. When a
request is answered, every configuration in which it cannot have taken effect by then is dropped; none
left means that no order explains what clients were told. A request whose outcome its client never
learned may take effect at any time after it began, or never: so a value that is seen and then gone, an
acknowledged write that is lost, and a value that comes back are all the same finding.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

ABSENT = 0
MOST_CONFIGURATIONS = 60_000


class Kind(enum.StrEnum):
    PUT = "put"
    DELETE = "delete"
    READ = "read"
    CREATE = "create"  # a put if the key is absent
    REPLACE = "replace"  # a put if the key has the value `expected`


class Outcome(enum.StrEnum):
    DONE = "done"
    REFUSED = "refused"  # the condition did not hold
    UNKNOWN = "unknown"


@dataclass(slots=True, kw_only=True)
class Operation:
    """One request to one key. `value`: written, or seen by a read. `end` is infinite when unknown."""

    key: str
    kind: Kind
    client: str
    start: float
    value: int = ABSENT
    expected: int = ABSENT
    end: float = math.inf
    outcome: Outcome = Outcome.UNKNOWN

    def __str__(self) -> str:
        of = f" of {self.expected}" if self.kind is Kind.REPLACE else ""
        return (
            f"{self.start:.4f}..{self.end:.4f} {self.client}: {self.kind} {self.value}{of} "
            f"{self.outcome}"
        )


def applied(operation: Operation, state: int) -> int | None:
    """The state after it took effect in `state`; None: it cannot have done what it did."""
    kind, outcome = operation.kind, operation.outcome
    if kind is Kind.READ:
        return state if state == operation.value else None
    if kind is Kind.PUT:
        return operation.value
    if kind is Kind.DELETE:
        return ABSENT
    held = state == ABSENT if kind is Kind.CREATE else state == operation.expected
    if outcome is Outcome.REFUSED:
        return None if held else state
    return operation.value if held else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`fine` None: too many possibilities to tell."""

    fine: bool | None
    story: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Configuration:
    """`done`: answered requests that have taken effect; `used`: those of unknown outcome that have.

    Of requests of unknown outcome that are all alike (deletes; writes whose value nobody saw) only the
    number counts: the oldest go first.
    """

    state: int
    done: frozenset[int]
    used: frozenset[int]
    alike: tuple[int, ...]

    def leaves_more(self, other: _Configuration) -> bool:
        """Whether whatever may still happen after `other` may happen after this one as well."""
        return self.used <= other.used and all(
            mine <= its for mine, its in zip(self.alike, other.alike, strict=True)
        )


_UNSEEN = -1  # the value of any write that nobody saw


class _Search:
    """The walk over one key's events."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = operations
        self.certain: list[int] = []  # answered in the end, under way now
        self.open: list[int] = []  # of unknown outcome, begun
        self.alike = [0, 0]  # begun: deletes, writes that nobody saw
        self.possible = {_Configuration(ABSENT, frozenset(), frozenset(), (0, 0))}

    def begin(self, number: int) -> None:
        operation = self.operations[number]
        if operation.outcome is not Outcome.UNKNOWN:
            self.certain.append(number)
        elif operation.kind is Kind.DELETE:
            self.alike[0] += 1
        elif operation.kind is Kind.PUT and operation.value == _UNSEEN:
            self.alike[1] += 1
        else:
            self.open.append(number)

    def end(self, number: int) -> bool | None:
        """The request was answered; -> whether that can be (None: too many possibilities)."""
        reached = self._closure()
        if reached is None:
            return None
        groups: dict[tuple[int, frozenset[int]], list[_Configuration]] = {}
        for each in reached:
            if number in each.done:
                done = each.done - {number}
                left = _Configuration(each.state, done, each.used, each.alike)
                groups.setdefault((each.state, done), []).append(left)
        self.certain.remove(number)
        self.possible = {kept for group in groups.values() for kept in _best(group)}
        return bool(self.possible)

    def _closure(self) -> set[_Configuration] | None:
        reached = {self._observed(each) for each in self.possible}
        waiting = list(reached)
        while waiting:
            for following in self._following(waiting.pop()):
                if following not in reached:
                    reached.add(following)
                    waiting.append(following)
            if len(reached) > MOST_CONFIGURATIONS:
                return None
        return reached

    def _observed(self, each: _Configuration) -> _Configuration:
        """What changes nothing takes effect as soon as it can: that takes nothing from the others."""
        seen = [
            number
            for number in self.certain
            if number not in each.done
            and _changes_nothing(self.operations[number])
            and applied(self.operations[number], each.state) is not None
        ]
        if not seen:
            return each
        return _Configuration(each.state, each.done.union(seen), each.used, each.alike)

    def _following(self, each: _Configuration) -> Iterator[_Configuration]:
        for number in self.certain:
            operation = self.operations[number]
            if number in each.done or _changes_nothing(operation):
                continue
            after = applied(operation, each.state)
            if after is not None:
                done = each.done | {number}
                yield self._observed(_Configuration(after, done, each.used, each.alike))
        for number in self.open:
            after = None
            if number not in each.used:
                after = applied(self.operations[number], each.state)
            if after is not None and after != each.state:
                used = each.used | {number}
                yield self._observed(_Configuration(after, each.done, used, each.alike))
        for which, after in ((0, ABSENT), (1, _UNSEEN)):
            if each.alike[which] < self.alike[which] and after != each.state:
                counts = list(each.alike)
                counts[which] += 1
                taken = _Configuration(after, each.done, each.used, tuple(counts))
                yield self._observed(taken)


def _changes_nothing(operation: Operation) -> bool:
    return operation.kind is Kind.READ or operation.outcome is Outcome.REFUSED


def _best(group: list[_Configuration]) -> list[_Configuration]:
    """Without those that leave less than another of the same value."""
    kept: list[_Configuration] = []
    for each in sorted(group, key=lambda c: (len(c.used), sum(c.alike))):
        if not any(other.leaves_more(each) for other in kept):
            kept.append(each)
    return kept


def linearizable(operations: Iterable[Operation]) -> Verdict:
    """Whether one order of the requests to one key, beginning with absent, explains every answer."""
    mine = _worth_a_look(sorted(operations, key=lambda o: (o.start, o.end)))
    events = sorted(
        [(o.start, 0, n) for n, o in enumerate(mine)]
        + [(o.end, 1, n) for n, o in enumerate(mine) if o.end != math.inf]
    )
    search = _Search(mine)
    for _at, answered, number in events:
        if not answered:
            search.begin(number)
            continue
        can_be = search.end(number)
        if can_be is None:
            return Verdict(None)
        if not can_be:
            return Verdict(False, _story(mine, number))
    return Verdict(True)


def _worth_a_look(operations: list[Operation]) -> list[Operation]:
    """Without what nobody can have noticed; unknown writes that nobody saw become alike."""
    seen = {o.value for o in operations if o.kind is Kind.READ}
    seen |= {o.expected for o in operations if o.kind is Kind.REPLACE}
    noticed = any(o.outcome is Outcome.REFUSED for o in operations)
    kept: list[Operation] = []
    for o in operations:
        if o.outcome is Outcome.UNKNOWN and o.kind is Kind.READ:
            continue
        if o.outcome is Outcome.UNKNOWN and o.kind is not Kind.DELETE and o.value not in seen:
            if not noticed:
                continue
            if o.kind is Kind.PUT:
                o = replace(o, value=_UNSEEN)
        kept.append(o)
    return kept


def _story(operations: Sequence[Operation], number: int) -> tuple[str, ...]:
    culprit = operations[number]
    near = [o for o in operations if o.start <= culprit.end]
    return (f"no order explains: {culprit}", *(f"  {o}" for o in near[-25:]))


# ---- values -----------------------------------------------------------------------------------------
def body_of(key: str, value: int, size: int) -> bytes:
    """The one right body of a value: it names itself, and is not periodic."""
    head = f"{key} {value} {size}\n".encode()
    return head + random.Random(head).randbytes(size)


def value_of(key: str, body: bytes) -> int:
    """The value that a body is, bit by bit; ValueError when it is none of this key."""
    head, _, _ = body.partition(b"\n")
    name, value, size = head.decode("utf-8", "replace").rsplit(" ", 2)
    if name != key:
        raise ValueError(f"the body of another key: {name!r}")
    if body != body_of(key, int(value), int(size)):
        raise ValueError(f"value {value} is damaged")
    return int(value)
