"""This node's lock server, and the way to all of them.

The table and its recovery are pure (package locks); this driver hands it the time, what membership
knows, and the tables that peers tell after a restart. A restarted server that has seen every peer
recovering too, after its own start, opens at once: no lock from before can have a quorum then.
"""

from __future__ import annotations

import asyncio
import contextlib

import locks.server
from locks.errors import LockError
from locks.messages import Granted, Locks, Reply, Request, TellTable
from locks.messages import decode as decode_message
from locks.messages import encode as encode_message
from locks.table import LockTable
from node.cluster.membership import Membership, Status
from node.errors import HoldfastError, TargetFailed
from node.limits import (
    LOCK_ATTEMPT_S,
    LOCK_LEASE_S,
    LOCK_TABLE_ENTRIES,
    LOCK_TICK_S,
    LOCK_WAITERS_PER_KEY,
)
from node.rpc.client import Peers
from node.rpc.methods import Method
from node.runtime.ports import Clock

_RECOVERING = "locks_recovering"


class LockServer:
    """Runs `locks.server.LockServer` for this node."""

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
        self._peers = peers
        self._incarnation = incarnation
        self.table = LockTable(
            clock.monotonic(),
            incarnation,
            LOCK_LEASE_S,
            peers=self._others,
            max_entries=LOCK_TABLE_ENTRIES,
            max_waiters=LOCK_WAITERS_PER_KEY,
        )
        self._server = locks.server.LockServer(self.table)
        self._seen_recovering: set[str] = set()
        self._asked_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._membership.on_change(self._on_change)
        self._membership.publish(_RECOVERING, 1)
        if not self._others:
            self.table.all_fresh()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._server.close()

    # ---- requests -------------------------------------------------------------------------------
    async def ask(self, message: Request) -> Reply:
        """The server's answer; for who stands in line it comes by the deadline in the message."""
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._server.handle(
            message,
            lambda reply: None if answer.done() else answer.set_result(reply),
            self._clock.monotonic(),
        )
        return answer.result() if answer.done() else await answer

    async def ask_encoded(self, data: bytes) -> tuple[bool, bytes]:
        """-> (granted, encoded reply)."""
        reply = await self.ask(_request(data))
        return type(reply) is Granted, encode_message(reply)

    def tell_encoded(self, data: bytes) -> None:
        """A request whose answer nobody waits for."""
        self._server.handle(_request(data), _ignore, self._clock.monotonic())

    # ---- time, membership, recovery -------------------------------------------------------------
    async def _run(self) -> None:
        while True:
            now = self._clock.monotonic()
            self._server.tick(now)
            if self.table.recovering:
                await self._recover(now)
            elif self._others:
                self._membership.publish(_RECOVERING, 0)
            await self._clock.sleep(LOCK_TICK_S)

    async def _recover(self, now: float) -> None:
        for peer in self._others:
            state = self._membership.state(peer)
            if state.status is Status.UP and state.versions.get(_RECOVERING) == 1:
                self._seen_recovering.add(peer)
        if self._seen_recovering.issuperset(self._others):
            self.table.all_fresh()
            return
        if now - self._asked_at < LOCK_ATTEMPT_S:
            return
        self._asked_at = now
        question = encode_message(TellTable(self._me, self._incarnation))
        calls = {
            peer: self._peers.call(peer, Method.LOCK, question, deadline=now + LOCK_ATTEMPT_S)
            for peer in self._membership.alive()
        }
        for peer, call in calls.items():
            with contextlib.suppress(HoldfastError, LockError):
                reply = decode_message(await call)
                if isinstance(reply, Locks):
                    self.table.learn(
                        peer, reply.entries, self._clock.monotonic(), complete=reply.complete
                    )

    def _on_change(self, peer: str, old: Status, new: Status) -> None:
        del old
        now = self._clock.monotonic()
        self._server.suspected(peer, new in (Status.SUSPECT, Status.DEAD), now)
        incarnation = self._membership.state(peer).incarnation
        if new is Status.UP and incarnation:
            self._server.node_incarnation(peer, incarnation, now)


class PeerLocks:
    """locks.driver.LockTransport: this node's server by a call, the others over the lock channel."""

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


def _request(data: bytes) -> Request:
    message = decode_message(data)
    if not isinstance(message, Request):
        raise TargetFailed("a lock answer came in place of a request")
    return message


def _ignore(_reply: Reply) -> None:
    return None
