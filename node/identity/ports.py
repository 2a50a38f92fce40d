"""What the directory of identities needs of its surroundings; node.compose hands the real ones in."""

from __future__ import annotations

from typing import Protocol


class Document(Protocol):
    """node.objects.documents.Document."""

    @property
    def data(self) -> bytes: ...
    @property
    def version(self) -> int: ...


class Documents(Protocol):
    """node.objects.documents.Documents: small system objects, read and replaced by quorum."""

    async def read(self, name: str, *, deadline: float) -> Document | None:
        """None: there is none. Unavailable when that cannot be known now."""
        ...

    async def write(
        self, name: str, data: bytes, *, expected: int | None, deadline: float
    ) -> Document:
        """`expected`: the version replaced, 0 for none; DocumentConflict when another one is there."""
        ...


class Spread(Protocol):
    """Tells the other nodes of a change: sends `announcement(version)`, reads answers by `applied`."""

    async def spread(self, version: int, *, deadline: float) -> int:
        """How many other nodes answered, before the deadline, that they have applied it. Never raises
        for a node that does not answer; may return as soon as enough for a quorum have."""
        ...


class Copies(Protocol):
    """The sealed directory on this node's own drives, for a start at which no quorum answers."""

    async def read(self) -> tuple[bytes, ...]:
        """What the drives that answer have. Bounded, never raises."""
        ...

    async def keep(self, version: int, data: bytes) -> None:
        """Durable on every drive in use that lacks it. Bounded, never raises: what could not be
        written is written by a later call."""
        ...


class Metrics(Protocol):
    """The part of node.observe.metrics.Metrics that identities use."""

    def config_read(self, operation: str, seconds: float) -> None: ...
    def config_read_timeout(self, operation: str) -> None: ...
    def identity_version(self, v: int) -> None: ...
    def identity_lag(self, s: float) -> None: ...
