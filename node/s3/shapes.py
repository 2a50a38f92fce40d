"""The face's own values: an operation's row, a request as routed, a reply as handlers give it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from node.objects.api import ObjectStore, Reading
from node.runtime.ports import Clock, Rng
from node.s3.ports import Authenticated, Caller, Identity, Receive, ReceiveInto


class Level(StrEnum):
    """What an operation addresses."""

    SERVICE = "service"
    BUCKET = "bucket"
    OBJECT = "object"


class BodyKind(StrEnum):
    NONE = "none"
    XML = "xml"  # a small document, read whole before the handler runs
    PAYLOAD = "payload"  # an object's bytes, streamed in
    STREAM = "stream"  # none comes in, an object's bytes are streamed out


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What handlers work with."""

    store: ObjectStore
    identity: Identity
    clock: Clock
    rng: Rng
    region: str
    domain: str
    host_id: str
    trusted_proxies: tuple[str, ...]


class Request:
    """One request: filled by routing, then by authentication. Header names in lower case."""

    __slots__ = (
        "auth",
        "bucket",
        "caller",
        "client_ip",
        "context",
        "deadline",
        "document",
        "header_list",
        "headers",
        "host",
        "key",
        "method",
        "operation",
        "query",
        "raw_path",
        "raw_query",
        "receive",
        "receive_into",
        "request_id",
        "scheme",
        "services",
        "virtual_host",
    )

    def __init__(
        self,
        *,
        method: str,
        raw_path: bytes,
        raw_query: bytes,
        header_list: list[tuple[bytes, bytes]],
        receive: Receive,
        services: Services,
        request_id: str,
        client_ip: str,
        scheme: str,
        receive_into: ReceiveInto | None = None,
    ) -> None:
        self.method = method
        self.raw_path = raw_path
        self.raw_query = raw_query
        self.header_list = header_list
        self.headers: dict[str, str] = {}
        self.query: dict[str, str] = {}
        self.receive = receive
        self.receive_into = receive_into
        self.services = services
        self.request_id = request_id
        self.client_ip = client_ip
        self.scheme = scheme
        self.host = ""
        self.bucket = ""
        self.key = ""
        self.virtual_host = False
        self.operation: Operation | None = None
        self.deadline = 0.0
        self.auth: Authenticated | None = None
        self.caller: Caller | None = None
        self.document = b""
        self.context: dict[str, Any] = {}

    @property
    def store(self) -> ObjectStore:
        return self.services.store

    @property
    def owner(self) -> str:
        """The name under which the caller owns what it makes; survives a change of root's access key."""
        assert self.caller is not None, "authentication comes first"
        return "root" if self.caller.is_root else self.caller.name

    def allow(self, action: str, bucket: str, key: str | None = None) -> None:
        """Check a permission of the caller; raises AuthError("AccessDenied")."""
        if key is None:
            resource = f"arn:aws:s3:::{bucket}" if bucket else "arn:aws:s3:::*"
        else:
            resource = f"arn:aws:s3:::{bucket}/{key}"
        self.services.identity.authorize(self.caller, action, resource, self.context)


@dataclass(slots=True)
class Reply:
    """Status, headers and either a body or an open object to stream.

    The pipeline adds request id, server and date, and Content-Length for `body`; with `reading` the
    handler gives Content-Length itself.
    """

    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    reading: Reading | None = None


Handler = Callable[[Request], Awaitable[Reply]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One row of the operation table.

    `query`: keys (or key=value) that must be there; `headers` likewise. `optional`: further query keys
    the operation knows. `policy` names its row in node.guard.policy.S3_OPERATIONS.
    """

    name: str
    method: str
    level: Level
    action: str
    handler: Handler
    policy: str
    body: BodyKind
    query: tuple[str, ...]
    headers: tuple[str, ...]
    optional: frozenset[str]
    version_action: str
    implemented: bool

    @property
    def required_keys(self) -> frozenset[str]:
        return frozenset(item.partition("=")[0] for item in self.query)


def xml_reply(text: str, *, status: int = 200) -> Reply:
    return Reply(
        status=status,
        headers=[(b"Content-Type", b"application/xml")],
        body=text.encode("utf-8"),
    )
