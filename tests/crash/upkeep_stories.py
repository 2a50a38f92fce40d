"""Stories of what the cluster keeps for itself: identities, repair, settlement, filling."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Hashable

from node.errors import OutcomeUnknown, Unavailable
from node.limits import COLLECT_AFTER_S, COLLECT_SETTLE_S, COLLECT_STRAY_S
from node.objects.pending import turn_of
from node.protocol import record as records
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from node.runtime.drive import rows
from tests.crash.story import (
    KEY,
    LARGE_NEW,
    LARGE_OLD,
    SMALL_NEW,
    SMALL_OLD,
    Step,
    Story,
    object_seen,
    there,
)
from tests.crash.world import COORDINATOR, OTHER, CrashWorld, settled


# ---- identity --------------------------------------------------------------------------------------
async def _users(world: CrashWorld) -> None:
    await world.on(1, lambda o, d: world.node(1).engine.identity.create_user("first", deadline=d))


async def _create_user(world: CrashWorld) -> None:
    identity = world.node(COORDINATOR).engine.identity
    await world.on(COORDINATOR, lambda o, d: identity.create_user("second", deadline=d))


async def _users_seen(world: CrashWorld, at: int) -> Hashable:
    async def users() -> Hashable:
        identity = world.node(at).engine.identity
        directory = await world.on(at, lambda o, d: identity.directory(deadline=d))
        return tuple(sorted(user.name for user in directory.users))

    seen: Hashable = await settled(users)
    return seen


# ---- repair, settlement, filling -------------------------------------------------------------------
def _key_repaired_by(world: CrashWorld, number: int) -> str:
    """A key whose first repairer is this node."""
    for count in range(1000):
        key = f"key{count}"
        encoded = records.catalog_key("bucket", key)
        if turn_of(encoded, world.names[number - 1], world.names) == 0:
            return key
    raise AssertionError("no such key")


async def _lose_a_shard(world: CrashWorld) -> None:
    """A shard file of the other node is gone, and a reader has seen it."""
    await world.bucket()
    key = world.notes["key"] = _key_repaired_by(world, COORDINATOR)
    await world.put(key, LARGE_OLD, at=4)
    await asyncio.sleep(2)
    drive = world.node(OTHER).drives[0]
    drive.disk.files.clear()
    topology = world.topology(world.names[0])
    slot = next(
        index
        for index, place in enumerate(topology.sets[0].slots)
        if place.drive_id == drive.disk.drive_id
    )
    node = world.node(3)
    view = node.engine.cluster.views[0]
    encoded = records.catalog_key("bucket", key)
    found = await world.on(3, lambda o, d: node.engine.lookup.find(view, encoded, deadline=d))
    entry = verbs.Enqueue(encoded, found.record.epoch, (slot,))
    await world.on(
        3,
        lambda o, d: node.engine.healer.ask(view, dict.fromkeys(range(view.n), entry), d),
    )


async def _repair(world: CrashWorld) -> None:
    node = world.node(COORDINATOR)
    await world.on(COORDINATOR, lambda o, d: node.engine.repairs.round())


async def _repaired_seen(world: CrashWorld, at: int) -> Hashable:
    return await object_seen(world, at, world.notes["key"])


def _half_written(data: bytes, reached: int, nodes: tuple[int, ...]) -> Step:
    """A write whose coordinator learned nothing reached so many drives of these nodes, and nobody has settled it."""

    async def prepare(world: CrashWorld) -> None:
        await there(SMALL_OLD)(world)
        await asyncio.sleep(5)
        disks = [disk for disks in world.disks.values() for disk in disks]
        chosen = [disk for node in nodes for disk in world.disks[world.names[node - 1]]][:reached]
        for disk in disks:
            disk.refuse = lambda verb, refuses=disk not in chosen: (
                DriveFault.IO if isinstance(verb, verbs.Commit) and refuses else None
            )
        world.lose = lambda sender, target, what: what == "COMMIT answer"
        try:
            await world.put(KEY, data, at=4)
        except OutcomeUnknown:
            pass
        else:
            raise AssertionError("nobody may have told the coordinator")
        world.lose = lambda sender, target, what: False
        for disk in disks:
            disk.refuse = lambda verb: None

    return prepare


async def _read(world: CrashWorld) -> str:
    """The reader's answer is a promise: what it saw stays."""
    seen = await settled(lambda: world.get(KEY, at=COORDINATOR))
    return "old" if seen == SMALL_OLD else "new"


async def _settle(world: CrashWorld) -> str:
    """The job at a node that holds the write, until it is this node's turn and done."""
    node = world.node(COORDINATOR)
    for _ in range(30):
        await world.on(COORDINATOR, lambda o, d: node.engine.settler.round())
        await asyncio.sleep(2.0)
        if not any(drive.catalog.undecided for drive in node.drives):
            break
    return await _read(world)


FILLED_KEYS = {"large": LARGE_OLD, "small": SMALL_OLD}


async def _replace_a_drive(world: CrashWorld) -> None:
    await world.bucket()
    for key, data in FILLED_KEYS.items():
        await world.put(key, data, at=4)
    await world.put("gone", SMALL_OLD, at=4)
    await world.delete("gone", at=3)
    await asyncio.sleep(2)
    world.power_off(COORDINATOR)
    await world.notice()
    await world.replace(COORDINATOR, 1)


async def _fill(world: CrashWorld) -> None:
    node = world.node(COORDINATOR)
    for _ in range(15):  # a turn that fails is followed by another one
        await world.on(COORDINATOR, lambda o, d: node.engine.filler.turn())
        if not node.drives[1].catalog.filling:
            return
        await asyncio.sleep(3.0)
    raise AssertionError(f"the drive is not filled: {node.engine.filler.walks}")


async def _filled_seen(world: CrashWorld, at: int) -> Hashable:
    seen = [await object_seen(world, at, key) for key in (*FILLED_KEYS, "gone")]
    return tuple(seen)


_FILLED = (*FILLED_KEYS.values(), None)


async def _delete_and_wait(world: CrashWorld) -> None:
    """A tombstone that the coordinator has found on every drive, and that is ripe to go."""
    await world.bucket()
    key = world.notes["key"] = _key_repaired_by(world, COORDINATOR)
    await world.put(key, SMALL_OLD, at=4)
    await world.delete(key, at=3)
    await asyncio.sleep(COLLECT_AFTER_S + 10.0)
    await _collect(world)
    await asyncio.sleep(COLLECT_SETTLE_S + 1.0)


async def _collect(world: CrashWorld, at: int = COORDINATOR) -> None:
    with contextlib.suppress(Unavailable):  # a job: the next turn goes on from there
        await world.on(at, lambda o, d: world.node(at).engine.collector.turn())


async def _collected(world: CrashWorld) -> None:
    """In the end no drive has it, and the key can be written as if it had never been."""
    row = rows.REGISTER + records.catalog_key("bucket", world.notes["key"])

    def held() -> bool:
        return any(disk.engine.get(row) for disks in world.disks.values() for disk in disks)

    if (
        held()
    ):  # some drives have let it go, and the node whose turn it was does not see it any more
        await asyncio.sleep(COLLECT_STRAY_S)
    for _ in range(10):  # a turn looks at one drive of its node
        if not held():
            break
        for number in world.lit():
            await _collect(world, number)
        await asyncio.sleep(COLLECT_SETTLE_S + 1.0)
    assert not held(), "the tombstone stays"
    await world.put(world.notes["key"], SMALL_NEW, at=OTHER)
    assert await object_seen(world, 3, world.notes["key"]) == SMALL_NEW


# ---- all of them -----------------------------------------------------------------------------------
UPKEEP_STORIES = [
    Story(
        name="identity",
        prepare=_users,
        act=_create_user,
        look=_users_seen,
        states={"old": ("first",), "new": ("first", "second")},
        options={"with_identity": True},
    ),
    Story(
        name="repair",
        prepare=_lose_a_shard,
        act=_repair,
        look=_repaired_seen,
        states={"old": LARGE_OLD, "new": LARGE_OLD},
    ),
    Story(
        name="settle-forward",
        prepare=_half_written(LARGE_NEW, 8, (OTHER, 4)),
        act=_read,
        look=object_seen,
        states={"old": SMALL_OLD, "new": LARGE_NEW},
    ),
    Story(
        name="settle-back",
        prepare=_half_written(SMALL_NEW, 3, (OTHER,)),
        act=_read,
        look=object_seen,
        states={"old": SMALL_OLD, "new": SMALL_NEW},
    ),
    Story(
        name="settle-by-job",
        prepare=_half_written(LARGE_NEW, 8, (COORDINATOR, 4)),
        act=_settle,
        look=object_seen,
        states={"old": SMALL_OLD, "new": LARGE_NEW},
    ),
    Story(
        name="collect",
        prepare=_delete_and_wait,
        act=_collect,
        look=_repaired_seen,
        states={"old": None, "new": None},
        last=_collected,
    ),
    Story(
        name="fill",
        prepare=_replace_a_drive,
        act=_fill,
        look=_filled_seen,
        states={"old": _FILLED, "new": _FILLED},
    ),
]
