"""A drive that was replaced: filled from the others, with what the lost one had promised."""

from __future__ import annotations

import asyncio

from node.limits import MIB
from node.protocol import epoch as ep
from node.protocol import record as records
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from node.store.drive_gate import DriveGate
from tests.fakes.cluster_world import ClusterWorld, simulate
from tests.fakes.memory_drive import Disk
from tests.unit.test_objects_everyday import content

SMALL, LARGE = 3_000, 2 * MIB + 77
NODE, DRIVE = 4, 1


async def replace(world: ClusterWorld) -> Disk:
    world.power_off(NODE)
    await world.notice()
    return await world.replace(NODE, DRIVE)


async def fill(world: ClusterWorld, turns: int = 1) -> None:
    node = world.node(NODE)
    for _ in range(turns):
        await world.spawn(node.life, node.engine.filler.turn())
        await asyncio.sleep(3.0)


def filling(world: ClusterWorld) -> bool:
    return world.node(NODE).drives[DRIVE].catalog.filling


def registers(disk: Disk) -> dict[bytes, bytes]:
    from node.runtime.drive import rows

    found = disk.engine.scan(rows.REGISTER, rows.after(rows.REGISTER))
    return {row[1:]: rows.decode_register(row, value).top for row, value in found}


def test_a_replaced_drive_gets_everything_back_while_the_cluster_is_written_to() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for number in range(6):
            await world.put(f"k{number}", content(LARGE if number % 3 == 0 else SMALL, number))
        await world.put("gone", content(SMALL))
        await world.delete("gone")
        await world.repair()
        before = registers(world.disks[world.names[NODE - 1]][DRIVE])
        fresh = await replace(world)
        assert filling(world) and not registers(fresh)
        writing = asyncio.ensure_future(world.put("k1", content(SMALL, 99)))
        await fill(world, 2)
        await writing
        assert not filling(world)
        await world.put("k9", content(SMALL, 9))
        await world.repair()
        assert (await world.census()).whole
        after = registers(fresh)
        assert before.keys() <= after.keys()
        assert all(after[key] >= top for key, top in before.items()), "no promise has fallen"
        # And it serves: without two other nodes everything is read with its shards.
        world.power_off(1)
        world.power_off(2)
        await world.notice()
        assert await world.get("k0", at=NODE) == content(LARGE, 0)
        assert await world.get("k1", at=NODE) == content(SMALL, 99)

    simulate(story)


def test_a_write_that_the_lost_drive_had_taken_is_not_completed_behind_the_new_one() -> None:
    """The model's shortest counterexample: the lost vote and a late commit make a quorum that is none."""

    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", content(SMALL, 1))
        await world.repair()
        key = b"bucket\0k"
        view = world.node(1).engine.cluster.views[0]
        held = await world.spawn(
            world.node(1).life,
            world.node(1).engine.healer.look(view, key, deadline=world.clock.monotonic() + 9),
        )
        base = held.record.epoch
        late = records.replace(
            held.record, epoch=ep.make(ep.number(base) + 1, bytes(15) + b"\7"), base=base
        )
        await replace(world)
        await fill(world, 2)
        assert not filling(world)
        for number in (1, 2, 3):
            node = world.node(number)
            for slot in view.by_node[node.name].slots:
                reply = await world.spawn(
                    node.life,
                    refused(node.gate, view.drive_of[slot], key, records.encode(late)),
                )
                assert reply == DriveFault.OLD_VIEW
        assert await world.get("k") == content(SMALL, 1)
        await world.put("k", content(SMALL, 2))  # who knows the new view writes as ever
        assert await world.get("k", at=3) == content(SMALL, 2)

    simulate(story)


async def refused(gate: DriveGate, drive_id: bytes, key: bytes, record: bytes) -> str:
    """What a drive says to a commit that was sent before the replacement."""
    deadline = asyncio.get_running_loop().time() + 9
    reply = verbs.decode_reply(
        await gate.call(drive_id, verbs.Commit(key, record, b"s", 0), deadline=deadline)
    )
    assert isinstance(reply, verbs.Failed), reply
    return reply.fault


def test_promises_for_keys_that_nobody_holds_are_rebuilt() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        node = world.node(1)
        view = node.engine.cluster.views[0]
        top = ep.make(7, bytes(16))
        fence = verbs.Fence(b"bucket\0never", top)
        await world.spawn(
            node.life,
            node.engine.healer.ask(
                view, dict.fromkeys(range(view.n), fence), world.clock.monotonic() + 9
            ),
        )
        await world.spawn(
            node.life,
            node.engine.healer.ask(
                view,
                dict.fromkeys(range(view.n), verbs.BucketFence("dropped", 3)),
                world.clock.monotonic() + 9,
            ),
        )
        fresh = await replace(world)
        await fill(world, 2)
        assert not filling(world)
        assert registers(fresh)[b"bucket\0never"] == top
        assert world.node(NODE).drives[DRIVE].catalog.generations == {b"dropped": 3}

    simulate(story)


def test_filling_waits_for_w_others_and_for_every_living_node_to_know() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", content(SMALL))
        await world.repair()
        await replace(world)
        node = world.node(NODE)
        heard = dict(world.node(2).membership.published)
        world.node(2).membership.published["view"] = 0
        await fill(world)
        assert "has not heard" in next(iter(node.engine.filler.walks.values())).problem
        world.node(2).membership.published.update(heard)
        world.power_off(1)
        world.power_off(2)
        await world.notice()
        await fill(world)
        assert "too few drives" in next(iter(node.engine.filler.walks.values())).problem
        assert filling(world)
        await world.power_on(1)
        await world.power_on(2)
        for each in world.up():
            world._in_life(each.life, lambda e=each: e.engine.adopt(world.topology(e.name), ()))
            world._in_life(each.life, each.engine._gauge)
        await asyncio.sleep(1.0)
        await fill(world, 2)
        assert not filling(world)

    simulate(story)


def test_one_key_that_cannot_be_brought_holds_up_no_other_and_is_tried_again() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for number in range(5):
            await world.put(f"k{number}", content(SMALL, number))
        await world.repair()
        fresh = await replace(world)
        bad = b"bucket\0k2"
        fresh.refuse = lambda verb: (
            DriveFault.IO if isinstance(verb, verbs.Repair) and verb.key == bad else None
        )
        await fill(world, 2)
        (walk,) = world.node(NODE).engine.filler.walks.values()
        assert filling(world) and walk.ended and list(walk.lacking) == [bad]
        assert "bucket/k2" in walk.problem
        assert len(registers(fresh)) >= 5, "all others are there"
        counted = walk.keys
        fresh.refuse = lambda verb: None
        await fill(world)
        assert not filling(world) and walk.keys == counted, "no second walk"
        assert await world.get("k2", at=NODE) == content(SMALL, 2)

    simulate(story)
