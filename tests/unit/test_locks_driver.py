from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from locks.driver import HeldLock, LockService
from locks.errors import LockBusy, LockFailure, LockLost, LockTimeout
from locks.messages import (
    Acquire,
    ForceRelease,
    Granted,
    LockMode,
    Owner,
    Refresh,
    RefusalReason,
    Refused,
    Release,
    Released,
)
from locks.policy import LockPolicy
from tests.unit.locks_world import World, run_virtual

_W = LockMode.WRITE
_R = LockMode.READ
_KEY = ("object:b/k",)


def _in_world(story: Callable[[World], Awaitable[None]], servers: int = 4, seed: int = 1) -> None:
    async def main() -> None:
        world = World(servers, seed=seed)
        await story(world)
        world.close()

    run_virtual(main())


async def _take(
    service: LockService, mode: LockMode = _W, patience_s: float = 5.0, wait: bool = True
) -> HeldLock:
    deadline_s = service.clock.monotonic() + patience_s
    return await service.acquire(_KEY, mode, deadline_s, wait=wait)


async def _settle() -> None:
    await asyncio.sleep(0.1)


@pytest.mark.parametrize("servers", [1, 2, 3, 4, 5])
def test_take_and_give_back(servers: int) -> None:
    async def story(world: World) -> None:
        service, seen = world.service("n1")
        async with await _take(service) as held:
            assert held.valid()
            assert held.attempts == 1
            await _settle()
            assert world.held() == {"object:b/k": servers}
        assert not held.valid()
        await _settle()
        assert world.held() == {}
        assert seen.events == ["acquired object"]
        assert world.acquires() == servers
        assert not service.held
        assert not service._tasks

    _in_world(story, servers)


def test_one_dark_server_costs_nothing_and_is_released_when_it_can_be() -> None:
    async def story(world: World) -> None:
        world.dark = {"n3"}
        service, seen = world.service("n1")
        held = await _take(service)
        assert seen.acquired_s[0] < 0.01
        held.release()
        await asyncio.sleep(10)
        assert not service._tasks
        releases = [m for _, s, m in world.calls if s == "n3" and isinstance(m, Release)]
        assert len(releases) == 3

    _in_world(story)


def test_the_next_in_line_gets_it_when_it_is_released() -> None:
    async def story(world: World) -> None:
        first, _ = world.service("n1")
        second, seen = world.service("n2")
        held = await _take(first)
        waiting = asyncio.ensure_future(_take(second))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        held.release()
        async with await waiting as other:
            assert other.valid()
            assert 0.5 < seen.acquired_s[0] < 0.52
        assert seen.events == ["acquired object"]

    _in_world(story)


def test_retries_three_times_after_100_200_and_400_ms_with_jitter() -> None:
    async def story(world: World) -> None:
        first, _ = world.service("n1")
        second, seen = world.service("n2")
        await _take(first)
        begun_s = world.clock.monotonic()
        skip = len(world.calls)
        with pytest.raises(LockBusy) as caught:
            await _take(second, wait=False)
        assert (caught.value.resource_class, caught.value.attempts) == ("object", 4)
        assert caught.value.holder is not None and caught.value.holder.node == "n1"
        assert seen.events == ["retry object"] * 3 + ["timeout object"]
        starts = [s for s, server, m in world.calls[skip:] if isinstance(m, Acquire)][::4]
        waited = [b - a for a, b in itertools.pairwise(starts)]
        for gap_s, delay_s in zip(waited, (0.1, 0.2, 0.4), strict=True):
            assert 0.8 * delay_s <= gap_s <= 1.2 * delay_s + 0.01
        assert waited != pytest.approx([0.1, 0.2, 0.4], abs=1e-3)
        assert world.clock.monotonic() - begun_s < 0.9

    _in_world(story)


def test_standing_in_line_is_bounded_by_the_attempt_and_ends_in_busy() -> None:
    async def story(world: World) -> None:
        first, _ = world.service("n1")
        second, seen = world.service("n2")
        held = await _take(first)
        begun_s = world.clock.monotonic()
        with pytest.raises(LockBusy):
            await _take(second)
        assert 3.0 < world.clock.monotonic() - begun_s < 5.0
        assert seen.events == ["retry object"] * 3 + ["timeout object"]
        held.release()
        await _settle()
        assert world.held() == {}
        assert all(d.server.table.waiters == 0 for d in world.drivers.values())

    _in_world(story)


@pytest.mark.parametrize("patience_s", [-1.0, 0.0, 0.05, 0.5, 1.3])
def test_nobody_waits_beyond_the_deadline(patience_s: float) -> None:
    async def story(world: World) -> None:
        world.dark = set(world.names)
        service, seen = world.service("n1")
        begun_s = world.clock.monotonic()
        with pytest.raises(LockTimeout):
            await _take(service, patience_s=patience_s)
        assert world.clock.monotonic() - begun_s <= max(0.0, patience_s) + 1e-6
        assert seen.events[-1] == "timeout object"

    _in_world(story)


def test_no_quorum_of_servers_is_a_timeout_and_leaves_nothing() -> None:
    async def story(world: World) -> None:
        world.refusing = {"n1", "n4"}
        service, seen = world.service("n2")
        with pytest.raises(LockTimeout) as caught:
            await _take(service)
        assert caught.value.attempts == 4
        assert seen.events == ["retry object"] * 3 + ["timeout object"]
        await _settle()
        assert world.held() == {}
        world.refusing = set()
        (await _take(service)).release()

    _in_world(story)


def test_many_want_the_same_and_all_get_it_one_at_a_time() -> None:
    async def story(world: World) -> None:
        inside = 0
        served: list[int] = []

        async def client(number: int, service: LockService) -> None:
            nonlocal inside
            async with await _take(service, patience_s=10.0) as held:
                inside += 1
                assert inside == 1
                await asyncio.sleep(0.01)
                assert held.valid()
                inside -= 1
                served.append(number)

        services = [world.service(f"n{1 + number % 4}")[0] for number in range(4)]
        clients = (client(number, services[number % 4]) for number in range(30))
        await asyncio.gather(*clients)
        assert sorted(served) == list(range(30))
        await _settle()
        assert world.held() == {}

    for seed in range(5):
        _in_world(story, seed=seed)


def test_readers_share_and_exclude_a_writer() -> None:
    async def story(world: World) -> None:
        first, _ = world.service("n1")
        second, _ = world.service("n2")
        async with await _take(first, _R), await _take(second, _R):
            with pytest.raises(LockBusy):
                await _take(first, _W, wait=False)
        await _settle()
        (await _take(first, _W)).release()

    _in_world(story)


@pytest.mark.parametrize("after_s", [0.0, 0.0005, 0.0015, 0.002, 0.01, 0.4])
@pytest.mark.parametrize("taken", [False, True])
def test_a_cancelled_acquire_releases_what_it_got(after_s: float, taken: bool) -> None:
    async def story(world: World) -> None:
        first, _ = world.service("n1")
        second, _ = world.service("n2")
        held = await _take(first) if taken else None
        acquiring = asyncio.ensure_future(_take(second))
        await asyncio.sleep(after_s)
        if acquiring.cancel():
            with pytest.raises(asyncio.CancelledError):
                await acquiring
        else:
            acquiring.result().release()
        if held is not None:
            held.release()
        await asyncio.sleep(3.0)
        assert world.held() == {}
        assert not second.held
        assert not second._tasks

    _in_world(story)


def test_a_grant_whose_answer_was_lost_is_released() -> None:
    async def story(world: World) -> None:
        world.mute_to = lambda server, m: isinstance(m, Acquire) and server in ("n1", "n2")
        service, _ = world.service("n3")
        with pytest.raises(LockTimeout):
            await _take(service)
        await asyncio.sleep(3.0)
        assert world.held() == {}

    _in_world(story)


def test_a_lost_release_is_sent_again() -> None:
    async def story(world: World) -> None:
        lost = {"n1", "n2"}
        world.deaf_to = lambda server, m: isinstance(m, Release) and server in lost
        service, _ = world.service("n3")
        (await _take(service)).release()
        await asyncio.sleep(0.5)
        assert world.held() == {"object:b/k": 2}
        lost.clear()
        await asyncio.sleep(3.0)
        assert world.held() == {}

    _in_world(story)


def test_a_lock_held_long_is_refreshed_by_one_task_and_a_short_one_never() -> None:
    async def story(world: World) -> None:
        service, seen = world.service("n1")
        for _ in range(5):
            (await _take(service)).release()
        await asyncio.sleep(4.0)
        assert not any(isinstance(m, Refresh) for _, _, m in world.calls)
        assert service._refresher is None
        deadline_s = world.clock.monotonic() + 1.0
        locks = [await service.acquire([f"heal:{n}"], _W, deadline_s, "heal") for n in range(3)]
        refresher = service._refresher
        await asyncio.sleep(30.0)
        assert all(lock.valid() for lock in locks)
        assert service._refresher is refresher
        refreshes = sum(isinstance(m, Refresh) for _, _, m in world.calls)
        assert 3 * 4 * 8 <= refreshes <= 3 * 4 * 10
        for lock in locks:
            lock.release()
        await asyncio.sleep(4.0)
        assert service._refresher is None
        assert world.held() == {}
        assert "lost heal" not in seen.events

    _in_world(story)


def test_a_holder_cut_off_from_the_quorum_stops_before_another_can_get_the_lock() -> None:
    async def story(world: World) -> None:
        service, seen = world.service("n1")
        other, _ = world.service("n2")
        held = await _take(service)
        await asyncio.sleep(4.0)
        cut = True
        world.deaf_to = lambda server, m: cut and isinstance(m, Refresh) and server != "n1"
        begun_s = world.clock.monotonic()
        await held.lost.wait()
        assert 7.0 < world.clock.monotonic() - begun_s < 9.0
        assert not held.valid()
        with pytest.raises(LockLost):
            held.check()
        assert seen.events == ["acquired object", "lost object"]
        with pytest.raises(LockFailure):
            await _take(other, wait=False, patience_s=0.01)
        held.release()
        await asyncio.sleep(1.0)
        (await _take(other)).release()

    _in_world(story)


def test_a_lock_taken_by_force_is_lost_at_the_next_refresh() -> None:
    async def story(world: World) -> None:
        service, _ = world.service("n1")
        held = await _take(service)
        await _settle()
        for server in world.names:
            assert await world.call(server, ForceRelease(_KEY[0]), 1.0) == Released()
        await asyncio.wait_for(held.lost.wait(), 4.0)

    _in_world(story)


def test_waiters_pass_a_holder_that_is_suspected() -> None:
    async def story(world: World) -> None:
        dead, _ = world.service("n1")
        alive, seen = world.service("n2")
        held = await _take(dead)
        world.dark = {"n1"}
        waiting = asyncio.ensure_future(_take(alive))
        await asyncio.sleep(2.0)
        assert not waiting.done()
        for server in world.names[1:]:
            world.drivers[server].suspected("n1", True)
        alive.suspect("n1", True)
        await waiting
        assert seen.acquired_s[0] < 3.5
        assert held.valid()  # it does not know yet: the drives' base check is what keeps this safe

    _in_world(story)


def test_a_new_incarnation_frees_the_locks_of_the_old_one_and_stops_it() -> None:
    async def story(world: World) -> None:
        old, seen = world.service("n1", incarnation=1)
        new, _ = world.service("n1", incarnation=2)
        held = await _take(old)
        await _settle()
        (await _take(new)).release()
        await asyncio.wait_for(held.lost.wait(), 4.0)
        with pytest.raises(LockLost):
            await _take(old)
        assert seen.events == ["acquired object", "lost object", "timeout object"]

    _in_world(story)


def test_a_restarted_server_learns_from_its_peers_and_a_holder_keeps_its_lock() -> None:
    async def story(world: World) -> None:
        service, seen = world.service("n4")
        held = await _take(service)
        for incarnation, server in enumerate(world.names, start=2):
            world.restart(server, incarnation)
            peers = [name for name in world.names if name != server]
            table = world.drivers[server].server.table
            begun_s = world.clock.monotonic()
            await world.drivers[server].recover(world, peers, server)
            assert not table.recovering
            assert 2.0 <= world.clock.monotonic() - begun_s < 3.5
        assert held.valid()
        assert world.held() == {"object:b/k": 4}
        held.release()
        await _settle()
        assert world.held() == {}
        assert seen.events == ["acquired object"]

    _in_world(story)


def test_a_restarted_server_without_all_peers_waits_for_a_lease() -> None:
    async def story(world: World) -> None:
        world.dark = {"n3"}
        world.restart("n1", 2)
        begun_s = world.clock.monotonic()
        await world.drivers["n1"].recover(world, ["n2", "n3", "n4"], "n1")
        assert 9.0 <= world.clock.monotonic() - begun_s < 11.1

    _in_world(story)


def test_bounds_are_answered_at_once() -> None:
    async def story(world: World) -> None:
        service, seen = world.service("n1", LockPolicy(max_held=1, retry_delays_s=(0.01,)))
        held = await _take(service)
        with pytest.raises(LockBusy):
            await service.acquire(["object:b/other"], _W, world.clock.monotonic() + 5.0)
        assert seen.events == ["acquired object", "retry object", "timeout object"]
        held.release()
        await service.aclose()
        assert not service._tasks

    _in_world(story)


def test_closing_gives_everything_back() -> None:
    async def story(world: World) -> None:
        service, _ = world.service("n1")
        await _take(service)
        await asyncio.sleep(4.0)
        await service.aclose()
        assert world.held() == {}
        assert not service._tasks

    _in_world(story)


def test_a_server_answers_who_stands_in_line_by_the_deadline_with_one_timer() -> None:
    async def story(world: World) -> None:
        driver = world.drivers["n1"]
        assert driver.handle(Acquire(_KEY, _W, Owner("a", 1, 1), 1.0)) == Granted(9.0)
        futures = []
        for attempt, wait_s in enumerate((3.0, 1.0, 2.0)):
            reply = driver.handle(Acquire(_KEY, _W, Owner("b", 1, attempt), wait_s, True))
            assert isinstance(reply, asyncio.Future)
            futures.append(reply)
        begun_s = world.clock.monotonic()
        ends = []
        for future in (futures[1], futures[2], futures[0]):
            reply = await future
            assert isinstance(reply, Refused) and reply.reason is RefusalReason.HELD
            ends.append(world.clock.monotonic() - begun_s)
        assert ends == pytest.approx([1.0, 2.0, 3.0], abs=0.02)
        await asyncio.sleep(9.0)
        assert driver.server.table.size == 0
        assert driver._timer is None

    _in_world(story)


def test_observer_names_the_class_it_was_given() -> None:
    async def story(world: World) -> None:
        service, seen = world.service("n1")
        deadline_s = world.clock.monotonic() + 1.0
        (await service.acquire(["config:x"], _R, deadline_s, "iam")).release()
        (await service.acquire(["config:x"], _R, deadline_s)).release()
        assert seen.events == ["acquired iam", "acquired config"]

    _in_world(story)
