"""An upload's bytes from the socket straight into the buffer they are meant for.

Theory of operation. To the parser a body of known length is nothing but bytes to hand on, and every hand
they pass through copies them: the event loop, the parser, the request. So the reads of a connection
whose request takes a plain body (Content-Length, no aws-chunked) are turned over to an inlet:

    parser     the request asks for its body          -> paused
    paused     a view is offered                      -> filling
    filling    the view is full                       -> paused (the client waits in the kernel's buffers)
               the request gives up, or is cancelled  -> paused (the view is nobody's from this moment)
    paused     the body is complete                   -> parser
               the request was answered before that   -> parser, and the connection closes

A view never reaches beyond the body's end, so the next request's first byte is left to the parser. That
has seen none of what came this way, and cannot be told: the connection goes on with a fresh one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl

_NOTHING = memoryview(b"")


class Inlet(asyncio.BufferedProtocol):
    """Reads a transport in place of `parser`, which goes on to hear everything else of the connection."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        flow: FlowControl,
        parser: asyncio.Protocol,
        full: Callable[[], None],
    ) -> None:
        """Takes over; `full` is called when an offered view has no room left."""
        self._loop = loop
        self._flow = flow
        self._parser = parser
        self._full = full
        self._view = _NOTHING
        self._filled = 0
        self.moved_at = loop.time()  # when bytes came, or were first waited for
        flow.pause_reading()
        transport.set_protocol(self)

    def offer(self, view: memoryview) -> None:
        """Read into `view`, which has room, until it is full or withdrawn."""
        self._view, self._filled = view, 0
        self.moved_at = self._loop.time()
        self._flow.resume_reading()

    def withdraw(self) -> int:
        """Nothing more is written into the view; -> the bytes that it got."""
        self._flow.pause_reading()
        self._view = _NOTHING
        return self._filled

    @property
    def full(self) -> bool:
        return self._filled == len(self._view)

    # ---- what the transport calls ------------------------------------------------------------------
    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        self.moved_at = self._loop.time()
        if self._filled == len(self._view):
            self._flow.pause_reading()
            self._full()

    def eof_received(self) -> bool | None:
        return self._parser.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._parser.connection_lost(exc)

    def pause_writing(self) -> None:
        self._parser.pause_writing()

    def resume_writing(self) -> None:
        self._parser.resume_writing()
