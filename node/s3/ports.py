"""What the S3 face needs of its surroundings, as protocols; node.compose hands the real ones in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from iam.sigv4 import Authentication, RequestParts, Verified

# ASGI's own shapes are open mappings.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# Fills the view with the next bytes of a body and says how many; TimeoutError when none come.
ReceiveInto = Callable[[memoryview], Awaitable[int]]


class Caller(Protocol):
    """Who asks (node.identity.service.Caller)."""

    @property
    def access_key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def is_root(self) -> bool: ...
    @property
    def anonymous(self) -> bool: ...


class Authenticated(Protocol):
    """A request whose claim was checked (node.identity.service.Authenticated)."""

    @property
    def caller(self) -> Caller: ...
    @property
    def verification(self) -> Verified | None: ...
    @property
    def auth(self) -> Authentication: ...


class Identity(Protocol):
    async def authenticate(self, parts: RequestParts, *, deadline: float) -> Authenticated:
        """Raises iam.errors.AuthError; Unavailable when the identities cannot be known now."""
        ...

    def authorize(
        self, caller: Any, action: str, resource_arn: str, context: dict[str, Any]
    ) -> None:
        """Raises iam.errors.AuthError("AccessDenied")."""
        ...


class Metrics(Protocol):
    def request(
        self, operation: str, status: int, seconds: float, first_byte_s: float | None = None
    ) -> None: ...
    def in_flight(self, operation: str, delta: int) -> None: ...
    def shed(self, what: str) -> None: ...
    def render(self) -> bytes: ...


class Health(Protocol):
    """Each answers (fine, details) from what this node knows; no peer is asked."""

    def live(self) -> tuple[bool, dict[str, Any]]: ...
    def ready(self) -> tuple[bool, dict[str, Any]]: ...
    def ready_write(self) -> tuple[bool, dict[str, Any]]: ...
    def cluster(self, maintenance: bool) -> tuple[bool, dict[str, Any]]: ...
    def cluster_read(self) -> tuple[bool, dict[str, Any]]: ...
