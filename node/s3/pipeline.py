"""The one way in for clients: every S3 request passes here, in this order.

Request id - route - admission (bounded running and waiting, else SlowDown) - guard (the operation's own
bulkhead and deadline) - authenticate - authorize - body document - handler - reply. Whatever is raised
becomes an S3 error document; a body that breaks in the middle breaks the connection, so that no client
takes a part for the whole. `receive()` is first called behind authentication: that is what answers
Expect: 100-continue.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
from collections.abc import Mapping
from typing import Any

from iam.sigv4 import RequestParts
from node import limits
from node.errors import CodedError, DeadlineExceeded, Shed
from node.guard.bulkhead import Bulkhead
from node.guard.guard import Guard
from node.guard.policy import Policy
from node.objects.api import Reading
from node.observe.log import get_logger
from node.observe.log import request_id as request_ids
from node.s3 import codec, errors
from node.s3.body import bounded, open_body
from node.s3.context import condition_context
from node.s3.errors import Fault
from node.s3.ports import Metrics, Receive, Scope, Send
from node.s3.replies import owner_id
from node.s3.routing import Router
from node.s3.shapes import BodyKind, Operation, Reply, Request, Services

# ASGI extensions of our server.
ABORT = "holdfast.abort"  # breaks the connection off
RECEIVE_INTO = "holdfast.receive_into"  # a body of announced length, past the messages

_SERVER = (b"Server", b"Holdfast")
_XML = (b"Content-Type", b"application/xml")
_QUIET = frozenset({304, 404, 412, 416})


class BrokenBody(Exception):
    """A reply's body could not be completed; the server must break the connection."""


class _Responder:
    """One reply on its way: knows whether it began, and adds what every reply has."""

    __slots__ = ("_common", "_head", "_send", "first_byte_at", "sent_bytes", "status")

    def __init__(self, send: Send, common: list[tuple[bytes, bytes]], head: bool) -> None:
        self._send = send
        self._common = common
        self._head = head
        self.status = 0
        self.sent_bytes = 0
        self.first_byte_at = 0.0

    @property
    def started(self) -> bool:
        return self.status != 0

    async def whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        if status not in (204, 304) and not self._head:
            headers.append((b"Content-Length", str(len(body)).encode()))
        await self.start(status, headers)
        await self._send(
            {"type": "http.response.body", "body": b"" if self._head else body, "more_body": False}
        )
        self.sent_bytes = len(body)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*self._common, *headers],
            }
        )

    async def chunk(self, data: bytes | memoryview) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self.sent_bytes += len(data)

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class S3Pipeline:
    """The raw ASGI application of the S3 face."""

    def __init__(
        self,
        services: Services,
        router: Router,
        guard: Guard,
        policies: Mapping[str, Policy],
        metrics: Metrics,
        log: Any = None,
    ) -> None:
        self._services = services
        self._router = router
        self._guard = guard
        self._policies = policies
        self._metrics = metrics
        self._log = log if log is not None else get_logger("s3")
        self._admission = Bulkhead(
            "S3 requests", limits.MAX_RUNNING_REQUESTS, limits.MAX_WAITING_REQUESTS
        )
        self._host_header = (b"x-amz-id-2", services.host_id.encode("ascii"))

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return self._admission.waiting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        began = services.clock.monotonic()
        request = Request(
            method=scope["method"],
            raw_path=scope["raw_path"],
            raw_query=scope["query_string"],
            header_list=scope["headers"],
            receive=receive if ABORT in scope.get("extensions", ()) else bounded(receive),
            services=services,
            request_id=services.rng.bytes(8).hex().upper(),
            client_ip=client_ip(scope, services.trusted_proxies),
            scheme=scope["scheme"],
            receive_into=scope.get("extensions", {}).get(RECEIVE_INTO),
        )
        responder = _Responder(send, self._common_headers(request), request.method == "HEAD")
        name = "Unknown"
        fault: Fault | None = None
        request_ids.set(request.request_id)  # each request is a task, so its context is its own
        try:
            operation = self._router.route(request)
            name = operation.name if operation.implemented else "NotImplemented"
            await self._admitted(request, operation, responder, began)
        except asyncio.CancelledError:
            self._break_off(scope, responder)
            raise
        except Exception as error:  # a chokepoint: nothing leaves here but an S3 error
            fault = errors.translate(error)
            if isinstance(error, Shed):
                self._metrics.shed("s3")
            if fault.internal:
                self._log.error(
                    "unexpected", operation=name, request_id=request.request_id, exc_info=error
                )
            await self._refuse(scope, request, responder, fault)
        finally:
            self._account(request, responder, name, fault, began)

    def _common_headers(self, request: Request) -> list[tuple[bytes, bytes]]:
        now_s = int(self._services.clock.now())
        return [
            _SERVER,
            (b"Date", codec.http_date(now_s).encode("ascii")),
            (b"x-amz-request-id", request.request_id.encode("ascii")),
            self._host_header,
        ]

    # ---- in -------------------------------------------------------------------------------------------
    async def _admitted(
        self, request: Request, operation: Operation, responder: _Responder, began: float
    ) -> None:
        admission = self._admission
        if not admission.try_enter():
            bound = asyncio.timeout(limits.ADMISSION_WAIT_S)
            try:
                async with bound:
                    await admission.enter()
            except TimeoutError:
                raise Shed("no place came free in time") from None
        name = operation.name if operation.implemented else "NotImplemented"
        self._metrics.in_flight(name, 1)
        try:
            reply = await self._guarded(request, operation, began)
            await self._reply(responder, reply)
        finally:
            self._metrics.in_flight(name, -1)
            admission.leave()

    async def _guarded(self, request: Request, operation: Operation, began: float) -> Reply:
        """Everything up to the reply, within the operation's bounds.

        A download's reply is an open object: opening has a bound of its own, the deadline handed to the
        store is that of the whole stream.
        """
        policy = self._policies[operation.policy]
        request.deadline = bound = began + policy.total_s
        if operation.body is BodyKind.PAYLOAD:
            request.deadline = bound = min(bound, began + _transfer_s(_announced(request)))
        elif operation.body is BodyKind.STREAM:
            bound = began + limits.OPEN_TIMEOUT_S

        async def attempt(until: float) -> Reply:
            return await self._serve(request, operation)

        return await self._guard.run("s3", operation.name, policy, None, attempt, deadline=bound)

    async def _serve(self, request: Request, operation: Operation) -> Reply:
        request.auth = await self._services.identity.authenticate(
            RequestParts(request.method, request.raw_path, request.raw_query, request.header_list),
            deadline=request.deadline,
        )
        request.caller = caller = request.auth.caller
        if not caller.is_root:  # nothing is evaluated for root
            request.context = condition_context(request)
        self._authorize(request, operation)
        if operation.body is BodyKind.XML:
            request.document = await self._document(request)
        if "x-amz-expected-bucket-owner" in request.headers:
            await _check_bucket_owner(request)
        return await operation.handler(request)

    def _authorize(self, request: Request, operation: Operation) -> None:
        if not operation.action:
            caller = request.caller
            if caller is None or caller.anonymous:
                raise CodedError("AccessDenied", "Access Denied")
            return
        action = operation.action
        if operation.version_action and "versionId" in request.query:
            action = operation.version_action
        request.allow(action, request.bucket, request.key or None)

    async def _document(self, request: Request) -> bytes:
        """A body that is a document: read whole, checked like any other body."""
        assert request.auth is not None
        headers = request.headers
        if "content-length" not in headers and "transfer-encoding" not in headers:
            return b""
        try:
            body = open_body(
                request.receive,
                headers,
                request.auth.auth,
                request.auth.verification,
                max_bytes=limits.MAX_XML_BYTES,
            )
        except CodedError as error:
            if error.code != "EntityTooLarge":
                raise
            raise CodedError(
                "MaxMessageLengthExceeded",
                "Your request was too big.",
                MaxMessageLengthBytes=str(limits.MAX_XML_BYTES),
            ) from None
        data = bytearray(body.size)
        with memoryview(data) as view:
            await body.readinto(view)
            body.digest(view)
        await body.finish()
        return bytes(data)

    # ---- out ------------------------------------------------------------------------------------------
    async def _reply(self, responder: _Responder, reply: Reply) -> None:
        reading = reply.reading
        if reading is None:
            responder.first_byte_at = self._services.clock.monotonic()
            await responder.whole(reply.status, reply.headers, reply.body)
            return
        size = reading.end - reading.start
        if size <= limits.MIB:
            # What fits the kernel's buffers is bounded by the server's watch over writing alone.
            try:
                await self._stream(responder, reply, reading)
            finally:
                await reading.close()
            return
        bound = asyncio.timeout(_transfer_s(size))
        try:
            async with bound:
                await self._stream(responder, reply, reading)
        except TimeoutError:
            if not bound.expired():
                raise
            raise DeadlineExceeded("the client took the object too slowly") from None
        finally:
            await reading.close()

    async def _stream(self, responder: _Responder, reply: Reply, reading: Reading) -> None:
        """Nothing is sent before the first chunk is there: an object that cannot be read is still a 503."""
        left = reading.end - reading.start
        async for chunk in reading.chunks():
            if not responder.started:
                responder.first_byte_at = self._services.clock.monotonic()
                await responder.start(reply.status, reply.headers)
            left -= len(chunk)
            if left < 0:
                raise BrokenBody("the object gave more bytes than it has")
            await responder.chunk(chunk)
        if left:
            raise BrokenBody(f"the object gave {left} bytes too few")
        if not responder.started:
            responder.first_byte_at = self._services.clock.monotonic()
            await responder.start(reply.status, reply.headers)
        await responder.end()

    async def _refuse(
        self, scope: Scope, request: Request, responder: _Responder, fault: Fault
    ) -> None:
        if responder.started:
            self._break_off(scope, responder)
            if ABORT not in scope.get("extensions", {}):
                raise BrokenBody(fault.code)
            return
        headers = [] if fault.status == 304 else [_XML]
        if fault.retry_after_s:
            headers.append((b"Retry-After", str(fault.retry_after_s).encode()))
        details = fault.details
        if fault.status == 416 and "ActualObjectSize" in details:
            headers.append((b"Content-Range", f"bytes */{details['ActualObjectSize']}".encode()))
        if fault.status == 304:
            headers.extend(
                (name, details[name.decode()].encode("latin-1"))
                for name in (b"ETag", b"Last-Modified")
                if name.decode() in details
            )
        if fault.code == "NoSuchBucket" or fault.code == "AuthorizationHeaderMalformed":
            headers.append((b"x-amz-bucket-region", self._services.region.encode("latin-1")))
        body = b""
        if fault.status != 304 and request.method != "HEAD":
            body = errors.error_document(
                fault,
                resource=request.raw_path.decode("latin-1"),
                request_id=request.request_id,
                host_id=self._services.host_id,
            )
        await responder.whole(fault.status, headers, body)

    def _break_off(self, scope: Scope, responder: _Responder) -> None:
        abort = scope.get("extensions", {}).get(ABORT)
        if abort is not None and responder.started:
            abort()

    def _account(
        self,
        request: Request,
        responder: _Responder,
        name: str,
        fault: Fault | None,
        began: float,
    ) -> None:
        seconds = self._services.clock.monotonic() - began
        first = responder.first_byte_at
        self._metrics.request(
            name, responder.status or 499, seconds, first - began if first else None
        )
        slow = seconds > limits.SLOW_REQUEST_S and seconds > _usual_s(request, responder)
        if fault is not None and fault.status not in _QUIET:
            write = self._log.warning if fault.status >= 500 else self._log.info
        elif slow:
            write = self._log.info
        else:
            return
        write(
            "request",
            operation=name,
            status=responder.status,
            code=fault.code if fault else "",
            seconds=round(seconds, 6),
            request_id=request.request_id,
            client=request.client_ip,
        )


def _announced(request: Request) -> int:
    """The payload's size by its headers, for the deadline; what is wrong there the body refuses."""
    headers = request.headers
    text = headers.get("x-amz-decoded-content-length") or headers.get("content-length") or "0"
    size = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0
    return min(size, limits.MAX_OBJECT_BYTES)


def _usual_s(request: Request, responder: _Responder) -> float:
    """How long a transfer may take before it is called slow."""
    size = max(_announced(request), responder.sent_bytes)
    return limits.SLOW_REQUEST_S + size / limits.SLOW_BYTES_PER_S


def _transfer_s(size_bytes: int) -> float:
    """How long the slowest client we serve may take over so many bytes."""
    return limits.TRANSFER_BASE_S + size_bytes / limits.MIN_CLIENT_BYTES_PER_S


async def _check_bucket_owner(request: Request) -> None:
    info = await request.store.head_bucket(request.bucket, deadline=request.deadline)
    if request.headers["x-amz-expected-bucket-owner"] not in (info.owner, owner_id(info.owner)):
        raise CodedError("AccessDenied", "Access Denied")


def client_ip(scope: Scope, trusted_proxies: tuple[str, ...]) -> str:
    """The socket's address, unless it is a trusted proxy: then the last address it did not vouch for."""
    client = scope.get("client")
    address = str(client[0]) if client else ""
    if not trusted_proxies or not _is_trusted(address, trusted_proxies):
        return address
    forwarded = [
        part.strip()
        for name, value in scope["headers"]
        if name == b"x-forwarded-for"
        for part in value.decode("latin-1").split(",")
    ]
    for candidate in reversed(forwarded):
        try:
            ipaddress.ip_address(candidate)
        except ValueError:
            break
        address = candidate
        if not _is_trusted(candidate, trusted_proxies):
            break
    return address


def _is_trusted(address: str, trusted_proxies: tuple[str, ...]) -> bool:
    try:
        found = ipaddress.ip_address(address)
        return any(found in ipaddress.ip_network(net, strict=False) for net in trusted_proxies)
    except ValueError:
        return False


def host_id(node: str) -> str:
    """A stable, opaque name of the answering node (x-amz-id-2)."""
    return base64.b64encode(hashlib.sha256(node.encode()).digest()).decode()
