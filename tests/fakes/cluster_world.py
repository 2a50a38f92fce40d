"""A cluster in one process: four nodes of four drives, real object layer, real locks, no socket, no file.

Time is virtual, messages take a moment, and any node can lose power at any message. Everything from
node.engine down to the drive's catalog is the product's; in place of gRPC there is a call on the other
node's handlers, in place of the heartbeats a verdict DEAD_AFTER_S after the cut.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

from erasure.geometry import Geometry, default_parity, layout
from node.cluster.membership import Status
from node.cluster.topology import ErasureSet, Slot, Topology
from node.engine import Engine
from node.errors import HoldfastError, TargetDown, TargetFailed
from node.guard.guard import Guard
from node.guard.policy import PEER_METHODS
from node.limits import (
    DEAD_AFTER_S,
    DRIVE_UNLINK_AFTER_S,
    MIB,
    QUIET_AFTER_S,
    SUSPECT_AFTER_S,
)
from node.objects.api import NewObject
from node.objects.bodies import BytesBody
from node.objects.census import Census
from node.objects.service import Objects
from node.objects.sets import DRIVES_ONLINE
from node.peer.inbound import PeerContext
from node.rpc.methods import Method
from node.runtime.arena import Arena
from node.store.drive_gate import DriveGate
from tests.fakes.memory_drive import Disk, MemoryDrive
from tests.unit.locks_world import run_virtual

__all__ = ["ClusterWorld", "Dark", "run_virtual", "simulate", "simulate_with"]

T = TypeVar("T")

HOP_S = 0.001
BEAT_S = 0.5
TICKET_S = 60.0  # what a request of a test may take, in virtual time
NOW_S = 1_700_000_000.0
_life: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)


class Dark(Exception):
    """The node that worked on the request lost power."""


class LoopClock:
    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> float:
        return NOW_S + self.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SeededRng:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def choice(self, items: Sequence[T]) -> T:
        return self._random.choice(items)


class InlineCpu:
    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        return work(*arguments)


class Notes:
    """Stands in for the metrics; keeps what the tests ask for."""

    def __init__(self) -> None:
        self.replaced: list[str] = []
        self.rotten: list[str] = []

    def shard_replaced(self, reason: str) -> None:
        self.replaced.append(reason)

    def rotten_block(self, drive: str) -> None:
        self.rotten.append(drive)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@dataclass(eq=False)
class Life:
    """One run of a node's process: its tasks end with it, and nothing of it is sent after it."""

    name: str
    incarnation: int
    alive: bool = True
    off_at: float | None = None
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)


class FakeMembership:
    """What one node believes of the others."""

    def __init__(self, world: ClusterWorld, me: str) -> None:
        self._world = world
        self._me = me
        self._status = {name: Status.UP for name in world.names if name != me}
        self.published: dict[str, int] = {}  # as the others have heard it
        self._callbacks: list[Callable[[str, Status, Status], None]] = []

    def alive(self) -> tuple[str, ...]:
        return tuple(n for n, s in self._status.items() if s in (Status.UP, Status.SUSPECT))

    def is_dead(self, peer: str) -> bool:
        return self._status[peer] is Status.DEAD

    def is_quiet(self, peer: str) -> bool:
        node = self._world.nodes[peer]
        cut = frozenset((self._me, peer)) in self._world.cut
        off_at = node.life.off_at
        quiet_for = self._world.clock.monotonic() - off_at if off_at is not None else 0.0
        return cut or quiet_for >= QUIET_AFTER_S

    def state(self, peer: str) -> Any:
        node = self._world.nodes[peer]
        return SimpleNamespace(
            status=self._status[peer],
            incarnation=node.life.incarnation,
            versions=node.membership.published,
        )

    def on_change(self, callback: Callable[[str, Status, Status], None]) -> None:
        self._callbacks.append(callback)

    def publish(self, name: str, version: int) -> None:
        asyncio.get_running_loop().call_later(
            BEAT_S / 2, lambda: self.published.__setitem__(name, version)
        )

    def verdict(self, peer: str, status: Status) -> None:
        before = self._status[peer]
        if before is status:
            return
        self._status[peer] = status
        guard = self._world.nodes[self._me].guard
        if status is Status.DEAD:
            guard.fail_waiting(peer)
            for stream in list(self._world.streams):
                if (stream.life.name, stream.peer) == (peer, self._me):
                    stream.break_off()
        elif before is Status.DEAD:
            guard.allow(peer)
        for callback in self._callbacks:
            callback(peer, before, status)


class FakePeers:
    """node.rpc.client.Peers: guarded calls that become calls on the other node's handlers."""

    def __init__(self, world: ClusterWorld, node: FakeNode) -> None:
        self._world = world
        self._node = node

    def call(
        self, peer: str, method: Method, payload: bytes, *, deadline: float
    ) -> asyncio.Future[bytes]:
        guard = self._node.guard
        policy = PEER_METHODS[method.name]
        expires = min(deadline, asyncio.get_running_loop().time() + policy.attempt_s)
        return guard.start(
            "peer",
            method.name,
            policy,
            guard.target("peer", peer, "lock" if method is Method.LOCK else "fast"),
            lambda: self._world.deliver(self._node.life, peer, method, payload, expires),
            deadline=deadline,
        )

    def tell(self, peer: str, method: Method, payload: bytes) -> None:
        target = self._node.guard.target("peer", peer, "fast")
        now = asyncio.get_running_loop().time()
        if not target.breaker.would_refuse(now):
            self._world.deliver(self._node.life, peer, method, payload, now + 3.0)

    async def open_upload(self, peer: str, header: bytes, *, deadline: float) -> FakeUpload:
        if self._node.membership.is_dead(peer):
            raise TargetDown(f"{peer} is dead")
        upload = FakeUpload(self._world, self._node.life, peer)
        await upload.open(header)
        return upload

    def open_download(self, peer: str, header: bytes, *, deadline: float) -> FakeDownload:
        return FakeDownload(self._world, self._node.life, peer, header)


_STANDSTILL_S = 3.0


class _Pipe:
    """Messages from one node to another, a few under way at once; silent when either end is dark."""

    def __init__(self, world: ClusterWorld, life: Life, peer: str) -> None:
        self.world, self.life, self.peer = world, life, peer
        self.queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(4)
        self.reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.reply.add_done_callback(lambda f: f.cancelled() or f.exception())
        self.task: asyncio.Task[None] | None = None

    async def bounded(self, step: Awaitable[T], bound_s: float = _STANDSTILL_S) -> T:
        try:
            return await asyncio.wait_for(step, bound_s)
        except TimeoutError:
            raise TargetFailed(f"{self.peer} made no progress for {bound_s} s") from None

    def passes(self, what: str) -> bool:
        return self.world.sends(self.life, self.peer, what)

    def serving(self, task: asyncio.Task[None]) -> None:
        self.world.streams.append(self)  # type: ignore[arg-type]
        task.add_done_callback(lambda _: self.world.streams.remove(self))  # type: ignore[arg-type]

    def close(self) -> None:
        # A node without power says nothing, not even that it does not listen any more.
        if self.task is not None and self.life.alive:
            self.task.cancel()


class FakeUpload(_Pipe):
    async def open(self, header: bytes) -> None:
        if not self.passes("upload"):
            return
        await asyncio.sleep(HOP_S)
        node = self.world.nodes[self.peer]
        context = _context(self.life, 1e12)

        async def run() -> None:
            try:
                answer = await node.engine.storage.upload(context, header, self._data())
            except HoldfastError as error:
                answer = error
            if node.life.alive and not self.reply.done():
                if isinstance(answer, BaseException):
                    self.reply.set_exception(TargetFailed(str(answer)))
                else:
                    self.reply.set_result(answer)

        self.task = self.world.spawn(node.life, run())
        self.serving(self.task)

    def break_off(self) -> None:
        """The receiver knows that the sender is dead."""
        while self.queue.full():
            self.queue.get_nowait()
        self.queue.put_nowait(TargetFailed("the sender is dead"))

    async def _data(self) -> AsyncIterator[bytes]:
        while True:
            item = await self.queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    async def _put(self, item: bytes | None) -> None:
        if self.reply.done():
            self.reply.result()
            raise TargetFailed(f"{self.peer}: the receiver gave up")
        if self.task is not None and self.passes("upload data"):
            await self.bounded(self.queue.put(item))
        else:
            await self.bounded(asyncio.Event().wait())

    async def send(self, data: bytes) -> None:
        await self._put(data)

    async def finish(self) -> bytes:
        await self._put(None)
        return await self.bounded(asyncio.shield(self.reply), 10.0)

    def abort(self) -> None:
        if self.passes("upload abort"):
            self.break_off()


class FakeDownload(_Pipe):
    def __init__(self, world: ClusterWorld, life: Life, peer: str, header: bytes) -> None:
        super().__init__(world, life, peer)
        self._header = header
        self._opened = self._closed = False

    def __aiter__(self) -> FakeDownload:
        return self

    async def __anext__(self) -> bytes:
        if self._closed:
            raise StopAsyncIteration
        if not self._opened:
            self._opened = True
            if self.passes("download"):
                await asyncio.sleep(HOP_S)
                node = self.world.nodes[self.peer]
                self.task = self.world.spawn(node.life, self._serve(node))
                self.serving(self.task)
        item = await self.bounded(self.queue.get())
        if item is None:
            self._closed = True
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            raise TargetFailed(str(item))
        return item

    def break_off(self) -> None:
        """The node that serves knows that the reader is dead."""
        if self.task is not None:
            self.task.cancel()

    async def _serve(self, node: FakeNode) -> None:
        context = _context(self.life, 1e12)
        stream = node.engine.storage.download(context, self._header)
        try:
            async for message in stream:
                if not self.world.sends(node.life, self.life.name, "download data"):
                    return
                await self.queue.put(message)
            await self.queue.put(None)
        except HoldfastError as error:
            await self.queue.put(error)
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    def close(self) -> None:
        self._closed = True
        super().close()


class FakeNode:
    """One life of a node, over disks that outlive it. What node.engine needs of node.compose.Node."""

    def __init__(self, world: ClusterWorld, name: str, incarnation: int) -> None:
        self.name = name
        self.life = Life(name, incarnation)
        self.incarnation = incarnation
        self.clock = world.clock
        self.rng = SeededRng(hash((world.seed, world.names.index(name), incarnation)))
        self.cpu = InlineCpu()
        self.metrics = Notes()
        self.settings = SimpleNamespace(region="us-east-1")
        self.forming: Any = None
        self.view: Any = Notes()  # what the console and the operator ask of a node
        self.guard = Guard(self.clock, self.rng, self.metrics)
        self.arena = Arena(world.arena_bytes)
        self.membership: Any = FakeMembership(world, name)
        self.peers: Any = FakePeers(world, self)
        self.drives = [
            world.drive_type(disk, self.arena.memory, self.clock.now) for disk in world.disks[name]
        ]
        for drive in self.drives:
            drive.before_submit = lambda: world.sends(self.life, name, "verb")
        paths = [f"/{name}/disk{i + 1}" for i in range(len(self.drives))]
        self.gate = DriveGate(
            list(zip(paths, self.drives, strict=True)), self.guard, self.clock, self.metrics
        )
        self.engine = Engine(self, world.topology(name))  # type: ignore[arg-type]

    def start(self) -> None:
        self.gate.start()
        self.engine._bind(self.engine.topology)
        self.engine.locks.start()
        self.membership.publish(DRIVES_ONLINE, (1 << len(self.drives)) - 1)
        self.membership.published[DRIVES_ONLINE] = (1 << len(self.drives)) - 1

    @property
    def objects(self) -> Objects:
        return self.engine.objects


class ClusterWorld:
    """The cluster. Make it inside of `run_virtual`, then `async with`."""

    drive_type = MemoryDrive
    node_type: type[FakeNode] = FakeNode

    def __init__(
        self,
        *,
        nodes: int = 4,
        drives: int = 4,
        parity: int | None = None,
        seed: int = 1,
        arena_bytes: int = 64 * MIB,
    ) -> None:
        self.seed = seed
        self.clock = LoopClock()
        self.arena_bytes = arena_bytes
        self.names = tuple(f"node{number}:9002" for number in range(1, nodes + 1))
        self.drives_per_node = drives
        width = len(layout([drives] * nodes)[0])
        self.parity = default_parity(nodes, width // nodes) if parity is None else parity
        rng = SeededRng(seed)
        self.cluster_id = rng.bytes(16)
        self.disks = {name: [Disk(rng.bytes(16)) for _ in range(drives)] for name in self.names}
        self.cut: set[frozenset[str]] = set()
        self.on_send: Callable[[str, str, str], None] = lambda sender, target, what: None
        self.on_receive: Callable[[str, str, str], None] = lambda sender, target, what: None
        self.streams: list[FakeUpload | FakeDownload] = []  # that a node serves to another
        self.lose: Callable[[str, str, str], bool] = lambda sender, target, what: False
        self.incarnations = 0
        self._under_way: deque[Callable[[], None]] = deque()
        self.nodes: dict[str, FakeNode] = {}

    # ---- life ------------------------------------------------------------------------------------
    async def __aenter__(self) -> ClusterWorld:
        asyncio.get_running_loop().set_task_factory(_task_factory)
        for name in self.names:
            self.nodes[name] = self._new_life(name)
        for name in self.names:
            self._in_life(self.nodes[name].life, self.nodes[name].start)
        await self._until(lambda: all(not n.engine.locks.table.recovering for n in self.up()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.life.alive = False
            for task in list(node.life.tasks):
                task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        for node in self.nodes.values():
            node.arena.close()

    def _new_life(self, name: str) -> FakeNode:
        self.incarnations += 1
        return self.node_type(self, name, self.incarnations)

    def topology(self, me: str) -> Topology:
        members = layout([self.drives_per_node] * len(self.names))
        sets = []
        for index, places in enumerate(members):
            slots = tuple(
                Slot(
                    node=self.names[node],
                    drive=drive,
                    drive_id=self.disks[self.names[node]][drive].drive_id,
                    path=f"/{self.names[node]}/disk{drive + 1}",
                )
                for node, drive in places
            )
            n = len(slots)
            sets.append(
                ErasureSet(
                    index=index,
                    slots=slots,
                    geometry=Geometry(k=n - self.parity, n=n),
                    system_geometry=Geometry(k=n - n // 2, n=n),
                    view=sum(self.disks[s.node][s.drive].replaced for s in slots),
                )
            )
        first = sum(slot.node == sets[0].slots[0].node for slot in sets[0].slots)
        return Topology(
            cluster_id=self.cluster_id,
            nodes=self.names,
            me=me,
            sets=tuple(sets),
            drives_per_node_in_set=first,
            parity=self.parity,
            durability="strict",
        )

    def up(self) -> list[FakeNode]:
        return [node for node in self.nodes.values() if node.life.alive]

    def node(self, number: int) -> FakeNode:
        return self.nodes[self.names[number - 1]]

    def disk(self, slot: int) -> Disk:
        """By slot of the first set."""
        return self.disk_of(self.topology(self.names[0]).sets[0].slots[slot].drive_id)

    def disk_of(self, drive_id: bytes) -> Disk:
        return next(d for disks in self.disks.values() for d in disks if d.drive_id == drive_id)

    # ---- running things --------------------------------------------------------------------------
    def spawn(self, life: Life, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        context = contextvars.copy_context()
        context.run(_life.set, life)
        return asyncio.get_running_loop().create_task(work, context=context)

    def _in_life(self, life: Life, work: Callable[[], None]) -> None:
        context = contextvars.copy_context()
        context.run(_life.set, life)
        context.run(work)

    async def on(self, number: int, work: Callable[[Objects, float], Awaitable[T]]) -> T:
        """A request at a node; Dark when the node loses power over it."""
        node = self.node(number)
        deadline = self.clock.monotonic() + TICKET_S

        async def run() -> T:
            return await work(node.objects, deadline)

        task = self.spawn(node.life, run())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Dark(node.name) from None
            task.cancel()
            raise

    async def _until(self, condition: Callable[[], bool], bound_s: float = 60.0) -> None:
        async with asyncio.timeout(bound_s):
            while not condition():  # noqa: ASYNC110 - of virtual time
                await asyncio.sleep(0.05)

    # ---- the wire --------------------------------------------------------------------------------
    def sends(self, life: Life, target: str, what: str) -> bool:
        """One message of a node, to a peer or to a drive of its own; False: it is lost."""
        if not life.alive:
            return False
        self.on_send(life.name, target, what)
        if not life.alive or self.lose(life.name, target, what):
            return False
        if target == life.name:
            return True
        return self.nodes[target].life.alive and frozenset((life.name, target)) not in self.cut

    def _arrives(self, sender: Life, target: Life, what: str) -> bool:
        if target.alive:
            self.on_receive(sender.name, target.name, what)
        return target.alive

    def deliver(
        self, life: Life, peer: str, method: Method, payload: bytes, expires: float
    ) -> asyncio.Future[bytes]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        answer.add_done_callback(lambda f: f.cancelled() or f.exception())
        if not self.sends(life, peer, method.name):
            return answer
        target = self.nodes[peer]

        async def handle() -> None:
            context = _context(life, expires)
            error: HoldfastError | None = None
            result = b""
            try:
                got: Any = target.engine.handlers[method](context, payload)
                result = got if isinstance(got, bytes) else await got
            except HoldfastError as failed:
                error = failed
            if self.sends(target.life, life.name, f"{method.name} answer"):
                loop.call_later(HOP_S, arrive, result, error)

        def arrive(result: bytes, error: HoldfastError | None) -> None:
            if answer.done() or not self._arrives(target.life, life, f"{method.name} answer"):
                return
            if error is None:
                answer.set_result(result)
            else:
                error.answered = True  # type: ignore[attr-defined]
                answer.set_exception(error)

        def begin() -> None:
            if self._arrives(life, target.life, method.name):
                self.spawn(target.life, handle())

        # First in, first out, as on a link: timers of the same moment ring in any order.
        self._under_way.append(begin)
        loop.call_later(HOP_S, lambda: self._under_way.popleft()())
        return answer

    # ---- power -----------------------------------------------------------------------------------
    def power_off(self, number: int) -> None:
        """At once and silent; may be called from `on_send`, in the middle of the node's own code."""
        node = self.node(number)
        node.life.alive = False
        node.life.off_at = self.clock.monotonic()
        for drive in node.drives:
            drive.power_off()
        loop = asyncio.get_running_loop()
        loop.call_soon(_end, node.life)
        life = node.life
        loop.call_later(SUSPECT_AFTER_S, self._tell, life, Status.SUSPECT)
        loop.call_later(DEAD_AFTER_S, self._tell, life, Status.DEAD)

    def _tell(self, life: Life, status: Status) -> None:
        if self.nodes[life.name].life is not life:
            return
        for other in self.up():
            if other.name != life.name:
                self._in_life(other.life, lambda o=other: o.membership.verdict(life.name, status))

    async def power_on(self, number: int) -> None:
        name = self.names[number - 1]
        old = self.nodes[name]
        old.arena.close()
        node = self.nodes[name] = self._new_life(name)
        for other in self.nodes.values():
            if not other.life.alive:
                node.membership.verdict(other.name, Status.DEAD)
        self._in_life(node.life, node.start)
        await asyncio.sleep(BEAT_S)
        for other in self.up():
            if other.name != name:
                # A new incarnation: the old one is dead, whatever was known of it until now.
                for status in (Status.DEAD, Status.UP):
                    self._in_life(
                        other.life, lambda o=other, s=status: o.membership.verdict(name, s)
                    )
        await self._until(lambda: not node.engine.locks.table.recovering)

    async def replace(self, number: int, drive: int) -> Disk:
        """A node without power gets an empty drive, starts, and every node hears of it."""
        name = self.names[number - 1]
        assert not self.nodes[name].life.alive
        self.rng = getattr(self, "rng", SeededRng(self.seed + 77))
        fresh = self.disks[name][drive] = Disk(self.rng.bytes(16), replaced=True)
        await self.power_on(number)
        for node in self.up():
            self._in_life(node.life, lambda n=node: n.engine.adopt(self.topology(n.name), ()))
            self._in_life(node.life, node.engine._gauge)
        await asyncio.sleep(BEAT_S + 3.5)  # heard by all, and checked once
        for node in self.up():
            self._in_life(node.life, node.engine._gauge)
        await asyncio.sleep(BEAT_S)
        return fresh

    async def notice(self) -> None:
        """Until every verdict on a cut is in."""
        await asyncio.sleep(DEAD_AFTER_S + 0.5)

    # ---- checks ----------------------------------------------------------------------------------
    async def repair(self, rounds: int = 40) -> None:
        """Rounds of the repair job on every node until no queue has anything; AssertionError if one stays."""
        for _ in range(rounds):
            for node in self.up():
                await self.spawn(node.life, node.engine.settler.round())
                await self.spawn(node.life, node.engine.repairs.round())
            await asyncio.sleep(2.0)
            if not any(self.pending()):
                await asyncio.sleep(DRIVE_UNLINK_AFTER_S + 1)  # what nobody refers to has gone
                return
        raise AssertionError(
            [
                (n.engine.repairs.status.last_error, n.engine.settler.status.last_error)
                for n in self.up()
            ],
            [d.catalog.undecided for n in self.up() for d in n.drives],
        )

    def pending(self) -> list[int]:
        """Per drive that runs: undecided writes and queued repairs."""
        return [
            drive.catalog.queue_depth + sum(map(len, drive.catalog.undecided.values()))
            for node in self.up()
            for drive in node.drives
        ]

    async def census(self, number: int = 1) -> Census:
        node = self.node(number)
        deadline = self.clock.monotonic() + TICKET_S
        return await self.spawn(node.life, node.engine.census.take(deadline=deadline))

    # ---- shorthand -------------------------------------------------------------------------------
    async def bucket(self, name: str = "bucket", at: int = 1) -> None:
        await self.on(at, lambda o, d: o.create_bucket(name, "root", deadline=d))

    async def put(self, key: str, data: bytes, *, at: int = 1, bucket: str = "bucket") -> str:
        record = await self.on(
            at, lambda o, d: o.put(bucket, key, BytesBody(data), NewObject(), deadline=d)
        )
        return record.etag

    async def get(self, key: str, *, at: int = 1, bucket: str = "bucket") -> bytes:
        async def read(objects: Objects, deadline: float) -> bytes:
            reading = await objects.get(bucket, key, deadline=deadline)
            try:
                return b"".join([bytes(chunk) async for chunk in reading.chunks()])
            finally:
                await reading.close()

        return await self.on(at, read)

    async def delete(self, key: str, *, at: int = 1, bucket: str = "bucket") -> None:
        await self.on(at, lambda o, d: o.delete(bucket, key, deadline=d))

    async def keys(self, *, at: int = 1, bucket: str = "bucket", **options: Any) -> list[str]:
        page = await self.on(at, lambda o, d: o.list_objects(bucket, deadline=d, **options))
        return [o.key for o in page.objects]


def _context(life: Life, deadline: float) -> PeerContext:
    return PeerContext(
        peer=life.name, incarnation=life.incarnation, request_id="", deadline=deadline
    )


def _end(life: Life) -> None:
    for task in list(life.tasks):
        task.cancel()


def _task_factory(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    context = options.get("context")
    life = _life.get() if context is None else context.get(_life)
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
    if life is not None:
        life.tasks.add(task)
        task.add_done_callback(life.tasks.discard)
        if not life.alive:
            task.cancel()
    return task


W = TypeVar("W", bound=ClusterWorld)


def simulate(
    test: Callable[[ClusterWorld], Coroutine[Any, Any, None]], **options: Any
) -> ClusterWorld:
    """Runs `test` on a fresh cluster in virtual time; an error nobody looked at fails it, too."""
    return simulate_with(ClusterWorld, test, **options)


def simulate_with(
    kind: Callable[..., W], test: Callable[[W], Coroutine[Any, Any, None]], **options: Any
) -> W:
    """The same on a cluster that `kind` makes of the options."""
    unhandled: list[BaseException] = []

    def note(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        unhandled.append(context.get("exception") or AssertionError(context["message"]))

    async def main() -> W:
        asyncio.get_running_loop().set_exception_handler(note)
        async with kind(**options) as world:
            await test(world)
        return world

    try:
        world = run_virtual(main())
    except Exception as error:
        for other in unhandled:
            error.add_note(f"and nobody looked at: {other!r}")
        raise
    if unhandled:
        raise ExceptionGroup(
            "nobody looked at these", [e for e in unhandled if isinstance(e, Exception)]
        )
    return world
