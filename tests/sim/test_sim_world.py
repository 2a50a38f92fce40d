"""The simulated world: whole nodes form, serve, lose power and come back, and the same seed is the same run."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.loop import Deadlock, Spinning, run
from tests.sim.world import World, simulate

ROOT = Path(__file__).resolve().parents[2]


async def put(world: World, number: int, key: str, body: bytes) -> None:
    answer = await world.client.request(number, "PUT", f"/bucket/{key}", body=body)
    assert answer.status == 200, answer


async def got(world: World, number: int, key: str) -> bytes:
    answer = await world.client.request(number, "GET", f"/bucket/{key}")
    assert answer.status == 200, answer
    return answer.body


async def first_steps(world: World) -> None:
    await world.start()
    assert (await world.client.request(1, "PUT", "/bucket")).status == 200
    large = bytes(range(256)) * 8192
    await put(world, 1, "small", b"one")
    await put(world, 2, "large", large)
    world.power_off(2)
    assert await got(world, 3, "small") == b"one"
    await put(world, 4, "small", b"two")
    world.power_on(2)
    await world.settled(120)
    assert await got(world, 2, "small") == b"two"
    assert await got(world, 2, "large") == large


def test_whole_nodes_form_serve_lose_power_and_return() -> None:
    world = simulate(first_steps, seed=1)
    assert world.anomalies == []
    assert any("the node serves" in line for line in world.story)


def test_every_node_off_at_once_forgets_nothing_that_was_acknowledged() -> None:
    lost = 0  # writes that the disks forgot: how many is chance, so two seeds

    async def scenario(world: World) -> None:
        nonlocal lost
        await world.start()
        assert (await world.client.request(1, "PUT", "/bucket")).status == 200
        for number in range(8):
            await put(world, 1 + number % 4, f"key{number}", b"value %d" % number)
        await asyncio.sleep(
            0.15
        )  # what is told afterwards has come to the drives, and is not synced
        for number in world.boxes:
            world.power_off(number)
        for number in world.boxes:
            world.power_on(number)
        await world.settled(120)
        for number in range(8):
            assert await got(world, 1 + number % 4, f"key{number}") == b"value %d" % number
        lost += sum(drive.disk.lost["lost"] for drive in world.room.drives.values())

    for seed in (4, 5):
        assert simulate(scenario, seed=seed).anomalies == []
    assert lost > 0


def test_a_request_with_a_wrong_signature_is_refused() -> None:
    async def scenario(world: World) -> None:
        await world.start()
        world.client._secret = "wrong"
        answer = await world.client.request(1, "PUT", "/bucket")
        assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")

    assert simulate(scenario, seed=3).anomalies == []


def trace_under(hash_seed: str, seed: int) -> str:
    code = (
        "from tests.sim.test_sim_world import first_steps\n"
        "from tests.sim.world import simulate\n"
        f"print(simulate(first_steps, seed={seed}).final_trace)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    return done.stdout.strip()


def test_the_same_seed_is_the_same_run_under_two_hash_seeds() -> None:
    here = simulate(first_steps, seed=4).final_trace
    assert trace_under("1", 4) == here
    assert trace_under("2", 4) == here
    assert simulate(first_steps, seed=5).final_trace != here


# ---- the loop -------------------------------------------------------------------------------------------
def test_waiting_for_nothing_is_a_deadlock() -> None:
    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock):
        run(forever())


def test_a_loop_that_spins_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.sim.loop._SPIN", 1000)

    async def spin() -> None:
        while True:  # noqa: ASYNC110 - it is what must be found
            await asyncio.sleep(0)

    with pytest.raises(Spinning):
        run(spin())


@pytest.mark.parametrize("what", ["executor", "descriptor", "thread"])
def test_the_real_world_is_out_of_reach(what: str) -> None:
    async def reach() -> None:
        loop = asyncio.get_running_loop()
        if what == "executor":
            await loop.run_in_executor(None, print)
        elif what == "descriptor":
            loop.add_reader(0, print)
        else:
            loop.call_soon_threadsafe(print)

    with pytest.raises((RuntimeError, NotImplementedError)):
        run(reach())
