"""What the console needs of its node; node.compose hands the real ones in.

No request asks a peer on its way: `ClusterView` answers from membership, this node's drives and what
peers were heard to say, dated. So a page costs the same with a node dark.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from node.console.models import Census, Cluster, ConfigValue, Lock, Repair

# ASGI's own shapes are open mappings.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClusterView(Protocol):
    """The cluster as this node knows it. What is synchronous answers at once, from memory."""

    def cluster(self) -> Cluster: ...

    def repair(self) -> Repair: ...

    async def pause_repair(self, paused: bool, *, deadline: float) -> Repair:
        """On every node that can be reached; Unavailable when that is too few to mean anything."""
        ...

    async def census(self, *, deadline: float) -> Census:
        """Counts shards on every drive: the one question that takes longer than a second."""
        ...

    def start_census(self) -> Census:
        """In the background; its progress, and the last one."""
        ...

    def own_census(self) -> Census: ...

    async def locks(self, *, deadline: float) -> tuple[Lock, ...]:
        """Those this node's lock server knows, oldest first."""
        ...

    async def release_lock(self, resource: str, *, deadline: float) -> bool:
        """By force, on every lock server that can be reached. False: nobody held it."""
        ...

    async def accept_drive(
        self, node: str, path: str, *, rebuild: bool = False, deadline: float
    ) -> None:
        """ClientError when that node has no such drive to take in. `rebuild`: a damaged one, emptied first."""
        ...

    def config(self) -> tuple[ConfigValue, ...]:
        """Effective values with their origin, secrets hidden."""
        ...


class Settings(Protocol):
    """The part of node.config.Settings that the console reads."""

    @property
    def node(self) -> str: ...
    @property
    def trusted_proxies(self) -> tuple[str, ...]: ...


class Metrics(Protocol):
    def shed(self, what: str) -> None: ...
