"""The fan: enough of many answers, in order, within the deadline, with a margin when there is time."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping
from typing import Any

import pytest

from node.errors import TargetFailed
from node.rpc.quorum import Fan, fan
from tests.unit.guard_world import LoopClock
from tests.unit.locks_world import run_virtual

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


def at_least(count: int) -> Any:
    def enough(results: Mapping[str, str], _errors: Mapping[str, BaseException]) -> bool:
        return len(results) >= count

    return enough


async def gathered(
    calls: dict[str, asyncio.Future[str]], enough: Any, within_s: float = 10.0, **more: Any
) -> tuple[Fan[str, str], float]:
    began = CLOCK.monotonic()
    done = await fan(calls, enough=enough, deadline=began + within_s, clock=CLOCK, **more)
    return done, round(CLOCK.monotonic() - began, 6)


def test_it_ends_when_enough_are_in_and_keeps_the_order_they_came_in() -> None:
    async def story() -> None:
        calls = {"a": soon(0.3, "A"), "b": soon(0.1, "B"), "c": soon(0.2, "C"), "d": soon(9, "D")}
        done, took_s = await gathered(calls, at_least(3))
        assert took_s == 0.3
        assert list(done.results) == ["b", "c", "a"]
        assert list(done.pending) == ["d"] and done.errors == {}
        assert await done.pending["d"] == "D"
        assert "d" not in done.results, "what was handed out does not change any more"

    run_virtual(story())


def test_it_ends_early_when_success_has_become_impossible() -> None:
    async def story() -> None:
        calls = {"a": soon(0.1, TargetFailed()), "b": soon(0.2, TargetFailed()), "c": soon(9, "C")}

        def enough(results: Mapping[str, str], errors: Mapping[str, BaseException]) -> bool:
            return len(results) >= 2 or len(errors) > 1

        done, took_s = await gathered(calls, enough)
        assert took_s == 0.2 and list(done.errors) == ["a", "b"] and list(done.pending) == ["c"]

    run_virtual(story())


def test_it_ends_when_all_are_in_though_never_enough() -> None:
    async def story() -> None:
        done, took_s = await gathered({"a": soon(0.1, "A"), "b": soon(0.2, "B")}, at_least(3))
        assert took_s == 0.2 and len(done.results) == 2 and not done.pending

    run_virtual(story())


@pytest.mark.parametrize("within_s", [0.5, 0.0, -1.0])
def test_it_ends_at_the_deadline(within_s: float) -> None:
    async def story() -> None:
        calls = {"a": soon(1e6, "A")}
        done, took_s = await gathered(calls, at_least(1), within_s)
        assert took_s == max(0.0, within_s) and list(done.pending) == ["a"]

    run_virtual(story())


def test_answers_that_are_there_already_cost_no_wait() -> None:
    async def story() -> None:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        ready.set_result("A")
        refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        refused.set_exception(TargetFailed())
        calls = {"a": ready, "b": refused, "c": soon(9, "C")}
        done, took_s = await gathered(calls, at_least(1))
        assert took_s == 0.0 and list(done.results) == ["a"] and list(done.errors) == ["b"]
        assert (await gathered({}, at_least(1)))[1] == 0.0

    run_virtual(story())


@pytest.mark.parametrize(("slowest_s", "took_s", "pending"), [(0.2, 0.2, []), (5.0, 0.35, ["c"])])
def test_the_margin_is_waited_for_but_not_for_long(
    slowest_s: float, took_s: float, pending: list[str]
) -> None:
    async def story() -> None:
        calls = {"a": soon(0.1, "A"), "b": soon(0.05, "B"), "c": soon(slowest_s, "C")}
        done, waited_s = await gathered(calls, at_least(2), grace_s=0.25, grace_enough=at_least(3))
        assert waited_s == took_s and list(done.pending) == pending

    run_virtual(story())


def test_the_margin_never_outlives_the_deadline() -> None:
    async def story() -> None:
        calls = {"a": soon(0.1, "A"), "b": soon(9, "B")}
        _, waited_s = await gathered(calls, at_least(1), 0.2, grace_s=5.0, grace_enough=at_least(2))
        assert waited_s == 0.2

    run_virtual(story())


def test_late_failures_are_nobodys_complaint() -> None:
    """run_virtual fails on anything the loop has to complain about."""

    async def story() -> None:
        calls = {"a": soon(0.1, "A"), "b": soon(0.5, TargetFailed()), "c": soon(0.6, "C")}
        calls["c"].cancel()
        done, _ = await gathered(calls, at_least(1))
        assert isinstance(done.errors.get("c"), asyncio.CancelledError)
        del calls, done
        await asyncio.sleep(1)
        gc.collect()

    run_virtual(story())


def test_a_cancelled_fan_leaves_the_calls_alone() -> None:
    async def story() -> None:
        calls = {"a": soon(0.5, "A"), "b": soon(0.5, TargetFailed())}
        waiting = asyncio.ensure_future(gathered(calls, at_least(2)))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not calls["a"].done()
        assert await calls["a"] == "A"
        gc.collect()

    run_virtual(story())
