"""Clocks that jump: a node whose clock was set back while it was off is taken back by its peers."""

from __future__ import annotations

import pytest

from tests.sim.world import World, simulate


@pytest.mark.timeout(300)
@pytest.mark.parametrize("jump_s", [-86400.0, 86400.0])
def test_a_node_comes_back_with_a_clock_that_jumped(jump_s: float) -> None:
    async def scenario(world: World) -> None:
        await world.start()
        assert (await world.client.request(1, "PUT", "/bucket")).status == 200
        world.power_off(2)
        world.boxes[2].wall_offset_s = jump_s
        world.power_on(2)
        await world.settled(120)
        # And once more with a clock that is right again: behind, after a jump ahead.
        world.power_off(2)
        world.boxes[2].wall_offset_s = 0.0
        world.power_on(2)
        await world.settled(120)
        answer = await world.client.request(2, "PUT", "/bucket/key", body=b"value")
        assert answer.status == 200, answer

    world = simulate(scenario, seed=21)
    assert world.anomalies == []
    assert sum("later incarnation" in line for line in world.story) == 1
