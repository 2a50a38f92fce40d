"""Writes in one round: the base is guessed, the lock travels along, and a wrong guess costs a round at most."""

from __future__ import annotations

import asyncio
import collections

import pytest

from locks.messages import Acquire, LockMode, Owner, Release
from node.errors import NoSuchKey, OutcomeUnknown
from node.limits import LOCK_LEASE_S, TOPS_KEPT
from node.objects.tops import Tops
from node.protocol import epoch as ep
from node.protocol import verbs
from tests.fakes.cluster_world import ClusterWorld, simulate
from tests.unit.test_objects_tombstones import collect


class Traffic:
    """Requests between nodes by method, and verbs at the drives by name."""

    def __init__(self, world: ClusterWorld) -> None:
        self.sent: collections.Counter[str] = collections.Counter()
        self.asked: collections.Counter[str] = collections.Counter()

        def on_send(_sender: str, _target: str, what: str) -> None:
            self.sent[what] += 1

        world.on_send = on_send
        for disk in (disk for disks in world.disks.values() for disk in disks):
            disk.refuse = self._count

    def _count(self, verb: verbs.Verb) -> None:
        self.asked[type(verb).__name__] += 1

    def clear(self) -> None:
        self.sent.clear()
        self.asked.clear()


async def everywhere(world: ClusterWorld, key: str = "k") -> set[bytes]:
    return {await world.get(key, at=node) for node in (1, 2, 3, 4)}


def test_a_new_key_and_the_next_writes_of_its_node_take_one_round() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("other", b"v")  # the bucket's document has been read
        traffic = Traffic(world)
        for value in (b"one", b"two", b"three"):
            traffic.clear()
            await world.put("k", value)
            assert traffic.asked["Commit"] == 16 and not traffic.asked["Read"]
            assert traffic.sent["COMMIT"] == 3 and not traffic.sent["PREPARE"]
            await asyncio.sleep(1)
        traffic.clear()
        await world.delete("k")
        assert traffic.asked["Commit"] == 16 and not traffic.asked["Read"]
        await asyncio.sleep(1)
        with pytest.raises(NoSuchKey):
            await world.get("k", at=3)
        assert all(node.engine.locks.table.size == 0 for node in world.nodes.values())

    simulate(story)


def test_what_another_node_wrote_is_never_lost_to_a_guess() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        traffic = Traffic(world)
        for turn in range(40):
            at, value = 1 + turn % 4, f"{turn}".encode()
            traffic.clear()
            await world.put("k", value, at=at)
            assert traffic.asked["Commit"] <= 32, (
                "one wrong guess, then the tops that were refused with"
            )
            assert await everywhere(world) == {value}
            await asyncio.sleep(0.5)
        # By now every node has been wrong so often that it asks first.
        assert traffic.asked["Commit"] == 16 and traffic.sent["PREPARE"] == 3
        for _ in range(20):  # alone again: what it remembers is right again
            await world.put("k", b"mine", at=2)
            await asyncio.sleep(0.5)
        traffic.clear()
        await world.put("k", b"mine", at=2)
        assert not traffic.sent["PREPARE"]

    simulate(story)


def test_floors_raised_by_other_keys_do_not_spoil_the_guess_for_long() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for turn in range(3):
            await world.put(f"old{turn}", b"v")
            await asyncio.sleep(1)
            await world.delete(f"old{turn}")
            await asyncio.sleep(1)
            await collect(world, f"old{turn}")
        drives = [drive for node in world.nodes.values() for drive in node.drives]
        assert all(drive.catalog.floor > ep.ZERO for drive in drives), "no tombstone was collected"
        traffic = Traffic(world)
        for turn in range(12):
            await world.put(f"new{turn}", b"v")
            await asyncio.sleep(0.2)
        traffic.clear()
        await world.put("newest", b"v")
        assert not traffic.sent["PREPARE"] and traffic.asked["Commit"] == 16

    simulate(story)


def hold(world: ClusterWorld, numbers: tuple[int, ...]) -> Owner:
    """Somebody takes the lock of bucket/k at these nodes' lock servers."""
    owner = Owner(world.names[3], world.node(4).life.incarnation, 99)
    now = asyncio.get_running_loop().time()
    for number in numbers:
        table = world.node(number).engine.locks.table
        table.acquire(Acquire(("object:bucket/k",), LockMode.WRITE, owner, 1.0), now)
    return owner


def let_go(world: ClusterWorld, owner: Owner) -> None:
    now = asyncio.get_running_loop().time()
    for node in world.nodes.values():
        node.engine.locks.table.release(Release(("object:bucket/k",), owner), now)


@pytest.mark.parametrize("held", [(1, 2, 3, 4), (2, 3, 4), (3, 4), (4,)])
def test_a_holder_is_waited_for_and_its_drives_are_left_alone(held: tuple[int, ...]) -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("other", b"v")
        traffic = Traffic(world)
        owner = hold(world, held)
        writing = asyncio.ensure_future(world.put("k", b"mine"))
        await asyncio.sleep(0.02)
        if len(held) > 1:
            assert not writing.done()
            assert traffic.asked["Commit"] == 16 - 4 * len(held)
        let_go(world, owner)
        await writing
        await asyncio.sleep(3)
        assert traffic.asked["Commit"] == 16
        assert await everywhere(world) == {b"mine"}
        assert all(node.engine.locks.table.size == 0 for node in world.nodes.values())

    simulate(story)


def test_a_lock_that_is_never_had_leaves_the_outcome_open_but_the_same_for_all() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", b"old")
        await asyncio.sleep(1)
        hold(world, (3, 4))  # refreshed by nobody: gone after a lease
        with pytest.raises(OutcomeUnknown):
            await world.put("k", b"new")
        seen = await everywhere(world)
        assert seen in ({b"old"}, {b"new"})
        await asyncio.sleep(LOCK_LEASE_S)
        await world.put("k", b"last", at=3)
        await asyncio.sleep(1)
        assert await everywhere(world) == {b"last"}

    simulate(story)


def test_two_writers_that_split_the_lock_servers_both_end_well() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("other", b"v", at=1)
        await world.put("other2", b"v", at=4)
        for turn in range(6):
            key = f"k{turn}"
            await asyncio.gather(world.put(key, b"one", at=1), world.put(key, b"four", at=4))
            await asyncio.sleep(1)
            seen = {await world.get(key, at=node) for node in (1, 2, 3, 4)}
            assert len(seen) == 1

    simulate(story)


def test_the_memory_is_bounded_and_begins_with_trust() -> None:
    tops = Tops()
    for number in range(TOPS_KEPT + 10):
        tops.wrote(b"b\0%d" % number, ep.make(1, bytes(16)), is_object=True)
    assert tops.guess(0, "b", b"b\0%d" % 5).base == ep.ZERO, "the oldest went"
    guess = tops.guess(0, "b", b"b\0%d" % 15)
    assert guess.likely and guess.base == ep.make(1, bytes(16))
    for _ in range(5):
        tops.judged(guess, right=False)
    assert not tops.guess(0, "b", b"b\0%d" % 15).likely
    assert tops.guess(0, "b", b"b\0new").likely, "keys that are new are counted by themselves"
    tops.floor(0, ep.make(2, b"\x07" * 16))
    assert tops.guess(0, "b", b"b\0new").base > ep.make(2, b"\xff" * 16)
    assert tops.guess(1, "b", b"b\0new").base == ep.ZERO


def test_an_attempt_keeps_the_view_that_it_began_with() -> None:
    """Votes of drives from before and after a replacement never add up to a quorum."""

    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("other", b"v")
        views: set[int] = set()

        def note(verb: verbs.Verb) -> None:
            if isinstance(verb, verbs.Commit):
                views.add(verb.view)

        owner = hold(world, (3, 4))
        for disk in (disk for disks in world.disks.values() for disk in disks):
            disk.refuse = note
        writing = asyncio.ensure_future(world.put("k", b"mine"))
        await asyncio.sleep(0.02)
        assert views == {0}
        world.node(1).engine.cluster.views[0].number = 1  # as a replacement would make it
        let_go(world, owner)
        await writing
        assert views == {0}

    simulate(story)
