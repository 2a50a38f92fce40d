"""The scrub: whatever rots unseen is found, queued and repaired, and a restart goes on where it was."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from node.limits import DRIVE_STATE_CHECK_S, MIB, SCRUB_EVERY_S
from node.protocol import verbs
from node.runtime.drive import rows
from tests.fakes.cluster_world import ClusterWorld, simulate
from tests.unit.test_objects_everyday import content
from tests.unit.test_objects_faults import rot_file, rot_inline


async def taken_in(world: ClusterWorld) -> None:
    """Every drive was seen once: it counts as verified from then on, and a pass is due after SCRUB_EVERY_S."""
    await asyncio.sleep(DRIVE_STATE_CHECK_S + 1)
    await scrub(world)


async def due(world: ClusterWorld) -> None:
    """Without the sleep of two weeks: passes ended so long ago."""
    for node in world.up():
        for drive in node.drives:
            scrubber = node.engine.scrubber
            state = drive.catalog.scrub
            past = verbs.ScrubState(finished_s=state.finished_s - SCRUB_EVERY_S - 1)
            drive.catalog.scrub = past
            scrubber.states[drive.disk.drive_id] = past


async def scrub(world: ClusterWorld, *numbers: int) -> None:
    nodes = [world.node(number) for number in numbers] or world.up()
    for node in nodes:
        await world.spawn(node.life, node.engine.scrubber.turn())


def finds(world: ClusterWorld) -> Counter[str]:
    found: Counter[str] = Counter()
    for node in world.up():
        node.metrics.scrub_fault = lambda reason: found.update([reason])
    return found


def states(world: ClusterWorld) -> list[verbs.ScrubState]:
    return [drive.catalog.scrub for node in world.up() for drive in node.drives]


def test_nothing_is_read_before_a_pass_is_due() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", content(2 * MIB))
        await taken_in(world)
        assert all(state.finished_s > 0 and not state.started_s for state in states(world))
        sent: list[str] = []
        world.on_send = lambda sender, target, what: sent.append(what)
        for node in world.up():
            for disk in world.disks[node.name]:
                disk.seen = lambda verb: sent.append(type(verb).__name__)
        await scrub(world)
        assert not sent

    simulate(story)


def test_rot_that_nobody_reads_is_found_counted_and_repaired() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("large", content(3 * MIB))
        for number in range(8):
            await world.put(f"small{number}", content(4_000, number))
        await world.repair()
        await taken_in(world)
        found = finds(world)
        rot_file(world.disk(3))
        rot_inline(world, world.disk(9), "small1")
        disk = world.disk(14)
        disk.files.pop(next(iter(disk.files)))
        row = rows.REGISTER + b"bucket\0small2"
        value = world.disk(6).engine.get(row)
        assert value is not None
        world.disk(6).engine.write({row: value[:-1] + bytes((value[-1] ^ 1,))}, {})
        assert not any(world.pending()), "nobody has seen it"
        await due(world)
        await scrub(world)
        assert set(found) == {"rotten", "inline", "missing", "row"}, found
        assert found["missing"] == found["inline"] == found["row"] == 1
        assert all(world.pending()), "every drive of the set knows of it"
        await world.repair()
        assert not (await world.census()).short
        before = sum(found.values())
        await due(world)
        await scrub(world)
        assert sum(found.values()) == before, "a second pass finds nothing"
        assert all(state.finished_s > 0 and not state.started_s for state in states(world))
        assert all(state.keys >= 9 for state in states(world))
        assert await world.get("large", at=2) == content(3 * MIB)
        for number in range(8):
            assert await world.get(f"small{number}", at=3) == content(4_000, number)

    simulate(story)


def test_a_pass_goes_on_where_it_was_after_a_power_off() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for number in range(30):
            await world.put(f"k{number:02}", content(3 * MIB, number))
        await world.repair()
        await taken_in(world)
        await due(world)
        node = world.node(2)
        seen: list[bytes] = []

        def note(verb: verbs.Verb) -> None:
            if isinstance(verb, verbs.Scrub):
                seen.append(verb.after)

        world.disk(4).seen = note
        # Of this drive's rate a turn is too short: it ends in the middle.
        world.disk(4).delay_s = 1.5
        await scrub(world, 2)
        drive = next(d for d in node.drives if d.disk is world.disk(4))
        before = drive.catalog.scrub
        assert before.started_s and seen == [b""]
        # In the middle of a page: the same page again, and on from the file it was at.
        scans: list[tuple[bytes, int]] = []
        world.disk(4).seen = lambda verb: (
            scans.append((verb.data_id, verb.block)) if isinstance(verb, verbs.ShardScan) else None
        )
        await scrub(world, 2)
        assert scans
        first = scans[0]
        await asyncio.sleep(2)  # what is not synced at once is by now
        world.power_off(2)
        await world.notice()
        await world.power_on(2)
        await asyncio.sleep(DRIVE_STATE_CHECK_S + 1)
        world.disk(4).delay_s = 0.0005
        drive = next(d for d in world.node(2).drives if d.disk is world.disk(4))
        assert drive.catalog.scrub.started_s == before.started_s, "the pass is known still"
        for _ in range(3):
            await scrub(world, 2)
        assert not drive.catalog.scrub.started_s
        assert drive.catalog.scrub.finished_s > before.started_s
        assert first[0] in {data_id for data_id, _ in scans}

    simulate(story)


def test_a_drive_that_fails_does_not_keep_the_others_from_being_scrubbed() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", content(2 * MIB))
        await taken_in(world)
        await due(world)
        world.disk(1).refuse = lambda verb: (
            verbs.DriveFault.BAD_REQUEST if isinstance(verb, verbs.Scrub) else None
        )
        await scrub(world, 1)
        drives = world.node(1).drives
        assert [bool(drive.catalog.scrub.started_s) for drive in drives] == [
            drive.disk is world.disk(1) for drive in drives
        ]
        world.disk(1).refuse = lambda verb: None
        await scrub(world, 1)
        assert not any(drive.catalog.scrub.started_s for drive in drives)

    simulate(story)


@pytest.mark.parametrize("busy", [False, True])
def test_it_yields_to_clients(busy: bool) -> None:
    took: dict[bool, float] = {}

    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for number in range(4):
            await world.put(f"k{number}", content(2 * MIB))
        await taken_in(world)
        await due(world)
        for disk in world.disks[world.names[0]]:
            disk.delay_s = 0.2
        node = world.node(1)
        node.engine.pace._clients = lambda: int(busy)
        began = world.clock.monotonic()
        await scrub(world, 1)
        took[busy] = world.clock.monotonic() - began

    simulate(story)
    # Five verbs of 0.2 s each at least; three times as long again where clients are served.
    assert (took[busy] > 3.0) is busy, took


def test_a_file_that_went_with_its_version_is_no_fault() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", content(2 * MIB))
        await world.repair()
        await taken_in(world)
        await due(world)
        found = finds(world)
        disk = world.disk(2)

        def overwrite(verb: verbs.Verb) -> None:
            # Between the page that names the file and the look at it, the key is written anew.
            if isinstance(verb, verbs.ShardScan):
                disk.files.clear()
                drive = next(d for n in world.up() for d in n.drives if d.disk is disk)
                key = b"bucket\0k"
                register, bases = drive.catalog.load(key)
                for entry in register.entries:
                    drive.catalog.drop_undecided(key, entry.epoch)
                drive.catalog.store(key, type(register)(register.top), bases)

        disk.seen = overwrite
        await scrub(world)
        assert not found

    simulate(story)
