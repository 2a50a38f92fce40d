"""This node's lock server, and the way to all of them.

The table, its recovery and its driver are the locks package's; here they meet the wire and membership.
A restarted server that has seen every peer recovering too, after its own start, opens at once: all
servers are new, so no lock from before can have a quorum.
"""

from __future__ import annotations

import asyncio
import contextlib

import locks.server
from locks.driver import LockServerDriver
from locks.messages import Granted, Reply, Request
from locks.messages import decode as decode_message
from locks.messages import encode as encode_message
from locks.table import LockTable
from node.cluster.membership import Membership, Status
from node.errors import TargetFailed
from node.limits import (
    LOCK_LEASE_S,
    LOCK_TABLE_ENTRIES,
    LOCK_TICK_S,
    LOCK_WAITERS_PER_KEY,
)
from node.rpc.client import Peers
from node.rpc.methods import Method
from node.runtime.ports import Clock

LOCKS_RECOVERING = "locks_recovering"


class LockServer:
    """One lock server a node."""

    def __init__(
        self,
        me: str,
        nodes: tuple[str, ...],
        incarnation: int,
        clock: Clock,
        membership: Membership,
        peers: Peers,
    ) -> None:
        self._me = me
        self._others = tuple(node for node in nodes if node != me)
        self._clock = clock
        self._membership = membership
        self.table = LockTable(
            clock.monotonic(),
            incarnation,
            LOCK_LEASE_S,
            peers=self._others,
            writes_only=True,
            max_entries=LOCK_TABLE_ENTRIES,
            max_waiters=LOCK_WAITERS_PER_KEY,
        )
        self._driver = LockServerDriver(locks.server.LockServer(self.table), clock)
        self.transport = PeerLocks(me, self, peers, clock)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._membership.on_change(self._on_change)
        if not self._others:
            self.table.all_fresh()
            return
        self._membership.publish(LOCKS_RECOVERING, 1)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._driver.recover(self.transport, self._others, self._me)),
            loop.create_task(self._watch_fresh_start()),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._driver.close()

    async def ask(self, message: Request) -> Reply:
        """The server's answer; for who stands in line it comes by the deadline in the message."""
        answer = self._driver.handle(message)
        return await answer if isinstance(answer, asyncio.Future) else answer

    def answer(self, data: bytes) -> Reply | asyncio.Future[Reply]:
        """To an encoded request: at once, or a future where somebody stands in line."""
        return self._driver.handle(decode_request(data))

    @staticmethod
    def encoded(reply: Reply) -> tuple[bool, bytes]:
        """-> (granted, encoded reply)."""
        return type(reply) is Granted, encode_message(reply)

    def tell_encoded(self, data: bytes) -> None:
        """A request whose answer nobody waits for."""
        self._driver.handle(decode_request(data))

    async def _watch_fresh_start(self) -> None:
        seen: set[str] = set()
        while self.table.recovering:
            for peer in self._others:
                state = self._membership.state(peer)
                if state.status is Status.UP and state.versions.get(LOCKS_RECOVERING) == 1:
                    seen.add(peer)
            if seen.issuperset(self._others):
                self.table.all_fresh()
                break
            await self._clock.sleep(LOCK_TICK_S)
        self._membership.publish(LOCKS_RECOVERING, 0)

    def _on_change(self, peer: str, _old: Status, new: Status) -> None:
        self._driver.suspected(peer, new in (Status.SUSPECT, Status.DEAD))
        incarnation = self._membership.state(peer).incarnation
        if new is Status.UP and incarnation:
            self._driver.node_incarnation(peer, incarnation)


class PeerLocks:
    """locks.driver.LockTransport: this node's server by a call, the others over the lock lane."""

    def __init__(self, me: str, server: LockServer, peers: Peers, clock: Clock) -> None:
        self._me = me
        self._server = server
        self._peers = peers
        self._clock = clock

    async def call(self, server: str, message: Request, timeout_s: float) -> Reply:
        if server == self._me:
            return await asyncio.wait_for(self._server.ask(message), timeout_s)
        deadline = self._clock.monotonic() + timeout_s
        data = await self._peers.call(
            server, Method.LOCK, encode_message(message), deadline=deadline
        )
        reply = decode_message(data)
        if isinstance(reply, Request):
            raise TargetFailed(f"{server} answered a lock request with a request")
        return reply


def decode_request(data: bytes) -> Request:
    message = decode_message(data)
    if not isinstance(message, Request):
        raise TargetFailed("a lock answer came in place of a request")
    return message
