"""What is done to the cluster: each nemesis does its harm, waits, and takes it back.

The atlas keeps what is destroyed for good (a wiped drive, rotten bytes) within what the geometry promises: at
most one drive's worth, and only while every object has all its shards. Everything else may be combined
at will: a power-off loses only what was not synced, and no number of them may break a promise.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING

from locks.messages import ForceRelease, encode
from node.protocol import verbs
from node.store.drive_gate import operation_of
from tests.sim.filesystem import Disk
from tests.sim.loop import Life

if TYPE_CHECKING:
    from tests.sim.drive import SimDrive
    from tests.sim.world import World

Nemesis = Callable[["Harm"], Awaitable[None]]


class Harm:
    """One seed's nemeses at work. `rng` is theirs alone."""

    def __init__(self, world: World, rng: Random) -> None:
        self.world = world
        self.rng = rng
        self.destroyed = False

    async def pause(self, low_s: float, high_s: float) -> None:
        await asyncio.sleep(self.rng.uniform(low_s, high_s))

    def node(self) -> int:
        return self.rng.choice(list(self.world.boxes))

    def others(self, number: int) -> list[int]:
        return [n for n in self.world.boxes if n != number]

    def name(self, number: int) -> str:
        return self.world.boxes[number].name

    def note(self, kind: str, what: str) -> None:
        self.world.faults[kind] += 1
        self.world.tell("nemesis", f"{kind}: {what}")

    def cut_power(self, number: int) -> None:
        if self.world.boxes[number].powered:
            self.world.power_off(number)

    def give_power(self, number: int) -> None:
        if not self.world.boxes[number].powered:
            self.world.power_on(number)

    def heal(self) -> None:
        """Takes back whatever is still there."""
        world = self.world
        world.on_verb = lambda number, drive, frame: None
        world.network.on_message = lambda source, target: None
        world.network.clog.clear()
        world.network.cut.clear()
        world.network.flush()
        for number, box in world.boxes.items():
            world.thaw(number)
            self.give_power(number)
            box.wall_offset_s = 0.0
            for drive in box.drives:
                _well(drive)


def _well(drive: SimDrive) -> None:
    drive.slowness = 1.0
    drive.disk.full = False
    drive.disk.before = lambda operation, path: None
    if drive.process is not None and drive.process.life.frozen:
        drive.process.life.thaw()


# ---- power ----------------------------------------------------------------------------------------------
async def one_dark(harm: Harm) -> None:
    number = harm.node()
    harm.cut_power(number)
    await harm.pause(0.2, 15)
    harm.give_power(number)


async def two_dark(harm: Harm) -> None:
    first, second = harm.rng.sample(list(harm.world.boxes), 2)
    harm.cut_power(first)
    await harm.pause(0, 3)
    harm.cut_power(second)
    await harm.pause(0.5, 10)
    harm.give_power(first)
    await harm.pause(0, 5)
    harm.give_power(second)


async def rolling(harm: Harm) -> None:
    for number in harm.rng.sample(list(harm.world.boxes), 4):
        harm.cut_power(number)
        await harm.pause(0.2, 5)
        harm.give_power(number)
        await harm.pause(0, 8)


async def all_dark(harm: Harm) -> None:
    numbers = harm.rng.sample(list(harm.world.boxes), len(harm.world.boxes))
    for number in numbers:
        harm.cut_power(number)
        await harm.pause(0, 0.002)
    await harm.pause(0.1, 3)
    for number in harm.rng.sample(numbers, len(numbers)):
        harm.give_power(number)
        await harm.pause(0, 2)


async def dark_at_a_step(harm: Harm) -> None:
    """In the middle of something: before the k-th verb or message of a node from now."""
    number, left = harm.node(), harm.rng.randrange(1, 300)
    of_verbs = harm.rng.random() < 0.5
    name, world = harm.name(number), harm.world

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            harm.cut_power(number)

    if of_verbs:
        world.on_verb = lambda n, drive, frame: step() if n == number else None
    else:
        world.network.on_message = lambda source, target: step() if source == name else None
    await harm.pause(2, 8)
    world.on_verb = lambda n, drive, frame: None
    world.network.on_message = lambda source, target: None
    await harm.pause(0.1, 4)
    harm.give_power(number)


async def killed(harm: Harm) -> None:
    harm.world.kill(harm.node(), harm.rng.uniform(0.2, 3))
    await harm.pause(1, 4)


# ---- processes ------------------------------------------------------------------------------------------
async def frozen(harm: Harm) -> None:
    number = harm.node()
    harm.world.freeze(number)
    await harm.pause(0.5, 16)
    harm.world.thaw(number)


async def frozen_lock_holder(harm: Harm) -> None:
    """A node stands still with its commit under way, while its lease passes and others go on."""
    number, world = harm.node(), harm.world
    armed = True

    def freeze(n: int, _drive: SimDrive, frame: bytes) -> None:
        nonlocal armed
        if armed and n == number and operation_of(frame[16:]) == verbs.Commit.__name__:
            armed = False
            world.freeze(number)
            # Long enough to be passed over; now and then so short that its links still stand.
            short = harm.rng.random() < 0.6
            for_s = harm.rng.uniform(1.5, 2.6) if short else harm.rng.uniform(3, 15)
            world.life.after(for_s, world.thaw, number)

    world.on_verb = freeze
    await harm.pause(5, 18)
    world.on_verb = lambda n, drive, frame: None
    world.thaw(number)


async def locks_let_go(harm: Harm) -> None:
    """Somebody takes every lock away again and again, while links lag: writers meet at the drives.

    Safety rests on the base check and the fence at the drives, never on a lock; this holds it to that.
    """
    world, network = harm.world, harm.world.network
    harm.note("locks let go", "every one, for a while")
    lag_s = harm.rng.choice((0.0, 0.01, 0.05))
    for a in world.names:
        for b in world.names:
            if a != b and harm.rng.random() < 0.5:
                network.clog[a, b] = harm.rng.uniform(0, lag_s)
    until = world.now + harm.rng.uniform(4, 10)
    while world.now < until:
        for box in world.boxes.values():
            if box.serving and box.life is not None:
                box.life.soon(_let_go, world, box.number)
        await asyncio.sleep(0.004)
    network.clog.clear()


def _let_go(world: World, number: int) -> None:
    locks = world.engine(number).locks
    for entry in locks.table.snapshot(world.now):
        if entry.resource.startswith("object:bucket/"):
            locks.tell_encoded(encode(ForceRelease(entry.resource)))


async def clock_jump(harm: Harm) -> None:
    number = harm.node()
    jump_s = harm.rng.choice((-86400.0, -3600.0, -30.0, 30.0, 3600.0, 86400.0))
    harm.note("clock jump", f"{harm.name(number)} by {jump_s:.0f} s")
    harm.world.boxes[number].wall_offset_s += jump_s
    if harm.rng.random() < 0.5:
        harm.cut_power(number)
        await harm.pause(0.1, 3)
        harm.give_power(number)
    await harm.pause(3, 12)
    harm.world.boxes[number].wall_offset_s = 0.0


# ---- the wire -------------------------------------------------------------------------------------------
def _between(harm: Harm, number: int, other: int, *, both: bool = True) -> list[tuple[str, str]]:
    a, b = harm.name(number), harm.name(other)
    return [(a, b), (b, a)] if both else [(a, b)]


async def isolated(harm: Harm) -> None:
    await _isolate(harm, 0.5, 14)


async def isolated_for_long(harm: Harm) -> None:
    """Beyond every lease: whoever believes in a lock then is wrong."""
    await _isolate(harm, 12, 18)


async def _isolate(harm: Harm, low_s: float, high_s: float) -> None:
    number = harm.node()
    pairs = [pair for other in harm.others(number) for pair in _between(harm, number, other)]
    harm.note("isolation", harm.name(number))
    for pair in pairs:
        harm.world.network.block(*pair)
    await harm.pause(low_s, high_s)
    for pair in pairs:
        harm.world.network.free(*pair)


async def one_way(harm: Harm) -> None:
    """Some links carry nothing one way."""
    pairs: list[tuple[str, str]] = []
    for _ in range(harm.rng.randrange(1, 5)):
        first, second = harm.rng.sample(list(harm.world.boxes), 2)
        pairs += _between(harm, first, second, both=False)
    harm.note("one-way cut", " ".join(f"{a}>{b}" for a, b in pairs))
    for pair in pairs:
        harm.world.network.block(*pair)
    await harm.pause(0.5, 12)
    for pair in pairs:
        harm.world.network.free(*pair)


async def clogged(harm: Harm) -> None:
    first, second = harm.rng.sample(list(harm.world.boxes), 2)
    delay_s = harm.rng.choice((0.02, 0.2, 0.9, 4.0))
    harm.note("clog", f"{harm.name(first)} {harm.name(second)} {delay_s} s")
    for pair in _between(harm, first, second, both=harm.rng.random() < 0.5):
        harm.world.network.clog[pair] = delay_s
    await harm.pause(1, 12)
    harm.world.network.clog.clear()


async def broken_connections(harm: Harm) -> None:
    for _ in range(harm.rng.randrange(3, 12)):
        first, second = harm.rng.sample(list(harm.world.boxes), 2)
        harm.world.faults["connections"] += harm.world.network.drop_connections(
            harm.name(first), harm.name(second)
        )
        await harm.pause(0, 1)


async def swizzle(harm: Harm) -> None:
    """Nodes are cut off one after the other and come back in another order."""
    chosen = harm.rng.sample(list(harm.world.boxes), harm.rng.randrange(2, 5))
    harm.note("swizzle", " ".join(map(harm.name, chosen)))
    network = harm.world.network
    for number in chosen:
        for other in harm.others(number):
            for pair in _between(harm, number, other):
                network.block(*pair)
        await harm.pause(0, 2)
    for number in harm.rng.sample(chosen, len(chosen)):
        for other in harm.others(number):
            for pair in _between(harm, number, other):
                network.free(*pair)
        await harm.pause(0, 2)


# ---- drives ---------------------------------------------------------------------------------------------
def _drive(harm: Harm) -> SimDrive:
    return harm.rng.choice(harm.world.boxes[harm.node()].drives)


async def slow_drive(harm: Harm) -> None:
    drive, factor = _drive(harm), harm.rng.choice((30.0, 300.0, 2000.0))
    harm.note("slow drive", f"{drive.path} {factor:.0f} times")
    drive.slowness = factor
    await harm.pause(2, 12)
    drive.slowness = 1.0


async def hung_drive(harm: Harm) -> None:
    drive = _drive(harm)
    life: Life | None = drive.process.life if drive.process is not None else None
    if life is None or not life.running:
        return
    harm.note("hung drive", drive.path)
    life.freeze()
    await harm.pause(1, 12)
    if life.alive:
        life.thaw()


async def failing_drive(harm: Harm) -> None:
    """Syncs, or everything, fail for a while: the drive is condemned, and comes back when checked."""
    drive = _drive(harm)
    only = harm.rng.choice(("fsync", "write", "read"))
    harm.note("failing drive", f"{drive.path} {only}")

    def fail(operation: str, path: str) -> None:
        if operation == only:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    drive.disk.before = fail
    await harm.pause(0.2, 6)
    drive.disk.before = lambda operation, path: None


async def full_drive(harm: Harm) -> None:
    """One drive, or all drives of a node, have no room."""
    drives = harm.world.boxes[harm.node()].drives
    chosen = drives if harm.rng.random() < 0.3 else [harm.rng.choice(drives)]
    harm.note("full drive", " ".join(drive.path for drive in chosen))
    for drive in chosen:
        drive.disk.full = True
    await harm.pause(1, 12)
    for drive in chosen:
        drive.disk.full = False


async def wiped_drive(harm: Harm) -> None:
    """A drive is replaced by an empty one while its node is off. Only on a whole cluster, only once."""
    if harm.destroyed or harm.world.unrest():
        return
    number = harm.node()
    drive = harm.rng.choice(harm.world.boxes[number].drives)
    harm.destroyed = True
    harm.cut_power(number)
    await harm.pause(0.1, 4)
    harm.note("wiped drive", drive.path)
    drive.wipe()
    harm.give_power(number)
    await harm.pause(3, 10)


async def rotten_bytes(harm: Harm) -> None:
    """Bits flip in one drive's shard files and inline shards. Only on a whole cluster, only once."""
    if harm.destroyed or harm.world.unrest():
        return
    drive = _drive(harm)
    harm.destroyed = True
    count = rot_files(drive.disk, harm.rng) + drive.log.rot(harm.rng)
    harm.note("rotten bytes", f"{drive.path}: {count} places")
    await harm.pause(1, 5)


def rot_files(disk: Disk, rng: Random) -> int:
    """Flips one bit in half of a disk's shard files; -> how many."""
    count = 0
    for path, inode in disk.files():
        if path.startswith("shards/") and inode.data and rng.random() < 0.5:
            place, bit = rng.randrange(len(inode.data)), 1 << rng.randrange(8)
            inode.data[place] ^= bit
            if place < len(inode.durable):
                durable = bytearray(inode.durable)
                durable[place] = inode.data[place]
                inode.durable = bytes(durable)
            count += 1
    return count


NEMESES: dict[str, tuple[Nemesis, int]] = {
    "one dark": (one_dark, 4),
    "two dark": (two_dark, 3),
    "rolling": (rolling, 2),
    "all dark": (all_dark, 3),
    "dark at a step": (dark_at_a_step, 6),
    "killed": (killed, 2),
    "frozen": (frozen, 3),
    "frozen lock holder": (frozen_lock_holder, 4),
    "locks let go": (locks_let_go, 3),
    "clock jump": (clock_jump, 2),
    "isolated": (isolated, 3),
    "isolated for long": (isolated_for_long, 1),
    "one way": (one_way, 4),
    "clogged": (clogged, 3),
    "broken connections": (broken_connections, 2),
    "swizzle": (swizzle, 2),
    "slow drive": (slow_drive, 2),
    "hung drive": (hung_drive, 2),
    "failing drive": (failing_drive, 2),
    "full drive": (full_drive, 1),
    "wiped drive": (wiped_drive, 1),
    "rotten bytes": (rotten_bytes, 1),
}
