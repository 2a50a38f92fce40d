"""Two or more nodes' peer layers over real gRPC on loopback, without the rest of a node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from node.guard.guard import Guard
from node.peer.inbound import Answer, Handler, Inbound, PeerContext
from node.rpc.auth import ClusterKeys, Roster
from node.rpc.client import Peers
from node.rpc.link import Identity
from node.rpc.methods import LINK_LANES, Method
from node.runtime.grpc_wire import GrpcServer, GrpcWire
from node.runtime.ports import Wire
from node.runtime.system import SystemClock, SystemRng

SECRET = b"a secret of the whole cluster"
CLOCK = SystemClock()
RNG = SystemRng()


def no_beat(_beat: bytes) -> bytes:
    return b""


@dataclass(slots=True, kw_only=True)
class Callee:
    """A listening node: name it by its bound port, then let callers in."""

    handlers: dict[Method, Handler] = field(default_factory=dict)
    upload: Callable[[PeerContext, bytes, AsyncIterator[bytes]], object] | None = None
    download: Callable[[PeerContext, bytes], AsyncIterator[bytes]] | None = None
    secret: bytes = SECRET
    incarnation: int = 100
    callers: tuple[str, ...] = ("caller:1",)
    roster: Roster = field(default_factory=Roster)
    name: str = ""
    inbound: Inbound | None = None
    server: GrpcServer | None = None

    async def start(self, port: int = 0) -> None:
        async def accept(kind: str, stream: object) -> None:
            assert self.inbound is not None
            await self.inbound.accept(kind, stream)  # type: ignore[arg-type]

        self.server = GrpcServer(accept, no_beat)
        bound = await self.server.start("127.0.0.1", port)
        self.name = f"127.0.0.1:{bound}"
        self.inbound = Inbound(
            me=Identity(
                node=self.name, incarnation=self.incarnation, keys=ClusterKeys(self.secret)
            ),
            peers=self.callers,
            handlers=self.handlers,
            upload=self.upload,  # type: ignore[arg-type]
            download=self.download,  # type: ignore[arg-type]
            roster=self.roster,
            clock=CLOCK,
            rng=RNG,
        )

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(0)

    @property
    def port(self) -> int:
        return int(self.name.rpartition(":")[2])


def make_peers(
    *names: str,
    me: str = "caller:1",
    secret: bytes = SECRET,
    incarnation: int = 7,
    guard: Guard | None = None,
    wire: Wire | None = None,
) -> Peers:
    return Peers(
        me=Identity(node=me, incarnation=incarnation, keys=ClusterKeys(secret)),
        peers=names,
        wire=wire or GrpcWire(),
        guard=guard or Guard(CLOCK, RNG),
        clock=CLOCK,
        rng=RNG,
        roster=Roster(),
    )


def echo(_context: PeerContext, payload: bytes) -> Answer:
    return payload


def within(seconds: float) -> float:
    return CLOCK.monotonic() + seconds


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that happens by itself; fails loudly when it does not."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is nothing to be told by
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def caller(*names: str, linked: bool = True, **options: object) -> AsyncIterator[Peers]:
    peers = make_peers(*names, **options)  # type: ignore[arg-type]
    peers.start()
    try:
        if linked:
            await until(lambda: all(peers.linked(n, lane) for n in names for lane in LINK_LANES))
        yield peers
    finally:
        await peers.stop()


@contextlib.asynccontextmanager
async def listening(callee: Callee) -> AsyncIterator[Callee]:
    await callee.start()
    try:
        yield callee
    finally:
        await callee.stop()
