"""The only place where things meet: one node, built from its settings.

Start order: drives and the peer port first (a peer may be forming the cluster and needs our drives), the
S3 port at once (health answers while the node waits), then forming, then the engine. Until the engine
is there, every request is answered 503 and the health pages say what is awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import uvloop

from erasure.codec import backend_name
from node.cluster.drive_access import Acquaintance, NodeDrives
from node.cluster.forming import Forming
from node.cluster.membership import Membership, Status
from node.cluster.topology import build_topology
from node.cluster_view import ClusterView
from node.config import Settings
from node.console.app import create_console
from node.engine import Engine
from node.errors import ConfigError, HoldfastError, Unavailable
from node.guard.guard import Guard
from node.limits import ARENA_BYTES, DRAIN_S, GREET_INTERVAL_S, MIB
from node.machine import Machine, WebServer, of_this_system
from node.node_health import snapshot
from node.observe.health import Health
from node.observe.log import configure, current_request_id, get_logger, request_id
from node.observe.metrics import Metrics
from node.peer.inbound import Inbound, PeerContext
from node.rpc.auth import ClusterKeys, Roster
from node.rpc.client import Peers, Trouble
from node.rpc.link import Identity as LinkIdentity
from node.rpc.methods import Method
from node.runtime.arena import Arena
from node.runtime.drive_client import DriveSettings
from node.runtime.system import prepare_memory, settle_memory
from node.s3.app import create_app
from node.store.boot import Finding
from node.store.drive_gate import DriveGate, DriveState, LocalDrive
from node.store.format import Format, FormatError

_ENGINE_METHODS = (
    Method.PREPARE,
    Method.COMMIT,
    Method.FINISH,
    Method.VERBS,
    Method.LOCK,
    Method.IDENTITY,
    Method.INFO,
    Method.ADMIN,
)

_CALM = frozenset({DriveState.ONLINE, DriveState.STARTING, DriveState.UNFORMATTED})


class Superseded(HoldfastError):
    """A peer has heard of a later start of this node (`current`): the clock was set back since."""

    def __init__(self, current: int) -> None:
        super().__init__(
            f"a peer knows this node by a later start ({current}): the clock was set back"
        )
        self.current = current


class NotReady(Unavailable):
    """The node waits for its cluster; what it waits for is on the health page and in the log."""


class Node:
    """One running node."""

    def __init__(
        self, settings: Settings, machine: Machine | None = None, *, above: int = 0
    ) -> None:
        """`above`: an incarnation that peers know this node by; this one is later, whatever the clock says."""
        self.settings = settings
        self.machine = machine = machine or of_this_system()
        self.clock = machine.clock
        self.rng = machine.rng
        self.cpu = machine.cpu
        self.metrics = Metrics(clock=self.clock)
        self.metrics.build_info(version("holdfast"), backend_name())
        self.log = get_logger("holdfast.node")
        self.guard = Guard(self.clock, self.rng, self.metrics, enabled=settings.guarded)
        self.engine: Engine | None = None
        self.incarnation = max(int(self.clock.now() * 1000), above + 1)
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        others = tuple(name for name in settings.node_names if name != settings.node)
        secret = settings.cluster_secret or settings.root_password
        previous = settings.previous_cluster_secret
        me = LinkIdentity(
            node=settings.node,
            incarnation=self.incarnation,
            keys=ClusterKeys(secret.value.encode(), previous.value.encode() if previous else None),
        )
        roster = Roster()
        self.arena = Arena(min(ARENA_BYTES, settings.memory_limit_bytes // (2 * MIB) * MIB))
        drives = DriveSettings(relaxed=settings.durability == "relaxed")
        self.gate = DriveGate(
            [(path, machine.drive(path, self.arena, drives)) for path in settings.local_paths],
            self.guard,
            self.clock,
            self.metrics,
        )
        self.peers = Peers(
            me=me,
            peers=others,
            wire=machine.wire,
            guard=self.guard,
            clock=self.clock,
            rng=self.rng,
            roster=roster,
            request_id=current_request_id,
        )
        self.membership = Membership(
            me=me,
            peers=others,
            pulse=machine.pulse,
            links=self.peers,
            clock=self.clock,
            observer=self.metrics,
            roster=roster,
        )
        self.guard.ask_before_opening(lambda target: self.membership.may_open(target, self.guard))
        self.forming = Forming(
            settings=settings,
            access=NodeDrives(settings.node, self.gate, self.peers),
            clock=self.clock,
            rng=self.rng,
            own_mount=self._own_mount,
            log=get_logger("holdfast.forming"),
        )
        self.acquaintance = Acquaintance(settings.node, self.gate, self.forming)
        self.inbound = Inbound(
            me=me,
            peers=others,
            handlers=self._handlers(),
            upload=self._upload,
            download=self._download,
            roster=roster,
            clock=self.clock,
            rng=self.rng,
            set_request_id=lambda value: request_id.set(value),  # type: ignore[arg-type]
            on_life=self.membership.heard,
        )
        self.health = Health(lambda: snapshot(self))
        self.view = ClusterView(self)
        self._grpc = machine.peer_server(self.inbound.accept, self.membership.receive)
        self.servers: list[WebServer] = []

    # ---- life -----------------------------------------------------------------------------------
    async def start(self) -> None:
        """Listens and begins to look for its cluster; ConfigError when a port cannot be had."""
        self.gate.start()
        self.membership.on_change(self._on_member)
        self.peers.on_trouble(self._on_trouble)
        self.gate.on_state(self._on_drive)
        host, port = self.settings.peer_listen
        try:
            await self._grpc.start(host, port)
            await self._listen(self._s3_app(), *self.settings.s3_listen)
            await self._listen(self._console_app(), *self.settings.console_listen)
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"cannot listen: {error}") from error
        self.peers.start()
        self.membership.start()
        self._spawn(self._bring_up())
        if self.peers.peers:
            self._spawn(self._greet())

    async def _listen(self, app: Any, host: str, port: int) -> None:
        server = self.machine.web_server(app, host, port)
        await server.start()
        self.servers.append(server)

    def _store(self) -> Any:
        return Later(lambda: self.engine and self.engine.started and self.engine.objects)

    def _identity(self) -> Any:
        return Later(lambda: self.engine and self.engine.started and self.engine.identity)

    def _console_app(self) -> Any:
        return create_console(
            self._store(),
            self._identity(),
            self.view,
            self.metrics,
            self.clock,
            self.rng,
            self.settings,
            self.guard,
            log=get_logger("holdfast.console"),
        )

    def _s3_app(self) -> Any:
        return create_app(
            self._store(),
            self._identity(),
            self.metrics,
            self.clock,
            self.rng,
            self.settings,
            self.health,
            self.guard,
            log=get_logger("holdfast.s3"),
        )

    async def _bring_up(self) -> None:
        cluster = await self.forming.run()
        topology = build_topology(self.settings, cluster)
        self.engine = Engine(self, topology)
        self.forming.on_change(self._on_format)
        await self.engine.start()
        self.log.info(
            "the node serves",
            cluster_id=cluster.cluster_id,
            parity=topology.parity,
            durability=topology.durability,
            codec=backend_name(),
        )

    async def stop(self) -> None:
        """In-flight requests end or are told; locks are released; bounded."""
        for server in self.servers:
            await server.stop(DRAIN_S)
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError, HoldfastError, FormatError):
                await task
        if self.engine is not None:
            await self.engine.stop()
        self.membership.stop()
        await self.peers.stop()
        await self._grpc.stop(0.5)
        self.gate.stop()
        self.arena.close()
        self.cpu.close()

    def _spawn(self, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.append(task)
        task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self._failed.done():
            return
        if (error := task.exception()) is not None:
            self._failed.set_exception(error)

    async def until_failed(self) -> None:
        """Ends only when the node cannot go on; raises why (FormatError: what to do)."""
        await self._failed

    # ---- what forming and peers tell ------------------------------------------------------------
    async def _own_mount(self, path: str) -> bool:
        return await self.cpu.run(self.machine.own_mount, path)

    def _on_format(self, cluster: Format, drives: tuple[Finding, ...]) -> None:
        if self.engine is not None:
            self.engine.adopt(build_topology(self.settings, cluster), drives)

    async def _greet(self) -> None:
        """Compares this node with each peer now and then; a difference keeps it unready and is named."""
        while True:
            for peer in self.membership.alive():
                deadline = self.clock.monotonic() + GREET_INTERVAL_S
                with contextlib.suppress(HoldfastError):
                    await self.acquaintance.greet(peer, self.peers, deadline=deadline)
            await self.clock.sleep(GREET_INTERVAL_S)

    def _on_member(self, peer: str, old: Status, new: Status) -> None:
        self.log.warning("a peer's state changed", peer=peer, before=str(old), now=str(new))
        if new is Status.DEAD:
            self.inbound.drop(peer)
        elif new is Status.UP:
            self.inbound.superseded(peer)

    def _on_drive(self, drive: LocalDrive) -> None:
        say = self.log.warning if drive.state not in _CALM else self.log.info
        say(
            "a drive's state changed",
            drive=drive.path,
            now=drive.state.name.lower(),
            reason=drive.detail,
        )

    def _on_trouble(self, peer: str, trouble: Trouble) -> None:
        self.log.warning("no link to a peer", peer=peer, reason=trouble.message)
        if trouble.current >= self.incarnation and not self._failed.done():
            self._failed.set_exception(Superseded(trouble.current))

    # ---- inbound calls --------------------------------------------------------------------------
    def _handlers(self) -> dict[Method, Any]:
        async def forming(context: PeerContext, payload: bytes) -> bytes:
            return await self.acquaintance.handle(context.peer, payload, deadline=context.deadline)

        def later(method: Method) -> Callable[[PeerContext, bytes], Any]:
            return lambda context, payload: self._ready().handlers[method](context, payload)

        return {Method.FORMING: forming, **{m: later(m) for m in _ENGINE_METHODS}}

    def _ready(self) -> Engine:
        if self.engine is None:
            raise NotReady("the node is not ready yet")
        return self.engine

    async def _upload(self, context: PeerContext, header: bytes, data: Any) -> bytes:
        return await self._ready().storage.upload(context, header, data)

    def _download(self, context: PeerContext, header: bytes) -> Any:
        return self._ready().storage.download(context, header)


class Later:
    """Stands in for a part of the engine until there is one: every use is NotReady (503)."""

    def __init__(self, part: Callable[[], Any]) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        part = self._part()
        if not part:
            raise NotReady("the node is waiting for its cluster")
        return getattr(part, name)


async def run(settings: Settings) -> int:
    """Runs a node until SIGTERM or SIGINT; -> exit code."""
    configure(settings.log_level, node=settings.node)
    log = get_logger("holdfast.node")
    for warning in settings.warnings:
        log.warning(warning)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    above = 0
    while True:
        try:
            await _live(Node(settings, above=above), stopping)
            return 0
        except Superseded as error:
            log.warning("starting again under a later incarnation", reason=str(error))
            above = error.current
        except (ConfigError, FormatError) as error:
            log.error("the node cannot run", reason=str(error))
            return 2


async def _live(node: Node, stopping: asyncio.Event) -> None:
    """One life of the node: until `stopping`, or what it failed with is raised."""
    failed = asyncio.ensure_future(node.until_failed())
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        await node.start()
        settle_memory()
        await asyncio.wait({failed, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
    finally:
        failed.cancel()
        stopped.cancel()
        await node.stop()


def serve(settings: Settings) -> int:
    """The `holdfast serve` command."""
    prepare_memory()
    return uvloop.run(run(settings))
