"""A client's connection: uvicorn's httptools protocol, and the bounds that it lacks.

Theory of operation. A connection is idle, in a header, in a request, or lingering:

    idle       first byte -> header; KEEPALIVE_IDLE_S (HEADER_TIMEOUT_S before the first request) -> closed
    header     complete -> request; HEADER_TIMEOUT_S or MAX_HEADER_BYTES -> refused and closed
    request    answered -> idle; answered before the body was read -> lingering
    lingering  half closed, the rest of the upload is thrown away, LINGER_S -> closed

Lingering exists since closing with unread bytes resets the connection, and a reset can overtake the
answer. Bodies are not read before the request asks for them (that is also what sends 100 Continue),
and are then handed over in the chunks they arrived in, without joining, or read straight into the buffer
they are for (node.s3.inlet). A view that is sent is in the
kernel before `send` returns, so its buffer can be used again; a client that takes nothing for
BODY_PROGRESS_TIMEOUT_S is cut off.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from node import limits
from node.s3.errors import Fault, error_document, status_of
from node.s3.exchange import BoundedCycle
from node.s3.inlet import Inlet
from node.s3.pipeline import ABORT, RECEIVE_INTO

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limits.BODY_PROGRESS_TIMEOUT_S * 1000)),
)


class _Refused(Exception):
    """Raised inside parser callbacks; `code` is what the client is told."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


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
        self.transport.set_protocol(self)  # an inlet may have it
        self._cancel_timer()
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():  # what speaks TLS cannot
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

    def open_inlet(self, full: Callable[[], None]) -> Inlet:
        """The rest of this request's body does not come by way of the parser."""
        return Inlet(self.loop, self.transport, self.flow, self, full)

    def close_inlet(self) -> None:
        """The body has come to its end: what follows is the next request."""
        parser = self.parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the first one's
        self.transport.set_protocol(self)
        self.flow.resume_reading()
        self.on_message_complete()

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
        if self.parser.get_method() == b"HEAD":
            body = b""
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
        extensions: dict[str, Any] = {ABORT: cycle.abort}
        if length:
            extensions[RECEIVE_INTO] = cycle.receive_into
        scope["extensions"] = extensions
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
