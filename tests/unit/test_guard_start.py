"""Guard.start: one attempt of a call that is a future already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from node.errors import (
    DeadlineExceeded,
    HoldfastError,
    NoSuchKey,
    Shed,
    TargetDown,
    TargetFailed,
)
from node.guard.breaker import BreakerState
from node.guard.guard import Guard, Target
from tests.unit.guard_world import make_guard, policy
from tests.unit.locks_world import run_virtual


def pending() -> asyncio.Future[bytes]:
    return asyncio.get_running_loop().create_future()


def answering(value: bytes, after_s: float = 0.01) -> Callable[[], asyncio.Future[bytes]]:
    def begin() -> asyncio.Future[bytes]:
        future = pending()
        asyncio.get_running_loop().call_later(
            after_s, lambda: future.done() or future.set_result(value)
        )
        return future

    return begin


def failing(error: Exception, after_s: float = 0.01) -> Callable[[], asyncio.Future[bytes]]:
    def begin() -> asyncio.Future[bytes]:
        future = pending()
        asyncio.get_running_loop().call_later(
            after_s, lambda: future.done() or future.set_exception(error)
        )
        return future

    return begin


def start(
    guard: Guard,
    begin: Callable[[], asyncio.Future[bytes]],
    target: Target | None = None,
    deadline_s: float = 60.0,
    **changes: object,
) -> asyncio.Future[bytes]:
    return guard.start(
        "peer",
        "COMMIT",
        policy(**changes),
        target,
        begin,
        deadline=guard.clock.monotonic() + deadline_s,
    )


def test_an_answer_passes_through() -> None:
    async def story() -> None:
        guard, notes = make_guard()
        assert await start(guard, answering(b"x")) == b"x"
        await asyncio.sleep(0)
        assert notes.outcomes == ["ok"]

    run_virtual(story())


@pytest.mark.parametrize(("deadline_s", "ends_s"), [(60.0, 2.0), (0.5, 0.5)])
def test_a_call_that_never_answers_ends_by_its_bound_and_by_the_deadline(
    deadline_s: float, ends_s: float
) -> None:
    async def story() -> None:
        guard, notes = make_guard()
        began = guard.clock.monotonic()
        with pytest.raises(DeadlineExceeded, match="COMMIT"):
            await start(guard, pending, deadline_s=deadline_s)
        assert guard.clock.monotonic() - began == pytest.approx(ends_s)
        await asyncio.sleep(0)
        assert notes.outcomes == ["timeout"]

    run_virtual(story())


def test_no_time_left_sends_nothing() -> None:
    async def story() -> None:
        guard, _ = make_guard()
        begun: list[int] = []

        def begin() -> asyncio.Future[bytes]:
            begun.append(1)
            return pending()

        with pytest.raises(DeadlineExceeded):
            await start(guard, begin, deadline_s=0.0)
        assert not begun

    run_virtual(story())


def test_three_failures_open_the_breaker_and_nothing_is_sent_any_more() -> None:
    async def story() -> None:
        guard, notes = make_guard()
        target = guard.target("peer", "node2:9002", "fast")
        assert target is guard.target("peer", "node2:9002", "fast")
        for _ in range(3):
            with pytest.raises(TargetFailed):
                await start(guard, failing(TargetFailed("reset")), target)
        assert target.breaker.state is BreakerState.OPEN
        began = guard.clock.monotonic()
        with pytest.raises(TargetDown, match="node2:9002"):
            await start(guard, answering(b"x"), target)
        assert guard.clock.monotonic() == began
        other = guard.target("peer", "node2:9002", "lock")
        assert await start(guard, answering(b"x"), other) == b"x", "a breaker for each lane"
        assert notes.breakers == [
            ("node2:9002", "fast", 0),
            ("node2:9002", "fast", 2),
            ("node2:9002", "lock", 0),
        ]
        await asyncio.sleep(1.0)
        assert await start(guard, answering(b"x"), target) == b"x"
        await asyncio.sleep(0)
        assert notes.breakers[-2:] == [("node2:9002", "fast", 1), ("node2:9002", "fast", 0)]

    run_virtual(story())


def answered(error: HoldfastError) -> HoldfastError:
    error.answered = True  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    "error",
    [
        NoSuchKey(),
        answered(TargetFailed("its drive is sick")),
        answered(DeadlineExceeded("its drive is slow")),
        TargetDown("a third party"),
        Shed("busy"),
        ValueError("a bug"),
    ],
)
def test_what_is_not_the_targets_sickness_opens_nothing(error: Exception) -> None:
    async def story() -> None:
        guard, _ = make_guard()
        target = guard.target("peer", "node2:9002", "fast")
        for _ in range(10):
            with pytest.raises(type(error)):
                await start(guard, failing(error), target)
        assert target.breaker.state is BreakerState.CLOSED

    run_virtual(story())


def test_expiry_is_the_targets_fault_only_if_it_had_its_time() -> None:
    async def story() -> None:
        guard, _ = make_guard()
        hurried = guard.target("peer", "node2:9002", "fast")
        for _ in range(10):
            with pytest.raises(DeadlineExceeded):
                await start(guard, pending, hurried, deadline_s=0.1)
        assert hurried.breaker.state is BreakerState.CLOSED
        for _ in range(3):
            with pytest.raises(DeadlineExceeded):
                await start(guard, pending, hurried)
        assert hurried.breaker.state is BreakerState.OPEN

    run_virtual(story())


def test_the_callers_cancel_blames_nobody_and_returns_the_probes_place() -> None:
    async def story() -> None:
        guard, notes = make_guard()
        target = guard.target("peer", "node2:9002", "fast")
        for _ in range(3):
            with pytest.raises(TargetFailed):
                await start(guard, failing(TargetFailed("reset")), target)
        await asyncio.sleep(1.0)
        probe = start(guard, pending, target)
        with pytest.raises(TargetDown):
            await start(guard, answering(b"x"), target)
        probe.cancel()
        await asyncio.sleep(0)
        assert notes.outcomes[-1] == "cancelled"
        assert await start(guard, answering(b"x"), target) == b"x"
        await asyncio.sleep(0)
        assert target.breaker.state is BreakerState.CLOSED

    run_virtual(story())


def test_more_calls_than_the_row_allows_are_shed() -> None:
    async def story() -> None:
        guard, _ = make_guard()
        calls = [start(guard, answering(b"x"), max_running=3) for _ in range(3)]
        with pytest.raises(Shed):
            await start(guard, answering(b"x"), max_running=3)
        assert await asyncio.gather(*calls) == [b"x"] * 3
        await asyncio.sleep(0)
        assert await start(guard, answering(b"x"), max_running=3) == b"x"

    run_virtual(story())


def test_calls_that_fail_at_once_in_a_circle_are_judged_at_once() -> None:
    """Awaiting a future that is done does not let the loop run: the judgement must not need it."""

    async def story() -> None:
        guard, _ = make_guard()
        target = guard.target("peer", "node2:9002", "fast")

        def refused() -> asyncio.Future[bytes]:
            future = pending()
            future.set_exception(TargetFailed("not connected"))
            return future

        raised: list[type[BaseException]] = []
        for _ in range(4):
            try:
                await start(guard, refused, target, max_running=2)
            except HoldfastError as error:
                raised.append(type(error))
        assert raised == [TargetFailed] * 3 + [TargetDown]

    run_virtual(story())


def test_an_error_that_begin_raises_is_an_outcome_like_any_other() -> None:
    async def story() -> None:
        guard, notes = make_guard()

        def begin() -> asyncio.Future[bytes]:
            raise Shed("the queue is full")

        with pytest.raises(Shed):
            await start(guard, begin)
        assert notes.outcomes == ["shed"]

    run_virtual(story())


def test_a_dead_verdict_fails_everything_that_waits_for_that_peer_only() -> None:
    async def story() -> None:
        guard, _ = make_guard()
        lost = [guard.target("peer", "node2:9002", lane) for lane in ("fast", "lock")]
        other = guard.target("peer", "node3:9002", "fast")
        waiting = [start(guard, pending, target) for target in lost for _ in range(3)]
        kept = start(guard, answering(b"x", 1.0), other)
        await asyncio.sleep(0.1)
        began = guard.clock.monotonic()
        guard.fail_waiting("node2:9002")
        for call in waiting:
            with pytest.raises(TargetDown):
                await call
        assert guard.clock.monotonic() == began
        assert await kept == b"x"
        for target in lost:
            assert target.breaker.state is BreakerState.OPEN and not target.waiting
        await asyncio.sleep(30)
        with pytest.raises(TargetDown):  # time alone does not reopen it
            await start(guard, answering(b"x"), lost[0])
        guard.allow("node2:9002")
        assert lost[0].breaker.state is BreakerState.HALF_OPEN
        assert await start(guard, answering(b"x"), lost[0]) == b"x"
        await asyncio.sleep(0)
        assert lost[0].breaker.state is BreakerState.CLOSED

    run_virtual(story())


def test_a_link_that_opens_closes_the_breaker_unless_the_peer_is_declared_dead() -> None:
    async def story() -> None:
        guard, _ = make_guard()
        target = guard.target("peer", "node2:9002", "fast")
        for _ in range(3):
            with pytest.raises(TargetFailed):
                await start(guard, failing(TargetFailed("reset")), target)
        guard.probe_succeeded(target)
        assert target.breaker.state is BreakerState.CLOSED
        guard.fail_waiting("node2:9002")
        guard.probe_succeeded(target)
        assert target.breaker.state is BreakerState.OPEN
        guard.allow("node2:9002")
        guard.probe_succeeded(target)
        assert target.breaker.state is BreakerState.CLOSED

    run_virtual(story())


def test_the_hook_keeps_a_breaker_closed() -> None:
    async def story() -> None:
        guard, _ = make_guard()
        asked: list[str] = []

        def may_open(target: Target) -> bool:
            asked.append(target.name)
            return target.name != "node2:9002"

        guard.ask_before_opening(may_open)
        kept = guard.target("peer", "node2:9002", "fast")
        opened = guard.target("peer", "node3:9002", "fast")
        for target in (kept, opened):
            for _ in range(3):
                with pytest.raises(TargetFailed):
                    await start(guard, failing(TargetFailed("reset")), target)
        assert kept.breaker.state is BreakerState.CLOSED
        assert opened.breaker.state is BreakerState.OPEN
        assert asked == ["node2:9002", "node3:9002"]

    run_virtual(story())


def test_switched_off_it_is_not_there() -> None:
    async def story() -> None:
        guard, notes = make_guard(enabled=False)
        assert await start(guard, answering(b"x"), deadline_s=-1.0) == b"x"
        assert notes.outcomes == []

    run_virtual(story())
