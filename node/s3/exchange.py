"""One request and its response on a connection: the ASGI side of node.s3.connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from node import limits
from node.s3.body import STALLED
from node.s3.inlet import Inlet
from node.s3.ports import Message

_SMALL_WRITE = 64 * limits.KIB  # head and body go out in one write up to here


class Connection(Protocol):
    """What an exchange asks of its connection."""

    loop: asyncio.AbstractEventLoop

    def linger(self) -> None: ...
    def open_inlet(self, full: Callable[[], None]) -> Inlet: ...
    def close_inlet(self) -> None: ...


class BoundedCycle(RequestResponseCycle):
    """One request and its response."""

    def __init__(self, *arguments: Any, protocol: Connection, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.protocol = protocol
        self.chunks: deque[bytes] = deque()
        self.buffered = 0
        self.wanted = False
        self.broken = False  # the body's framing broke: it will never be complete
        self.left_to_come: int | None = None  # of the body, by Content-Length
        self._inlet: Inlet | None = None
        self._end_given = False
        self._head = b""

    async def run_asgi(self, app: Any) -> None:
        async def until_cut_off(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:
                self.abort()  # the server stops and its grace is over: no fault worth a trace

        await super().run_asgi(until_cut_off)

    # ---- the body comes in --------------------------------------------------------------------------
    def take(self, data: bytes) -> None:
        self.chunks.append(data)
        self.buffered += len(data)
        if self.left_to_come is not None:
            self.left_to_come -= len(data)
        if not self.wanted or self.buffered > limits.CLIENT_READ_AHEAD_BYTES:
            self.flow.pause_reading()
        self.message_event.set()

    def _say_continue(self) -> None:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False

    async def receive(self) -> Any:
        self.wanted = True
        self._say_continue()
        if not self._has_news() and not await self._wait_for_news():
            return {"type": STALLED}
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        if self.chunks:
            data = self.chunks.popleft()
            self.buffered -= len(data)
            if self.buffered <= limits.CLIENT_READ_AHEAD_BYTES // 2:
                self.flow.resume_reading()
            more = bool(self.chunks) or self.more_body
            self._end_given = not more
            return {"type": "http.request", "body": data, "more_body": more}
        if self.broken:
            return {"type": "http.disconnect"}
        self._end_given = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def receive_into(self, view: memoryview) -> int:
        """Puts the next bytes of a body of announced length into `view`; -> how many.

        Fewer than it has room for only at the body's end, or when the client is gone. TimeoutError when
        the client sends nothing for BODY_PROGRESS_TIMEOUT_S. `receive` still tells of the end.
        """
        assert self.left_to_come is not None, "the body has a length"
        self._say_continue()
        filled = self._drain_into(view)
        room = min(len(view) - filled, self.left_to_come)
        if not room or self._is_over():
            return filled
        if self._inlet is None:
            self._inlet = self.protocol.open_inlet(self.message_event.set)
        return filled + await self._fill(self._inlet, view[filled : filled + room])

    def _drain_into(self, view: memoryview) -> int:
        """What has come before anybody asked for it."""
        filled = 0
        while self.chunks and filled < len(view):
            chunk = self.chunks[0]
            take = min(len(chunk), len(view) - filled)
            view[filled : filled + take] = memoryview(chunk)[:take]
            filled += take
            if take == len(chunk):
                self.chunks.popleft()
            else:
                self.chunks[0] = chunk[take:]
        self.buffered -= filled
        return filled

    async def _fill(self, inlet: Inlet, view: memoryview) -> int:
        loop = self.protocol.loop
        timer: asyncio.TimerHandle | None = None
        stalled = False

        def watch() -> None:
            nonlocal stalled, timer
            due = inlet.moved_at + limits.BODY_PROGRESS_TIMEOUT_S
            if loop.time() < due:
                timer = loop.call_at(due, watch)
            else:
                stalled = True
                self.message_event.set()

        inlet.offer(view)
        watch()
        try:
            while not (inlet.full or stalled or self._is_over()):
                self.message_event.clear()
                await self.message_event.wait()
        finally:
            if timer is not None:
                timer.cancel()
            got = inlet.withdraw()
            assert self.left_to_come is not None
            self.left_to_come -= got
        if not self.left_to_come:
            self._inlet = None
            self.protocol.close_inlet()
        elif stalled:
            raise TimeoutError
        return got

    def _is_over(self) -> bool:
        return self.disconnected or self.response_complete or self.broken

    async def _wait_for_news(self) -> bool:
        """False when the client owes us body bytes and sends none in time."""
        stalled = False

        def stall() -> None:
            nonlocal stalled
            stalled = True
            self.message_event.set()

        timer = None
        if self.more_body:
            timer = self.protocol.loop.call_later(limits.BODY_PROGRESS_TIMEOUT_S, stall)
        try:
            while not self._has_news() and not stalled:
                self.message_event.clear()
                self.flow.resume_reading()
                await self.message_event.wait()
        finally:
            if timer is not None:
                timer.cancel()
        return self._has_news()

    def _has_news(self) -> bool:
        if self.disconnected or self.response_complete or self.chunks or self.broken:
            return True
        return not self.more_body and not self._end_given

    # ---- the response goes out ------------------------------------------------------------------------
    async def send(self, message: Message) -> None:  # type: ignore[override]
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.response_started:
            self._start(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self.response_started and not self.response_complete:
            body = message.get("body", b"")
            more = message.get("more_body", False)
            self._write(body, more)
            if more and self.flow.write_paused and isinstance(body, memoryview):
                await self.flow.drain()  # the view may be used again when we return
            if not more:
                self._finish()
        else:
            raise RuntimeError(f"ASGI message {kind!r} is out of order")

    def _start(self, status: int, headers: Any) -> None:
        self.response_started = True
        if self._must_close():
            self.keep_alive = False
        parts = [STATUS_LINE[status]]
        lines = 1
        for name, value in headers:
            lower = name.lower()
            if lower == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif lower == b"connection":
                if b"close" in value.lower():
                    self.keep_alive = False
                continue
            parts += (name, b": ", value, b"\r\n")
            lines += 1
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            self.chunked_encoding = False
        elif self.chunked_encoding is None and status not in (204, 304):
            self.chunked_encoding = True
            parts.append(b"Transfer-Encoding: chunked\r\n")
            lines += 1
        if not self.keep_alive:
            parts.append(b"Connection: close\r\n")
            lines += 1
        parts.append(b"\r\n")
        head = b"".join(parts)
        if head.count(b"\n") != lines + 1 or head.count(b"\r") != lines + 1 or b"\0" in head:
            self.response_started = False
            self.chunked_encoding = None
            raise RuntimeError("a response header holds a line break or NUL")
        self._head = head

    def _must_close(self) -> bool:
        """Whether so much of the upload is still to come that the connection is better given up."""
        if self.waiting_for_100_continue or self.broken or self._inlet is not None:
            return True
        if not self.more_body:
            return False
        return self.left_to_come is None or self.left_to_come > limits.DISCARDED_BODY_BYTES

    def _write(self, body: bytes | memoryview, more: bool) -> None:
        head, self._head = self._head, b""
        if self.scope["method"] == "HEAD":
            body = b""
        elif self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), bytes(body)) if body else b""
            if not more:
                body += b"0\r\n\r\n"
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the response is longer than its Content-Length")
        if head and len(body) <= _SMALL_WRITE:
            self.transport.write(head + body if body else head)
            return
        if head:
            self.transport.write(head)
        if body:
            self.transport.write(body)

    def _finish(self) -> None:
        if self.expected_content_length:
            raise RuntimeError("the response is shorter than its Content-Length")
        self.response_complete = True
        self.message_event.set()
        self.chunks.clear()
        if self.keep_alive:
            self.on_response()
        elif self.more_body or self.broken:
            self.protocol.linger()
        else:
            self.transport.close()

    def abort(self) -> None:
        """Break the connection off in the middle of a response: never a clean end."""
        self.disconnected = True
        self.message_event.set()
        self.transport.abort()
