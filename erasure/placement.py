"""Which set, and which drive of it, holds which shard of a key.

A keyed hash of bucket and key chooses the set, and by how many nodes the shard order is rotated.
Shards stay grouped by node, so that what one peer holds is one run of the stripe buffer, and the
rotation spreads data and parity (hence the load of reads) evenly over nodes.

These functions are part of the format: changing one makes stored objects unfindable.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from erasure.errors import GeometryError

_HASH_BYTES = 8
_SET_PERSON = b"hf-set"
_ROTATION_PERSON = b"hf-rotation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the shards of one key lie. Slots are positions in the set as `layout` lists it."""

    set_index: int
    rotation: int
    drives_per_node: int
    n: int

    def slot(self, shard: int) -> int:
        """The slot that holds `shard`."""
        return slot_of_shard(shard, self.rotation, self.drives_per_node, self.n)

    def shard(self, slot: int) -> int:
        """The shard that `slot` holds."""
        return shard_of_slot(slot, self.rotation, self.drives_per_node, self.n)


def place(
    cluster_id: bytes, bucket: str, key: str, *, sets: int, nodes_in_set: int, drives_per_node: int
) -> Placement:
    """The placement of a key; `drives_per_node` counts the drives a node gives to a set."""
    return Placement(
        set_index=set_of(cluster_id, bucket, key, sets),
        rotation=rotation(cluster_id, bucket, key, nodes_in_set),
        drives_per_node=drives_per_node,
        n=nodes_in_set * drives_per_node,
    )


def set_of(cluster_id: bytes, bucket: str, key: str, sets: int) -> int:
    """The erasure set of a key, 0 <= result < sets."""
    return _hash(cluster_id, bucket, key, _SET_PERSON) % _positive(sets, "sets")


def rotation(cluster_id: bytes, bucket: str, key: str, nodes_in_set: int) -> int:
    """The node of the set (0 <= result < nodes_in_set) whose first drive holds shard 0."""
    return _hash(cluster_id, bucket, key, _ROTATION_PERSON) % _positive(nodes_in_set, "nodes")


def slot_of_shard(shard: int, rotation: int, drives_per_node: int, n: int) -> int:
    """The slot, 0 <= result < n, that holds a shard under a rotation by whole nodes."""
    if not 0 <= shard < n:
        raise GeometryError(f"shard {shard} of a set of {n}")
    return (shard + rotation * drives_per_node) % n


def shard_of_slot(slot: int, rotation: int, drives_per_node: int, n: int) -> int:
    """The shard, 0 <= result < n, that a slot holds; the inverse of `slot_of_shard`."""
    if not 0 <= slot < n:
        raise GeometryError(f"slot {slot} of a set of {n}")
    return (slot - rotation * drives_per_node) % n


def _hash(cluster_id: bytes, bucket: str, key: str, person: bytes) -> int:
    # The length in front keeps ("a", "b/c") and ("ab", "/c") apart.
    name = bucket.encode("utf-8", "surrogatepass")
    digest = blake2b(
        len(name).to_bytes(4, "little") + name + key.encode("utf-8", "surrogatepass"),
        digest_size=_HASH_BYTES,
        key=cluster_id,
        person=person,
    )
    return int.from_bytes(digest.digest(), "little")


def _positive(count: int, what: str) -> int:
    if count < 1:
        raise GeometryError(f"a placement over {count} {what}")
    return count
