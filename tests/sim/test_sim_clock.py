"""A node's wall clock jumps a day, either way: nothing is lost, order never rests on it, and it is said."""

from __future__ import annotations

import pytest

from tests.sim.test_sim_world import got, put
from tests.sim.world import World, simulate

DAY_S = 86_400.0


def test_clocks_that_jump_a_day_either_way_lose_nothing() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        assert (await world.client.request(1, "PUT", "/bucket")).status == 200
        await put(world, 2, "k", b"before")
        world.boxes[2].wall_offset_s = DAY_S
        world.boxes[4].wall_offset_s = -DAY_S
        for number in (2, 4):  # its clients' signatures are a day off, and are told so
            refused = await world.client.request(number, "GET", "/bucket/k")
            assert (refused.status, refused.code) == (403, "RequestTimeTooSkewed")
        await put(world, 1, "k", b"after")
        await put(world, 3, "other", b"x" * 3_000_000)
        world.boxes[2].wall_offset_s = world.boxes[4].wall_offset_s = 0.0
        await put(world, 4, "k", b"and back")
        await world.settled(120)
        for number in world.boxes:
            assert await got(world, number, "k") == b"and back"
            assert await got(world, number, "other") == b"x" * 3_000_000

    assert simulate(scenario, seed=11).anomalies == []


@pytest.mark.parametrize("offset_s", [DAY_S, -DAY_S])
def test_a_node_that_starts_with_a_wrong_clock_is_taken_back(offset_s: float) -> None:
    async def scenario(world: World) -> None:
        await world.start()
        assert (await world.client.request(1, "PUT", "/bucket")).status == 200
        await put(world, 1, "k", b"one")
        for offset in (offset_s, 0.0):  # and once more when it has been set right
            world.power_off(4)
            world.boxes[4].wall_offset_s = offset
            await put(world, 2, "k", b"%d" % offset)
            world.power_on(4)
            await world.settled(180)
            assert await got(world, 3, "k") == b"%d" % offset
        assert await got(world, 4, "k") == b"0"

    assert simulate(scenario, seed=12).anomalies == []
