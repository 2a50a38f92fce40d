"""The cluster of the fakes, with numbered events, and power that goes at one of them."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Callable
from typing import Any

from node.errors import Unavailable
from node.identity.copies import DriveCopies
from node.identity.replica import Replica
from node.identity.service import Identity
from node.identity.vault import Keks, Vault
from node.limits import DRIVE_STAGED_KEEP_S
from node.peer.spread import PeerSpread
from tests.crash.drive import CrashDrive
from tests.crash.points import Event, Kind, Point, Unsynced, Victim, When
from tests.fakes.cluster_world import TICKET_S, ClusterWorld, FakeNode

COORDINATOR, OTHER = 2, 1  # the other one is the first that a reader at the coordinator asks
_KEKS = Keks(own=(b"k" * 32,))  # deriving real ones takes a fifth of a second each


class Meter:
    """Numbers what happens at one node while it counts; cuts the power at its point."""

    def __init__(self, world: CrashWorld, number: int, point: Point | None = None) -> None:
        self._world = world
        self.name = world.names[number - 1]
        self.number = number
        self.point = point
        self.counting = False
        self.cut = False
        self.events: list[Event] = []
        self._counts = dict.fromkeys(Kind, 0)
        self._armed = False
        self.on_cut: Callable[[], None] = lambda: None

    def before(self, kind: Kind, label: str, tells: bool) -> bool:
        """False when the power has gone, and it does not happen."""
        if not self.counting or self.cut:
            return True
        if self._armed:
            return self._cut()
        self._counts[kind] += 1
        k = self._counts[kind]
        unsynced = self._world.unsynced(self.number)
        self.events.append(Event(kind=kind, k=k, label=label, tells=tells, unsynced=unsynced))
        return self._cut() if self._is(kind, When.BEFORE) else True

    def after_drive(self) -> None:
        if self.counting and not self.cut and self._is(Kind.DRIVE, When.AFTER):
            self._cut()

    def after_message(self) -> None:
        """It leaves or is taken in by the code that runs now: the power goes as soon as that waits or goes on."""
        if self.counting and not self.cut and self._is(Kind.MESSAGE, When.AFTER):
            self._armed = True
            asyncio.get_running_loop().call_soon(self._cut)

    def _is(self, kind: Kind, when: When) -> bool:
        point = self.point
        return (
            point is not None
            and (point.kind, point.when) == (kind, when)
            and point.k == self._counts[kind]
            and self.events[-1].kind is kind
        )

    def _cut(self) -> bool:
        if not self.cut:
            self.cut = True
            assert self.point is not None
            self._world.cut_power(self.number, self.point)
            self.on_cut()
        return False


class _DriveWatch:
    """node.store's view of a meter: tests.crash.drive.Watch for one drive."""

    def __init__(self, world: CrashWorld, node: FakeNode, index: int) -> None:
        self._world, self._node, self._index = world, node, index

    def before(self, label: str, tells: bool) -> bool:
        for meter in self._world.meters:
            if meter.name == self._node.name and not meter.before(
                Kind.DRIVE, f"{label} on drive {self._index + 1}", tells
            ):
                return False
        return self._node.life.alive

    def after(self) -> None:
        for meter in self._world.meters:
            if meter.name == self._node.name:
                meter.after_drive()


class CrashNode(FakeNode):
    """A node with identities, where the story wants them."""

    def start(self) -> None:
        super().start()
        world: Any = self._world
        if not world.with_identity:
            return

        def highest_seen() -> int:
            membership = self.membership
            return max(
                (membership.state(peer).versions.get("identity", 0) for peer in membership.alive()),
                default=0,
            )

        replica = Replica(
            len(world.names),
            self.engine.documents,
            DriveCopies(self.gate, self.clock),
            PeerSpread(self.peers, self.membership),
            Vault(_KEKS, world.cluster_id, self.rng),
            self.guard,
            self.clock,
            self.rng,
            self.metrics,  # type: ignore[arg-type]
            self.membership.publish,
            highest_seen,
        )
        self.engine.identity = Identity(
            "root", "password", "us-east-1", replica, _KEKS, self.clock, self.rng
        )
        self.engine.identity.start()

    def __init__(self, world: CrashWorld, name: str, incarnation: int) -> None:
        super().__init__(world, name, incarnation)
        self._world = world
        for index, drive in enumerate(self.drives):
            assert isinstance(drive, CrashDrive)
            drive.watch = _DriveWatch(world, self, index)
            drive.fate = world.fate_of


class CrashWorld(ClusterWorld):
    drive_type = CrashDrive
    node_type = CrashNode

    def __init__(self, *, with_identity: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.with_identity = with_identity
        self.meters: list[Meter] = []
        self.notes: dict[str, Any] = {}  # what a story wants to remember
        self.trace: Callable[[str], None] = lambda line: None
        self._fate = (Unsynced.LOST, random.Random(0))
        self.on_send = self._sent
        self.on_receive = self._received

    def fate_of(self) -> tuple[Unsynced, random.Random]:
        return self._fate

    # ---- events ------------------------------------------------------------------------------------
    def _sent(self, sender: str, target: str, what: str) -> None:
        if sender == target:
            return
        for meter in self.meters:
            if meter.name == sender and meter.before(Kind.MESSAGE, f"{what} to {target}", True):
                meter.after_message()

    def _received(self, sender: str, target: str, what: str) -> None:
        for meter in self.meters:
            if meter.name == target and meter.before(Kind.MESSAGE, f"{what} from {sender}", False):
                meter.after_message()

    def unsynced(self, number: int) -> int:
        return sum(drive.unsynced for drive in self.crash_drives(number))

    def crash_drives(self, number: int) -> list[CrashDrive]:
        return self.node(number).drives  # type: ignore[return-value]

    # ---- power -------------------------------------------------------------------------------------
    def cut_power(self, number: int, point: Point) -> None:
        self._fate = (point.unsynced, random.Random(zlib.crc32(str(point).encode())))
        victims = range(1, len(self.names) + 1) if point.victim is Victim.ALL else (number,)
        self.trace(f"power goes: {', '.join(self.names[n - 1] for n in victims)}")
        for victim in victims:
            if self.node(victim).life.alive:
                self.power_off(victim)

    def dark(self) -> list[int]:
        return [n for n in range(1, len(self.names) + 1) if not self.node(n).life.alive]

    def lit(self) -> list[int]:
        return [n for n in range(1, len(self.names) + 1) if self.node(n).life.alive]

    async def all_on(self) -> None:
        """Lock servers recover together, so all are switched on before the first is waited for."""
        dark = self.dark()
        if dark:
            self.trace(f"power is back: {', '.join(self.names[n - 1] for n in dark)}")
            await asyncio.gather(*(self.power_on(number) for number in dark))

    # ---- repair ------------------------------------------------------------------------------------
    async def mend(self, rounds: int = 60) -> None:
        """Repair on every node until no queue has anything; AssertionError with what is left."""
        for _ in range(rounds):
            for node in self.up():
                await self.spawn(node.life, node.engine.settler.round())
                await self.spawn(node.life, node.engine.repairs.round())
                await self.spawn(node.life, node.engine.filler.turn())
            if not any(self.pending()) and not self.filling():
                return
            await asyncio.sleep(2.0)
        errors = {
            node.name: (
                node.engine.settler.status.last_error,
                node.engine.repairs.status.last_error,
            )
            for node in self.up()
        }
        raise AssertionError(f"repair does not end: {self.pending()}, {errors}")

    async def sweep_uploads(self) -> None:
        """Twice, as it works in pages; on every node, of which one has to do it."""
        for node in self.up() * 2:
            deadline = self.clock.monotonic() + TICKET_S
            await self.spawn(node.life, node.engine.upload_sweep.round(deadline=deadline))
        await self.mend()

    def filling(self) -> bool:
        return any(drive.catalog.filling for node in self.up() for drive in node.drives)

    def age(self) -> None:
        """What is kept for a time only is due now."""
        later = self.clock.now() + DRIVE_STAGED_KEEP_S + 1.0
        for number in self.lit():
            for drive in self.crash_drives(number):
                drive.age(later)


async def settled(work: Callable[[], Any], *, bound_s: float = 40.0) -> Any:
    """What `work` answers; 503 is asked again, as a client does, for a while."""
    loop = asyncio.get_running_loop()
    until = loop.time() + bound_s
    while True:
        try:
            return await work()
        except Unavailable:
            if loop.time() > until:
                raise
        await asyncio.sleep(1.0)
