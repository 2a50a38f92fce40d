"""A cluster of whole nodes in one process and in virtual time.

Everything above the ports is the product's, composed by its own node.compose: forming, membership, peer
links with their authentication, locks, the object layer, identity, jobs, the S3 application called through
ASGI with real signatures, and below it the drive process's server, store, catalog and files. Simulated are
the clock, randomness, the wire (tests.sim.wire), the disks (tests.sim.drive) and the CPU's threads.

For a test:

    async def scenario(world: World) -> None:
        await world.start()                       # all nodes on, the cluster formed, every node takes writes
        answer = await world.client.request(1, "PUT", "/bucket/key", body=b"...")
        world.power_off(2)                        # silent, and what was not synced is kept, lost or torn
        world.power_on(2); world.kill(3)          # kill: the process alone; its machine and drives live on
        world.freeze(4); world.thaw(4)            # the process stands still, and goes on where it was
        world.boxes[1].wall_offset_s = 3600       # the wall clock jumps
        world.network.block(a, b); .free(a, b); .clog[a, b] = seconds; .drop_connections(a, b)
        world.drive(2, 1)                         # SimDrive: .slowness, .disk.full, .disk.before, ...
        await world.settled(bound_s)              # no node waits, no queue, no undecided write, breakers closed

    simulate(scenario, seed=7)

Two hooks see every step and may cut the power in the middle of it: `world.on_verb(node number, drive,
frame)` before a verb leaves a node for a drive of its own, `world.network.on_message(source, target)`
before a message leaves a node. The same seed gives the same run, step by step; `world.trace` says which.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import random
import warnings
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

import structlog

import iam.secrets
import node.compose
from node.compose import Node, Superseded
from node.config import Settings
from node.guard.breaker import BreakerState
from node.limits import MIB
from node.machine import Machine
from node.options import Secret
from node.store.drive_gate import DriveState
from node.volumes import Volume
from tests.sim.client import Client
from tests.sim.drive import DriveRoom, SimDrive, SimDriveProcess, installed
from tests.sim.loop import Life, SimLoop, current_life, run
from tests.sim.wire import Network, SimPeerServer, SimPulse, SimWire

T = TypeVar("T")

NOW_S = 1_700_000_000.0
ROOT, ROOT_SECRET = "simroot", "simulated-root-secret"
BOOT_S = 1.5  # from power to the node's process
STORY_LINES = 5000


class SimClock:
    """node.runtime.ports.Clock: one monotonic time for all, a wall clock for each node."""

    def __init__(self, box: Box) -> None:
        self._box = box

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> float:
        return self._box.wall_s()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SimRng:
    """node.runtime.ports.Rng of one process."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def choice(self, items: Sequence[T]) -> T:
        return self._random.choice(items)


class SimCpu:
    """Work of threads is done inline, and answered on a later turn as a thread's would be."""

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        await asyncio.sleep(0)
        result = work(*arguments)
        await asyncio.sleep(0)
        return result

    def close(self) -> None:
        pass


class SimWeb:
    """node.machine.WebServer: the application, found by its port."""

    def __init__(self, box: Box, life: Life, app: Any, port: int) -> None:
        self._box, self._life, self._app, self._port = box, life, app, port

    async def start(self) -> None:
        self._box.apps[self._port] = (self._life, self._app)

    async def stop(self, _grace_s: float) -> None:
        if self._box.apps.get(self._port, (None,))[0] is self._life:
            del self._box.apps[self._port]


@dataclass(eq=False)
class Box:
    """One machine: its disks, its wall clock, and the process that runs on it now."""

    world: World
    number: int
    name: str
    drives: list[SimDrive]
    life: Life | None = None
    node: Node | None = None
    powered: bool = False
    wall_offset_s: float = 0.0
    starts: int = 0
    cuts: int = 0

    def __post_init__(self) -> None:
        self.apps: dict[int, tuple[Life, Any]] = {}

    def wall_s(self) -> float:
        return NOW_S + asyncio.get_running_loop().time() + self.wall_offset_s

    @property
    def serving(self) -> bool:
        """Its process runs, is not frozen, and has its engine."""
        engine = None if self.node is None else self.node.engine
        return self.life is not None and self.life.running and engine is not None and engine.started


class World:
    """See the module. Made by `simulate`."""

    def __init__(self, seed: int, *, nodes: int = 4, drives: int = 4) -> None:
        self.seed = seed
        self.rng = random.Random(f"{seed}/world")
        self.names = tuple(f"node{n}:9002" for n in range(1, nodes + 1))
        self.network = Network(self.names, random.Random(f"{seed}/wire"))
        self.room = DriveRoom(seed)
        self.room.on_verb = self._verb
        self.room.on_line = lambda line: self.tell("drive", line)
        self.boxes: dict[int, Box] = {}
        for number, name in enumerate(self.names, 1):
            box = self.boxes[number] = Box(self, number, name, [])
            box.drives += [
                self.room.add(f"/node{number}/disk{d}", box.wall_s) for d in range(1, drives + 1)
            ]
        self.volumes = tuple(
            Volume(host=f"node{n}", port=9002, path=drive.path)
            for n, box in self.boxes.items()
            for drive in box.drives
        )
        self.life = Life("world")
        self.lives: list[Life] = []
        self.on_verb: Callable[[int, SimDrive, bytes], None] = lambda number, drive, frame: None
        self.client = Client(self, ROOT, ROOT_SECRET)
        self.story: deque[str] = deque(maxlen=STORY_LINES)
        self.faults: Counter[str] = Counter()
        self.anomalies: list[str] = []
        self.unlink_after_s = 60.0
        self.final_trace = ""
        self.virtual_s = 0.0
        self._trace = hashlib.blake2b(digest_size=16)

    # ---- telling ---------------------------------------------------------------------------------
    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def tell(self, who: str, what: str) -> None:
        """One line of the story; the same lines in the same order make the same run."""
        line = f"{self.now:12.6f} {who:10} {what}"
        self.story.append(line)
        self._trace.update(line.encode())

    def true_wall_s(self) -> float:
        """What a right clock shows."""
        return NOW_S + self.now

    def wrong(self, what: str) -> None:
        self.anomalies.append(what)
        self.tell("ANOMALY", what)

    @property
    def trace(self) -> str:
        """A digest over all that was told, and how many steps and messages there were."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        counts = f"{loop.steps} {self.network.messages} {loop.time():.9f}"
        return f"{self._trace.hexdigest()} {counts}"

    # ---- power -----------------------------------------------------------------------------------
    async def start(self, bound_s: float = 120.0) -> None:
        """Every machine is switched on; returns when every node takes writes."""
        self.network.start(self.life)
        for number in self.boxes:
            self.power_on(number)
        await self.until(self.all_serving, bound_s)
        await self.settled(bound_s)

    def power_on(self, number: int) -> None:
        """The machine boots; its process starts BOOT_S later."""
        box = self.boxes[number]
        assert not box.powered
        box.powered = True
        self.network.hosts[box.name].powered = True
        self.network.flush()
        self.tell(box.name, "power on")
        self.life.after(BOOT_S * self.rng.uniform(0.7, 1.5), self._boot, number, box.cuts)

    def power_off(self, number: int) -> None:
        """At once and silent; may be called from a hook, in the middle of the node's own code."""
        box = self.boxes[number]
        assert box.powered
        box.powered = False
        box.cuts += 1
        host = self.network.hosts[box.name]
        host.powered, host.life, host.accept, host.beat = False, None, None, None
        self._end(box)
        for drive in box.drives:
            drive.power_off()
        self.faults["power-off"] += 1
        self.tell(box.name, "power off")

    def kill(self, number: int, restart_after_s: float = 0.5) -> None:
        """The process is killed; drives and machine live on, peers are told, a new process comes."""
        box = self.boxes[number]
        if box.life is None:
            return
        life = box.life
        host = self.network.hosts[box.name]
        host.life = host.accept = host.beat = None
        box.cuts += 1
        self._end(box)
        self.network.process_ended(life)
        for drive in box.drives:
            if drive.process is not None:
                drive.process.owner_gone()
        self.faults["kill"] += 1
        self.tell(box.name, "process killed")
        self.life.after(restart_after_s, self._boot, number, box.cuts)

    def freeze(self, number: int) -> None:
        """The node's process gets no CPU; its drives' processes do."""
        box = self.boxes[number]
        if box.life is not None and box.life.running:
            box.life.freeze()
            self.faults["freeze"] += 1
            self.tell(box.name, "frozen")

    def thaw(self, number: int) -> None:
        box = self.boxes[number]
        if box.life is not None and box.life.frozen and box.life.alive:
            box.life.thaw()
            self.tell(box.name, "goes on")

    def _end(self, box: Box) -> None:
        if box.life is not None:
            box.life.end()
        box.life = box.node = None
        box.apps.clear()

    def _boot(self, number: int, cuts: int) -> None:
        box = self.boxes[number]
        if not box.powered or box.life is not None or box.cuts != cuts:
            return
        life = box.life = Life(box.name)
        self.lives.append(life)
        self.tell(box.name, "process starts")
        life.spawn(self._serve(box, life), "main")

    async def _serve(self, box: Box, life: Life) -> None:
        above = 0
        while True:
            made = box.node = Node(self._settings(box), self._machine(box, life), above=above)
            await made.start()
            try:
                await made.until_failed()
            except Superseded as error:  # as node.compose.run does
                above = error.current
                self.tell(box.name, "starts again under a later incarnation")
                await made.stop()
            except Exception as error:
                self.wrong(f"{box.name}: the node cannot run: {type(error).__name__}: {error}")
                return

    def _settings(self, box: Box) -> Settings:
        return Settings(
            volumes=self.volumes,
            node=box.name,
            root_user=ROOT,
            root_password=Secret(ROOT_SECRET),
            cluster_secret=Secret("a secret of the simulated cluster"),
            memory_limit_bytes=256 * MIB,
        )

    def _machine(self, box: Box, life: Life) -> Machine:
        box.starts += 1
        by_path = {drive.path: drive for drive in box.drives}
        keep_s = self.unlink_after_s
        return Machine(
            clock=SimClock(box),
            rng=SimRng(f"{self.seed}/{box.name}/{box.starts}"),
            cpu=SimCpu(),
            wire=SimWire(self.network, life, box.name),
            pulse=SimPulse(self.network, life, box.name),
            drive=lambda path, arena, _settings: SimDriveProcess(
                by_path[path], arena, life, unlink_after_s=keep_s
            ),
            peer_server=lambda accept, beat: SimPeerServer(
                self.network, life, box.name, accept, beat
            ),
            web_server=lambda app, _host, port: SimWeb(box, life, app, port),
            own_mount=lambda _path: True,
        )

    def _verb(self, drive: SimDrive, frame: bytes) -> None:
        self.on_verb(int(drive.path.split("/")[1].removeprefix("node")), drive, frame)

    # ---- looking ---------------------------------------------------------------------------------
    def drive(self, number: int, disk: int) -> SimDrive:
        return self.boxes[number].drives[disk - 1]

    def all_serving(self) -> bool:
        return all(box.serving for box in self.boxes.values())

    def engine(self, number: int) -> Any:
        running = self.boxes[number].node
        assert running is not None and running.engine is not None
        return running.engine

    async def on(self, number: int, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine as a task of the node's process."""
        life = self.boxes[number].life
        assert life is not None
        return await life.spawn(work)

    async def until(self, condition: Callable[[], bool], bound_s: float) -> None:
        """TimeoutError when it does not come true in time."""
        async with asyncio.timeout(bound_s):
            while not condition():  # noqa: ASYNC110 - of virtual time
                await asyncio.sleep(0.1)

    async def settled(self, bound_s: float) -> None:
        """Until nothing hinders any node; TimeoutError names what does."""
        try:
            await self.until(lambda: not self.unrest(), bound_s)
        except TimeoutError:
            raise TimeoutError("; ".join(self.unrest()[:12])) from None

    def unrest(self) -> list[str]:
        """What is not as it is on a calm day: nodes that do not serve, breakers, drives, queues."""
        found: list[str] = []
        for box in self.boxes.values():
            if not box.serving:
                waits = box.node.forming.waiting_for if box.node is not None else ()
                found.append(f"{box.name} does not serve {waits}")
                continue
            running = box.node
            assert running is not None
            fine, why = running.health.ready_write()
            if not fine:
                found.append(f"{box.name} is not ready: {why}")
            for target in running.guard.targets("peer"):
                if target.breaker.state is not BreakerState.CLOSED:
                    found.append(f"{box.name}: breaker of {target.name} {target.klass}")
            for drive in running.gate.local_drives():
                if drive.state is not DriveState.ONLINE:
                    found.append(f"{box.name}: {drive.path} {drive.state.name} {drive.detail}")
            for sim in box.drives:
                found += self._pending(sim)
        return found

    def _pending(self, drive: SimDrive) -> list[str]:
        process = drive.process
        catalog = process.catalog if process is not None else None
        if catalog is None:
            return [f"{drive.path} is not open"]
        found = []
        if catalog.undecided:
            found.append(f"{drive.path}: {len(catalog.undecided)} undecided")
        if catalog.queue_depth:
            found.append(f"{drive.path}: {catalog.queue_depth} to repair")
        if catalog.filling:
            found.append(f"{drive.path}: is filling")
        return found

    # ---- the end ---------------------------------------------------------------------------------
    async def finish(self) -> None:
        """Nothing is sent any more; every task of every process is ended, so that nothing leaks."""
        for host in self.network.hosts.values():
            host.powered = False
        for box in self.boxes.values():
            for drive in box.drives:
                if drive.process is not None:
                    drive.process.life.end()
        lives = [life for life in self.lives if life.tasks]
        for life in lives:
            life.end()
        for life in lives:
            life.running = True
            for task in list(life.tasks):
                task.cancel()
        for _ in range(50):
            await asyncio.sleep(0)
            left = [task for life in lives for task in list(life.tasks)]
            if not left:
                break
            for task in left:
                task.cancel()
        for life in lives:
            life.running = False


@contextlib.contextmanager
def _cheap() -> Iterator[None]:
    """Two things that cost real time and are no part of what is simulated: the console and a slow key."""
    with (
        mock.patch.object(node.compose, "create_console", lambda *_, **__: None),
        mock.patch.object(iam.secrets, "_SCRYPT_N", 2),
    ):
        yield


@contextlib.contextmanager
def _logged(world: World) -> Iterator[None]:
    """Log lines of the nodes become lines of the story; an unexpected error is an anomaly."""

    def capture(_logger: Any, method: str, event: Any) -> Any:
        life = current_life()
        who = life.name if life is not None else "?"
        name = event.pop("event", "")
        failure = event.pop("exc_info", None)
        shown = {key: value for key, value in event.items() if key != "request_id"}
        text = f"{name} {shown}" if shown else str(name)
        if method in ("error", "critical", "exception"):
            world.wrong(f"{who}: {text} {failure!r}")
        else:
            world.tell(who, text)
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[capture],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=lambda *_: None,
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def simulate(
    scenario: Callable[[World], Awaitable[None]], *, seed: int, nodes: int = 4, drives: int = 4
) -> World:
    """Runs the scenario on a fresh world; -> the world. What nobody looked at is an anomaly of it."""
    made: list[World] = []

    async def main() -> str:
        world = World(seed, nodes=nodes, drives=drives)
        made.append(world)
        with installed(world.room), _logged(world), _cheap():
            try:
                await scenario(world)
                trace = world.trace
            finally:
                await world.finish()
        return trace

    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            # Coroutines of processes that lost power are never awaited: that is the point.
            warnings.simplefilter("ignore", RuntimeWarning)
            trace, loop = run(main())
    except Exception as error:
        for line in list(made[0].story)[-60:] if made else ():
            error.add_note(line)
        raise
    finally:
        gc.collect()
        if collecting:
            gc.enable()
    world = made[0]
    world.final_trace = trace
    world.virtual_s = loop.time()
    for problem in loop.problems:
        world.anomalies.append(
            f"nobody looked at: {problem.get('message')} {problem.get('exception')!r}"
        )
    return world
