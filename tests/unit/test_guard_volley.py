"""Guard.volley: one operation asked of several targets at once; and the bounds it stands on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from node.errors import DeadlineExceeded, Shed, TargetDown, TargetFailed
from node.guard.bounds import TICK_S, Bounds
from node.guard.breaker import BreakerState
from node.guard.calls import PENDING, Answered, Send
from node.guard.guard import Guard, Target
from tests.unit.guard_world import LoopClock, Notes, make_guard, policy
from tests.unit.locks_world import run_virtual

LATE_S = 0.25


class World:
    """Four drives; each answers after its delay, with its own name or with an error. None: never."""

    def __init__(self) -> None:
        self.guard: Guard
        self.notes: Notes
        self.guard, self.notes = make_guard()
        self.targets = [self.guard.target("drive", f"/d{i}", "drive") for i in range(4)]
        self.sent: list[str] = []

    def send(self, index: int, after_s: float | None, answer: Any = b"") -> tuple[Target, Send]:
        target = self.targets[index]

        def send(answered: Answered) -> None:
            self.sent.append(target.name)
            if after_s is not None:
                what = answer or target.name.encode()
                asyncio.get_running_loop().call_later(after_s, answered, what)

        return target, send

    def volley(
        self, sends: Sequence[Any], deadline_s: float = 60.0, **changes: object
    ) -> asyncio.Future[list[Any]]:
        return self.guard.volley(
            "drive",
            "Commit",
            policy(**changes),
            sends,
            list,
            late_s=LATE_S,
            deadline=self.guard.clock.monotonic() + deadline_s,
        )

    def states(self) -> list[BreakerState]:
        return [target.breaker.state for target in self.targets]


def test_all_answers_in_order() -> None:
    async def story() -> None:
        world = World()
        sends = [world.send(i, 0.01 * (4 - i)) for i in range(4)]
        assert await world.volley(sends) == [b"/d0", b"/d1", b"/d2", b"/d3"]
        assert world.notes.outcomes == ["ok"] * 4
        assert not any(target.waiting for target in world.targets)

    run_virtual(story())


def test_none_to_ask_is_answered_at_once() -> None:
    async def story() -> None:
        assert await World().volley([]) == []

    run_virtual(story())


def test_a_late_one_does_not_hide_its_neighbours_and_is_judged_all_the_same() -> None:
    async def story() -> None:
        world = World()
        began = world.guard.clock.monotonic()
        sends = [*(world.send(i, 0.01) for i in range(3)), world.send(3, None)]
        for _ in range(3):
            answers = await world.volley(sends)
            assert answers == [b"/d0", b"/d1", b"/d2", PENDING]
        assert world.guard.clock.monotonic() - began == pytest.approx(
            3 * (0.01 + LATE_S), abs=6 * TICK_S
        )
        assert world.states() == [BreakerState.CLOSED] * 4
        await asyncio.sleep(2.5)  # the bound of the late ones
        assert world.states() == [BreakerState.CLOSED] * 3 + [BreakerState.OPEN]
        assert world.notes.outcomes.count("timeout") == 3
        assert not any(target.waiting for target in world.targets)

    run_virtual(story())


def test_nobody_answers() -> None:
    async def story() -> None:
        world = World()
        began = world.guard.clock.monotonic()
        answers = await world.volley([world.send(i, None) for i in range(4)])
        assert all(isinstance(answer, DeadlineExceeded) for answer in answers)
        assert world.guard.clock.monotonic() - began == pytest.approx(2.0, abs=TICK_S)

    run_virtual(story())


def test_one_that_is_known_to_be_down_is_not_asked() -> None:
    async def story() -> None:
        world = World()
        world.targets[1].breaker.force_open()
        gone = TargetDown("hung")
        sends = [world.send(0, 0.01), world.send(1, 0.01), gone, world.send(3, 0.01)]
        answers = await world.volley(sends)
        assert isinstance(answers[1], TargetDown) and answers[2] is gone
        assert (answers[0], answers[3]) == (b"/d0", b"/d3")
        assert world.sent == ["/d0", "/d3"]
        assert sorted(world.notes.outcomes) == ["ok", "ok", "refused", "refused"]

    run_virtual(story())


def test_failures_open_only_the_breaker_of_who_failed() -> None:
    async def story() -> None:
        world = World()
        for _ in range(3):
            answers = await world.volley(
                [world.send(0, 0.01, TargetFailed("gone")), world.send(1, 0.01)]
            )
            assert isinstance(answers[0], TargetFailed) and answers[1] == b"/d1"
        assert world.states()[:2] == [BreakerState.OPEN, BreakerState.CLOSED]

    run_virtual(story())


def test_a_target_declared_dead_ends_its_call_now_and_its_answer_later_changes_nothing() -> None:
    async def story() -> None:
        world = World()
        future = world.volley([world.send(0, 1.0), world.send(1, 0.5)])
        await asyncio.sleep(0.1)
        world.guard.fail_waiting("/d0")
        answers = await future
        assert isinstance(answers[0], TargetDown) and answers[1] is PENDING
        await asyncio.sleep(2.0)
        assert sorted(world.notes.outcomes) == ["ok", "refused"]

    run_virtual(story())


def test_no_time_and_no_place_left() -> None:
    async def story() -> None:
        world = World()
        (late,) = await world.volley([world.send(0, 0.01)], deadline_s=0.0)
        assert isinstance(late, DeadlineExceeded) and not world.sent
        both = await world.volley(
            [world.send(0, 0.01), world.send(1, 0.01)], max_running=1, max_waiting=0
        )
        assert both[0] == b"/d0" and isinstance(both[1], Shed)

    run_virtual(story())


def test_what_the_caller_makes_of_the_answers_may_fail() -> None:
    async def story() -> None:
        world = World()

        def made(_answers: Sequence[Any]) -> None:
            raise ValueError("the caller's")

        deadline = world.guard.clock.monotonic() + 9
        future = world.guard.volley(
            "drive", "Commit", policy(), [world.send(0, 0.01)], made, late_s=1, deadline=deadline
        )
        with pytest.raises(ValueError, match="the caller's"):
            await future
        assert world.notes.outcomes == ["ok"]

    run_virtual(story())


def test_bounds_are_met_in_order_never_early_and_not_when_cancelled() -> None:
    async def story() -> None:
        clock = LoopClock()
        bounds, met = Bounds(clock), []
        began = clock.monotonic()

        def note(name: str) -> None:
            met.append((name, clock.monotonic() - began))
            if name == "b":
                bounds.add(clock.monotonic() + 0.2, lambda: note("again"))

        for name, after_s in (("c", 0.503), ("a", 0.1), ("b", 0.3)):
            bounds.add(began + after_s, lambda name=name: note(name))  # type: ignore[misc]
        gone = bounds.add(began + 0.3, lambda: note("cancelled"))
        gone.cancel()
        gone.cancel()
        await asyncio.sleep(1.0)
        assert [name for name, _ in met] == ["a", "b", "again", "c"]
        for (_, at), due in zip(met, (0.1, 0.3, 0.5, 0.503), strict=True):
            assert -1e-6 <= at - due <= 2 * TICK_S

    run_virtual(story())


def test_calls_that_have_ended_do_not_wake_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    woken = 0
    due = Bounds._due

    def count(self: Bounds) -> None:
        nonlocal woken
        woken += 1
        due(self)

    monkeypatch.setattr(Bounds, "_due", count)

    async def story() -> None:
        clock = LoopClock()
        bounds, met = Bounds(clock), []
        for number in range(100):  # a call every 50 ms, each with a bound of two seconds
            bounds.add(clock.monotonic() + 2.0, lambda: met.append("late")).cancel()
            if number == 60:
                bounds.add(clock.monotonic() + 0.5, lambda: met.append("met"))
            await asyncio.sleep(0.05)
        await asyncio.sleep(3.0)
        assert met == ["met"]
        assert woken <= 5, "the loop is woken for bounds of calls that ended long ago"

    run_virtual(story())
