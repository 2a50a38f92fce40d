"""Decides what a node says of itself and of the cluster, from a snapshot of what it knows anyway.

No peer is asked: a load balancer's question must not wait for a machine without power. `ready` means
that reads can be served here, `ready_write` that this node reaches a write quorum of every set and of the
lock servers; `cluster` and `cluster_read` judge the cluster as seen from here, `cluster` with maintenance
as it would be without this node.

Quorums of a set of n drives with k data shards: writes need W = max(k, n // 2 + 1) drives, reads of records
n - n // 2 and reads of data k; locks need more than half of the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

Answer = tuple[bool, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetShape:
    """One erasure set: `k` data shards; `drives`: how many of its drives each node has."""

    index: int
    k: int
    drives: Mapping[str, int]

    @property
    def n(self) -> int:
        return sum(self.drives.values())

    @property
    def read_quorum(self) -> int:
        """Drives that a read needs, record and data."""
        return max(self.k, self.n - self.n // 2)

    @property
    def write_quorum(self) -> int:
        return max(self.k, self.n // 2 + 1)

    @property
    def margin_wanted(self) -> int:
        """Shards beyond k that survive the loss of any one node."""
        return max(self.drives.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What one node knows. `alive`: the nodes that can be asked now, this one among them.

    `offline`: (node, set) -> drives known not to work; nodes out of reach need no entry. `hindrance`:
    why this node can serve nothing yet or any more ("forming", "stopping", a mismatch of topologies),
    "" for nothing. `identity_ready`: the identities are known, so requests can be authorised.
    """

    me: str
    nodes: tuple[str, ...]
    alive: frozenset[str]
    sets: tuple[SetShape, ...]
    offline: Mapping[tuple[str, int], int] = field(default_factory=dict)
    lock_servers: int | None = None  # those that grant; None: every node that is alive
    identity_ready: bool = True
    hindrance: str = ""

    def __post_init__(self) -> None:
        assert self.me in self.alive and self.alive <= set(self.nodes), (self.me, self.alive)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetHealth:
    """Tolerances: drives the set can lose and still work; negative: so many are missing."""

    index: int
    online: int
    read_tolerance: int
    write_tolerance: int


def set_health(snapshot: Snapshot, *, without: Collection[str] = ()) -> tuple[SetHealth, ...]:
    """Every set as this node sees it, the nodes in `without` taken away."""
    return tuple(_set_health(snapshot, shape, without) for shape in snapshot.sets)


def _set_health(snapshot: Snapshot, shape: SetShape, without: Collection[str]) -> SetHealth:
    online = sum(
        max(0, count - snapshot.offline.get((node, shape.index), 0))
        for node, count in shape.drives.items()
        if node in snapshot.alive and node not in without
    )
    return SetHealth(
        index=shape.index,
        online=online,
        read_tolerance=online - shape.read_quorum,
        write_tolerance=online - shape.write_quorum,
    )


def lock_tolerance(snapshot: Snapshot, *, without: Collection[str] = ()) -> int:
    """Lock servers that may be lost before no lock can be taken; negative: so many are missing."""
    serving = len(snapshot.alive.difference(without))
    if snapshot.lock_servers is not None:
        serving = min(serving, snapshot.lock_servers)
    return serving - (len(snapshot.nodes) // 2 + 1)


def live(snapshot: Snapshot) -> Answer:
    """This process answers, that is all: restarting it cures nothing that the other answers complain of."""
    return True, {"status": "live", "node": snapshot.me}


def ready(snapshot: Snapshot) -> Answer:
    """Reads can be served here."""
    reasons = _own_reasons(snapshot) + _read_reasons(snapshot)
    return not reasons, _details("ready", snapshot, reasons)


def ready_write(snapshot: Snapshot) -> Answer:
    """Writes can be served here."""
    reasons = _own_reasons(snapshot) + _write_reasons(snapshot, ())
    return not reasons, _details("ready", snapshot, reasons)


def cluster(snapshot: Snapshot, maintenance: bool) -> Answer:
    """Every set has its write quorum; with `maintenance`: it would have it without this node."""
    without = (snapshot.me,) if maintenance else ()
    reasons = _forming_reasons(snapshot) + _write_reasons(snapshot, without)
    return not reasons, _details("healthy", snapshot, reasons, without)


def cluster_read(snapshot: Snapshot) -> Answer:
    """Every set can be read."""
    reasons = _forming_reasons(snapshot) + _read_reasons(snapshot)
    return not reasons, _details("healthy", snapshot, reasons)


class Health:
    """The answers of one node (node.s3.ports.Health), each from a snapshot taken at that moment."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def live(self) -> Answer:
        return live(self._snapshot())

    def ready(self) -> Answer:
        return ready(self._snapshot())

    def ready_write(self) -> Answer:
        return ready_write(self._snapshot())

    def cluster(self, maintenance: bool) -> Answer:
        return cluster(self._snapshot(), maintenance)

    def cluster_read(self) -> Answer:
        return cluster_read(self._snapshot())


# ---- reasons -------------------------------------------------------------------------------------------
def _forming_reasons(snapshot: Snapshot) -> list[str]:
    return [] if snapshot.sets else [snapshot.hindrance or "the cluster is not formed yet"]


def _own_reasons(snapshot: Snapshot) -> list[str]:
    reasons = [snapshot.hindrance] if snapshot.hindrance else _forming_reasons(snapshot)
    if not snapshot.identity_ready:
        reasons.append("the identities are not known yet")
    return reasons


def _read_reasons(snapshot: Snapshot) -> list[str]:
    return [
        f"set {health.index} misses {-health.read_tolerance} drives for reads"
        for health in set_health(snapshot)
        if health.read_tolerance < 0
    ]


def _write_reasons(snapshot: Snapshot, without: Collection[str]) -> list[str]:
    reasons = [
        f"set {health.index} misses {-health.write_tolerance} drives for writes"
        for health in set_health(snapshot, without=without)
        if health.write_tolerance < 0
    ]
    locks = lock_tolerance(snapshot, without=without)
    if locks < 0 and snapshot.sets:
        reasons.append(f"{-locks} lock servers are missing for a quorum")
    return reasons


def _details(
    fine: str, snapshot: Snapshot, reasons: list[str], without: Collection[str] = ()
) -> dict[str, Any]:
    return {
        "status": fine if not reasons else f"not {fine}",
        "node": snapshot.me,
        "reasons": reasons,
        "nodes": {"listed": len(snapshot.nodes), "alive": len(snapshot.alive)},
        "sets": [
            {
                "set": health.index,
                "online": health.online,
                "read_tolerance": health.read_tolerance,
                "write_tolerance": health.write_tolerance,
            }
            for health in set_health(snapshot, without=without)
        ],
    }
