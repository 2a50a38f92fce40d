"""Peer calls that come in: who calls, may they, and to which handler does it go.

Theory of operation. A caller opens one link per lane (node.rpc.link) and is known by its proof of the
cluster's secret (node.rpc.auth). Each link has a reader, which hands every call of a batch to its
handler, and a writer, which sends the replies that have gathered meanwhile. A handler answers with
bytes at once, with a future, or with a coroutine (the only case that costs a task). What it raises
travels back by class name; a handler's error never breaks the link.

A node that comes back has a higher incarnation. As soon as one is heard of, by a new link or by a
heartbeat, the links of the older one are closed and what they still bring is refused.

Byte streams name the session of the caller's bulk link in their opening, so they need no handshake.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError

from node import limits
from node.errors import Shed, TargetFailed
from node.guard.deadline import for_callee
from node.rpc import auth
from node.rpc.errors import (
    BAD_MESSAGE,
    STALE_INCARNATION,
    UNKNOWN_NODE,
    UNKNOWN_SESSION,
    WRONG_PROTOCOL,
    WRONG_TARGET,
    PeerRefused,
    encode_error,
)
from node.rpc.link import Identity
from node.rpc.methods import Method
from node.rpc.wire.holdfast import peer_pb2 as pb
from node.runtime.ports import Clock, Rng, WireStream
from node.runtime.turns import after_what_waits

T = TypeVar("T")

HANDSHAKE_S = 3.0
# A peer relays at its client's pace, so a transfer may stand still as long as a client may, and a bit.
TRANSFER_IDLE_S = limits.BODY_PROGRESS_TIMEOUT_S + 10.0
STANDSTILL_S = 1.0
# A handler's coroutine bounds itself by its deadline; this ends one that does not.
OVERTIME_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerContext:
    """Who asks, and how long it will wait. `deadline` is a value of this node's Clock.monotonic()."""

    peer: str
    incarnation: int
    request_id: str
    deadline: float


Answer = bytes | Awaitable[bytes]
Handler = Callable[[PeerContext, bytes], Answer]
UploadHandler = Callable[[PeerContext, bytes, AsyncIterator[bytes]], Awaitable[bytes]]
DownloadHandler = Callable[[PeerContext, bytes], AsyncIterator[bytes]]


def keep_no_request(_request_id: str) -> None:
    pass


class Inbound:
    """Give `accept` to the listening side of the wire."""

    def __init__(
        self,
        *,
        me: Identity,
        peers: tuple[str, ...],
        handlers: Mapping[Method, Handler],
        upload: UploadHandler,
        download: DownloadHandler,
        roster: auth.Roster,
        clock: Clock,
        rng: Rng,
        set_request_id: Callable[[str], None] = keep_no_request,
        on_life: Callable[[str], None] = keep_no_request,
        on_refused: Callable[[str, PeerRefused], None] | None = None,
    ) -> None:
        """`on_life(peer)` is called for every batch; `on_refused(peer, why)` for every caller refused."""
        self.me = me
        self.clock = clock
        self.rng = rng
        self.roster = roster
        self.handlers = dict(handlers)
        self.set_request_id = set_request_id
        self.on_life = on_life
        self.refused: dict[str, int] = {}  # reason -> callers refused for it
        self._peers = frozenset(peers)
        self._upload = upload
        self._download = download
        self._on_refused = on_refused
        self._sessions: dict[bytes, _Session] = {}

    async def accept(self, kind: str, stream: WireStream) -> None:
        """Serve one stream until it ends. TargetFailed and PeerRefused end it with their message."""
        try:
            if kind == "frames":
                await self._frames(stream)
            elif kind == "upload":
                await self._take_upload(stream)
            elif kind == "download":
                await self._give_download(stream)
            else:
                raise PeerRefused(BAD_MESSAGE, f"no such kind of stream: {kind}")
        except DecodeError as error:
            raise self.refuse("", PeerRefused(BAD_MESSAGE, "not a message of ours")) from error

    def drop(self, peer: str) -> None:
        """The peer is declared dead: close its links, and its transfers that stand still."""
        for session in list(self._sessions.values()):
            if session.peer == peer:
                session.close()

    def superseded(self, peer: str) -> None:
        """A new incarnation of the peer was heard: close the links of the older ones."""
        current = self.roster.current(peer)
        for session in list(self._sessions.values()):
            if session.peer == peer and session.incarnation < current:
                session.close()

    # ---- links --------------------------------------------------------------------------------------
    async def _frames(self, stream: WireStream) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                session = await self._shake_hands(stream)
        except TimeoutError:
            raise TargetFailed("the handshake was not finished in time") from None
        self._sessions[session.name] = session
        try:
            await session.serve()
        finally:
            self._sessions.pop(session.name, None)
            session.closed()

    async def _shake_hands(self, stream: WireStream) -> _Session:
        hello = pb.Hello()
        hello.ParseFromString(await _expect(stream))
        challenge = pb.Challenge(
            node=self.me.node,
            incarnation=self.me.incarnation,
            nonce=self.rng.bytes(auth.NONCE_BYTES),
            session=self.rng.bytes(auth.SESSION_BYTES),
        )
        try:
            self._check_hello(hello)
        except PeerRefused as error:
            challenge.error, challenge.detail = encode_error(error)
            await stream.send(challenge.SerializeToString())
            raise self.refuse(hello.node, error) from None
        challenge.proofs.extend(auth.prove_callee(self.me.keys, hello, challenge))
        await stream.send(challenge.SerializeToString())
        proof = pb.Proof()
        proof.ParseFromString(await _expect(stream))
        try:
            key = auth.check_caller(self.me.keys, hello, challenge, proof.proof)
            if not self.roster.heard(hello.node, hello.incarnation):
                raise self._stale(hello.node)
        except PeerRefused as error:
            name, detail = encode_error(error)
            verdict = pb.Verdict(accepted=False, error=name, detail=detail)
            await stream.send(verdict.SerializeToString())
            raise self.refuse(hello.node, error) from None
        self.superseded(hello.node)
        await stream.send(pb.Verdict(accepted=True).SerializeToString())
        return _Session(self, stream, hello.node, hello.incarnation, challenge.session, key)

    def _check_hello(self, hello: pb.Hello) -> None:
        if hello.protocol != auth.PROTOCOL:
            raise PeerRefused(
                WRONG_PROTOCOL,
                f"{self.me.node} speaks peer protocol {auth.PROTOCOL}, {hello.node} {hello.protocol}",
            )
        if hello.target != self.me.node:
            raise PeerRefused(
                WRONG_TARGET,
                f"this is {self.me.node}, not {hello.target}: check HOLDFAST_NODE and HOLDFAST_VOLUMES",
            )
        if hello.node not in self._peers:
            raise PeerRefused(
                UNKNOWN_NODE, f"{hello.node} is not in the volume list of {self.me.node}"
            )
        if hello.incarnation < self.roster.current(hello.node):
            raise self._stale(hello.node)

    def _stale(self, node: str) -> PeerRefused:
        current = self.roster.current(node)
        return PeerRefused(
            STALE_INCARNATION, f"{node} calls with a stale incarnation", current=current
        )

    def refuse(self, peer: str, error: PeerRefused) -> PeerRefused:
        """Count and report a caller that is refused; the error to raise."""
        self.refused[error.reason] = self.refused.get(error.reason, 0) + 1
        if self._on_refused is not None:
            self._on_refused(peer, error)
        return error

    # ---- byte streams -----------------------------------------------------------------------------------
    async def _opening(self, stream: WireStream) -> tuple[_Session, PeerContext, bytes]:
        opening = pb.Opening()
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                opening.ParseFromString(await _expect(stream))
        except TimeoutError:
            raise TargetFailed("a stream was opened and nothing said") from None
        session = self._sessions.get(opening.session)
        try:
            if session is None:
                raise PeerRefused(UNKNOWN_SESSION, "no such session (any more)")
            session.check_incarnation()
            session.openings.check(opening)
        except PeerRefused as error:
            raise self.refuse("" if session is None else session.peer, error) from None
        context = PeerContext(
            peer=session.peer,
            incarnation=session.incarnation,
            request_id=opening.request_id,
            deadline=for_callee(self.clock.monotonic(), opening.bound_ms),
        )
        self.set_request_id(opening.request_id)
        return session, context, opening.header

    async def _take_upload(self, stream: WireStream) -> None:
        ending = pb.Ending()
        try:
            session, context, header = await self._opening(stream)
            transfer = _Transfer(session, stream)
            try:
                ending.payload = await self._upload(context, header, transfer.incoming())
            finally:
                transfer.over()
        except TransferBroken:
            raise
        except Exception as error:  # the chokepoint: whatever a handler raises becomes an answer
            ending.error, ending.detail = encode_error(error)
        await stream.send(ending.SerializeToString())

    async def _give_download(self, stream: WireStream) -> None:
        try:
            session, context, header = await self._opening(stream)
            source = self._download(context, header)
            first = await anext(source, None)
        except Exception as error:  # the chokepoint: see above
            name, detail = encode_error(error)
            await stream.send(pb.Ending(error=name, detail=detail).SerializeToString())
            return
        transfer = _Transfer(session, stream)
        try:
            await stream.send(pb.Ending().SerializeToString())
            if first is not None:
                await transfer.send(first)
                async for data in source:
                    await transfer.send(data)
        finally:
            transfer.over()
            if isinstance(source, AsyncGenerator):
                await source.aclose()


class TransferBroken(TargetFailed):
    """The stream under a transfer broke or stood still: there is nobody left to tell."""


class _Transfer:
    """The progress bound of one byte stream, and the end it meets when its peer is declared dead."""

    __slots__ = ("_clock", "_moved_at", "_session", "_stream")

    def __init__(self, session: _Session, stream: WireStream) -> None:
        self._session = session
        self._stream = stream
        self._clock = session.inbound.clock
        self._moved_at = self._clock.monotonic()
        session.transfers[self] = None

    def over(self) -> None:
        self._session.transfers.pop(self, None)

    def peer_gone(self) -> None:
        if self._clock.monotonic() - self._moved_at >= STANDSTILL_S:
            self._stream.abort()

    async def incoming(self) -> AsyncIterator[bytes]:
        while True:
            data = await self._bounded(self._stream.receive())
            if data is None:
                raise TransferBroken("the upload broke off before its end mark")
            if not data:
                return
            yield data

    async def send(self, data: bytes) -> None:
        await self._bounded(self._stream.send(data))

    async def _bounded(self, step: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(TRANSFER_IDLE_S):
                result = await step
        except TimeoutError:
            raise TransferBroken(f"no progress for {TRANSFER_IDLE_S:.3g} s") from None
        except TargetFailed as error:
            raise TransferBroken(str(error)) from error
        self._moved_at = self._clock.monotonic()
        self._session.inbound.on_life(self._session.peer)
        return result


class _Session:
    """One link of one caller."""

    def __init__(
        self,
        inbound: Inbound,
        stream: WireStream,
        peer: str,
        incarnation: int,
        name: bytes,
        key: bytes,
    ) -> None:
        self.inbound = inbound
        self.peer = peer
        self.incarnation = incarnation
        self.name = name
        self.openings = auth.OpeningSeal(key)
        self.transfers: dict[_Transfer, None] = {}
        self._stream = stream
        self._incoming = auth.Seal(key, auth.TO_CALLEE)
        self._outgoing = auth.Seal(key, auth.TO_CALLER)
        self._replies: list[pb.Reply] = []
        self._gate: asyncio.Future[None] | None = None
        self._running = 0
        self._tasks: set[asyncio.Task[bytes]] = set()
        self._open = True

    def check_incarnation(self) -> None:
        if self.incarnation < self.inbound.roster.current(self.peer):
            raise PeerRefused(STALE_INCARNATION, f"{self.peer} calls with a stale incarnation")

    def close(self) -> None:
        self._stream.abort()

    def closed(self) -> None:
        """Its stream is gone: nobody hears what still runs for it."""
        self._open = False
        for transfer in list(self.transfers):
            transfer.peer_gone()

    async def serve(self) -> None:
        writer = asyncio.get_running_loop().create_task(
            self._write(), name=f"replies to {self.peer}"
        )
        try:
            await self._read()
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    # ---- in -----------------------------------------------------------------------------------------
    async def _read(self) -> None:
        inbound = self.inbound
        batch = pb.Batch()
        while (message := await self._stream.receive()) is not None:
            try:
                batch.ParseFromString(self._incoming.open(message))
                self.check_incarnation()
            except PeerRefused as error:
                raise inbound.refuse(self.peer, error) from None
            inbound.on_life(self.peer)
            received_at = inbound.clock.monotonic()
            for call in batch.calls:
                self._dispatch(call, received_at)

    def _dispatch(self, call: pb.Call, received_at: float) -> None:
        inbound = self.inbound
        inbound.set_request_id(call.request_id)
        call_id = call.id
        context = PeerContext(
            peer=self.peer,
            incarnation=self.incarnation,
            request_id=call.request_id,
            deadline=for_callee(received_at, call.bound_ms),
        )
        try:
            handler = inbound.handlers.get(call.method)  # type: ignore[call-overload]
            if handler is None:
                raise TargetFailed(f"no handler for method {call.method}")
            if self._running >= limits.PEER_QUEUE_FRAMES:
                raise Shed(f"{self._running} calls of {self.peer} run here")
            answer = handler(context, call.payload)
            if isinstance(answer, bytes):
                self._reply(call_id, answer)
                return
            pending = self._pending(answer, call.bound_ms)
        except Exception as error:  # the chokepoint: whatever a handler raises becomes an answer
            self._reply_error(call_id, error)
            return
        self._running += 1
        pending.add_done_callback(lambda done: self._answered(call_id, done))

    def _pending(self, answer: Awaitable[bytes], bound_ms: int) -> asyncio.Future[bytes]:
        if isinstance(answer, asyncio.Future):
            return answer
        loop = asyncio.get_running_loop()
        coroutine = answer if inspect.iscoroutine(answer) else _awaited(answer)
        task = loop.create_task(coroutine)
        self._tasks.add(task)
        timer = loop.call_later(bound_ms * 0.001 + OVERTIME_S, task.cancel)

        def ended(done: asyncio.Task[bytes]) -> None:
            timer.cancel()
            self._tasks.discard(done)

        task.add_done_callback(ended)
        return task

    def _answered(self, call_id: int, done: asyncio.Future[bytes]) -> None:
        self._running -= 1
        if done.cancelled():
            self._reply_error(call_id, TargetFailed("the call was given up here"))
            return
        error = done.exception()
        if error is None:
            try:
                self._reply(call_id, done.result())
                return
            except TypeError as wrong:  # no bytes
                error = wrong
        self._reply_error(call_id, error)

    # ---- out ----------------------------------------------------------------------------------------
    def _reply(self, call_id: int, payload: bytes) -> None:
        if call_id and self._open:
            self._put(pb.Reply(id=call_id, payload=payload))

    def _reply_error(self, call_id: int, error: BaseException) -> None:
        if call_id and self._open:
            name, detail = encode_error(error)
            self._put(pb.Reply(id=call_id, error=name, detail=detail))

    def _put(self, reply: pb.Reply) -> None:
        self._replies.append(reply)
        gate = self._gate
        if gate is not None and not gate.done():
            gate.set_result(None)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not self._replies:
                    self._gate = loop.create_future()
                    await self._gate
                    await after_what_waits()
                await self._stream.send(self._outgoing.seal(self._gather()))
        except Exception:  # whatever it is, a session without a writer must not stand
            self._stream.abort()  # wakes the reader, which ends the session
            raise

    def _gather(self) -> bytes:
        replies = self._replies
        size = taken = 0
        while taken < len(replies) and size < limits.PEER_FRAME_BYTES:
            size += len(replies[taken].payload)
            taken += 1
        body: bytes = pb.Batch(replies=replies[:taken]).SerializeToString()
        del replies[:taken]
        return body


async def _awaited(answer: Awaitable[bytes]) -> bytes:
    return await answer


async def _expect(stream: WireStream) -> bytes:
    message = await stream.receive()
    if message is None:
        raise TargetFailed("the caller ended the handshake")
    return message
