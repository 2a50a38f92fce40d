"""HTTP servers: uvicorn with httptools, and the bounds that uvicorn lacks. Used for S3 and the console.

Theory of operation. A connection is idle, in a header, in a request, or lingering:

    idle       first byte -> header; KEEPALIVE_IDLE_S (HEADER_TIMEOUT_S before the first request) -> closed
    header     complete -> request; HEADER_TIMEOUT_S or MAX_HEADER_BYTES -> refused and closed
    request    answered -> idle; answered before the body was read -> lingering
    lingering  half closed, the rest of the upload is thrown away, LINGER_S -> closed

Lingering exists since closing with unread bytes resets the connection, and a reset can overtake the
answer. Bodies are not read before the request asks for them (that is also what sends 100 Continue),
and are then handed over in the chunks they arrived in, without joining. A view that is sent is in the
kernel before `send` returns, so its buffer can be used again; a client that takes nothing for
BODY_PROGRESS_TIMEOUT_S is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from node import limits
from node.errors import ConfigError
from node.s3.body import STALLED
from node.s3.errors import Fault, error_document, status_of
from node.s3.pipeline import ABORT
from node.s3.ports import Message

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limits.BODY_PROGRESS_TIMEOUT_S * 1000)),
)
_SMALL_WRITE = 64 * limits.KIB  # head and body go out in one write up to here


class _Refused(Exception):
    """Raised inside parser callbacks; `code` is what the client is told."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class BoundedCycle(RequestResponseCycle):
    """One request and its response."""

    def __init__(self, *arguments: Any, protocol: BoundedProtocol, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.protocol = protocol
        self.chunks: deque[bytes] = deque()
        self.buffered = 0
        self.wanted = False
        self.broken = False  # the body's framing broke: it will never be complete
        self.left_to_come: int | None = None  # of the body, by Content-Length
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

    async def receive(self) -> Any:
        self.wanted = True
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
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
        if self.waiting_for_100_continue or self.broken:
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


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    cycle: BoundedCycle

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._timer: asyncio.TimerHandle | None = None  # for a header, or for lingering
        self._write_timer: asyncio.TimerHandle | None = None
        self._in_header = False
        self._header_bytes = 0
        self._lingering = False

    # ---- connection ------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            for level, option, value in _KEEPALIVE:
                connection.setsockopt(level, option, value)
        if len(self.connections) > limits.MAX_CONNECTIONS:
            self._refuse("SlowDown", "Please reduce your request rate.")
        else:
            self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        self._cancel_write_timer()
        super().connection_lost(exc)

    def _await_header(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(limits.HEADER_TIMEOUT_S, self._header_late)

    def _header_late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def linger(self) -> None:
        self._lingering = True
        self._cancel_timer()
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        with contextlib.suppress(OSError, NotImplementedError, RuntimeError):
            self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(limits.LINGER_S, self.transport.close)

    # ---- bytes in ----------------------------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        self._unset_keepalive_if_required()
        idle = self.cycle is None or self.cycle.response_complete
        if idle:
            self._await_header()
        # Behind the body of a request under way, where a header begins in `data` is not known.
        all_header = self._in_header or (idle and (self.cycle is None or not self.cycle.more_body))
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self.cycle is not None:
                self.cycle.keep_alive = False  # nothing is upgraded here; this request is the last
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, _Refused):
                self._refuse(cause.code, str(cause))
            else:
                self._refuse("InvalidRequest", "The request is not well-formed HTTP/1.1.")
            return
        if self._in_header:
            self._header_bytes += len(data) if all_header else 0
            if self._header_bytes > limits.MAX_HEADER_BYTES:
                self._refuse(*_HEADER_TOO_LARGE)

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more; it may still wait for its answer (True keeps our direction open)."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        cycle.keep_alive = False
        if cycle.more_body:
            cycle.broken = True
            cycle.message_event.set()
        return True

    def _refuse(self, code: str, message: str) -> None:
        """Answer what never became a request. One that is under way learns that its body broke."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.broken = True
            cycle.keep_alive = False
            cycle.message_event.set()
            self.flow.pause_reading()
            return
        status = status_of(code)
        fault = Fault(code=code, status=status, message=message)
        body = error_document(fault, resource="", request_id="", host_id="")
        retry = b"Retry-After: 1\r\n" if status == 503 else b""
        self.transport.write(
            STATUS_LINE[status]
            + b"Server: Holdfast\r\nContent-Type: application/xml\r\nConnection: close\r\n"
            + retry
            + b"Content-Length: %d\r\n\r\n" % len(body)
            + body
        )
        self.linger()

    # ---- parser callbacks ----------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_header = True
        self._header_bytes = 0

    def on_headers_complete(self) -> None:
        self._in_header = False
        self._cancel_timer()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > limits.MAX_HEADER_BYTES:
            raise _Refused(*_HEADER_TOO_LARGE)
        length = _body_length(self.headers)
        scope = self.scope
        version = self.parser.get_http_version()
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        raw_path, scope["query_string"] = _split_target(self.url)
        scope["raw_path"] = raw_path
        path = raw_path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        before = self.cycle
        self.cycle = cycle = BoundedCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
            protocol=self,
        )
        cycle.left_to_come = length
        scope["extensions"] = {ABORT: cycle.abort}  # type: ignore[dict-item]
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.take(body)
        elif cycle.left_to_come is not None:
            cycle.left_to_come -= len(body)

    def on_message_complete(self) -> None:
        cycle = self.cycle
        cycle.more_body = False
        cycle.message_event.set()

    def on_response_complete(self) -> None:
        if not self._lingering:
            super().on_response_complete()

    # ---- bytes out --------------------------------------------------------------------------------------------
    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._watch_writing()

    def resume_writing(self) -> None:
        self._cancel_write_timer()
        super().resume_writing()

    def _watch_writing(self) -> None:
        self._write_timer = self.loop.call_later(
            limits.BODY_PROGRESS_TIMEOUT_S,
            self._check_writing,
            self.transport.get_write_buffer_size(),
        )

    def _check_writing(self, before: int) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch_writing()

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


_HEADER_TOO_LARGE = (
    "RequestHeaderSectionTooLarge",
    f"Your request header and query exceed the maximum of {limits.MAX_HEADER_BYTES} bytes.",
)


def _body_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    """Content-Length, 0 for no body, None for chunked. httptools has refused both at once and twice one."""
    length: int | None = 0
    hosts = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise _Refused("NotImplemented", "Transfer-Encoding may only be chunked.")
            length = None
        elif name == b"content-length":
            length = int(value)
        elif name == b"host":
            hosts += 1
    if hosts > 1:
        raise _Refused("InvalidRequest", "A request may have one Host header.")
    return length


def _split_target(url: bytes) -> tuple[bytes, bytes]:
    """(raw path, raw query) of a request target, which may be in absolute form."""
    target = url.partition(b"#")[0]
    if target[:1] != b"/" and b"://" in target:
        rest = target.partition(b"://")[2]
        slash = rest.find(b"/")
        target = rest[slash:] if slash >= 0 else b"/"
    path, _, query = target.partition(b"?")
    return path, query


class HttpServer:
    """One listening port on the running loop. `app` is any ASGI application; no lifespan is run."""

    def __init__(self, app: Any, host: str, port: int, *, backlog: int = 1024) -> None:
        self._host = host
        self._port = port
        self._backlog = backlog
        self._socket: socket.socket | None = None
        config = Config(
            app,
            interface="asgi3",
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(limits.KEEPALIVE_IDLE_S),
            backlog=backlog,
        )
        config.load()
        self._server = Server(config)
        self._server.lifespan = config.lifespan_class(config)

    @property
    def port(self) -> int:
        """The port listened on; the system's choice when it was given as 0."""
        assert self._socket is not None, "start() comes first"
        port: int = self._socket.getsockname()[1]
        return port

    async def start(self) -> None:
        """Listen. ConfigError when the address cannot be taken."""
        loop = asyncio.get_running_loop()
        listener: socket.socket | None = None
        try:
            found = await loop.getaddrinfo(
                self._host or None, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, kind, protocol, _, address = found[0]
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(address)
            listener.listen(self._backlog)
        except OSError as error:
            if listener is not None:
                listener.close()
            raise ConfigError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror or error}. Another program "
                "may hold the port, or the address may not be one of this machine."
            ) from error
        self._socket = listener
        await self._server.startup(sockets=[listener])

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more, let requests end for up to `grace_s`, then cut the rest off."""
        if self._socket is None:
            return
        self._server.config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment]
        state = self._server.server_state
        await self._server.shutdown(sockets=[self._socket])
        for connection in list(state.connections):
            connection.transport.abort()
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=1.0)
