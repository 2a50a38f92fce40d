"""What is looked at while a seed runs: that no lock is believed in beyond its lease; and a collector of tombstones."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from locks.errors import LockError
from locks.messages import LockMode
from node.errors import HoldfastError
from node.limits import LOCK_LEASE_S
from node.objects.sets import SetView
from node.protocol import record as records
from node.protocol import verbs
from node.protocol.record import Kind

if TYPE_CHECKING:
    from tests.sim.world import Box, World

LOOK_S = 0.25


class LeaseWatch:
    """One lock of its own on every node, held for long; alone for a lease, a node may not believe in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alone_since: dict[int, float] = {}
        self._lockers: dict[int, object] = {}

    async def run(self) -> None:
        try:
            await self._look()
        finally:
            self.alone_since.clear()  # nobody keeps it right any more

    async def _look(self) -> None:
        while True:
            for number, box in self.world.boxes.items():
                if self._alone(number):
                    self.alone_since.setdefault(number, self.world.now)
                else:
                    self.alone_since.pop(number, None)
                if box.serving and self._lockers.get(number) is not box.life:
                    self._lockers[number] = box.life
                    assert box.life is not None
                    box.life.spawn(self._lock(number, box))
            await asyncio.sleep(LOOK_S)

    def _alone(self, number: int) -> bool:
        """No quorum of lock servers has been in reach: nobody can have said yes to a refresh."""
        world, me = self.world, self.world.boxes[number]
        if me.life is None or me.life.frozen:
            return True
        # A lock server answers as soon as its process runs, long before its node serves clients.
        others = sum(
            other.life is not None
            and other.life.running
            and world.network.passes(me.name, other.name)
            and world.network.passes(other.name, me.name)
            for other in world.boxes.values()
            if other is not me
        )
        return others + 1 < len(world.boxes) // 2 + 1

    async def _lock(self, number: int, box: Box) -> None:
        service = self.world.engine(number).lock_service
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                deadline = self.world.now + 5.0
                held = await service.acquire((f"sim/{number}",), LockMode.WRITE, deadline)
            except (LockError, HoldfastError):
                continue
            async with held:
                won_at = self.world.now
                while self.world.now < won_at + 30.0 and held.valid():
                    self._judge(number, box, won_at)
                    await asyncio.sleep(LOOK_S)

    def _judge(self, number: int, box: Box, won_at: float) -> None:
        since = self.alone_since.get(number, self.world.now)
        alone_s = self.world.now - since
        # A lock won since then says that a quorum was in reach after all.
        if alone_s > LOCK_LEASE_S + 0.5 and won_at <= since:
            self.world.wrong(f"{box.name} believes in a lock after {alone_s:.1f} s alone")


async def collect_tombstones(world: World) -> None:
    """Lets tombstones go as soon as the protocol allows it: decided, synced and alone on every drive."""
    view: SetView = world.engine(1).cluster.views[0]
    by_id = {box_drive_id(world, path): path for path in world.room.drives}
    while True:
        await asyncio.sleep(0.05)
        for key, epoch in _ripe(world):
            for drive_id in view.drive_of:
                number = int(by_id[drive_id].split("/")[1].removeprefix("node"))
                box = world.boxes[number]
                if box.serving and box.life is not None and box.node is not None:
                    ask = box.node.gate.ask(
                        drive_id, verbs.Collect(key, epoch), deadline=world.now + 2.0
                    )
                    box.life.spawn(_quietly(ask))
            world.faults["tombstone collected"] += 1


def box_drive_id(world: World, path: str) -> bytes:
    process = world.room.drives[path].process
    assert process is not None and process._server is not None
    store = process._server._store
    assert store is not None
    return store.drive_id


async def _quietly(ask: object) -> None:
    try:
        await ask  # type: ignore[misc]
    except HoldfastError:
        return


def _ripe(world: World) -> list[tuple[bytes, bytes]]:
    """Keys whose tombstone is all that any drive holds of them."""
    counts: dict[tuple[bytes, bytes], int] = {}
    for drive in world.room.drives.values():
        catalog = drive.process.catalog if drive.process is not None else None
        if catalog is None or drive.log.ends:
            return []
        for row, _ in catalog._all(b"r"):
            register, _bases = catalog.load(row[1:])
            if len(register.entries) != 1 or not register.entries[0].decided:
                continue
            entry = register.entries[0]
            if records.decode(entry.payload[0]).kind == Kind.TOMBSTONE:
                place = (row[1:], entry.epoch)
                counts[place] = counts.get(place, 0) + 1
    return [place for place, count in counts.items() if count == len(world.room.drives)]
