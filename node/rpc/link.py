"""One standing link to one peer on one lane: calls out, replies in, coalesced by themselves.

Theory of operation. A link keeps one session at a time: dial a fresh connection, shake hands, then a
reader and a writer task on one bidirectional stream. The writer sends whatever has gathered while its
last batch was in flight, so batches grow with load and a lone call waits for nothing. There is no task
and no timer per call: a call is an entry in `_waiting`, its bound is the guard's.

When the stream breaks, everything that waits fails at once with TargetFailed, and the link dials again:
at once after a session that worked, then with pauses of 100 ms growing to 1 s; a heartbeat from the
peer (`kick`) ends the pause. While a link dials, calls queue; while it pauses, they fail at once.
"""

from __future__ import annotations

import asyncio
import collections
import enum
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from node import limits
from node.errors import HoldfastError, Shed, TargetFailed
from node.rpc import auth
from node.rpc.errors import BAD_MESSAGE, STALE_INCARNATION, WRONG_TARGET, PeerRefused, decode_error
from node.rpc.methods import Lane, Method
from node.rpc.wire.holdfast import peer_pb2 as pb
from node.runtime.ports import Clock, Rng, Wire, WireConnection, WireStream
from node.runtime.turns import after_what_waits

CONNECT_S: dict[Lane, float] = {
    Lane.HEARTBEAT: 1.0,
    Lane.FAST: 2.0,
    Lane.LOCK: 2.0,
    Lane.BULK: 3.0,
    Lane.CONTROL: 2.0,
}
BACKOFF_FIRST_S = 0.1
BACKOFF_CAP_S = 1.0
CALL_OVERHEAD_BYTES = 64


class LinkState(enum.StrEnum):
    DIALLING = "dialling"
    READY = "ready"
    PAUSING = "pausing"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """This process, as it introduces itself to peers."""

    node: str
    incarnation: int
    keys: auth.ClusterKeys


@dataclass(slots=True, kw_only=True)
class Session:
    """What an opened link offers to byte streams."""

    name: bytes
    connection: WireConnection
    openings: auth.OpeningSeal


class _Outgoing:
    __slots__ = ("expires_at", "future", "method", "payload", "request_id")

    def __init__(
        self,
        method: int,
        payload: bytes,
        expires_at: float,
        request_id: str,
        future: asyncio.Future[bytes] | None,
    ) -> None:
        self.method = method
        self.payload = payload
        self.expires_at = expires_at
        self.request_id = request_id
        self.future = future


class Link:
    def __init__(
        self,
        peer: str,
        lane: Lane,
        *,
        me: Identity,
        wire: Wire,
        roster: auth.Roster,
        clock: Clock,
        rng: Rng,
        on_ready: Callable[[Link], None],
        on_lost: Callable[[Link, HoldfastError], None],
        on_life: Callable[[str], None],
    ) -> None:
        self.peer = peer
        self.lane = lane
        self.state = LinkState.DIALLING
        self.session: Session | None = None
        self._me = me
        self._wire = wire
        self._roster = roster
        self._clock = clock
        self._rng = rng
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_life = on_life
        self._queue: collections.deque[_Outgoing] = collections.deque()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._next_id = 1
        self._gate: asyncio.Future[None] | None = None  # the writer sleeps on it
        self._told: asyncio.TimerHandle | None = None  # a message without reply waits for company
        self._pause: asyncio.Future[None] | None = None
        self._readiness: list[asyncio.Future[Session]] = []
        self._stream: WireStream | None = None
        self._hurry = False  # dial again without a pause
        self._worked = False  # this session got through its handshake
        self._task: asyncio.Task[None] | None = None
        self._last_error: HoldfastError = TargetFailed(f"{peer}: not connected yet")

    # ---- calls --------------------------------------------------------------------------------------
    def submit(
        self, method: Method, payload: bytes, expires_at: float, request_id: str
    ) -> asyncio.Future[bytes]:
        """Queue a call; the future ends with the reply, or when the link breaks."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if self.state is LinkState.PAUSING or self.state is LinkState.STOPPED:
            future.set_exception(TargetFailed(str(self._last_error)))
            return future
        if len(self._queue) + len(self._waiting) >= limits.PEER_QUEUE_FRAMES:
            self._sweep()
            if len(self._queue) + len(self._waiting) >= limits.PEER_QUEUE_FRAMES:
                future.set_exception(Shed(f"{self.peer} ({self.lane}): too many calls wait"))
                return future
        self._put(_Outgoing(method, payload, expires_at, request_id, future))
        return future

    def tell(self, method: Method, payload: bytes, expires_at: float, request_id: str) -> None:
        """Queue a message that wants no reply; dropped while the peer is away or the queue is full.

        It rides on the next call's batch, or goes by itself when none comes in TELL_WAIT_S.
        """
        if self.state is LinkState.READY and len(self._queue) < limits.PEER_QUEUE_FRAMES:
            self._queue.append(_Outgoing(method, payload, expires_at, request_id, None))
            if self._told is None:
                loop = asyncio.get_running_loop()
                self._told = loop.call_later(limits.TELL_WAIT_S, self._open_gate)

    def _put(self, outgoing: _Outgoing) -> None:
        self._queue.append(outgoing)
        self._open_gate()

    def _open_gate(self) -> None:
        if self._told is not None:
            self._told.cancel()
            self._told = None
        gate = self._gate
        if gate is not None and not gate.done():
            gate.set_result(None)

    def _sweep(self) -> None:
        """Forget calls that ended otherwise (their bound, their caller): a peer may never answer them."""
        self._waiting = {key: f for key, f in self._waiting.items() if not f.done()}
        self._queue = collections.deque(
            each for each in self._queue if each.future is None or not each.future.done()
        )

    # ---- life ---------------------------------------------------------------------------------------
    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"link {self.peer} {self.lane}"
        )

    async def stop(self) -> None:
        self.state = LinkState.STOPPED
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._fail_all(TargetFailed("this node stops"))

    def kick(self) -> None:
        """The peer gave a sign of life: do not sit out a pause."""
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)
            if self.state is LinkState.PAUSING:
                self.state = LinkState.DIALLING  # calls wait for the dial from now on

    def redial(self) -> None:
        """The peer is back after it was dead: an attempt begun before that may wait for packets long lost.

        Calls that wait for it stay queued: whoever saw the peer return may count on it at once.
        """
        if self.state is LinkState.DIALLING and self._stream is not None:
            self._hurry = True
            self._stream.abort()
        self.kick()

    def cut(self) -> None:
        """The peer is declared dead: drop the connection, so that its return meets a fresh one."""
        if self._stream is not None:
            self._last_error = TargetFailed(f"{self.peer} was declared dead")
            self.session = None
            if self.state is LinkState.READY:
                self.state = LinkState.PAUSING
            self._stream.abort()

    def ready(self) -> asyncio.Future[Session]:
        """The session, now or when the link is up; fails when the attempt to dial does."""
        future: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        if self.session is not None:
            future.set_result(self.session)
        elif self.state is LinkState.DIALLING:
            self._readiness = [each for each in self._readiness if not each.done()]
            self._readiness.append(future)
        else:
            future.set_exception(TargetFailed(str(self._last_error)))
        return future

    async def _run(self) -> None:
        failures = 0
        while True:
            self.state = LinkState.DIALLING
            self._worked = False
            try:
                await self._session()
            except HoldfastError as error:
                self._last_error = error
            except DecodeError:
                self._last_error = PeerRefused(BAD_MESSAGE, f"{self.peer}: not a message of ours")
            except Exception as error:  # the chokepoint: nothing may end a link for good
                self._last_error = TargetFailed(f"{self.peer}: {type(error).__name__}: {error}")
            finally:
                self.session = None
                self._stream = None
                stopped = self.state is LinkState.STOPPED
                self.state = LinkState.STOPPED if stopped else LinkState.PAUSING
                # Before a hurried dial nothing was sent yet: what waits goes with the next one.
                if self._worked or not self._hurry:
                    self._fail_all(self._last_error)
            self._on_lost(self, self._last_error)
            failures = 0 if self._worked else failures + 1
            if self._hurry:
                self._hurry = False
            elif failures:
                await self._rest(min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2 ** min(failures - 1, 8)))

    async def _rest(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        pause = self._pause = loop.create_future()
        timer = loop.call_later(seconds * self._rng.uniform(0.8, 1.0), _wake, pause)
        try:
            await pause
        finally:
            timer.cancel()
            self._pause = None

    def _fail_all(self, error: HoldfastError) -> None:
        broken = TargetFailed(f"{self.peer} ({self.lane}): {error}")
        waiting, self._waiting = self._waiting, {}
        queue, self._queue = self._queue, collections.deque()
        readiness, self._readiness = self._readiness, []
        for future in waiting.values():
            if not future.done():
                future.set_exception(broken)
        for outgoing in queue:
            if outgoing.future is not None and not outgoing.future.done():
                outgoing.future.set_exception(broken)
        for ready in readiness:
            if not ready.done():
                ready.set_exception(broken)

    # ---- one session -----------------------------------------------------------------------------------
    async def _session(self) -> None:
        connection = self._wire.dial(self.peer, self.lane)
        try:
            stream = self._stream = connection.open("frames")
            try:
                async with asyncio.timeout(CONNECT_S[self.lane]):
                    name, key = await self._shake_hands(stream)
            except TimeoutError:
                raise TargetFailed(
                    f"{self.peer}: no answer to the handshake in {CONNECT_S[self.lane]:.3g} s"
                ) from None
            self.session = Session(name=name, connection=connection, openings=auth.OpeningSeal(key))
            self.state = LinkState.READY
            self._worked = True
            for ready in self._readiness:
                if not ready.done():
                    ready.set_result(self.session)
            self._readiness = []
            self._on_ready(self)
            await self._converse(stream, key)
            raise TargetFailed(f"{self.peer} ended the link")
        finally:
            connection.close()

    async def _shake_hands(self, stream: WireStream) -> tuple[bytes, bytes]:
        hello = pb.Hello(
            protocol=auth.PROTOCOL,
            node=self._me.node,
            target=self.peer,
            incarnation=self._me.incarnation,
            lane=self.lane,
            nonce=self._rng.bytes(auth.NONCE_BYTES),
        )
        await stream.send(hello.SerializeToString())
        challenge = pb.Challenge()
        challenge.ParseFromString(await self._expect(stream))
        if challenge.error:
            raise decode_error(self.peer, challenge.error, challenge.detail)
        try:
            proof, key = auth.answer_challenge(self._me.keys, hello, challenge)
        except PeerRefused:
            # Say so before leaving: the other side counts it and tells its operator too.
            await stream.send(pb.Proof().SerializeToString())
            await stream.receive()
            raise
        if challenge.node != self.peer:
            raise PeerRefused(
                WRONG_TARGET, f"{self.peer} says it is {challenge.node}: check HOLDFAST_VOLUMES"
            )
        if not self._roster.heard(self.peer, challenge.incarnation):
            raise PeerRefused(STALE_INCARNATION, f"{self.peer} answered with a stale incarnation")
        await stream.send(pb.Proof(proof=proof).SerializeToString())
        verdict = pb.Verdict()
        verdict.ParseFromString(await self._expect(stream))
        if not verdict.accepted:
            raise decode_error(self.peer, verdict.error, verdict.detail)
        return challenge.session, key

    async def _expect(self, stream: WireStream) -> bytes:
        message = await stream.receive()
        if message is None:
            raise TargetFailed(f"{self.peer} ended the handshake")
        return message

    async def _converse(self, stream: WireStream, key: bytes) -> None:
        writer = asyncio.get_running_loop().create_task(
            self._write(stream, auth.Seal(key, auth.TO_CALLEE)),
            name=f"link writer {self.peer} {self.lane}",
        )
        try:
            await self._read(stream, auth.Seal(key, auth.TO_CALLER))
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _read(self, stream: WireStream, seal: auth.Seal) -> None:
        batch = pb.Batch()
        while (message := await stream.receive()) is not None:
            batch.ParseFromString(seal.open(message))
            self._on_life(self.peer)
            waiting = self._waiting
            for reply in batch.replies:
                future = waiting.pop(reply.id, None)
                if future is None or future.done():
                    continue  # its bound was reached, or its caller is gone
                if reply.error:
                    future.set_exception(decode_error(self.peer, reply.error, reply.detail))
                else:
                    future.set_result(reply.payload)

    async def _write(self, stream: WireStream, seal: auth.Seal) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not self._queue:
                    self._gate = loop.create_future()
                    await self._gate
                    await after_what_waits()
                body = self._gather()
                if body:
                    await stream.send(seal.seal(body))
        except Exception as error:  # whatever it is, a link without a writer must not stand
            if isinstance(error, TargetFailed):
                self._last_error = error
            stream.abort()  # wakes the reader, which ends the session
            raise

    def _gather(self) -> bytes:
        """Whatever waits, up to a frame's size; calls nobody waits for any more are left out."""
        now = self._clock.monotonic()
        batch = pb.Batch()
        calls = batch.calls
        size = 0
        queue = self._queue
        while queue and size < limits.PEER_FRAME_BYTES:
            outgoing = queue.popleft()
            future = outgoing.future
            call_id = 0
            if future is not None:
                if future.done():
                    continue
                call_id = self._next_id
                self._next_id = call_id + 1
                self._waiting[call_id] = future
            calls.add(
                id=call_id,
                method=outgoing.method,
                bound_ms=max(1, int((outgoing.expires_at - now) * 1000)),
                payload=outgoing.payload,
                request_id=outgoing.request_id,
            )
            size += len(outgoing.payload) + CALL_OVERHEAD_BYTES
        return batch.SerializeToString() if size else b""


def _wake(pause: asyncio.Future[None]) -> None:
    if not pause.done():
        pause.set_result(None)
