"""Uploads and downloads of a browser: plain bytes in, plain bytes out, never more than a little in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response

from node import limits
from node.console.ports import Receive, Scope, Send
from node.errors import CodedError, DeadlineExceeded, HoldfastError
from node.objects.api import Reading
from node.objects.bodies import PlainBody


class BrokenDownload(HoldfastError):
    """An object ended early on its way out: the connection must break, too."""


def transfer_s(size_bytes: int) -> float:
    """How long the slowest client we serve may take over so many bytes."""
    return limits.TRANSFER_BASE_S + size_bytes / limits.MIN_CLIENT_BYTES_PER_S


def announced_size(request: Request) -> int:
    """The upload's size; it must be known before the first byte."""
    text = request.headers.get("content-length", "")
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise CodedError("MissingContentLength", "an upload needs a Content-Length header")
    size = int(text)
    if size > limits.MAX_OBJECT_BYTES:
        raise CodedError("RequestTooLarge", "an object has at most 5 TiB")
    return size


def body_of(request: Request) -> PlainBody:
    return PlainBody(announced_size(request), _chunks(request.receive))


async def _chunks(receive: Receive) -> AsyncGenerator[bytes, None]:
    more = True
    while more:
        try:
            async with asyncio.timeout(limits.BODY_PROGRESS_TIMEOUT_S):
                message = await receive()
        except TimeoutError:
            raise _stalled() from None
        kind = message["type"]
        if kind == "http.disconnect":
            raise CodedError("IncompleteBody", "the client went away")
        if kind != "http.request":  # our server says so when the client sends nothing
            raise _stalled()
        more = message.get("more_body", False)
        yield message.get("body", b"")


def _stalled() -> CodedError:
    return CodedError("RequestTimeout", "the upload made no progress in time")


class Download(Response):
    """Sends an open object as a file. Nothing is sent before its first bytes are there."""

    def __init__(self, reading: Reading, name: str) -> None:
        super().__init__()
        self._reading = reading
        self._length = reading.end - reading.start
        ascii_name = "".join(
            c if (c.isascii() and c.isalnum()) or c in "._- " else "_" for c in name
        )
        disposition = (
            f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{quote(name, safe='')}"
        )
        self._head = [
            # Never shown by the browser, whatever the object says it is.
            (b"content-type", b"application/octet-stream"),
            (b"content-length", str(self._length).encode()),
            (b"content-disposition", disposition.encode("ascii")),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(transfer_s(self._length)) as bound:
                await self._send(send)
        except TimeoutError:
            if not bound.expired():
                raise
            raise DeadlineExceeded("the client took the object too slowly") from None
        finally:
            await self._reading.close()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self._head}
        left, started = self._length, False
        async for chunk in self._reading.chunks():
            if not started:
                await send(start)
                started = True
            left -= len(chunk)
            if left < 0:
                raise BrokenDownload("the object gave more bytes than it has")
            await send({"type": "http.response.body", "body": bytes(chunk), "more_body": True})
        if left:
            raise BrokenDownload(f"the object gave {left} bytes too few")
        if not started:
            await send(start)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
