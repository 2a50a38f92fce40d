"""The S3 face on real sockets over a store in memory, with real signatures: for tests of the face."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
import uvloop

from iam import sigv4
from iam.errors import AuthError
from node.guard.guard import Guard
from node.runtime.system import SystemClock, SystemRng
from node.s3.app import S3App, create_app
from node.s3.server import HttpServer
from tests.fakes.memory_store import MemoryStore

ROOT, ROOT_SECRET = "rootkey", "root-secret-key"
GUEST, GUEST_SECRET = "guestkey", "guest-secret-key"


@dataclass(frozen=True)
class FakeCaller:
    access_key: str
    name: str
    is_root: bool
    anonymous: bool


@dataclass(frozen=True)
class FakeAuthenticated:
    caller: FakeCaller
    verification: sigv4.Verified | None
    auth: sigv4.Authentication


@dataclass
class FakeIdentity:
    """Root may do all; the guest only what `guest_actions` says; real SigV4 for both."""

    region: str = "us-east-1"
    now_s: Any = None
    guest_actions: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    failure: BaseException | None = None

    async def authenticate(
        self, parts: sigv4.RequestParts, *, deadline: float
    ) -> FakeAuthenticated:
        if self.failure is not None:
            raise self.failure
        auth = sigv4.parse(parts)
        if not auth.signed:
            return FakeAuthenticated(FakeCaller("", "anonymous", False, True), None, auth)
        secret = {ROOT: ROOT_SECRET, GUEST: GUEST_SECRET}.get(auth.access_key)
        if secret is None:
            raise AuthError("InvalidAccessKeyId", "The AWS Access Key Id does not exist.")
        verified = sigv4.verify(auth, parts, secret, now_s=self.now_s(), region=self.region)
        root = auth.access_key == ROOT
        caller = FakeCaller(auth.access_key, "admin" if root else "guest", root, False)
        return FakeAuthenticated(caller, verified, auth)

    def authorize(
        self, caller: Any, action: str, resource_arn: str, context: dict[str, Any]
    ) -> None:
        self.asked.append((caller.name, action, resource_arn))
        if caller.is_root or (not caller.anonymous and action in self.guest_actions):
            return
        raise AuthError("AccessDenied", "Access Denied")


class FakeMetrics:
    def __init__(self) -> None:
        self.requests: list[tuple[str, int]] = []
        self.running: dict[str, int] = {}
        self.sheds = 0

    def request(
        self, operation: str, status: int, seconds: float, first_byte_s: float | None = None
    ) -> None:
        self.requests.append((operation, status))

    def in_flight(self, operation: str, delta: int) -> None:
        self.running[operation] = self.running.get(operation, 0) + delta

    def shed(self, what: str) -> None:
        self.sheds += 1

    def render(self) -> bytes:
        return b"# HELP up up\nup 1\n"


@dataclass
class FakeHealth:
    fine: bool = True

    def live(self) -> tuple[bool, dict[str, Any]]:
        return True, {"status": "live"}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        return self.fine, {"status": "ready"}

    def ready_write(self) -> tuple[bool, dict[str, Any]]:
        return self.fine, {"status": "write"}

    def cluster(self, maintenance: bool) -> tuple[bool, dict[str, Any]]:
        return self.fine, {"maintenance": maintenance}

    def cluster_read(self) -> tuple[bool, dict[str, Any]]:
        return self.fine, {"status": "read"}


@dataclass(frozen=True)
class FakeSettings:
    node: str = "node1:9002"
    region: str = "us-east-1"
    domain: str | None = None
    trusted_proxies: tuple[str, ...] = ()


class World:
    """App and parts, not yet listening."""

    def __init__(
        self,
        settings: FakeSettings | None = None,
        store: Callable[[Callable[[], float]], MemoryStore] = MemoryStore,
    ) -> None:
        self.clock = SystemClock()
        self.rng = SystemRng()
        self.settings = settings or FakeSettings()
        self.store = store(self.clock.now)
        self.identity = FakeIdentity(region=self.settings.region, now_s=self.clock.now)
        self.metrics = FakeMetrics()
        self.health = FakeHealth()
        self.logged: list[dict[str, Any]] = []
        self.app: S3App = create_app(
            self.store,
            self.identity,
            self.metrics,
            self.clock,
            self.rng,
            self.settings,
            self.health,
            Guard(self.clock, self.rng),
            log=structlog.wrap_logger(None, processors=[self._keep]),
        )
        self.port = 0

    def _keep(self, logger: Any, method: str, event: Any) -> Any:
        self.logged.append({**event, "level": method})
        raise structlog.DropEvent


@contextmanager
def listening(world: World) -> Iterator[World]:
    """`world` on a port of the loopback, its loop (uvloop, as in production) in a thread of its own."""
    loop = uvloop.new_event_loop()
    server = HttpServer(world.app, "127.0.0.1", 0)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    world.port = server.port
    try:
        yield world
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(2.0), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
