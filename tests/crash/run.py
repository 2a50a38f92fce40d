"""Plays a story, cuts the power at one point of it, and lets the checkers look.

python -m tests.crash STORY[@POINT]      one run again, told line by line; without a point its events
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any
from unittest import mock

from node.errors import HoldfastError, Unavailable
from tests.crash import checkers
from tests.crash import story as _sizes
from tests.crash.points import Back, Event, Point, Victim
from tests.crash.story import Story
from tests.crash.world import COORDINATOR, OTHER, CrashWorld, Meter
from tests.fakes.cluster_world import TICKET_S, Dark, simulate_with

QUIET_S = 5.0  # after it every flag is durable and nothing of the preparation is under way
TAIL_S = 1.5  # what a request does behind its answer, with the last lazy flush
_SIZES = {
    "node.objects.multipart.MIN_PART_BYTES": _sizes.PART_BYTES,
    "node.objects.put.STRIPE_DATA_BYTES": _sizes.STRIPE_BYTES,
    "node.objects.put.INLINE_SHARD_BYTES": _sizes.INLINE_SHARD_BYTES,
    "node.store.drive_gate.DRIVE_STATE_CHECK_S": 30.0,  # no story is about the watch over drives
}
PATIENCE_S = 5.0  # of who looks while nodes are dark
SETTLED_S = 11.0  # then every lease that nobody refreshes is over


@dataclass(slots=True)
class Outcome:
    """What the client was told."""

    acknowledged: bool = False
    promised: str = "new"
    dark: bool = False
    error: Exception | None = None
    took_s: float = 0.0


def metered(victim: Victim) -> int:
    return OTHER if victim is Victim.OTHER else COORDINATOR


async def act(world: CrashWorld, story: Story) -> Outcome:
    outcome = Outcome()
    began = world.clock.monotonic()
    try:
        promised = await story.act(world)
        outcome.acknowledged = True
        outcome.promised = promised or "new"
    except Dark:
        outcome.dark = True
    except HoldfastError as error:
        outcome.error = error
    outcome.took_s = world.clock.monotonic() - began
    return outcome


async def play(world: CrashWorld, story: Story, meter: Meter) -> Outcome:
    """The story alone, up to what it does behind its answer."""
    world.meters.append(meter)
    await story.prepare(world)
    await asyncio.sleep(QUIET_S)
    meter.counting = True
    outcome = await act(world, story)
    await asyncio.sleep(TAIL_S)
    if meter.point is None:
        meter.counting = False
    world.trace(f"the client got {_told(outcome)}")
    return outcome


async def check(
    world: CrashWorld,
    story: Story,
    point: Point | None,
    outcome: Outcome,
    seen: checkers.Seen | None = None,
) -> None:
    """Everything that has to hold from here on, whoever comes back when."""
    checkers.ended_in_time(outcome.took_s, TICKET_S)
    if seen is None:
        seen = _expected(story, point, outcome)
    if point is not None and point.back is Back.LATE and world.lit():
        await checkers.look(world, story, seen, "at the first look")
    if story.retry is not None and not outcome.acknowledged:
        await story.retry(world)
        outcome = Outcome(acknowledged=True)
        seen = _expected(story, point, outcome)
    await world.all_on()
    await checkers.look(world, story, seen, "with every node back")
    await world.mend()
    await checkers.look(world, story, seen, "after repair", final=True)
    if story.last is not None:
        await story.last(world)
        await world.mend()
    if story.has_upload:
        await world.sweep_uploads()
    await asyncio.sleep(SETTLED_S)
    checkers.locks_free(world)
    checkers.buffers_free(world)
    await checkers.whole(world)
    world.age()
    checkers.no_leftovers(world)
    checkers.registers_agree(world)
    checkers.no_orphaned_parts(world)


def _expected(
    story: Story, point: Point | None, outcome: Outcome, *, two: bool = False
) -> checkers.Seen:
    if outcome.acknowledged:
        # Who was shown the old state was promised nothing: a write under way may still come.
        names = list(story.states)
        may_be = [story.states[name] for name in names[names.index(outcome.promised) :]]
        return checkers.Seen(story, may_be, f"{outcome.promised} was acknowledged")
    if not two and (point is None or point.victim is Victim.OTHER):
        raise AssertionError(
            f"the request failed though its node was well: {outcome.error!r}"
        ) from outcome.error
    if outcome.error is not None and not isinstance(outcome.error, Unavailable):
        raise AssertionError(f"the client was told {outcome.error!r}") from outcome.error
    return checkers.Seen(story, story.states.values(), "nobody knows the outcome")


def _told(outcome: Outcome) -> str:
    if outcome.acknowledged:
        return f"its answer after {outcome.took_s:.3f} s"
    return "no answer" if outcome.dark else f"{outcome.error!r} after {outcome.took_s:.1f} s"


# ---- one run -----------------------------------------------------------------------------------------
def events_of(story: Story, victim: Victim) -> list[Event]:
    """The story with nothing broken: what happens at the node that will lose power. It must succeed."""
    found: list[Event] = []

    async def run(world: CrashWorld) -> None:
        meter = Meter(world, metered(victim))
        outcome = await play(world, story, meter)
        if not outcome.acknowledged:
            raise AssertionError("the story fails by itself") from outcome.error
        found.extend(meter.events)

    _simulate(run, story)
    return found


def crash(story: Story, point: Point | None, trace: Any = None) -> None:
    """One run, without a point one where nothing breaks. AssertionError says what was wrong, and a note how to
    run it again."""

    async def run(world: CrashWorld) -> None:
        if trace is not None:
            world.trace = trace
        meter = Meter(world, COORDINATOR if point is None else metered(point.victim), point)
        outcome = await play(world, story, meter)
        assert point is None or meter.cut, "the story has no such point"
        await check(world, story, point, outcome)

    try:
        _simulate(run, story)
    except BaseException as error:
        error.add_note(f"again: python -m tests.crash {story.name}@{point}")
        raise


# ---- two of them ---------------------------------------------------------------------------------------
def crash_twice(story: Story, first: Point, second: Point, trace: Any = None) -> None:
    """A second power-off, counted from the first one on: in what is left of the request, in a node's return, in
    reads, in settlement or in repair. While nodes are dark, 503 is an answer; contradictions are not."""

    async def run(world: CrashWorld) -> None:
        if trace is not None:
            world.trace = trace
        meter, other = (
            Meter(world, metered(first.victim), first),
            Meter(world, metered(second.victim), second),
        )
        world.meters.append(other)
        meter.on_cut = lambda: setattr(other, "counting", True)
        outcome = await play(world, story, meter)
        assert meter.cut, "the story has no such point"
        seen = _expected(story, first, outcome, two=True)
        if first.back is Back.EARLY:
            await _tolerant(world.all_on())
        for number in world.lit():
            await _tolerant(_look_once(world, story, seen, number))
        await _tolerant(world.all_on())
        for node in world.up():
            await _tolerant(world.spawn(node.life, node.engine.settler.round()))
            await _tolerant(world.spawn(node.life, node.engine.repairs.round()))
        other.counting = False
        await world.all_on()
        await check(world, story, None, outcome, seen)

    try:
        _simulate(run, story)
    except BaseException as error:
        error.add_note(f"again: python -m tests.crash {story.name}@{first}+{second}")
        raise


async def _look_once(world: CrashWorld, story: Story, seen: checkers.Seen, number: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        seen.add(await story.look(world, number), f"node {number}, between two power-offs,")


async def _tolerant(work: Awaitable[object]) -> None:
    """Nodes lose power under it."""
    try:
        await work
    except (Dark, Unavailable, TimeoutError):
        return
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise


def failures_of_pairs(story: Story, pairs: Iterable[tuple[Point, Point]]) -> list[str]:
    return _complaints(lambda pair: crash_twice(story, *pair), pairs)


def failures(story: Story, points: Iterable[Point]) -> list[str]:
    """What every one of these runs had to complain of; for another process, so as text."""
    return _complaints(lambda point: crash(story, point), points)


def _complaints(run: Callable[[Any], None], cases: Iterable[Any]) -> list[str]:
    found = []
    for case in cases:
        try:
            run(case)
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}\n  " + "\n  ".join(error.__notes__))
    return found


def _simulate(run: Any, story: Story) -> None:
    # Thousands of small worlds: the collector would look at all that is alive for each of them.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with contextlib.ExitStack() as stack:
            for name, value in _SIZES.items():
                stack.enter_context(mock.patch(name, value))
            simulate_with(CrashWorld, run, **story.options)
    finally:
        if collecting:
            gc.enable()
