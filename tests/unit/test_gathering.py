"""Enough of many answers: in the order they come, within the bound, and nobody complains of those that come late."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from node.errors import TargetFailed
from node.objects.gathering import Gathering
from tests.unit.locks_world import LoopClock, run_virtual

CLOCK = LoopClock()


def soon(after_s: float, value: str | Exception) -> asyncio.Future[str]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[str] = loop.create_future()

    def land() -> None:
        if future.done():
            return
        if isinstance(value, Exception):
            future.set_exception(value)
        else:
            future.set_result(value)

    loop.call_later(after_s, land)
    return future


def at_least(gathering: Gathering[str, str], count: int) -> Callable[[], bool]:
    return lambda: len(gathering.results) >= count


async def waited(
    gathering: Gathering[str, str], enough: Callable[[], bool], within_s: float = 10.0
) -> tuple[bool, float]:
    began = CLOCK.monotonic()
    outcome = await gathering.until(enough, within_s)
    return outcome, round(CLOCK.monotonic() - began, 6)


def test_it_ends_when_enough_are_in_and_keeps_the_order_they_came_in() -> None:
    async def story() -> None:
        gathering: Gathering[str, str] = Gathering()
        gathering.add_all({"a": soon(0.3, "A"), "b": soon(0.1, "B"), "c": soon(0.2, "C")})
        gathering.add("d", soon(9, "D"))
        assert await waited(gathering, at_least(gathering, 3)) == (True, 0.3)
        assert list(gathering.results) == ["b", "c", "a"]
        assert gathering.is_pending("d") and gathering.pending == 1
        assert await waited(gathering, at_least(gathering, 4)) == (True, 8.7)

    run_virtual(story())


def test_it_ends_when_nothing_is_pending_though_never_enough() -> None:
    async def story() -> None:
        gathering: Gathering[str, str] = Gathering()
        gathering.add_all({"a": soon(0.1, TargetFailed()), "b": soon(0.2, "B")})
        assert await waited(gathering, at_least(gathering, 2)) == (False, 0.2)
        assert list(gathering.errors) == ["a"] and list(gathering.results) == ["b"]
        # Asked again elsewhere: the later answer takes the place of the error.
        gathering.add("a", soon(0.1, "A"))
        assert await waited(gathering, at_least(gathering, 2)) == (True, 0.1)
        assert not gathering.errors

    run_virtual(story())


@pytest.mark.parametrize("within_s", [0.5, 0.0, -1.0])
def test_it_ends_when_the_time_is_up(within_s: float) -> None:
    async def story() -> None:
        gathering: Gathering[str, str] = Gathering()
        gathering.add("a", soon(1e6, "A"))
        expected = (False, max(0.0, within_s))
        assert await waited(gathering, at_least(gathering, 1), within_s) == expected

    run_virtual(story())


def test_answers_that_are_there_already_cost_no_wait() -> None:
    async def story() -> None:
        gathering: Gathering[str, str] = Gathering()
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        ready.set_result("A")
        gathering.add_all({"a": ready, "b": soon(9, "B")})
        assert await waited(gathering, at_least(gathering, 1)) == (True, 0.0)
        assert await waited(Gathering(), lambda: False) == (False, 0.0)

    run_virtual(story())


def test_late_failures_are_nobodys_complaint_and_cancelling_the_wait_cancels_no_call() -> None:
    """run_virtual fails on anything the loop has to complain about."""

    async def story() -> None:
        gathering: Gathering[str, str] = Gathering()
        answer = soon(0.5, "A")
        gathering.add_all({"a": answer, "b": soon(0.6, TargetFailed()), "c": soon(0.7, "C")})
        waiting = asyncio.ensure_future(waited(gathering, at_least(gathering, 3)))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not answer.done() and await answer == "A"
        del gathering
        await asyncio.sleep(1)
        gc.collect()

    run_virtual(story())
