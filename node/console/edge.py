"""The console's only way in: every request passes here, through the guard, before FastAPI sees it.

Bounds of time, number and size, the headers that every answer carries, one log line for what went
wrong, and the end of a reply that broke in the middle.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from node import limits
from node.console.errors import Fault, translate
from node.console.ports import Message, Metrics, Receive, Scope, Send
from node.console.services import DEADLINE
from node.errors import CodedError, Shed
from node.guard.guard import Guard
from node.guard.policy import ADMIN
from node.runtime.ports import Clock

ABORT = "holdfast.abort"  # ASGI extension of our server: breaks the connection off

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
    (b"server", b"Holdfast"),
)


def row_of(method: str, path: str) -> str:
    """The policy row of a request."""
    if path.startswith("/api/buckets/") and path.endswith("/object") and method != "DELETE":
        return "transfer"
    if path == "/admin/v1/heal/census" and method in _SAFE_METHODS:
        return "census"
    return "DEFAULT" if method in _SAFE_METHODS else "change"


class _Reply:
    """Watches what is sent: whether it began, and the headers that all replies have."""

    __slots__ = ("_send", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            given = {name.lower() for name, _ in headers}
            headers += [pair for pair in _HEADERS if pair[0] not in given]
            message = {**message, "headers": headers}
        await self._send(message)


class Edge:
    """Wraps the console's application."""

    def __init__(self, app: Any, guard: Guard, clock: Clock, metrics: Metrics, log: Any) -> None:
        self._app = app
        self._guard = guard
        self._clock = clock
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        row = row_of(scope["method"], scope["path"])
        began = self._clock.monotonic()
        reply = _Reply(send)

        async def attempt(until: float) -> None:
            scope[DEADLINE] = until
            take = receive if row == "transfer" else _limited(scope, receive)
            await self._app(scope, take, reply.send)

        try:
            policy = ADMIN[row]
            await self._guard.run(
                "console", row, policy, None, attempt, deadline=began + policy.total_s
            )
        except asyncio.CancelledError:
            self._break_off(scope, reply)
            raise
        except Exception as error:  # a chokepoint: nothing leaves here but an answer
            await self._refuse(scope, reply, error)
        finally:
            if reply.status >= 500:
                self._log.warning(
                    "console request",
                    path=scope["path"],
                    status=reply.status,
                    seconds=round(self._clock.monotonic() - began, 6),
                )

    async def _refuse(self, scope: Scope, reply: _Reply, error: Exception) -> None:
        fault = translate(error)
        if isinstance(error, Shed):
            self._metrics.shed("console")
        if fault is None:
            self._log.error("unexpected", path=scope["path"], exc_info=error)
            fault = Fault(
                status=500, code="InternalError", message="An internal error, see the log"
            )
        if reply.status:
            self._break_off(scope, reply)
            return
        headers = [(b"content-type", b"application/json")]
        if fault.retry_after_s:
            headers.append((b"retry-after", str(fault.retry_after_s).encode()))
        body = msgspec.json.encode({"code": fault.code, "message": fault.message})
        headers.append((b"content-length", str(len(body)).encode()))
        await reply.send(
            {"type": "http.response.start", "status": fault.status, "headers": headers}
        )
        await reply.send({"type": "http.response.body", "body": body})

    def _break_off(self, scope: Scope, reply: _Reply) -> None:
        """Never end a reply in good order that is not whole."""
        abort = scope.get("extensions", {}).get(ABORT)
        if abort is not None and reply.status:
            abort()


def _limited(scope: Scope, receive: Receive) -> Receive:
    """`receive` of a request whose body is a small document."""
    announced = next((v for n, v in scope["headers"] if n == b"content-length"), b"0")
    if not announced.isdigit() or int(announced) > limits.ADMIN_BODY_BYTES:
        raise _too_large()
    taken = 0

    async def take() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limits.ADMIN_BODY_BYTES:
            raise _too_large()
        return message

    return take


def _too_large() -> CodedError:
    return CodedError(
        "RequestTooLarge", f"the body is longer than {limits.ADMIN_BODY_BYTES // limits.KIB} KiB"
    )
