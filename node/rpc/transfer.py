"""Shard bytes to and from a peer: one stream per transfer, bare messages, bounded by progress.

An upload is opening, data messages, an empty message as end mark, ending (the reply): a half close
alone would not do, since to the receiver a cancelled stream looks just like one. A download is opening, ending
(accepted, or why not), data messages, end of stream. Nothing wraps the data: a message is the bytes.

A transfer is never bounded by its length but by standing still: `attempt_s` of its policy row without
progress fails it with TargetFailed. A dead verdict on the peer fails it only if it has stood still
already (a late heartbeat must not cut a busy stream).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from node import limits
from node.errors import DeadlineExceeded, HoldfastError, Shed, TargetFailed
from node.guard.guard import Guard, Target
from node.guard.policy import PEER_METHODS, Policy
from node.rpc.errors import decode_error
from node.rpc.link import CONNECT_S, Link, Session
from node.rpc.wire.holdfast import peer_pb2 as pb
from node.runtime.ports import Clock, WireStream

T = TypeVar("T")

PATH = "peer"
END_MARK = b""
STANDSTILL_S = 1.0  # a dead verdict ends a transfer that has made no progress for so long
UPLOAD_FINISH_S = 10.0  # the receiver syncs what it has before it replies
ENDING_WAIT_S = 0.5  # a receiver that closed early has said why


class Streams:
    """Opens transfers; counts them against the policy rows of uploads and downloads."""

    def __init__(self, *, guard: Guard, clock: Clock, request_id: Callable[[], str]) -> None:
        self.guard = guard
        self.clock = clock
        self.request_id = request_id
        self.running = {"upload": 0, "download": 0}

    async def upload(self, link: Link, target: Target, header: bytes, deadline: float) -> Upload:
        upload = Upload(self, link, target, PEER_METHODS["upload"], deadline)
        await upload.open(header)
        return upload

    def download(self, link: Link, target: Target, header: bytes, deadline: float) -> Download:
        return Download(self, link, target, PEER_METHODS["download"], deadline, header)


class _Transfer:
    """What both directions share: admission, the progress bound, one verdict at the end."""

    name = ""

    def __init__(
        self, streams: Streams, link: Link, target: Target, policy: Policy, deadline: float
    ) -> None:
        self.peer = link.peer
        self._streams = streams
        self._link = link
        self._target = target
        self._policy = policy
        self._stream: WireStream | None = None
        self._ticket = 0
        self._over = True  # until it is admitted
        self._failed: HoldfastError | None = None
        now = streams.clock.monotonic()
        self._began = now
        self._moved_at = now
        self._deadline = min(deadline, now + policy.total_s)

    async def _open(self, header: bytes) -> WireStream:
        streams = self._streams
        running = streams.running[self.name]
        if running >= self._policy.max_running + self._policy.max_waiting:
            raise Shed(f"{self.peer}: {running} {self.name}s under way")
        self._ticket = streams.guard.admit(self._target)
        self._over = False
        streams.running[self.name] += 1
        self._target.waiting[self] = self._dead_verdict
        try:
            session: Session = await self._bounded(self._link.ready(), CONNECT_S[self._link.lane])
            stream = self._stream = session.connection.open(self.name)
            left_ms = int((self._deadline - streams.clock.monotonic()) * 1000)
            opening = pb.Opening(
                session=session.name,
                bound_ms=max(1, min(left_ms, 0xFFFFFFFF)),
                request_id=streams.request_id(),
                header=header,
            )
            session.openings.seal(opening)
            await self._bounded(stream.send(opening.SerializeToString()), self._policy.attempt_s)
        except BaseException as error:
            self._end(error)
            raise
        return stream

    async def _bounded(self, step: Awaitable[T], bound_s: float) -> T:
        """One step of the transfer: at most `bound_s`, and never beyond the deadline."""
        clock = self._streams.clock
        left_s = self._deadline - clock.monotonic()
        timeout = asyncio.timeout(max(0.0, min(bound_s, left_s)))
        try:
            async with timeout:
                result = await step
        except TimeoutError:
            if left_s <= bound_s:
                raise DeadlineExceeded(f"{self.peer}: {self.name} reached its deadline") from None
            raise TargetFailed(
                f"{self.peer}: {self.name} made no progress for {bound_s:.3g} s"
            ) from None
        except TargetFailed as error:
            if self._failed is not None:
                raise self._failed from error
            raise
        self._moved_at = clock.monotonic()
        return result

    def _well(self) -> None:
        """The peer works; a half-open breaker's probe must not last as long as a transfer."""
        if self._ticket:
            self._streams.guard.succeeded(self._target, self._ticket, 0.0)
            self._ticket = 0

    def _dead_verdict(self, error: HoldfastError) -> None:
        if self._streams.clock.monotonic() - self._moved_at >= STANDSTILL_S:
            self._failed = error
            if self._stream is not None:
                self._stream.abort()

    def _end(self, error: BaseException | None) -> None:
        """Count the transfer once, tell the breaker, break the stream unless it ended well."""
        if self._over:
            return
        self._over = True
        streams = self._streams
        streams.running[self.name] -= 1
        self._target.waiting.pop(self, None)
        seconds = streams.clock.monotonic() - self._began
        if error is None:
            outcome = "ok"
            # Its length says nothing about the peer's health: not a sample of latency.
            streams.guard.succeeded(self._target, self._ticket, 0.0)
        elif isinstance(error, HoldfastError):
            outcome = streams.guard.classify(
                self._target, self._ticket, error, 0.0, expired_blames=False
            )
        else:
            outcome = "cancelled"
            self._target.breaker.neutral(self._ticket)
        streams.guard.observer.guard_outcome(PATH, self.name, outcome, seconds)
        if error is not None and self._stream is not None:
            self._stream.abort()


def _look(answer: asyncio.Task[bytes | None]) -> None:
    """A reply that nobody waits for any more is not worth a complaint."""
    if not answer.cancelled():
        answer.exception()


class Upload(_Transfer):
    """Bytes to a peer: any number of `send`, then `finish`; or `abort`. One user at a time."""

    name = "upload"

    _answer: asyncio.Task[bytes | None] | None = None

    async def open(self, header: bytes) -> None:
        stream = await self._open(header)
        # The reply is awaited from the start: a receiver that gives up early says why, and after a
        # failed send it would be too late to ask.
        self._answer = asyncio.get_running_loop().create_task(stream.receive())
        self._answer.add_done_callback(_look)

    async def send(self, data: bytes) -> None:
        """Returns when flow control takes more. `data` is at most limits.PEER_FRAME_BYTES long."""
        assert len(data) <= limits.PEER_MAX_MESSAGE_BYTES
        if not data:
            return  # an empty message is the end mark
        stream, answer = self._usable()
        try:
            if answer.done():
                raise TargetFailed(f"{self.peer}: the receiver gave up")
            await self._bounded(stream.send(data), self._policy.attempt_s)
            self._well()
        except TargetFailed as error:
            told = error if self._failed is not None else await self._told(answer, error)
            self._end(told)
            raise told from error
        except BaseException as error:
            self._end(error)
            raise

    async def finish(self) -> bytes:
        """End the data and wait for the peer's reply."""
        stream, answer = self._usable()
        try:
            await self._bounded(stream.send(END_MARK), self._policy.attempt_s)
            await self._bounded(stream.end(), self._policy.attempt_s)
            message = await self._bounded(answer, UPLOAD_FINISH_S)
            reply = self._ending(message)
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)
        return reply

    def abort(self) -> None:
        """Give the transfer up; the receiver drops what it has."""
        self._end(asyncio.CancelledError())

    def _end(self, error: BaseException | None) -> None:
        super()._end(error)
        if self._answer is not None:
            self._answer.cancel()

    def _usable(self) -> tuple[WireStream, asyncio.Task[bytes | None]]:
        if self._failed is not None:
            raise self._failed
        if self._stream is None or self._answer is None or self._over:
            raise TargetFailed(f"{self.peer}: the upload is over")
        return self._stream, self._answer

    def _ending(self, message: bytes | None) -> bytes:
        if message is None:
            raise TargetFailed(f"{self.peer}: the upload ended without a reply")
        ending = pb.Ending()
        ending.ParseFromString(message)
        if ending.error:
            raise decode_error(self.peer, ending.error, ending.detail)
        return ending.payload

    async def _told(
        self, answer: asyncio.Task[bytes | None], error: HoldfastError
    ) -> HoldfastError:
        """A receiver that gave up has sent its reason before it closed."""
        try:
            async with asyncio.timeout(ENDING_WAIT_S):
                self._ending(await answer)
        except HoldfastError as told:
            return told if getattr(told, "answered", False) else error
        except TimeoutError:
            return error
        return error


class Download(_Transfer):
    """Bytes from a peer: iterate over the messages; `close` when done early. One user at a time."""

    name = "download"

    def __init__(
        self,
        streams: Streams,
        link: Link,
        target: Target,
        policy: Policy,
        deadline: float,
        header: bytes,
    ) -> None:
        super().__init__(streams, link, target, policy, deadline)
        self._header = header
        self._closed = False

    def __aiter__(self) -> Download:
        return self

    async def __anext__(self) -> bytes:
        if self._closed:
            raise StopAsyncIteration
        try:
            stream = self._stream
            if stream is None:
                stream = await self._accepted()
            data = await self._bounded(stream.receive(), self._policy.attempt_s)
        except BaseException as error:
            self._closed = True
            self._end(error)
            raise
        if data is None:
            self._closed = True
            self._end(None)
            raise StopAsyncIteration
        return data

    async def _accepted(self) -> WireStream:
        stream = await self._open(self._header)
        message = await self._bounded(stream.receive(), self._policy.attempt_s)
        if message is None:
            raise TargetFailed(f"{self.peer}: the download ended before it began")
        ending = pb.Ending()
        ending.ParseFromString(message)
        if ending.error:
            raise decode_error(self.peer, ending.error, ending.detail)
        self._well()
        return stream

    def close(self) -> None:
        """Stop here; the sender stops too."""
        if not self._closed:
            self._closed = True
            if self._stream is not None:
                self._end(asyncio.CancelledError())
