"""What a node runs on: every seam to the machine in one value, so that a simulation can give others.

node.compose builds a node from its settings and a Machine and from nothing else; `of_this_system` is
the one that production uses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from node.runtime.arena import Arena
from node.runtime.drive_client import DriveProcess, DriveSettings
from node.runtime.grpc_wire import GrpcPulse, GrpcServer, GrpcWire
from node.runtime.mounts import is_own_mount
from node.runtime.ports import Clock, Pulse, Rng, Wire, WireStream
from node.runtime.system import SystemClock, SystemRng, ThreadCpu
from node.s3.server import HttpServer
from node.store.drive_gate import DriveService

T = TypeVar("T")


class OwnedCpu(Protocol):
    """The Cpu port, with its end."""

    async def run(self, work: Callable[..., T], *arguments: object) -> T: ...

    def close(self) -> None: ...


class PeerServer(Protocol):
    """Listens for peers; `start` raises OSError or RuntimeError when the address cannot be had."""

    async def start(self, host: str, port: int) -> int: ...

    async def stop(self, grace_s: float = 0.0) -> None: ...


class WebServer(Protocol):
    """Serves one ASGI application on one port; `start` raises ConfigError."""

    async def start(self) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


# `accept(kind, stream)` runs for each stream, `beat(bytes)` answers a heartbeat.
Accept = Callable[[str, WireStream], Awaitable[None]]
Beat = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The ports of one node, and how it makes what it owns several of."""

    clock: Clock
    rng: Rng
    cpu: OwnedCpu
    wire: Wire
    pulse: Pulse
    drive: Callable[[str, Arena, DriveSettings], DriveService]
    peer_server: Callable[[Accept, Beat], PeerServer]
    web_server: Callable[[Any, str, int], WebServer]
    own_mount: Callable[[str], bool]


def of_this_system() -> Machine:
    """The real thing: system clock and randomness, threads, gRPC, drive processes, sockets."""
    return Machine(
        clock=SystemClock(),
        rng=SystemRng(),
        cpu=ThreadCpu(),
        wire=GrpcWire(),
        pulse=GrpcPulse(),
        drive=DriveProcess,
        peer_server=GrpcServer,
        web_server=HttpServer,
        own_mount=is_own_mount,
    )
