"""Several lock tables and many requesters on one virtual clock, with a network that delays, loses and
repeats messages, servers that restart, and clocks that run at different rates. All by one seed.

The requesters use Round and LeaseKeeper as they are. The checker looks at what each of them believes.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from locks.lease import LeaseKeeper
from locks.messages import (
    Acquire,
    LockMode,
    Locks,
    Owner,
    Refresh,
    Refreshed,
    Release,
    Reply,
    Request,
    TellTable,
)
from locks.round import Round, RoundState
from locks.server import LockServer
from locks.table import LockTable

ATTEMPT_S = 1.0
SETTLE_S = 2.0
CLOCK_RATE_ERROR = 0.005  # each way; the keeper allows for 1 % between two clocks


@dataclass(kw_only=True)
class Faults:
    loss: float = 0.1
    repeat: float = 0.05
    late: float = 0.1  # share of messages that take seconds
    restart_every_s: float = 15.0
    learn: bool = True


@dataclass
class Server:
    name: str
    rate: float
    offset_s: float
    incarnation: int = 1
    front: LockServer = field(init=False)

    def clock(self, now_s: float) -> float:
        return self.offset_s + now_s * self.rate


class Client:
    """Takes random resources again and again, holds them for a while, and gives them back."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self.cluster = cluster
        self.rate = 1.0 + cluster.rng.uniform(-CLOCK_RATE_ERROR, CLOCK_RATE_ERROR)
        self.attempt = 0
        self.wins = 0
        self.done = False
        self.keeper: LeaseKeeper | None = None
        self.round: Round | None = None
        self.resources: tuple[str, ...] = ()
        self.mode = LockMode.WRITE

    def clock(self) -> float:
        return self.cluster.now_s * self.rate

    def believes(self) -> bool:
        return self.keeper is not None and self.keeper.valid(self.clock())

    def start(self) -> None:
        cluster = self.cluster
        rng = cluster.rng
        if self.done:
            return
        self.attempt += 1
        names = rng.sample(cluster.resources, rng.choice((1, 1, 1, 2)))
        self.resources = tuple(sorted(names))
        self.mode = rng.choice((LockMode.WRITE, LockMode.WRITE, LockMode.READ))
        queued = rng.random() < 0.5
        self.round = Round(cluster.names, self.mode, queued=queued)
        self._pursue(self.round, Owner(self.name, 1, self.attempt), self.resources, queued)

    def _pursue(
        self, round_: Round, owner: Owner, resources: tuple[str, ...], queued: bool
    ) -> None:
        begun_s = self.clock()
        cluster = self.cluster
        over = False

        def ask() -> None:
            left_s = max(0.0, ATTEMPT_S - (self.clock() - begun_s)) * 0.9
            for server in round_.to_ask():
                message = Acquire(resources, round_.mode, owner, left_s, queued)
                cluster.send(server, message, partial(answered, server))

        def answered(server: str, reply: Reply) -> None:
            round_.on_reply(server, reply)
            ask()
            decide()

        def decide() -> None:
            nonlocal over
            release(round_.take_releases())
            if over or round_.state is RoundState.PENDING:
                return
            over = True
            if round_.state is RoundState.WON:
                self._hold(round_, owner, begun_s, release)
            else:
                cluster.after(cluster.rng.uniform(0.05, 0.5), self.start)

        def timeout() -> None:
            round_.on_timeout()
            decide()

        def release(servers: tuple[str, ...]) -> None:
            for server in servers:
                cluster.send(server, Release(resources, owner), lambda reply: None)

        cluster.after(ATTEMPT_S / self.rate, timeout)
        ask()

    def _hold(
        self,
        round_: Round,
        owner: Owner,
        begun_s: float,
        release: Callable[[tuple[str, ...]], None],
    ) -> None:
        cluster = self.cluster
        self.wins += 1
        keeper = LeaseKeeper(servers=len(cluster.names), quorum=round_.quorum, start_s=begun_s)
        self.keeper = keeper
        resources = self.resources
        refreshed = False

        def refresh() -> None:
            nonlocal refreshed
            if self.keeper is not keeper or not keeper.valid(self.clock()):
                return
            refreshed = True
            number = keeper.begin_refresh(self.clock())
            for server in cluster.names:
                message = Refresh(resources, owner, round_.mode)
                cluster.send(server, message, partial(told, number, server))
            cluster.after(3.0, refresh)

        def told(number: int, server: str, reply: Reply) -> None:
            if isinstance(reply, Refreshed):
                keeper.on_answer(number, server, reply.ok, self.clock())

        def stop() -> None:
            self.keeper = None
            closing = round_.close()
            release(cluster.names if refreshed else closing)
            cluster.after(cluster.rng.uniform(0.0, 0.3), self.start)

        held_s = cluster.rng.choice((0.01, 0.05, 0.3, 4.0, 20.0))
        cluster.after(3.0, refresh)
        cluster.after(held_s, stop)


class Cluster:
    def __init__(
        self, seed: int, *, servers: int, clients: int, faults: Faults, settle_s: float = SETTLE_S
    ) -> None:
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.faults = faults
        self.settle_s = settle_s
        self.resources = ["object:a", "object:b", "iam:directory"]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.servers: dict[str, Server] = {}
        for number in range(servers):
            rate = 1.0 + self.rng.uniform(-CLOCK_RATE_ERROR, CLOCK_RATE_ERROR)
            server = Server(f"s{number}", rate, self.rng.uniform(0.0, 1e5))
            self.servers[server.name] = server
        self.names = tuple(self.servers)
        for server in self.servers.values():
            self._boot(server)
            server.front.table.all_fresh()
            self._tick(server)
        self.clients = [Client(self, f"c{number}") for number in range(clients)]
        for client in self.clients:
            self.after(self.rng.uniform(0.0, 1.0), client.start)
        self._plan_restart()

    # ---- time ----

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now_s + seconds, self._count, what))

    def run(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, what = heapq.heappop(self._events)
            what()
            self.check()
        self.now_s = until_s

    # ---- network ----

    def send(self, name: str, message: Request, then: Callable[[Reply], None]) -> None:
        for _ in range(self._copies()):
            self.after(self._delay(), lambda: self._arrive(name, message, then))

    def _copies(self) -> int:
        dice = self.rng.random()
        if dice < self.faults.loss:
            return 0
        return 2 if dice > 1.0 - self.faults.repeat else 1

    def _delay(self) -> float:
        if self.rng.random() < self.faults.late:
            return self.rng.uniform(0.1, 3.0)
        return self.rng.uniform(0.001, 0.02)

    def _arrive(self, name: str, message: Request, then: Callable[[Reply], None]) -> None:
        def answer(reply: Reply) -> None:
            for _ in range(self._copies()):
                self.after(self._delay(), lambda: then(reply))

        server = self.servers[name]
        server.front.handle(message, answer, server.clock(self.now_s))
        server.front.tick(server.clock(self.now_s))

    # ---- servers ----

    def _boot(self, server: Server) -> None:
        peers = [name for name in self.names if name != server.name]
        table = LockTable(
            server.clock(self.now_s), server.incarnation, peers=peers, settle_s=self.settle_s
        )
        server.front = LockServer(table)

    def _tick(self, server: Server) -> None:
        server.front.tick(server.clock(self.now_s))
        self.after(0.25, lambda: self._tick(server))

    def _plan_restart(self) -> None:
        every_s = self.faults.restart_every_s
        if every_s:
            self.after(self.rng.uniform(0.2, 2.0) * every_s, self._restart)

    def _restart(self) -> None:
        if not self.faults.restart_every_s:
            return
        server = self.servers[self.rng.choice(self.names)]
        server.incarnation += 1
        self._boot(server)
        if self.faults.learn:
            self._learn(server, server.front.table)
        self._plan_restart()

    def _learn(self, server: Server, table: LockTable) -> None:
        asked_s = server.clock(self.now_s)

        def told(peer: str, reply: Reply) -> None:
            now_s = server.clock(self.now_s)
            if isinstance(reply, Locks):
                table.learn(peer, reply.entries, now_s, asked_s=asked_s, complete=reply.complete)

        for peer in self.names:
            if peer != server.name:
                message = TellTable(server.name, server.incarnation)
                self.send(peer, message, partial(told, peer))
        if table.recovering and server.front.table is table:
            self.after(0.5, lambda: self._learn(server, table))

    # ---- what must hold ----

    def check(self) -> None:
        """No two believe at once in locks that exclude each other."""
        writers: dict[str, str] = {}
        readers: dict[str, str] = {}
        for client in self.clients:
            if not client.believes():
                continue
            for resource in client.resources:
                other = writers.get(resource)
                if other is None and client.mode is LockMode.WRITE:
                    other = readers.get(resource)
                if other is not None:
                    raise AssertionError(
                        f"{self.now_s:.3f}: {client.name} and {other} both hold {resource}"
                    )
                (writers if client.mode is LockMode.WRITE else readers)[resource] = client.name

    def calm(self) -> None:
        """Faults end."""
        self.faults = Faults(loss=0.0, repeat=0.0, late=0.0, restart_every_s=0.0)
