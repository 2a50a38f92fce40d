"""A wire that lies: node.runtime.ports.Wire, Pulse and the peer server over delays, cuts, clogs and silence.

Theory of operation. A connection carries messages in order each way. While a direction is cut, or the
machine at its end has no power, what is sent stays where it is, and goes on when the way is free again
(a transport repeats what was not acknowledged). Nobody is told of a power-off. A connection whose
peer has been silent for KEEPALIVE_S is broken by the keepalive, at once when the peer answers that
it knows no such connection (a new process runs there). A frozen process takes what comes when it goes
on. What a stream means (ends, aborts, cancelled handlers) is what node.runtime.grpc_wire does.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from node.errors import HoldfastError, TargetFailed
from tests.sim.loop import Life

Accept = Callable[[str, Any], Awaitable[None]]
Beat = Callable[[bytes], bytes]

KEEPALIVE_S = {"bulk": 8.0}
_KEEPALIVE_S = 5.0
_CONNECT_S = 20.0
_WATCH_S = 1.0
_WINDOW = 4  # messages of a stream that may be under way
_BEAT_BOUND_S = 1.0


@dataclass(eq=False, slots=True)
class Host:
    """A machine on the network: powered or not, and the process that listens there (None: nobody)."""

    name: str
    powered: bool = True
    life: Life | None = None
    accept: Accept | None = None
    beat: Beat | None = None


class Network:
    """All hosts and what lies between them. `cut` holds ordered pairs; `clog` delays them."""

    def __init__(self, names: Sequence[str], rng: random.Random) -> None:
        self.rng = rng
        self.hosts = {name: Host(name) for name in names}
        self.cut: set[tuple[str, str]] = set()
        self.clog: dict[tuple[str, str], float] = {}
        self.messages = 0
        self.on_message: Callable[[str, str], None] = lambda source, target: None
        self._connections: dict[Connection, None] = {}
        self.context = contextvars.copy_context()  # a message under way is nobody's

    def latency_s(self, source: str, target: str) -> float:
        return self.rng.uniform(0.00008, 0.0012) + self.clog.get((source, target), 0.0)

    def passes(self, source: str, target: str) -> bool:
        return (source, target) not in self.cut and self.hosts[target].powered

    def sent(self, source: str, target: str) -> None:
        self.messages += 1
        self.on_message(source, target)

    # ---- what happens to it ----------------------------------------------------------------------
    def block(self, source: str, target: str) -> None:
        self.cut.add((source, target))

    def free(self, source: str, target: str) -> None:
        self.cut.discard((source, target))
        self.flush()

    def flush(self) -> None:
        """Whatever waited for a way that is free now goes on."""
        for connection in list(self._connections):
            connection.flush()

    def drop_connections(self, first: str, second: str) -> int:
        """Breaks every connection between two hosts, for both ends; -> how many."""
        count = 0
        for connection in list(self._connections):
            if {connection.source, connection.target} == {first, second}:
                connection.break_both("connection reset")
                count += 1
        return count

    def process_ended(self, life: Life) -> None:
        """The process is gone and its machine lives: the other ends hear of it."""
        for connection in list(self._connections):
            connection.end_gone(life)

    def start(self, life: Life) -> None:
        """Begins the keepalive of all connections; `life` is the world's own."""
        life.after(_WATCH_S, self._watch, life)

    def _watch(self, life: Life) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self._connections):
            connection.keep_alive(now)
        life.after(_WATCH_S, self._watch, life)

    def add(self, connection: Connection) -> None:
        self._connections[connection] = None

    def forget(self, connection: Connection) -> None:
        self._connections.pop(connection, None)


class Connection:
    """node.runtime.ports.WireConnection, both ends of it."""

    def __init__(self, network: Network, caller: Life, source: str, target: str, lane: str) -> None:
        self.network, self.caller = network, caller
        self.source, self.target, self.lane = source, target, lane
        self.callee: Life | None = None  # known when the first message has arrived
        self.open_ = True
        self.streams: list[tuple[Stream, Stream]] = []
        self._backlog: dict[bool, collections.deque[Callable[[], None]]] = {
            True: collections.deque(),
            False: collections.deque(),
        }
        self._last: dict[bool, float] = {True: 0.0, False: 0.0}
        self._silent_since: float | None = None
        self._began = asyncio.get_running_loop().time()
        network.add(self)

    # ---- the port --------------------------------------------------------------------------------
    def open(self, kind: str) -> Stream:
        ours = Stream(self, forward=True, kind=kind)
        theirs = Stream(self, forward=False, kind=kind)
        ours.other, theirs.other = theirs, ours
        if len(self.streams) >= 64:
            self.streams = [pair for pair in self.streams if not pair[0].over]
        self.streams.append((ours, theirs))
        if not self.open_:
            ours.fail("the connection is closed")
        return ours

    def close(self) -> None:
        if self.open_:
            for ours, _ in self.streams:
                ours.abort()
            self.open_ = False
            self.network.forget(self)

    # ---- messages --------------------------------------------------------------------------------
    def transmit(self, forward: bool, arrive: Callable[[], None]) -> None:
        """`arrive` is called at the other end, in its life, in order; never when it is gone."""
        sender = self.caller if forward else self.callee
        if not self.open_ or sender is None or not sender.alive:
            return
        source, target = self._ends(forward)
        self.network.sent(source, target)
        if not sender.alive:
            return
        self._backlog[forward].append(arrive)
        self.flush_way(forward)

    def _ends(self, forward: bool) -> tuple[str, str]:
        return (self.source, self.target) if forward else (self.target, self.source)

    def flush(self) -> None:
        self.flush_way(True)
        self.flush_way(False)

    def flush_way(self, forward: bool) -> None:
        source, target = self._ends(forward)
        backlog = self._backlog[forward]
        if not backlog or not self.network.passes(source, target):
            return
        loop = asyncio.get_running_loop()
        host = self.network.hosts[target]
        while backlog:
            soonest = loop.time() + self.network.latency_s(source, target)
            at = max(soonest, self._last[forward] + 1e-6)  # never past the one before it
            self._last[forward] = at
            work = backlog.popleft()
            loop.call_at(at, self._arrived, forward, host, work, context=self.network.context)

    def _arrived(self, forward: bool, host: Host, arrive: Callable[[], None]) -> None:
        """At the machine: its process takes the message, or nobody does."""
        if not self.open_:
            return
        if not host.powered:
            self._backlog[forward].append(arrive)  # it is repeated until somebody says something
            return
        if forward and self.callee is None:
            if host.life is None or not host.life.alive:
                self._refused("connection refused")
                return
            self.callee = host.life
        receiver = self.callee if forward else self.caller
        assert receiver is not None
        if not receiver.alive:
            self._refused("connection reset")
            return
        receiver.soon(arrive)

    def _refused(self, why: str) -> None:
        """The machine answers that it knows no such connection."""
        self.break_both(why)

    # ---- breaking --------------------------------------------------------------------------------
    def break_both(self, why: str) -> None:
        if not self.open_:
            return
        self.open_ = False
        self.network.forget(self)
        for ours, theirs in self.streams:
            if self.caller.alive:
                self.caller.soon(ours.fail, why)
            if self.callee is not None and self.callee.alive:
                self.callee.soon(theirs.caller_gone)

    def end_gone(self, life: Life) -> None:
        if life is self.caller or life is self.callee:
            self.break_both("connection reset")

    def keep_alive(self, now: float) -> None:
        if self.callee is None:
            if now - self._began > _CONNECT_S:
                self.break_both("no connection")
            return
        there, back = self._ends(True), self._ends(False)
        answers = (
            self.network.passes(*there)
            and self.network.passes(*back)
            and not self.caller.frozen
            and not self.callee.frozen
            and self.caller.alive
            and self.callee.alive
        )
        if answers:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since >= KEEPALIVE_S.get(self.lane, _KEEPALIVE_S):
            self.break_both("keepalive: the peer does not answer")


class Stream:
    """node.runtime.ports.WireStream of one end."""

    def __init__(self, connection: Connection, *, forward: bool, kind: str) -> None:
        self._connection = connection
        self._forward = forward  # the end that dialled
        self._kind = kind
        self.other: Stream | None = None
        self._begun = False
        self._broken: TargetFailed | None = None
        self._inbox: collections.deque[bytes | None] = collections.deque()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._window = _WINDOW
        self._handler: asyncio.Task[None] | None = None
        self.aborted = False
        self._over = False

    @property
    def over(self) -> bool:
        return self._broken is not None or self._over

    # ---- the port --------------------------------------------------------------------------------
    async def send(self, message: bytes) -> None:
        try:
            while self._window <= 0 and self._broken is None:
                self._writer = asyncio.get_running_loop().create_future()
                await self._writer
        except asyncio.CancelledError:
            self._cancelled()
            raise
        if self._broken is not None:
            raise TargetFailed(str(self._broken))
        self._window -= 1
        self._transmit("message", bytes(message))

    async def receive(self) -> bytes | None:
        self._begin()
        try:
            while not self._inbox and self._broken is None and not self._over:
                self._reader = asyncio.get_running_loop().create_future()
                await self._reader
        except asyncio.CancelledError:
            self._cancelled()
            raise
        if self._inbox:
            message = self._inbox.popleft()
            if message is None:
                self._over = True
            else:
                self._transmit("window", b"")
            return message
        if self._broken is not None and (self._forward or self.aborted):
            raise TargetFailed(str(self._broken))
        return None

    async def end(self) -> None:
        if self._broken is not None:
            raise TargetFailed(str(self._broken))
        if self._forward:
            self._transmit("end", b"")

    def abort(self) -> None:
        if self._broken is not None:
            return
        self.aborted = True
        self.fail("stream aborted")
        if self._forward:
            self._transmit("gone", b"")
        elif self._handler is not None and not self._handler.done():
            self._handler.cancel()

    def _cancelled(self) -> None:
        """A cancelled read or write cancels the call."""
        if self._forward:
            self.abort()

    # ---- the other end ---------------------------------------------------------------------------
    def _begin(self) -> None:
        if self._forward and not self._begun:
            self._begun = True
            self._transmit("open", b"")

    def _transmit(self, what: str, data: bytes) -> None:
        if what != "open":
            self._begin()
        other = self.other
        assert other is not None
        self._connection.transmit(self._forward, lambda: other.arrived(what, data))

    def arrived(self, what: str, data: bytes) -> None:
        """In the life of this end: something came from the other."""
        if what == "open":
            self._serve()
        elif what == "message":
            if self._broken is None:
                self._inbox.append(data)
                self._wake()
        elif what == "window":
            self._window += 1
            self._wake()
        elif what == "end":
            self._inbox.append(None)
            self._wake()
        elif what == "gone":
            self.caller_gone()
        elif what == "failed":
            self.fail(data.decode())

    def _wake(self) -> None:
        for waiting in (self._reader, self._writer):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def fail(self, why: str) -> None:
        if self._broken is None:
            self._broken = TargetFailed(why)
            self._wake()

    def caller_gone(self) -> None:
        """On the listening side: reads end, and a moment later the handler is cancelled."""
        if self._broken is not None:
            return
        self.fail("the caller is gone")
        if self._handler is not None and not self._handler.done():
            asyncio.get_running_loop().call_soon(self._handler.cancel)

    def _serve(self) -> None:
        connection = self._connection
        host = connection.network.hosts[connection.target]
        accept = host.accept
        if accept is None:
            self._transmit("failed", b"UNAVAILABLE")
            return
        self._handler = asyncio.get_running_loop().create_task(self._handle(accept))

    async def _handle(self, accept: Accept) -> None:
        try:
            await accept(self._kind, self)
        except HoldfastError as error:
            self._transmit("failed", f"ABORTED: {type(error).__name__}: {error}".encode())
        except asyncio.CancelledError:
            self._transmit("failed", b"ABORTED: closed by the other side")
        else:
            self._transmit("end", b"")
        finally:
            if self._broken is None:
                self._broken = TargetFailed("the handler has ended")


# ---- what a node is given ----------------------------------------------------------------------------------
class SimWire:
    """node.runtime.ports.Wire of one process."""

    def __init__(self, network: Network, life: Life, name: str) -> None:
        self._network, self._life, self._name = network, life, name

    def dial(self, peer: str, lane: str) -> Connection:
        return Connection(self._network, self._life, self._name, peer, str(lane))


class SimPeerServer:
    """node.machine.PeerServer."""

    def __init__(self, network: Network, life: Life, name: str, accept: Accept, beat: Beat) -> None:
        self._host = network.hosts[name]
        self._life, self._accept, self._beat = life, accept, beat

    async def start(self, _host: str, port: int) -> int:
        self._host.life, self._host.accept, self._host.beat = self._life, self._accept, self._beat
        return port

    async def stop(self, _grace_s: float = 0.0) -> None:
        if self._host.life is self._life:
            self._host.life = self._host.accept = self._host.beat = None


@dataclass(eq=False, slots=True)
class SimPulse:
    """node.runtime.ports.Pulse: one heartbeat after the other, lost where the way is not free."""

    network: Network
    life: Life
    name: str
    _stopped: bool = False
    _under_way: dict[str, int] = field(default_factory=dict)
    _make: Callable[[str], bytes] | None = None
    _answered: Callable[[str, bytes, float], None] | None = None

    def start(
        self,
        peers: Sequence[str],
        interval_s: float,
        make: Callable[[str], bytes],
        answered: Callable[[str, bytes, float], None],
    ) -> None:
        self._make, self._answered = make, answered
        self._every(tuple(peers), interval_s)

    def _every(self, peers: tuple[str, ...], interval_s: float) -> None:
        if self._stopped:
            return
        for peer in peers:
            self.kick(peer)
        self.life.after(interval_s, self._every, peers, interval_s)

    def kick(self, peer: str) -> None:
        if self._make is None or self._stopped:
            return
        beat, loop = self._make(peer), asyncio.get_running_loop()
        sent_at, network = loop.time(), self.network
        network.sent(self.name, peer)
        if not self.life.alive or not network.passes(self.name, peer):
            return

        def arrive() -> None:
            host = network.hosts[peer]
            if host.powered and host.life is not None and host.life.alive:
                host.life.soon(receive, host)

        def receive(host: Host) -> None:
            if host.beat is None or loop.time() - sent_at > _BEAT_BOUND_S:
                return
            try:
                answer = host.beat(beat)
            except HoldfastError:
                return
            if network.passes(peer, self.name):
                self.life.after(network.latency_s(peer, self.name), back, answer)

        def back(answer: bytes) -> None:
            rtt_s = loop.time() - sent_at
            if not self._stopped and rtt_s <= _BEAT_BOUND_S and self._answered is not None:
                self._answered(peer, answer, rtt_s)

        delay_s = network.latency_s(self.name, peer)
        loop.call_later(delay_s, arrive, context=network.context)

    def stop(self) -> None:
        self._stopped = True
