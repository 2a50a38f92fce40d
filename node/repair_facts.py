"""What a node tells the others of its drives and of its repair work, and how the console shows it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from node.console import models
from node.objects.census import CensusTaker


class DriveFacts(msgspec.Struct, array_like=True, frozen=True):
    """What a node says of one of its drives."""

    index: int
    path: str
    drive_id: str
    state: str
    total_bytes: int = 0
    free_bytes: int = 0
    scrubbed_s: float = 0.0  # wall clock of the last full pass, or of the taking in; 0: not known
    scrubbing: bool = False
    scrub_faults: int = 0  # of the pass under way, or of the last one


class FillFacts(msgspec.Struct, array_like=True, frozen=True):
    """A replaced drive of a node that is being filled."""

    path: str
    keys: int
    expected: int
    seconds: float


class SetCounts(msgspec.Struct, array_like=True, frozen=True):
    """A set in the last census of a node: see node.objects.census.SetCensus."""

    index: int
    n: int
    k: int
    objects: int
    tombstones: int
    tombstones_short: int
    unreadable: int
    by_shards: dict[int, int]
    every_drive: bool
    whole: bool


class CensusFacts(msgspec.Struct, array_like=True, frozen=True):
    """`finished_s` 0: none yet. `seconds` below 0: none is under way; `keys` of `expected` are counted."""

    finished_s: float = 0.0
    sets: tuple[SetCounts, ...] = ()
    keys: int = 0
    expected: int = 0
    seconds: float = -1.0
    problem: str = ""


class NodeFacts(msgspec.Struct, array_like=True, frozen=True):
    """The answer to INFO. Fields are only ever appended."""

    drives: tuple[DriveFacts, ...]
    queue: int = 0
    oldest_s: float = 0.0
    undecided: int = 0
    repaired: int = 0
    paused: bool = False
    fills: tuple[FillFacts, ...] = ()
    census: CensusFacts = CensusFacts()
    undecided_oldest_s: float = 0.0


def census_facts(taker: CensusTaker, now: float) -> CensusFacts:
    """Of this node; `now` is monotonic."""
    last, walk = taker.last, taker.walk
    sets: tuple[SetCounts, ...] = ()
    if last is not None:
        sets = tuple(
            SetCounts(
                each.index,
                each.n,
                each.k,
                each.objects,
                each.tombstones,
                each.tombstones_short,
                each.unreadable,
                dict(each.by_shards),
                each.every_drive,
                each.whole,
            )
            for each in last.sets
        )
    finished_s = last.finished_s if last is not None else 0.0
    if walk is None:
        return CensusFacts(
            finished_s, sets, seconds=0.0 if taker.running else -1.0, problem=taker.problem
        )
    return CensusFacts(finished_s, sets, walk.keys, walk.expected, now - walk.began, taker.problem)


def census(node: str, facts: CensusFacts) -> models.Census:
    """As it is shown; `expected` of a walk is an upper bound, and so is the time left."""
    total: dict[int, int] = {}
    for each in facts.sets:
        for shards, objects in each.by_shards.items():
            total[shards] = total.get(shards, 0) + objects
    rate = facts.keys / facts.seconds if facts.seconds > 0 else 0.0
    left = max(facts.expected - facts.keys, 0)
    return models.Census(
        node=node,
        running=facts.seconds >= 0,
        problem=facts.problem,
        counted=facts.keys,
        expected=facts.expected,
        rate_per_s=rate,
        eta_s=left / rate if rate > 0 else None,
        objects=sum(each.objects for each in facts.sets),
        by_shards=_in_order(total),
        complete=all(each.every_drive for each in facts.sets),
        whole=bool(facts.sets) and all(each.whole for each in facts.sets),
        tombstones=sum(each.tombstones for each in facts.sets),
        finished_s=facts.finished_s or None,
        sets=tuple(
            models.SetCensus(
                index=each.index,
                n=each.n,
                k=each.k,
                objects=each.objects,
                by_shards=_in_order(each.by_shards),
                unreadable=each.unreadable,
                tombstones=each.tombstones,
                tombstones_short=each.tombstones_short,
                complete=each.every_drive,
                whole=each.whole,
            )
            for each in facts.sets
        ),
    )


def _in_order(by_shards: Mapping[int, int]) -> dict[str, int]:
    return {str(shards): by_shards[shards] for shards in sorted(by_shards) if by_shards[shards]}


def newest_census(facts: Mapping[str, NodeFacts]) -> models.Census | None:
    """The last census of any of these nodes, or one that is under way; None: there never was one."""
    known = [
        census(node, each.census)
        for node, each in facts.items()
        if each.census.finished_s or each.census.seconds >= 0
    ]
    return max(known, key=lambda each: (each.finished_s or 0.0, each.running), default=None)


def fill(node: str, facts: FillFacts) -> models.Fill:
    rate = facts.keys / facts.seconds if facts.seconds > 0 else 0.0
    left = max(facts.expected - facts.keys, 0)
    return models.Fill(
        node=node,
        path=facts.path,
        keys=facts.keys,
        expected=facts.expected,
        rate_per_s=rate,
        eta_s=left / rate if rate > 0 else None,
    )
