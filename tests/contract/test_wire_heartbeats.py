"""Two memberships over real heartbeats: up, dead by silence, back, and told apart by their secrets."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable

from node.cluster.detector import DetectorRules, Status
from node.cluster.membership import Membership
from node.guard.observer import NullObserver
from node.rpc.auth import ClusterKeys, Roster
from node.rpc.errors import WRONG_SECRET
from node.rpc.link import Identity
from node.runtime.grpc_wire import GrpcPulse, GrpcServer
from tests.contract.wire_world import CLOCK, SECRET, until

RULES = DetectorRules(interval_s=0.05)


class NoLinks:
    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []

    def lost(self, peer: str) -> None:
        self.log.append(("lost", peer))

    def returned(self, peer: str) -> None:
        self.log.append(("returned", peer))

    def kick(self, peer: str) -> None:
        pass

    def on_life(self, heard: Callable[[str], None]) -> None:
        pass


async def no_streams(_kind: str, _stream: object) -> None:
    raise AssertionError


class Node:
    """A port first, so that the two can name each other; then the heartbeats."""

    def __init__(self) -> None:
        self.membership: Membership | None = None
        self.links = NoLinks()
        self.name = ""
        self._server = GrpcServer(no_streams, self._beat)

    def _beat(self, data: bytes) -> bytes:
        return b"" if self.membership is None else self.membership.receive(data)

    async def listen(self, port: int = 0) -> None:
        self.name = f"127.0.0.1:{await self._server.start('127.0.0.1', port)}"

    def begin(self, *peers: str, incarnation: int = 1, secret: bytes = SECRET) -> None:
        self.membership = Membership(
            me=Identity(node=self.name, incarnation=incarnation, keys=ClusterKeys(secret)),
            peers=peers,
            pulse=GrpcPulse(),
            links=self.links,
            clock=CLOCK,
            observer=NullObserver(),
            roster=Roster(),
            rules=RULES,
        )
        self.membership.start()

    def status(self, peer: str) -> Status:
        assert self.membership is not None
        return self.membership.state(peer).status

    async def stop(self) -> None:
        if self.membership is not None:
            self.membership.stop()
        await self._server.stop(0)


@contextlib.asynccontextmanager
async def two_nodes() -> AsyncIterator[tuple[Node, Node]]:
    a, b = Node(), Node()
    await a.listen()
    await b.listen()
    try:
        yield a, b
    finally:
        await a.stop()
        await b.stop()


async def test_two_nodes_find_each_other_and_exchange_versions() -> None:
    async with two_nodes() as (a, b):
        a.begin(b.name, incarnation=11)
        b.begin(a.name, incarnation=22)
        await until(lambda: a.status(b.name) is Status.UP and b.status(a.name) is Status.UP)
        assert a.membership is not None and b.membership is not None
        a.membership.publish("identity", 42)
        await until(lambda: b.membership.state(a.name).versions == {"identity": 42})  # type: ignore[union-attr]
        await until(lambda: a.membership.state(b.name).rtt_s > 0)  # type: ignore[union-attr]
        assert b.membership.state(a.name).incarnation == 11
        assert a.membership.alive() == (b.name,)


async def test_a_node_that_stops_is_dead_and_one_that_returns_is_up() -> None:
    async with two_nodes() as (a, b):
        a.begin(b.name)
        b.begin(a.name, incarnation=1)
        await until(lambda: a.status(b.name) is Status.UP)
        await b.stop()
        await until(lambda: a.status(b.name) is Status.DEAD)
        again = Node()
        await again.listen(int(b.name.rpartition(":")[2]))
        again.begin(a.name, incarnation=2)
        try:
            await until(lambda: a.status(b.name) is Status.UP)
            assert [what for what, _ in a.links.log] == ["returned", "lost", "returned"]
        finally:
            await again.stop()


async def test_nodes_of_different_secrets_never_count_as_up() -> None:
    async with two_nodes() as (a, b):
        a.begin(b.name)
        b.begin(a.name, secret=b"another cluster's")
        assert a.membership is not None
        await until(lambda: a.membership.refused.get(WRONG_SECRET, 0) >= 3)  # type: ignore[union-attr]
        assert a.status(b.name) is Status.UNKNOWN
        assert a.membership.alive() == ()


async def test_heartbeats_go_on_and_tell_the_lag_while_the_loop_stands_still() -> None:
    """The loop of `a` is blocked for a while; `b`, in a thread with a loop of its own, hears its lag."""
    ready = threading.Event()
    stop = threading.Event()
    lags: list[float] = []
    names: dict[str, str] = {}

    async def other() -> None:
        b = Node()
        await b.listen()
        names["b"] = b.name
        ready.set()
        while "a" not in names:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        b.begin(names["a"])
        while not stop.is_set():
            assert b.membership is not None
            lags.append(b.membership.state(names["a"]).lag_s)
            await asyncio.sleep(0.02)
        await b.stop()

    a = Node()
    await a.listen()
    thread = threading.Thread(target=lambda: asyncio.run(other()))
    thread.start()
    try:
        await asyncio.to_thread(ready.wait, 20)
        a.begin(names["b"])
        names["a"] = a.name
        await until(lambda: a.status(names["b"]) is Status.UP)
        blocked_until = time.monotonic() + 20
        while max(lags, default=0.0) < 0.5 and time.monotonic() < blocked_until:
            time.sleep(0.05)  # noqa: ASYNC251 - standing still is the point
        assert max(lags) >= 0.5
        await until(lambda: lags[-1] < 0.3)
        assert a.status(names["b"]) is Status.UP, "our own standstill is not the peer's silence"
    finally:
        stop.set()
        await asyncio.to_thread(thread.join, 20)
        await a.stop()
