"""Who holds what: nodes, erasure sets and their drives, as the format of this node's drives says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import groupby

import msgspec

from erasure.geometry import Geometry, default_parity, layout
from erasure.placement import rotation, set_of
from node.config import Settings
from node.store.boot import places
from node.store.format import Format

# Raised with every change that nodes of different versions would misunderstand.
PROTOCOL_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One drive of a set. `drive` is its index on its node."""

    node: str
    drive: int
    drive_id: bytes
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureSet:
    """Drives that hold the shards of the same keys, in slot order; a node's drives follow each other."""

    index: int
    slots: tuple[Slot, ...]
    geometry: Geometry
    system_geometry: Geometry  # parity n // 2, for identity and bucket configuration
    view: int = 0  # how often drives of the set were replaced: commits carry it

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(slot.node for slot in self.slots))


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The cluster as this node knows it."""

    cluster_id: bytes
    nodes: tuple[str, ...]
    me: str
    sets: tuple[ErasureSet, ...]
    drives_per_node_in_set: int
    parity: int
    durability: str

    def place(self, bucket: str, key: str) -> tuple[ErasureSet, int]:
        """The set of a key, and by how many nodes its shard order is rotated."""
        found = self.sets[set_of(self.cluster_id, bucket, key, len(self.sets))]
        nodes_in_set = len(found.slots) // self.drives_per_node_in_set
        return found, rotation(self.cluster_id, bucket, key, nodes_in_set)

    @property
    def others(self) -> tuple[str, ...]:
        """All nodes but this one."""
        return tuple(node for node in self.nodes if node != self.me)

    @cached_property
    def local_slots(self) -> tuple[tuple[ErasureSet, int], ...]:
        """(set, position) of this node's drives, by drive index."""
        mine = [(s, i) for s in self.sets for i, slot in enumerate(s.slots) if slot.node == self.me]
        return tuple(sorted(mine, key=lambda found: found[0].slots[found[1]].drive))

    def slot_of(self, drive_id: bytes) -> Slot | None:
        return self._slots.get(drive_id)

    @cached_property
    def _slots(self) -> dict[bytes, Slot]:
        return {slot.drive_id: slot for erasure_set in self.sets for slot in erasure_set.slots}


def build_topology(settings: Settings, cluster: Format) -> Topology:
    """The topology of a formed cluster; `cluster` was checked against the settings (boot.check_against)."""
    listed = {(place.node, place.drive): place.path for place in places(settings)}
    names = cluster.pool.nodes
    sets = []
    for index, members in enumerate(layout([cluster.pool.drives_per_node] * len(names))):
        slots = tuple(
            Slot(
                node=names[node],
                drive=drive,
                drive_id=bytes.fromhex(cluster.drive_at(names[node], drive)),
                path=listed[names[node], drive],
            )
            for node, drive in members
        )
        n = len(slots)
        sets.append(
            ErasureSet(
                index=index,
                slots=slots,
                geometry=Geometry(k=n - cluster.parity, n=n),
                system_geometry=Geometry(k=n - n // 2, n=n),
                view=sum(cluster.pool.generations[index]),
            )
        )
    first_node = next(groupby(sets[0].slots, key=lambda slot: slot.node))[1]
    return Topology(
        cluster_id=bytes.fromhex(cluster.cluster_id),
        nodes=names,
        me=settings.node,
        sets=tuple(sets),
        drives_per_node_in_set=len(list(first_node)),
        parity=cluster.parity,
        durability=cluster.durability,
    )


def parity_for(settings: Settings) -> int:
    """The parity a new cluster gets: the configured one, or the default of its geometry."""
    members = layout(settings.drives_per_node)[0]
    nodes = len({node for node, _ in members})
    if settings.parity is not None:
        return settings.parity
    return default_parity(nodes, len(members) // nodes)


# ---- between nodes ---------------------------------------------------------------------------------
class Fingerprint(msgspec.Struct, frozen=True, array_like=True):
    """What a node tells a peer about the cluster it believes in."""

    protocol: int
    node: str
    cluster_id: str
    topology: str  # hash of nodes, their order and their drives' count
    parity: int
    durability: str
    nodes: tuple[str, ...]
    drives_per_node: int


def fingerprint(cluster: Format, me: str) -> Fingerprint:
    return Fingerprint(
        protocol=PROTOCOL_VERSION,
        node=me,
        cluster_id=cluster.cluster_id,
        topology=topology_hash(cluster),
        parity=cluster.parity,
        durability=cluster.durability,
        nodes=cluster.pool.nodes,
        drives_per_node=cluster.pool.drives_per_node,
    )


def topology_hash(cluster: Format) -> str:
    """Of what never changes: drive ids are left out, since drives are replaced."""
    shape = msgspec.json.encode((cluster.pool.nodes, cluster.pool.drives_per_node))
    return blake2b(shape, digest_size=16).hexdigest()


def compare(mine: Fingerprint, theirs: Fingerprint) -> list[str]:
    """The differences that forbid working together, one sentence each; empty: none."""
    peer = theirs.node
    if mine.protocol != theirs.protocol:
        return [
            f"{peer} speaks protocol {theirs.protocol} and this node {mine.protocol}: run one version"
        ]
    differences = []
    if mine.cluster_id != theirs.cluster_id:
        differences.append(
            f"{peer} belongs to cluster {theirs.cluster_id} and this node to {mine.cluster_id}: "
            "check that its drives are the right ones"
        )
    if mine.topology != theirs.topology:
        differences.append(
            f"{peer} knows the nodes {', '.join(theirs.nodes)} with {theirs.drives_per_node} drives each "
            f"and this node {', '.join(mine.nodes)} with {mine.drives_per_node}: "
            "give both the same HOLDFAST_VOLUMES"
        )
    if mine.parity != theirs.parity:
        differences.append(f"{peer} has parity {theirs.parity} and this node {mine.parity}")
    if mine.durability != theirs.durability:
        differences.append(
            f"{peer} has durability {theirs.durability} and this node {mine.durability}"
        )
    return differences
