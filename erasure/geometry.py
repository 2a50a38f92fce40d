"""Shapes: k of n, quorums, the default parity, and how drives are grouped into erasure sets.

The promise that the default parity keeps, with four nodes or more: any two nodes dark, everything
is readable; any one node and more drives dark, everything is writable. (Four single drives: any one
node, since a majority of four is three.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erasure.errors import GeometryError

MAX_SET_DRIVES = 16
# Beyond 16 nodes a set spans a group of nodes. A smaller group than this could not lose two nodes.
MIN_NODE_GROUP = 4

Slot = tuple[int, int]
"""One drive of a set: (node index, drive index on that node)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """k data shards of n in all, one shard per drive of an erasure set."""

    k: int
    n: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MAX_SET_DRIVES:
            raise GeometryError(
                f"an erasure set has 1 to {MAX_SET_DRIVES} drives, not {self.n}: "
                "use more sets of fewer drives"
            )
        if not 1 <= self.k <= self.n:
            raise GeometryError(f"{self.k} data shards do not fit {self.n} drives")
        if self.m > self.n // 2:
            raise GeometryError(
                f"parity {self.m} of {self.n} is more than half: "
                f"use a parity of at most {self.n // 2}"
            )

    @property
    def m(self) -> int:
        """Parity shards: how many of the n may be lost."""
        return self.n - self.k

    @property
    def write_quorum(self) -> int:
        """Drives that must hold a write before it is acknowledged."""
        return max(self.k, self.n // 2 + 1)

    @property
    def read_quorum(self) -> int:
        """Drives whose metadata a read must see.

        Fixed by n alone, from the smallest write quorum any k permits, so that a reader that
        assumes one parity never misses a write made with another: n - n//2 + n//2 + 1 > n.
        """
        return self.n - self.n // 2


def default_parity(nodes: int, drives_per_node_in_set: int) -> int:
    """Parity of a set to which each of `nodes` nodes gives `drives_per_node_in_set` drives."""
    if nodes < 1 or drives_per_node_in_set < 1:
        raise GeometryError("a set needs at least one node and one drive")
    n = nodes * drives_per_node_in_set
    if nodes == 1:
        return n // 2
    return min(n // 2, max(2 * drives_per_node_in_set, 2))


def layout(drives_per_node: Sequence[int]) -> list[list[Slot]]:
    """Groups the drives of a cluster into erasure sets.

    `drives_per_node[i]` is the number of drives of node i. Every set takes the same number of
    drives from each of its nodes, as many as keep it at 16 drives or fewer; up to 16 nodes, every
    set spans all nodes. Inside a set drives are grouped by node, in node order: the index of a
    drive in its set is its slot.

    Raises GeometryError for a cluster that cannot be divided evenly.
    """
    nodes, drives = len(drives_per_node), _equal_drives(drives_per_node)
    group = _node_group(nodes)
    per_node = max(p for p in _divisors(drives) if group * p <= MAX_SET_DRIVES)
    if group * per_node == 1 and nodes * drives > 1:
        raise GeometryError(
            f"{drives} drives on a single node cannot be divided into equal sets of 2 to "
            f"{MAX_SET_DRIVES}: use {drives - 1} or {drives + 1} drives"
        )
    return [
        [
            (node, drive)
            for node in range(first_node, first_node + group)
            for drive in range(first_drive, first_drive + per_node)
        ]
        for first_node in range(0, nodes, group)
        for first_drive in range(0, drives, per_node)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What a cluster of one shape and parity can store, and what it can lose.

    Node counts are the worst case: any so many nodes. The spare drives may be dark on top of
    them, in the same set. Reads are those of fully redundant ("repaired") objects.
    """

    nodes: int
    drives_per_node: int
    sets: int
    geometry: Geometry
    read_nodes_dark: int
    read_spare_drives: int
    write_nodes_dark: int
    write_spare_drives: int

    @property
    def usable_fraction(self) -> float:
        """Part of the raw capacity that holds data."""
        return self.geometry.k / self.geometry.n

    @property
    def read_drives_dark(self) -> int:
        """Any so many drives of a set may be dark and everything is readable."""
        return self.geometry.m

    @property
    def write_drives_dark(self) -> int:
        """Any so many drives of a set may be dark and everything is writable."""
        return self.geometry.n - self.geometry.write_quorum

    def usable_bytes(self, raw_bytes: int) -> int:
        """Capacity for data in `raw_bytes` of drives, before checksums and metadata."""
        return raw_bytes * self.geometry.k // self.geometry.n


def tolerance(nodes: int, drives_per_node: int, parity: int | None = None) -> Tolerance:
    """The tolerance of `nodes` equal nodes; `parity` per set, None for the default.

    Raises GeometryError where `layout` or `Geometry` would.
    """
    sets = layout([drives_per_node] * nodes)
    n = len(sets[0])
    set_nodes = len({node for node, _ in sets[0]})
    per_node = n // set_nodes
    m = default_parity(set_nodes, per_node) if parity is None else parity
    geometry = Geometry(k=n - m, n=n)
    # Losing every node is never tolerated, so a set on one node tolerates drives only.
    read_nodes = min(m // per_node, set_nodes - 1)
    spare = n - geometry.write_quorum
    # A write also needs its lock, granted by more than half of the nodes. That never binds first:
    # the write quorum is more than half of the drives, so fewer than half of the nodes are spare.
    write_nodes = spare // per_node
    return Tolerance(
        nodes=nodes,
        drives_per_node=drives_per_node,
        sets=len(sets),
        geometry=geometry,
        read_nodes_dark=read_nodes,
        read_spare_drives=m - read_nodes * per_node,
        write_nodes_dark=write_nodes,
        write_spare_drives=spare - write_nodes * per_node,
    )


def _equal_drives(drives_per_node: Sequence[int]) -> int:
    if not drives_per_node:
        raise GeometryError("a cluster needs at least one node")
    fewest, most = min(drives_per_node), max(drives_per_node)
    if fewest < 1:
        node = list(drives_per_node).index(fewest)
        raise GeometryError(f"node {node} has no drives: give it some or leave it out")
    if fewest != most:
        short = [node for node, count in enumerate(drives_per_node) if count < most]
        raise GeometryError(
            f"nodes have unequal numbers of drives {list(drives_per_node)}: add drives to nodes "
            f"{short} up to {most}, or list only {fewest} drives on every node"
        )
    return fewest


def _node_group(nodes: int) -> int:
    if nodes <= MAX_SET_DRIVES:
        return nodes
    group = max(g for g in _divisors(nodes) if g <= MAX_SET_DRIVES)
    if group < MIN_NODE_GROUP:
        raise GeometryError(
            f"{nodes} nodes cannot be divided into equal groups of {MIN_NODE_GROUP} to "
            f"{MAX_SET_DRIVES}: use a number of nodes that can, such as "
            f"{-(-nodes // MIN_NODE_GROUP) * MIN_NODE_GROUP}"
        )
    return group


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
