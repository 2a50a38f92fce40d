"""The settlement job: undecided writes end without a reader, whoever began them; repair below floors and fences."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import pytest

from node.errors import BucketNotEmpty, OutcomeUnknown
from node.limits import MIB, SETTLE_AFTER_S
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from tests.fakes.cluster_world import ClusterWorld, Dark, simulate
from tests.unit.test_objects_everyday import content
from tests.unit.test_objects_tombstones import collect


class Counts:
    """What the job reports, for all nodes of a world."""

    def __init__(self, world: ClusterWorld) -> None:
        self.settled: Counter[str] = Counter()
        self.ages: list[float] = []
        self.depths: list[int] = []
        for node in world.up():
            self.listen(node)

    def listen(self, node: Any) -> None:
        node.metrics.settled = lambda direction: self.settled.update([direction])
        node.metrics.undecided = self._undecided

    def _undecided(self, n: int, oldest_s: float) -> None:
        self.depths.append(n)
        self.ages.append(oldest_s)


async def rounds(world: ClusterWorld) -> None:
    """The settlement job alone, at every node."""
    for node in world.up():
        await world.spawn(node.life, node.engine.settler.round())


def undecided(world: ClusterWorld) -> int:
    return sum(len(drive.catalog.undecided) for node in world.up() for drive in node.drives)


@pytest.mark.parametrize("reached", [3, 16])
def test_an_undecided_write_is_settled_and_counted_once_it_is_old(reached: int) -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", b"old")
        await asyncio.sleep(3)
        counts = Counts(world)
        disks = [disk for disks in world.disks.values() for disk in disks]
        for disk in disks[reached:]:
            disk.refuse = lambda verb: DriveFault.IO if isinstance(verb, verbs.Commit) else None
        world.lose = lambda sender, target, what: what == "COMMIT answer"
        with pytest.raises(OutcomeUnknown):
            await world.put("k", content(MIB))
        world.lose = lambda sender, target, what: False
        for disk in disks:
            disk.refuse = lambda verb: None
        assert undecided(world) == reached
        for node in world.up():
            node.engine.pause.heard(True)  # repair may be paused, settlement is not
        await asyncio.sleep(SETTLE_AFTER_S + 60)
        await rounds(world)
        assert counts.ages[0] >= SETTLE_AFTER_S
        assert counts.depths[0] == 1
        await asyncio.sleep(2)
        await rounds(world)
        await rounds(world)
        assert undecided(world) == 0
        assert counts.depths[-4:] == [0] * 4
        assert counts.ages[-4:] == [0.0] * 4
        assert set(counts.settled) == {"forward" if reached == 16 else "back"}
        assert await world.get("k", at=3) == (content(MIB) if reached == 16 else b"old")

    simulate(story)


def test_a_young_write_is_left_to_its_coordinator() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await asyncio.sleep(3)
        counts = Counts(world)
        world.lose = lambda sender, target, what: what in ("COMMIT answer", "FINISH")
        task = asyncio.ensure_future(world.put("k", b"1"))
        await asyncio.sleep(1)
        await rounds(world)
        assert not counts.settled
        world.lose = lambda sender, target, what: False
        with pytest.raises(OutcomeUnknown):
            await task

    simulate(story)


@pytest.mark.parametrize("step", range(4, 80, 5))
def test_a_coordinator_that_returns_settles_what_it_left(step: int) -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", b"old")
        await asyncio.sleep(5)
        sent = 0

        def count(sender: str, target: str, what: str) -> None:
            nonlocal sent
            if sender == world.names[1]:
                sent += 1
                if sent == step:
                    world.power_off(2)

        world.on_send = count
        with contextlib.suppress(Dark):
            await world.put("k", content(2_000), at=2)
        world.on_send = lambda sender, target, what: None
        if world.node(2).life.alive:
            return
        await world.notice()
        await world.power_on(2)
        await asyncio.sleep(60)
        node = world.node(2)
        await world.spawn(node.life, node.engine.settler.round())
        await asyncio.sleep(2)
        # Its own drives have nothing undecided left; what lies on others only is theirs to settle.
        assert not any(drive.catalog.undecided for drive in node.drives)
        await rounds(world)
        await asyncio.sleep(2)
        assert undecided(world) == 0
        assert len({await world.get("k", at=number) for number in (1, 2, 3, 4)}) == 1

    simulate(story, seed=step)


def test_one_that_cannot_be_settled_stays_counted_and_ages() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", b"old")
        await asyncio.sleep(3)
        disks = [disk for disks in world.disks.values() for disk in disks]
        for disk in disks[9:]:
            disk.refuse = lambda verb: DriveFault.IO if isinstance(verb, verbs.Commit) else None
        world.lose = lambda sender, target, what: what == "COMMIT answer"
        with pytest.raises(OutcomeUnknown):
            await world.put("k", content(2_000))
        world.lose = lambda sender, target, what: False
        # Nine drives hold it; one node of those goes dark, and the others can take no commit.
        world.power_off(1)
        await world.notice()
        counts = Counts(world)
        for _ in range(3):
            await asyncio.sleep(60)
            await rounds(world)
        assert not counts.settled and max(counts.depths) == 1
        assert max(counts.ages) > 180
        assert any(node.engine.settler.status.failed for node in world.up())
        await world.power_on(1)
        for disk in disks:
            disk.refuse = lambda verb: None
        await world.repair()
        assert undecided(world) == 0
        assert await world.get("k", at=4) == content(2_000)

    simulate(story)


def test_an_entry_from_the_future_is_settled_at_once() -> None:
    """The wall clock was set back: nobody waits until it has caught up."""

    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await asyncio.sleep(3)
        world.lose = lambda sender, target, what: what in ("COMMIT answer", "FINISH")
        with pytest.raises(OutcomeUnknown):
            await world.put("k", b"1")
        world.lose = lambda sender, target, what: False
        now = world.clock.now
        world.clock.now = lambda: now() - 86_400  # type: ignore[method-assign]
        await rounds(world)
        await asyncio.sleep(2)
        world.clock.now = now  # type: ignore[method-assign]
        assert undecided(world) == 0
        assert await world.get("k", at=3) == b"1"

    simulate(story)


@pytest.mark.parametrize("size", [3_000, 2 * MIB])
def test_a_key_below_the_floor_is_repaired_though_its_buckets_generation_was_fenced(
    size: int,
) -> None:
    """A DeleteBucket closes the generation, finds the bucket in use and opens it again under a new one."""

    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for disk in world.disks[world.names[3]][:2]:
            disk.refuse = lambda verb: DriveFault.IO if isinstance(verb, verbs.Commit) else None
        await world.put("k", content(size))
        for disk in world.disks[world.names[3]]:
            disk.refuse = lambda verb: None
        for node in world.up():
            node.engine.pause.heard(True)
        for number in range(5):
            await world.put("other", b"%d" % number)
        await world.delete("other")
        await asyncio.sleep(2)
        await collect(world, "other")
        # The first look of DeleteBucket says "empty", the second finds the key.
        lister = world.node(3).engine.objects._parts.lister
        looked = 0
        any_key = lister.any_key

        async def once_blind(bucket: str, **options: Any) -> bool:
            nonlocal looked
            looked += 1
            return looked > 1 and await any_key(bucket, **options)

        lister.any_key = once_blind  # type: ignore[method-assign]
        with pytest.raises(BucketNotEmpty):
            await world.on(3, lambda o, d: o.delete_bucket("bucket", deadline=d))
        lister.any_key = any_key  # type: ignore[method-assign]
        assert (await world.census()).by_shards[14] == 1
        for node in world.up():
            node.engine.pause.heard(False)
        await world.repair()
        census = await world.census()
        assert not census.short, census
        for number in (1, 4):
            assert await world.get("k", at=number) == content(size)

    simulate(story)
