"""Background work yields to clients, and never stands still."""

from __future__ import annotations

import asyncio

from node.limits import PACE_REST_FACTOR, PACE_REST_MAX_S
from node.objects.pace import Clients, Pace
from tests.fakes.cluster_world import LoopClock, run_virtual


class Work:
    """Pieces of `took_s` each; notes how many ran beside each other."""

    def __init__(self, took_s: float = 0.1) -> None:
        self.took_s = took_s
        self.running = self.most = 0
        self.order: list[int] = []

    async def __call__(self, item: int) -> int:
        self.order.append(item)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.took_s)
        self.running -= 1
        return item


def test_without_clients_work_runs_beside_each_other_and_never_rests() -> None:
    async def story() -> None:
        clock, work = LoopClock(), Work()
        pace = Pace(clock, lambda: 0)
        began = clock.monotonic()
        done = await pace.each(range(20), work, at_once=4, until=began + 60)
        assert sorted(done) == list(range(20)) and work.most == 4
        assert clock.monotonic() - began < 20 / 4 * 0.1 + 0.01

    run_virtual(story())


def test_with_clients_one_piece_at_a_time_with_rests_three_times_as_long() -> None:
    async def story() -> None:
        clock, work = LoopClock(), Work()
        pace = Pace(clock, lambda: 1)
        began = clock.monotonic()
        done = await pace.each(range(10), work, at_once=4, until=began + 60)
        took = clock.monotonic() - began
        assert done == list(range(10)) and work.most == 1
        assert took >= 10 * 0.1 * (1 + PACE_REST_FACTOR) - 0.01

    run_virtual(story())


def test_however_slow_a_piece_was_the_rest_is_bounded() -> None:
    async def story() -> None:
        clock = LoopClock()
        began = clock.monotonic()
        await Pace(clock, lambda: 7).rest(1000.0)
        assert clock.monotonic() - began <= PACE_REST_MAX_S + 0.01

    run_virtual(story())


def test_work_that_does_not_fit_is_left_for_the_next_turn_in_order() -> None:
    async def story() -> None:
        clock, work = LoopClock(), Work(took_s=1.0)
        until = clock.monotonic() + 2.5
        done = await Pace(clock, lambda: 0).each(range(100), work, at_once=2, until=until)
        assert work.order == [0, 1, 2, 3, 4, 5] and sorted(done) == work.order

    run_virtual(story())


def test_requests_that_end_between_two_looks_are_seen() -> None:
    begun, running, others = 0, 0, [0]
    clients = Clients(lambda: (running, begun), lambda: others)
    assert clients.count() == 0
    begun = 5
    assert clients.tick() == 5 and clients.count() == 5
    assert clients.tick() == 0 and clients.count() == 0
    others = [0, 3]
    assert clients.count() == 3
    running = 9
    assert clients.count() == 9
