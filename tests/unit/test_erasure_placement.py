from __future__ import annotations

from collections import Counter

import pytest

from erasure.errors import GeometryError
from erasure.geometry import layout
from erasure.placement import Placement, place, rotation, set_of, shard_of_slot, slot_of_shard

CLUSTER = bytes(range(16))


def test_rotation_by_whole_nodes() -> None:
    slots = layout([4] * 4)[0]
    for turned in range(4):
        first = slots[slot_of_shard(0, turned, 4, 16)]
        assert first == (turned, 0), "shard 0 is on the first drive of the node of the rotation"
        for node in range(4):
            shards = [shard_of_slot(slot, turned, 4, 16) for slot in range(node * 4, node * 4 + 4)]
            assert shards == list(range(shards[0], shards[0] + 4)), "a peer's shards are one run"
            assert shards[0] % 4 == 0


def test_slot_and_shard_are_inverse() -> None:
    for nodes, drives in ((4, 4), (8, 2), (1, 4), (3, 5), (16, 1), (1, 1)):
        n = nodes * drives
        for turned in range(nodes):
            slots = [slot_of_shard(shard, turned, drives, n) for shard in range(n)]
            assert sorted(slots) == list(range(n))
            assert [shard_of_slot(slot, turned, drives, n) for slot in slots] == list(range(n))


def test_place_puts_it_together() -> None:
    placement = place(CLUSTER, "b", "k", sets=7, nodes_in_set=8, drives_per_node=2)
    assert placement == Placement(
        set_index=set_of(CLUSTER, "b", "k", 7),
        rotation=rotation(CLUSTER, "b", "k", 8),
        drives_per_node=2,
        n=16,
    )
    assert [placement.shard(placement.slot(shard)) for shard in range(16)] == list(range(16))


def test_keys_spread_evenly_and_set_and_rotation_are_independent() -> None:
    keys = [f"prefix/{i:06d}" for i in range(8000)]
    both = Counter((set_of(CLUSTER, "b", k, 4), rotation(CLUSTER, "b", k, 4)) for k in keys)
    assert len(both) == 16
    assert min(both.values()) > 400
    assert max(both.values()) < 600


def test_the_hash_depends_on_cluster_bucket_and_key() -> None:
    sets = 1 << 32
    places = {
        set_of(CLUSTER, "a", "b/c", sets),
        set_of(CLUSTER, "ab", "/c", sets),
        set_of(CLUSTER, "a", "b/d", sets),
        set_of(CLUSTER[::-1], "a", "b/c", sets),
        rotation(CLUSTER, "a", "b/c", sets),
    }
    assert len(places) == 5


def test_positions_that_do_not_exist() -> None:
    with pytest.raises(GeometryError):
        slot_of_shard(16, 0, 4, 16)
    with pytest.raises(GeometryError):
        shard_of_slot(-1, 0, 4, 16)
    with pytest.raises(GeometryError):
        set_of(CLUSTER, "a", "b", 0)
