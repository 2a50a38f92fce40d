"""Guard.run: the whole order around a coroutine, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from node.errors import (
    ClientError,
    DeadlineExceeded,
    NoSuchKey,
    QuorumLost,
    Shed,
    TargetDown,
    TargetFailed,
)
from node.guard.breaker import BreakerState
from node.guard.guard import Guard, Target
from tests.unit.guard_world import make_guard, policy
from tests.unit.locks_world import run_virtual


class Attempts:
    """A coroutine function that fails as told, then answers; notes when each attempt began."""

    def __init__(self, guard: Guard, *errors: Exception, takes_s: float = 0.1) -> None:
        self.began: list[float] = []
        self._guard = guard
        self._errors = list(errors)
        self._takes_s = takes_s
        self._first = guard.clock.monotonic()

    async def __call__(self, deadline: float) -> str:
        now = self._guard.clock.monotonic()
        assert deadline > now
        self.began.append(round(now - self._first, 6))
        await asyncio.sleep(self._takes_s)
        if self._errors:
            raise self._errors.pop(0)
        return "done"


async def run(
    guard: Guard,
    attempts: Attempts,
    target: Target | None = None,
    deadline_s: float = 60.0,
    **changes: object,
) -> str:
    return await guard.run(
        "job",
        "heal",
        policy(**changes),
        target,
        attempts,
        deadline=guard.clock.monotonic() + deadline_s,
    )


def test_one_attempt_that_works() -> None:
    async def story() -> None:
        guard, notes = make_guard()
        assert await run(guard, Attempts(guard)) == "done"
        assert notes.outcomes == ["ok"]

    run_virtual(story())


def test_retries_pause_as_the_policy_says() -> None:
    async def story() -> None:
        guard, notes = make_guard()
        attempts = Attempts(guard, TargetFailed(), QuorumLost(), DeadlineExceeded())
        assert (
            await run(guard, attempts, attempt_s=1.0, retries=3, backoff_s=(0.1, 0.2, 0.4))
            == "done"
        )
        assert attempts.began == [0.0, 0.2, 0.5, 1.0]
        assert notes.outcomes == ["retried"] * 3 + ["ok"]

    run_virtual(story())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"retries": 3, "backoff_s": (0.1,) * 3, "idempotent": False}, TargetFailed()),
        ({"retries": 0}, TargetFailed()),
        ({"retries": 3, "backoff_s": (0.1,) * 3}, NoSuchKey()),
        ({"retries": 3, "backoff_s": (0.1,) * 3}, TargetDown()),
        ({"retries": 3, "backoff_s": (0.1,) * 3}, Shed()),
        ({"retries": 3, "backoff_s": (99.0,) * 3}, TargetFailed()),
    ],
)
def test_some_failures_are_final(changes: dict[str, object], error: Exception) -> None:
    async def story() -> None:
        guard, _ = make_guard()
        attempts = Attempts(guard, error)
        with pytest.raises(type(error)):
            await run(guard, attempts, **changes)
        assert len(attempts.began) == 1

    run_virtual(story())


def test_when_everything_fails_retries_run_out_of_budget() -> None:
    async def story() -> None:
        guard, notes = make_guard()
        for _ in range(100):
            with pytest.raises(TargetFailed):
                await run(
                    guard, Attempts(guard, *[TargetFailed()] * 9), retries=3, backoff_s=(0.1,) * 3
                )
        retried = notes.outcomes.count("retried")
        assert 15 <= retried <= 20, "ten saved up, and one for each ten calls"

    run_virtual(story())


def test_an_attempt_and_the_whole_are_bounded() -> None:
    async def story() -> None:
        guard, notes = make_guard()
        began = guard.clock.monotonic()
        attempts = Attempts(guard, takes_s=1e6)
        with pytest.raises(DeadlineExceeded):
            await run(guard, attempts, attempt_s=2.0, total_s=5.0, retries=5, backoff_s=(0.1,) * 5)
        assert guard.clock.monotonic() - began <= 5.0 + 1e-6
        assert attempts.began == [0.0, 2.1, 4.2]
        assert notes.outcomes[-1] == "timeout"

    run_virtual(story())


def test_the_callers_deadline_rules_when_it_is_earlier() -> None:
    async def story() -> None:
        guard, _ = make_guard()
        began = guard.clock.monotonic()
        with pytest.raises(DeadlineExceeded):
            await run(guard, Attempts(guard, takes_s=1e6), deadline_s=0.3)
        assert guard.clock.monotonic() - began == pytest.approx(0.3)
        with pytest.raises(DeadlineExceeded):
            await run(guard, Attempts(guard), deadline_s=0.0)

    run_virtual(story())


def test_a_timeout_inside_the_attempt_is_not_taken_for_its_bound() -> None:
    async def story() -> None:
        guard, _ = make_guard()
        with pytest.raises(TimeoutError):
            await run(guard, Attempts(guard, TimeoutError("somebody else's")))

    run_virtual(story())


def test_those_beyond_running_and_waiting_are_shed_and_the_line_moves() -> None:
    async def story() -> None:
        guard, notes = make_guard()
        rows = {"max_running": 2, "max_waiting": 2}
        runs = [
            asyncio.ensure_future(run(guard, Attempts(guard, takes_s=1.0), **rows))
            for _ in range(5)
        ]
        results = await asyncio.gather(*runs, return_exceptions=True)
        assert results[:4] == ["done"] * 4
        assert isinstance(results[4], Shed)
        assert sorted(notes.outcomes) == ["ok"] * 4 + ["shed"]

    run_virtual(story())


def test_who_waits_for_a_place_waits_no_longer_than_the_deadline() -> None:
    async def story() -> None:
        guard, _ = make_guard()
        rows = {"max_running": 1, "max_waiting": 5}
        first = asyncio.ensure_future(run(guard, Attempts(guard, takes_s=1.5), **rows))
        await asyncio.sleep(0)
        began = guard.clock.monotonic()
        with pytest.raises(Shed):
            await run(guard, Attempts(guard), deadline_s=0.5, **rows)
        assert guard.clock.monotonic() - began == pytest.approx(0.5)
        assert await first == "done"
        assert await run(guard, Attempts(guard), **rows) == "done", "the place was given back"

    run_virtual(story())


def test_a_cancel_in_the_line_leaks_no_place() -> None:
    async def story() -> None:
        guard, notes = make_guard()
        rows = {"max_running": 1, "max_waiting": 5}
        first = asyncio.ensure_future(run(guard, Attempts(guard, takes_s=1.0), **rows))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(run(guard, Attempts(guard), **rows))
        await asyncio.sleep(0.5)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert await first == "done"
        assert await run(guard, Attempts(guard), **rows) == "done"
        assert notes.outcomes == ["cancelled", "ok", "ok"]

    run_virtual(story())


def test_a_target_that_fails_is_refused_and_a_client_error_is_an_answer() -> None:
    async def story() -> None:
        guard, _ = make_guard()
        drive = guard.target("drive", "disk1", "drive")
        for _ in range(5):
            with pytest.raises(ClientError):
                await run(guard, Attempts(guard, NoSuchKey()), drive)
        assert drive.breaker.state is BreakerState.CLOSED
        for _ in range(3):
            with pytest.raises(DeadlineExceeded):
                await run(guard, Attempts(guard, takes_s=1e6), drive)
        assert drive.breaker.state is BreakerState.OPEN
        attempts = Attempts(guard)
        with pytest.raises(TargetDown):
            await run(guard, attempts, drive)
        assert not attempts.began

    run_virtual(story())


def test_an_expiry_further_in_is_not_blamed_on_this_target() -> None:
    async def story() -> None:
        guard, _ = make_guard()
        target = guard.target("drive", "disk1", "drive")
        for _ in range(5):
            with pytest.raises(DeadlineExceeded):
                await run(guard, Attempts(guard, DeadlineExceeded("of a peer")), target)
        assert target.breaker.state is BreakerState.CLOSED

    run_virtual(story())


def test_a_dead_verdict_ends_a_run_at_once() -> None:
    async def story() -> None:
        guard, _ = make_guard()
        target = guard.target("peer", "node2:9002", "control")
        running = asyncio.ensure_future(run(guard, Attempts(guard, takes_s=1e6), target))
        await asyncio.sleep(0.1)
        began = guard.clock.monotonic()
        guard.fail_waiting("node2:9002")
        with pytest.raises(TargetDown):
            await running
        assert guard.clock.monotonic() == began
        assert not target.waiting

    run_virtual(story())
