"""Each checker is red on a store that breaks its rule: a checker that was never red counts for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from locks.messages import LockMode
from node.errors import OutcomeUnknown, Undecided
from node.objects.heal import Healed, Healer
from node.objects.listing import Lister
from node.objects.lookup import Lookup
from node.objects.multipart import Multipart
from node.peer.storage import ShardReceiver
from node.protocol import register as reg
from node.protocol import verbs
from node.protocol.judge import Outcome, Verdict, judge
from node.protocol.record import Kind
from node.protocol.verbs import DriveFault
from node.runtime.drive.catalog import Catalog
from node.runtime.drive.keys import Keys
from tests.crash import checkers
from tests.crash.drive import CrashDrive
from tests.crash.points import Back, Point, Unsynced, Victim, When
from tests.crash.run import crash, events_of
from tests.crash.stories import STORIES
from tests.crash.story import SMALL_NEW, SMALL_OLD, Story, object_seen
from tests.crash.world import COORDINATOR, OTHER, CrashWorld
from tests.fakes.cluster_world import Life
from tests.unit.test_objects_everyday import content


def moment(label: str, victim: Victim, name: str = "put-inline", nth: int = 0) -> Point:
    """Right before the n-th event whose label begins so; what is unsynced is lost."""
    events = [e for e in events_of(STORIES[name], victim) if e.label.startswith(label)]
    event = events[nth]
    return Point(victim, event.kind, event.k, When.BEFORE, Unsynced.LOST, Back.LATE)


def complaint(story: Story, point: Point | None) -> str:
    with pytest.raises(Exception) as caught:
        crash(story, point)
    return f"{type(caught.value).__name__}: {caught.value}"


# ---- acknowledged means there --------------------------------------------------------------------------
def test_without_sync_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    story, point = STORIES["overwrite-inline"], moment("FINISH to", Victim.ALL, "overwrite-inline")
    crash(story, point)
    commit = Keys.commit
    monkeypatch.setattr(Keys, "commit", lambda self, verb: (commit(self, verb)[0], False))
    assert "shows old, not one of ['new']: new was acknowledged" in complaint(story, point)


# ---- once seen, for ever ---------------------------------------------------------------------------------
def late_commits(world: CrashWorld, number: int) -> Callable[[], None]:
    """Holds back the commits of a node on the wire; -> what lets them go."""
    deliver: Any = world.deliver
    held: list[tuple[Any, ...]] = []

    def hold(life: Life, peer: str, method: Any, *rest: Any) -> asyncio.Future[bytes]:
        if method.name == "COMMIT" and life.name == world.names[number - 1]:
            held.append((life, peer, method, *rest))
            never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            return never
        answer: asyncio.Future[bytes] = deliver(life, peer, method, *rest)
        return answer

    world.deliver = hold  # type: ignore[method-assign]

    def let_go() -> None:
        world.deliver = deliver  # type: ignore[method-assign]
        for *message, _expired in held:
            deliver(*message, world.clock.monotonic() + 3.0)

    return let_go


async def _a_commit_is_on_its_way(world: CrashWorld) -> None:
    """To all drives but those of its coordinator, which refused it; it travels for minutes.

    Its epoch is above that of the write that comes next: same number, higher attempt.
    """
    await world.bucket()
    await world.put("k", SMALL_OLD)
    world.notes["let go"] = late_commits(world, OTHER)
    own = world.disks[world.names[OTHER - 1]]
    for disk in own:
        disk.refuse = lambda verb: DriveFault.IO if isinstance(verb, verbs.Commit) else None
    with pytest.raises(OutcomeUnknown):
        await world.put("k", content(1_000, 9), at=OTHER)
    for disk in own:
        disk.refuse = lambda verb: None


async def _put_then_it_arrives(world: CrashWorld) -> None:
    await world.put("k", SMALL_NEW, at=COORDINATOR)
    world.notes["let go"]()
    await asyncio.sleep(1.0)


def test_without_the_base_check_at_the_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(
        name="on-its-way",
        prepare=_a_commit_is_on_its_way,
        act=_put_then_it_arrives,
        look=object_seen,
        states={"old": SMALL_OLD, "new": SMALL_NEW},
    )
    crash(story, None)
    monkeypatch.setattr(reg, "commit", _accept_anything)
    assert "not one of ['new']: new was acknowledged" in complaint(story, None)


def _accept_anything(
    register: reg.Register, floor: bytes, base: bytes, entry: reg.Entry
) -> tuple[reg.Register, bool]:
    entries = tuple(sorted((*register.entries, entry), key=lambda e: e.epoch))
    return reg.Register(max(register.top, entry.epoch), entries), True


async def _half_deleted(world: CrashWorld) -> None:
    """Only node 4's drives have the tombstone, and nobody knows."""
    await world.bucket()
    await world.put("k", SMALL_OLD)
    late_commits(world, 4)
    with pytest.raises(OutcomeUnknown):
        await world.delete("k", at=4)


async def _read_there(world: CrashWorld) -> str:
    return "old" if await object_seen(world, 4) == SMALL_OLD else "new"


HALF_DELETED = Story(
    name="half-deleted",
    prepare=_half_deleted,
    act=_read_there,
    look=object_seen,
    states={"old": SMALL_OLD, "new": None},
)


def test_without_the_decided_check_of_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    crash(HALF_DELETED, None)

    def believe(*arguments: Any, **options: Any) -> Verdict:
        verdict = judge(*arguments, **options)
        if verdict.outcome is Outcome.UNKNOWN:
            return replace(verdict, outcome=Outcome.VERSION)
        return verdict

    monkeypatch.setattr("node.objects.lookup.judge", believe)
    assert "shows old, not one of ['new']" in complaint(HALF_DELETED, None)


def test_without_settlement(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise Undecided("nobody settles anything")

    monkeypatch.setattr(Lookup, "_settle", refuse)
    assert "nobody settles anything" in complaint(HALF_DELETED, None)


def test_once_seen_and_then_gone() -> None:
    story = STORIES["put-inline"]
    seen = checkers.Seen(story, story.states.values(), "nobody knows")
    seen.add(None, "node 1")
    seen.add(SMALL_NEW, "node 2")
    with pytest.raises(AssertionError, match="node 2 showed new, node 3 shows old"):
        seen.add(None, "node 3")
    with pytest.raises(AssertionError, match="bytes that nobody wrote"):
        seen.add(SMALL_NEW[:-1] + b"!", "node 4")
    final = checkers.Seen(story, story.states.values(), "nobody knows")
    final.add(None, "node 1")
    final.final = True
    with pytest.raises(AssertionError, match="then gone"):
        final.add(SMALL_NEW, "node 2")


# ---- one truth ---------------------------------------------------------------------------------------------
def test_a_listing_that_believes_what_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    story, point = STORIES["put-inline"], moment("COMMIT to node3", Victim.COORDINATOR)
    crash(story, point)

    async def believe(self: Lister, view: Any, bucket: str, entry: Any, deadline: float) -> Any:
        return entry if entry.kind == Kind.OBJECT else None

    monkeypatch.setattr(Lister, "_settled", believe)
    assert "disagree" in complaint(story, point)


# ---- in time, and nothing held -----------------------------------------------------------------------------
def acting(act: Callable[[CrashWorld], Awaitable[Any]], name: str = "put-inline") -> Story:
    """A story with something else done after its request."""
    story = STORIES[name]

    async def both(world: CrashWorld) -> None:
        await story.act(world)
        await act(world)

    return replace(story, act=both)


def test_a_request_without_end() -> None:
    story = acting(lambda world: asyncio.sleep(100.0))
    assert "the request took 100" in complaint(story, None)


def test_a_lock_that_nobody_releases() -> None:
    async def lock(world: CrashWorld) -> None:
        service = world.node(COORDINATOR).engine.lock_service
        await world.on(
            COORDINATOR,
            lambda o, d: service.acquire(("object:bucket/other",), LockMode.WRITE, d, "object"),
        )

    assert "still locks ['object:bucket/other']" in complaint(acting(lock), None)


def test_a_buffer_that_nobody_releases() -> None:
    async def keep(world: CrashWorld) -> None:
        assert world.node(3).arena.try_alloc(4096) is not None

    assert "bytes of buffers" in complaint(acting(keep), None)


# ---- nothing left over -------------------------------------------------------------------------------------
def test_staged_files_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Catalog, "drop_staged", lambda self, data_id: None)
    assert "staged file" in complaint(STORIES["put-large"], None)


def test_half_written_files_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    story, point = STORIES["put-large"], moment("upload data to", Victim.COORDINATOR, "put-large")
    crash(story, point)
    monkeypatch.setattr(ShardReceiver, "abort", lambda self: None)
    monkeypatch.setattr(CrashDrive, "housekeep", lambda self, now_s: None)
    assert "half-written file" in complaint(story, point)


def test_flags_that_do_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keys, "_mark", lambda self, key, epoch, missed: None)
    assert "repair does not end" in complaint(STORIES["put-inline"], None)


def test_older_versions_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reg, "decided", lambda register, epoch: (register, ()))
    assert "is held as" in complaint(STORIES["overwrite-inline"], None)


def test_parts_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object) -> bool:
        return True

    monkeypatch.setattr(Multipart, "clean_up_parts", nothing)
    assert "an upload that has ended left" in complaint(STORIES["complete"], None)


def test_shards_that_stay_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def say_so(self: Healer, view: Any, key: bytes, missed: Any, **_: Any) -> Healed:
        return Healed(frozenset(missed), frozenset())

    monkeypatch.setattr(Healer, "repair", say_so)
    assert "short of shards" in complaint(STORIES["repair"], None)


def test_a_request_that_fails_for_another_node() -> None:
    async def fail(world: CrashWorld) -> None:
        raise OutcomeUnknown("and its own node was well")

    point = moment("COMMIT answer", Victim.OTHER)
    crash(STORIES["put-inline"], point)
    assert "the request failed though its node was well" in complaint(acting(fail), point)
