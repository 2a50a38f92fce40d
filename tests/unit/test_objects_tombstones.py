"""Tombstones, and what is left of them: the floor a drive raises when it lets one go."""

from __future__ import annotations

import asyncio

import pytest

from node.errors import NoSuchKey
from node.limits import MIB
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from tests.fakes.cluster_world import ClusterWorld, simulate
from tests.unit.test_objects_everyday import content


async def collect(world: ClusterWorld, key: str, slots: range = range(16)) -> None:
    """Lets a tombstone go at these slots, as the collector does once every drive has it decided and alone."""
    name = b"bucket\0" + key.encode()
    view = world.node(1).engine.cluster.views[0]
    node = world.node(1)
    states = await world.spawn(
        node.life,
        node.engine.healer.ask(
            view, {slot: verbs.Read(name) for slot in range(16)}, world.clock.monotonic() + 5
        ),
    )
    (epoch,) = {state.entries[-1].epoch for state in states.values()}
    assert all(len(state.entries) == 1 and state.entries[0].decided for state in states.values())
    ask = {slot: verbs.Collect(name, epoch) for slot in slots}
    await world.spawn(node.life, node.engine.healer.ask(view, ask, world.clock.monotonic() + 5))


async def raise_floors(world: ClusterWorld, by: int) -> None:
    """Another key's life of `by` writes ends, and its floor is every key's on these drives."""
    for number in range(by):
        await world.put("other", b"%d" % number)
    await world.delete("other")
    await world.repair()
    await collect(world, "other")


def test_a_returned_node_brings_nothing_back() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for key, size in (("small", 3_000), ("large", 2 * MIB)):
            await world.put(key, content(size))
        await world.repair()
        world.power_off(4)
        await world.notice()
        for key in ("small", "large"):
            await world.delete(key)
        await world.power_on(4)
        for node in (4, 1):
            for key in ("small", "large"):
                with pytest.raises(NoSuchKey):
                    await world.get(key, at=node)
        assert await world.keys(at=4) == []
        await world.repair()
        assert not any(disk.files for disks in world.disks.values() for disk in disks)

    simulate(story)


def test_a_key_can_be_written_and_read_where_floors_were_raised() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", b"before")
        await raise_floors(world, 5)
        assert await world.get("k", at=3) == b"before"
        await world.put("k", b"after", at=2)
        await world.put("fresh", b"1", at=3)
        assert await world.get("k", at=4) == b"after"
        assert await world.get("fresh", at=1) == b"1"
        assert await world.keys(at=2) == ["fresh", "k"]
        await world.put("other", b"again", at=2)
        assert await world.get("other", at=3) == b"again"
        await world.delete("k")
        await world.delete("fresh")
        assert await world.keys(at=4) == ["other"]

    simulate(story)


@pytest.mark.parametrize("size", [3_000, 2 * MIB])
def test_a_live_key_below_the_floor_is_written_anew_by_repair(size: int) -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for disk in world.disks[world.names[3]][:2]:
            disk.refuse = lambda verb: DriveFault.IO if isinstance(verb, verbs.Commit) else None
        await world.put("k", content(size))
        for disk in world.disks[world.names[3]]:
            disk.refuse = lambda verb: None
        # The repair queue waits while the floor rises above the version that two drives miss.
        for node in world.up():
            node.engine.pause.heard(True)
        for number in range(5):
            await world.put("other", b"%d" % number)
        await world.delete("other")
        await asyncio.sleep(2)
        await collect(world, "other")
        assert (await world.census()).by_shards[14] == 1
        for node in world.up():
            node.engine.pause.heard(False)
        await world.repair()
        census = await world.census()
        assert not census.short, census
        for node in (1, 4):
            assert await world.get("k", at=node) == content(size)

    simulate(story)


def test_a_tombstone_that_half_of_the_drives_let_go_is_still_a_delete() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", content(3_000))
        await world.delete("k")
        await world.repair()
        await collect(world, "k", range(8))
        for node in (1, 2, 3, 4):
            with pytest.raises(NoSuchKey):
                await world.get("k", at=node)
            assert await world.keys(at=node) == []
        await world.put("k", b"again", at=2)
        for node in (1, 2, 3, 4):
            assert await world.get("k", at=node) == b"again"
        await world.repair()
        assert not (await world.census()).short

    simulate(story)
