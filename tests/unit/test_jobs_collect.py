"""The collector of tombstones: what goes, what stays, and power-off at any step of it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from node.errors import NoSuchKey, QuorumLost
from node.limits import COLLECT_AFTER_S, COLLECT_SETTLE_S, COLLECT_STRAY_S, MIB
from node.protocol import record as records
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from node.runtime.drive import rows
from tests.fakes.cluster_world import ClusterWorld, FakeNode, simulate
from tests.unit.test_objects_everyday import content


async def turn(world: ClusterWorld, *numbers: int) -> None:
    """One turn of the collector at these nodes (all that are up), at the same moment; as a job, it may fail."""
    nodes = [world.node(number) for number in numbers] or world.up()

    async def one(node: FakeNode) -> None:
        with contextlib.suppress(QuorumLost):
            await node.engine.collector.turn()

    tasks = [world.spawn(node.life, one(node)) for node in nodes]
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


async def collect(world: ClusterWorld, *numbers: int) -> None:
    """Until what is old enough now has gone: one turn that sees it everywhere, one that lets it go."""
    await turn(world, *numbers)
    await asyncio.sleep(COLLECT_SETTLE_S + 1)
    await turn(world, *numbers)


async def collect_all(world: ClusterWorld) -> None:
    """Strays included: what some drives let go already is anybody's after a while."""
    await asyncio.sleep(COLLECT_STRAY_S)
    for _ in range(8):  # each walk goes over another drive
        await collect(world)
    assert sum(tombstones(world)) == 0, tombstones(world)


def tombstones(world: ClusterWorld) -> list[int]:
    """Per drive: registers that hold a tombstone."""
    return [
        sum(
            any(
                records.decode(entry.record).kind == records.Kind.TOMBSTONE
                for entry in rows.decode_register(row, value).entries
            )
            for row, value in disk.engine.scan(rows.REGISTER, rows.after(rows.REGISTER))
        )
        for disks in world.disks.values()
        for disk in disks
    ]


def hints(world: ClusterWorld) -> int:
    return sum(
        1
        for disks in world.disks.values()
        for disk in disks
        for _ in disk.engine.scan(rows.TOMBSTONE, rows.after(rows.TOMBSTONE))
    )


async def repaired(world: ClusterWorld) -> None:
    """Queues are empty, and the nodes have seen that."""
    await world.repair()
    for node in world.up():
        await world.spawn(node.life, node.engine.repairs.round())


async def deleted(world: ClusterWorld, *keys: str) -> None:
    for key in keys:
        await world.put(key, content(3_000))
        await world.delete(key)
    await asyncio.sleep(COLLECT_AFTER_S + 5)


async def absent(world: ClusterWorld, *keys: str) -> None:
    for node in world.up():
        number = world.names.index(node.name) + 1
        for key in keys:
            with pytest.raises(NoSuchKey):
                await world.get(key, at=number)
        assert await world.keys(at=number) == []


KEYS = tuple(f"k{number}" for number in range(12))


def test_a_tombstone_goes_once_it_is_old_and_every_drive_has_it() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for key in KEYS:
            await world.put(key, content(3_000))
            await world.delete(key)
        await collect(world)
        assert tombstones(world) == [12] * 16, "too young"
        await asyncio.sleep(COLLECT_AFTER_S)
        await turn(world)
        assert tombstones(world) == [12] * 16, "seen everywhere, but listings may be under way"
        await asyncio.sleep(COLLECT_SETTLE_S + 1)
        await turn(world)
        assert tombstones(world) == [0] * 16
        assert hints(world) == 0
        # Each node did its share.
        assert sum(node.engine.collector.collected for node in world.up()) == 12
        await absent(world, *KEYS)
        await world.put("k1", b"again", at=3)
        assert await world.get("k1", at=2) == b"again"
        assert await world.keys(at=4) == ["k1"]

    simulate(story)


def test_nothing_is_asked_of_the_others_where_there_is_nothing_to_collect() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", b"1")
        await asyncio.sleep(COLLECT_AFTER_S)
        sent: list[tuple[str, str, str]] = []
        world.on_send = lambda *message: sent.append(message)
        await turn(world, 1)
        assert sent == [(world.names[0], world.names[0], "verb")]

    simulate(story)


def test_a_key_that_was_written_again_stays_and_its_hint_goes() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await deleted(world, "k")
        await turn(world)
        await world.put("k", b"again")
        await asyncio.sleep(COLLECT_SETTLE_S + 1)
        await turn(world)
        assert await world.get("k", at=3) == b"again"
        await repaired(world)
        await asyncio.sleep(COLLECT_AFTER_S)
        await turn(world)
        for disks in world.disks.values():
            disks[0].engine.flush()
        assert await world.get("k", at=4) == b"again"
        assert not (await world.census()).short

    simulate(story)


def test_a_drive_that_missed_the_delete_keeps_every_tombstone_until_it_is_repaired() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", content(MIB))
        await repaired(world)
        late = world.disk(5)
        late.refuse = lambda verb: (
            DriveFault.IO if isinstance(verb, verbs.Commit | verbs.Repair) else None
        )
        await world.delete("k")
        await asyncio.sleep(COLLECT_AFTER_S + 5)
        # The queue was lost, too: the collector itself finds out what is missing.
        for node in world.up():
            for drive in node.drives:
                drive.catalog.dequeue(b"bucket\0k", b"\xff" * 24)
        await collect(world)
        await collect(world)
        assert sum(tombstones(world)) == 15
        late.refuse = lambda verb: None
        await absent(world, "k")
        await repaired(world)
        await collect_all(world)
        await absent(world, "k")
        assert not any(disk.files for disks in world.disks.values() for disk in disks)

    simulate(story)


def test_nothing_goes_while_a_node_is_away_and_it_brings_nothing_back() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for key in KEYS:
            await world.put(key, content(3_000))
        await repaired(world)
        world.power_off(4)
        await world.notice()
        for key in KEYS:
            await world.delete(key)
        await asyncio.sleep(COLLECT_AFTER_S + 5)
        await collect(world)
        assert sum(tombstones(world)) == 12 * 12
        await world.power_on(4)
        await collect(world)
        assert sum(tombstones(world)) == 12 * 12, "the returned node has the objects still"
        await repaired(world)
        await collect_all(world)
        await absent(world, *KEYS)

    simulate(story)


def test_a_tombstone_below_the_floor_of_a_drive_with_an_older_version_is_written_anew() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", content(3_000))
        await repaired(world)
        late = world.disk(5)
        late.refuse = lambda verb: DriveFault.IO if isinstance(verb, verbs.Commit) else None
        for node in world.up():
            node.engine.pause.heard(True)
        await world.delete("k")
        late.refuse = lambda verb: None
        # Another key's long life ends: floors are above k's tombstone, which that drive has not got.
        for number in range(6):
            await world.put("other", b"%d" % number)
        await deleted(world, "other")
        for node in world.up():
            node.engine.collector._busy = lambda: False
        await collect(world)
        for node in world.up():
            node.engine.pause.heard(False)
        await repaired(world)
        await absent(world, "k", "other")
        await collect_all(world)
        await absent(world, "k", "other")

    simulate(story)


def test_waiting_repairs_come_first() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await deleted(world, "gone")
        world.disk(5).refuse = lambda verb: (
            DriveFault.IO if isinstance(verb, verbs.Commit | verbs.Repair) else None
        )
        await world.put("k", b"1")
        await asyncio.sleep(3)
        for node in world.up():
            await world.spawn(node.life, node.engine.repairs.round())
        await collect(world)
        assert sum(tombstones(world)) == 16
        world.disk(5).refuse = lambda verb: None
        await repaired(world)
        await collect(world)
        assert sum(tombstones(world)) == 0

    simulate(story)


def test_all_nodes_at_once_do_no_harm() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await deleted(world, *KEYS)
        # Everybody takes every tombstone for its own.
        for node in world.up():
            node.engine.collector._cluster = _As(node.engine.cluster)
        await collect(world)
        await collect(world)
        assert sum(tombstones(world)) == 0
        await absent(world, *KEYS)

    simulate(story)


class _As:
    """A cluster in which every key's turn is mine."""

    def __init__(self, cluster: object) -> None:
        self._cluster = cluster
        self.me = _First(cluster.me)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._cluster, name)


class _First(str):
    """Equal to the name itself, and to whichever name comes first in a line."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)


@pytest.mark.parametrize("step", range(1, 60, 4))
def test_power_off_at_any_step_of_the_collector(step: int) -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("stays", content(3_000))
        await deleted(world, *KEYS[:6])
        await turn(world)
        await asyncio.sleep(COLLECT_SETTLE_S + 1)
        victim = step % 4 + 1
        sent = 0

        def count(sender: str, target: str, what: str) -> None:
            nonlocal sent
            sent += 1
            if sent == step:
                world.power_off(victim)

        world.on_send = count
        await turn(world)
        world.on_send = lambda sender, target, what: None
        await world.notice()
        for node in world.up():
            number = world.names.index(node.name) + 1
            assert await world.keys(at=number) == ["stays"]
            for key in KEYS[:6]:
                with pytest.raises(NoSuchKey):
                    await world.get(key, at=number)
        if not world.node(victim).life.alive:
            await world.power_on(victim)
        await repaired(world)
        await collect_all(world)
        for number in (1, 2, 3, 4):
            assert await world.keys(at=number) == ["stays"]
            assert await world.get("stays", at=number) == content(3_000)
        assert not (await world.census()).short

    simulate(story, seed=step)


def test_what_the_standing_says_outlives_a_power_off_of_everything() -> None:
    """Decided flags are not synced by themselves: the answer to the collector is."""

    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", content(3_000))
        await repaired(world)
        await world.delete("k")
        await asyncio.sleep(0.05)  # the flags lie in the drives' memory alone
        node = world.node(1)
        view = node.engine.cluster.views[0]
        key = b"bucket\0k"
        (epoch,) = {
            drive.catalog.load(key)[0].entries[-1].epoch for n in world.up() for drive in n.drives
        }
        ask = verbs.Standing(((key, epoch),))
        answers = await world.spawn(
            node.life,
            node.engine.healer.ask(
                view, dict.fromkeys(range(16), ask), world.clock.monotonic() + 5
            ),
        )
        told = [reply.kinds[0] for _, reply in sorted(answers.items())]
        assert verbs.StandingKind.ALONE in told
        for number in (1, 2, 3, 4):
            world.power_off(number)
        for number in (1, 2, 3, 4):
            await world.power_on(number)
        for slot, kind in enumerate(told):
            if kind == verbs.StandingKind.ALONE:
                after = verbs.StandingKind(
                    await _standing(world, slot, ask)  # of the new life
                )
                assert after is verbs.StandingKind.ALONE, slot

    simulate(story)


async def _standing(world: ClusterWorld, slot: int, ask: verbs.Standing) -> int:
    node = world.node(2)
    view = node.engine.cluster.views[0]
    answers = await world.spawn(
        node.life, node.engine.healer.ask(view, {slot: ask}, world.clock.monotonic() + 5)
    )
    reply = answers[slot]
    assert isinstance(reply, verbs.Standings)
    return reply.kinds[0]


def test_a_new_key_written_while_floors_rise_is_written_all_the_same() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await deleted(world, *KEYS)
        await turn(world)
        await asyncio.sleep(COLLECT_SETTLE_S + 1)
        writes = [world.put(f"new{number}", b"x", at=number % 4 + 1) for number in range(24)]
        await asyncio.gather(turn(world), *writes)
        assert sum(tombstones(world)) == 0
        assert len(await world.keys(at=2)) == 24

    simulate(story)
