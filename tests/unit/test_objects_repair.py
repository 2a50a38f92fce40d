"""Repair as an operator sees it: the census, its proof, priority, pause."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from node.errors import HoldfastError
from node.limits import MIB
from node.objects.census import Census
from node.protocol import verbs
from tests.fakes.cluster_world import ClusterWorld, simulate
from tests.unit.test_objects_everyday import content

SMALL, LARGE = 3_000, 2 * MIB + 77


async def at(world: ClusterWorld, number: int, work: Coroutine[Any, Any, Any]) -> Any:
    return await world.spawn(world.node(number).life, work)


async def background_census(world: ClusterWorld, number: int = 1) -> Census:
    taker = world.node(number).engine.census
    taker.request()
    done = await at(world, number, taker.turn(world.clock.monotonic() + 60))
    assert isinstance(done, Census)
    return done


def lose_row(world: ClusterWorld, slot: int, key: bytes) -> None:
    """A drive that forgot a key altogether, as after a lying sync."""
    from node.runtime.drive import rows

    disk = world.disk(slot)
    disk.engine.write({rows.REGISTER + key: None}, {})
    disk.engine.flush()


# ---- the census ------------------------------------------------------------------------------------------
def test_a_census_counts_objects_by_shards_per_set() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("small", content(SMALL))
        await world.put("large", content(LARGE))
        await world.put("gone", content(SMALL))
        await world.delete("gone")
        await world.repair()
        found = (await background_census(world)).sets[0]
        assert (found.n, found.k, found.whole, found.every_drive) == (16, 8, True, True)
        assert found.tombstones == 1 and not found.tombstones_short
        for slot in range(9):
            lose_row(world, slot, b"bucket\0small")
        world.disk(15).files.clear()  # the large object's shard there
        lose_row(world, 3, b"bucket\0gone")
        found = (await background_census(world)).sets[0]
        assert found.by_shards[7] == 1 and found.by_shards[15] == 1 and found.unreadable == 1
        assert found.tombstones_short == 1 and not found.whole

    simulate(story)


def test_a_dark_node_is_never_counted_as_whole() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", content(SMALL))
        await world.repair()
        world.power_off(4)
        await world.notice()
        found = (await background_census(world)).sets[0]
        assert not found.every_drive and not found.whole and found.by_shards[12] >= 1
        world.power_off(3)
        world.power_off(2)
        await world.notice()
        taker = world.node(1).engine.census
        taker.request()
        with pytest.raises(HoldfastError):
            await at(world, 1, taker.turn(world.clock.monotonic() + 60))
        assert taker.problem and taker.running
        for number in (2, 3, 4):
            await world.power_on(number)
        done = await at(world, 1, taker.turn(world.clock.monotonic() + 60))
        assert done is not None and not taker.problem, "it goes on where it was"

    simulate(story)


def test_what_is_being_written_is_not_called_short() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for number in range(5):
            await world.put(f"k{number}", content(SMALL))
        await world.repair()
        slow = True

        def lose(sender: str, target: str, what: str) -> bool:
            return slow and target == world.names[3] and what == "COMMIT"

        world.lose = lose
        await world.put("k1", content(SMALL, 2))  # node 4 lacks it when the walk comes by
        slow = False
        await asyncio.sleep(1.0)
        taking = asyncio.ensure_future(background_census(world))
        await world.put("k1", content(SMALL, 3))
        assert (await taking).whole

    simulate(story)


# ---- proof ------------------------------------------------------------------------------------------------
async def prove(world: ClusterWorld, turns: int) -> Census | None:
    """Turns of repair and proof on every node; -> the last census of the first one."""
    for _ in range(turns):
        for node in world.up():
            await world.spawn(node.life, node.engine.repairs.round())
            until = world.clock.monotonic() + 30
            await world.spawn(node.life, node.engine.proof.turn(until))
        await asyncio.sleep(5.0)
    return world.node(1).engine.census.last


def test_repair_ends_with_a_census_and_only_the_first_living_node_takes_it() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await prove(world, 2)
        assert world.node(1).engine.census.last is None, "nothing happened: nothing to prove"
        world.power_off(4)
        await world.notice()
        await world.put("k", content(SMALL))
        assert await prove(world, 3) is None, "a node is dark: not now"
        await world.power_on(4)
        census = await prove(world, 8)
        assert census is not None and census.whole and census.objects >= 1
        assert all(world.node(other).engine.census.last is None for other in (2, 3, 4))

    simulate(story)


def test_what_a_census_finds_short_is_repaired_and_counted_again() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("small", content(SMALL))
        await world.put("large", content(LARGE))
        await world.delete("small")
        await world.repair()
        # No queue knows of any of these.
        lose_row(world, 2, b"bucket\0large")
        lose_row(world, 9, b"bucket\0small")
        world.disk(5).files.clear()
        world.node(1).engine.repairs.status.repaired += 1  # something happened
        census = await prove(world, 14)
        assert census is not None and census.whole, census
        assert (await world.census()).whole
        assert await world.get("large") == content(LARGE)

    simulate(story)


# ---- priority and pause -----------------------------------------------------------------------------------
def test_the_smallest_margin_is_repaired_first() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        lost = {"one": 1, "six": 6, "three": 3, "two": 2}
        for key in lost:
            await world.put(key, content(SMALL))
        await world.repair()
        for key, count in lost.items():
            name = b"bucket\0" + key.encode()
            found = await at(
                world,
                1,
                world.node(1).engine.healer.look(
                    world.node(1).engine.cluster.views[0],
                    name,
                    deadline=world.clock.monotonic() + 9,
                ),
            )
            missed = tuple(range(15, 15 - count, -1))
            entry = verbs.Enqueue(name, found.record.epoch, missed)
            view = world.node(1).engine.cluster.views[0]
            world.node(1).engine.cluster.tell_slots(
                view, dict.fromkeys(range(8), entry), deadline=world.clock.monotonic() + 9
            )
        await asyncio.sleep(60.0)  # every node's turn has come
        repairs = world.node(1).engine.repairs
        work = await at(world, 1, repairs._collect())
        assert [each.entry.key for each in work] == [
            b"bucket\0six",
            b"bucket\0three",
            b"bucket\0two",
            b"bucket\0one",
        ]
        assert [each.margin for each in work] == [2, 5, 6, 7]

    simulate(story)


def test_a_pause_outlives_the_nodes_and_still_settles_what_is_undecided() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        world.power_off(4)
        await world.notice()
        await world.put("k", content(SMALL))
        deadline = world.clock.monotonic() + 9
        await at(world, 2, world.node(2).engine.pause.store(True, deadline=deadline))
        await world.power_on(4)
        await asyncio.sleep(60)
        for node in world.up():
            await world.spawn(
                node.life, node.engine.pause.refresh(deadline=world.clock.monotonic() + 9)
            )
            assert node.engine.pause.known and node.engine.pause.paused
            for _ in range(3):
                await world.spawn(node.life, node.engine.settler.round())
                await world.spawn(node.life, node.engine.repairs.round())
        assert any(world.pending()), "paused: the entry stays"
        assert not any(d.catalog.undecided for n in world.up() for d in n.drives)
        await at(
            world,
            1,
            world.node(1).engine.pause.store(False, deadline=world.clock.monotonic() + 9),
        )
        for node in world.up():
            await world.spawn(
                node.life, node.engine.pause.refresh(deadline=world.clock.monotonic() + 9)
            )
        await world.repair()
        assert (await world.census()).whole

    simulate(story)
