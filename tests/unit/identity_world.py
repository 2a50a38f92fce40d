"""The identities of several nodes over one store of documents, on a loop whose time is virtual."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from iam.sigv4 import RequestParts, sign_headers
from node.errors import HoldfastError, QuorumLost
from node.guard.guard import Guard
from node.identity.replica import Replica, announcement, applied
from node.identity.service import Identity
from node.identity.vault import Keks, Vault
from node.objects.documents import Document, DocumentConflict

T = TypeVar("T")

ROOT_USER, ROOT_PASSWORD, REGION = "root-user", "root-password", "us-east-1"
CLUSTER_ID = b"cluster-id-0123"
KEKS = Keks(own=(b"k" * 32,))  # deriving real ones takes a fifth of a second each
NOW_S = 1_700_000_000.0


class LoopClock:
    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> float:
        return NOW_S + self.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SeededRng:
    def __init__(self, seed: int = 7) -> None:
        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def choice(self, items: Sequence[T]) -> T:
        return self._random.choice(items)


class Store:
    """Documents as the quorum would hold them. `reachable` off: QuorumLost; `hanging`: no answer."""

    def __init__(self) -> None:
        self.documents: dict[str, Document] = {}
        self.reachable = True
        self.hanging = False
        self.delay_s = 0.002
        self.reads = 0
        self.before_write: Callable[[], None] = lambda: None

    async def read(self, name: str, *, deadline: float) -> Document | None:
        self.reads += 1
        await self._answer()
        return self.documents.get(name)

    async def write(
        self, name: str, data: bytes, *, expected: int | None, deadline: float
    ) -> Document:
        await self._answer()
        self.before_write()
        found = self.documents.get(name)
        there = found.version if found else 0
        if expected is not None and there != expected:
            raise DocumentConflict(f"{there} is there")
        self.documents[name] = Document(data, there + 1, 0)
        return self.documents[name]

    async def _answer(self) -> None:
        if self.hanging:
            await asyncio.Event().wait()
        if not self.reachable:
            raise QuorumLost("too few drives")
        await asyncio.sleep(self.delay_s)


class Drives:
    """A node's drives, as node.identity.ports.Copies: what was kept is there after a restart."""

    def __init__(self) -> None:
        self.data = b""
        self.working = True

    async def read(self) -> tuple[bytes, ...]:
        return (self.data,) if self.working and self.data else ()

    async def keep(self, version: int, data: bytes) -> None:
        if self.working:
            self.data = data


@dataclass
class Seen:
    """Metrics, written down."""

    reads_s: list[float] = field(default_factory=list)
    timeouts: int = 0
    version: int = -1
    lag_s: float = -1.0

    def config_read(self, operation: str, seconds: float) -> None:
        assert operation == "iam"
        self.reads_s.append(seconds)

    def config_read_timeout(self, operation: str) -> None:
        assert operation == "iam"
        self.timeouts += 1

    def identity_version(self, v: int) -> None:
        self.version = v

    def identity_lag(self, s: float) -> None:
        self.lag_s = s


class Node:
    def __init__(self, world: World, name: str, keks: Keks) -> None:
        self.world, self.name = world, name
        self.seen = Seen()
        self.published = 0
        self.drives = world.drives.setdefault(name, Drives())
        clock, rng = world.clock, SeededRng(len(world.nodes) + 1)
        self.replica = Replica(
            len(world.names),
            world.store,
            self.drives,
            self,
            Vault(keks, CLUSTER_ID, rng),
            Guard(clock, rng),
            clock,
            rng,
            self.seen,
            self.publish,
            self.highest_seen,
        )
        self.identity = Identity(ROOT_USER, ROOT_PASSWORD, REGION, self.replica, keks, clock, rng)

    def publish(self, name: str, version: int) -> None:
        assert name == "identity"
        self.published = version

    def highest_seen(self) -> int:
        others = [n for n in self.world.nodes.values() if n is not self and n.name not in self.away]
        return max((node.published for node in others), default=0)

    @property
    def away(self) -> set[str]:
        return self.world.names_off(self.name)

    async def spread(self, version: int, *, deadline: float) -> int:
        """node.identity.ports.Spread over direct calls."""
        done = 0
        for node in self.world.nodes.values():
            if node is self or node.name in self.away or node.name in self.world.deaf:
                continue
            try:
                answer = await node.identity.handle_spread(announcement(version))
            except HoldfastError:
                continue
            done += applied(answer, version)
        return done


class World:
    """`dark`: nodes nobody hears of. `deaf`: nodes that are heard but miss announcements."""

    def __init__(self, nodes: int = 4, keks: Keks = KEKS) -> None:
        self.clock = LoopClock()
        self.store = Store()
        self.drives: dict[str, Drives] = {}
        self.dark: set[str] = set()
        self.deaf: set[str] = set()
        self.names = tuple(f"node{number}:9002" for number in range(1, nodes + 1))
        self.nodes: dict[str, Node] = {}
        for name in self.names:
            self.restart(name, keks)

    def restart(self, name: str, keks: Keks = KEKS) -> Node:
        self.nodes[name] = Node(self, name, keks)
        return self.nodes[name]

    def names_off(self, name: str) -> set[str]:
        return set(self.names) if name in self.dark else self.dark

    def identity(self, number: int = 1) -> Identity:
        return self.nodes[self.names[number - 1]].identity

    def node(self, number: int) -> Node:
        return self.nodes[self.names[number - 1]]

    def by(self, seconds: float) -> float:
        return self.clock.monotonic() + seconds

    async def new_key(self, user: str, number: int = 1) -> tuple[str, str]:
        """A user with a key; (access key, secret)."""
        identity = self.identity(number)
        await identity.create_user(user, deadline=self.by(5))
        key = await identity.create_access_key(user, deadline=self.by(5))
        return key.id, key.secret

    def request(self, access_key: str, secret: str, method: str = "GET") -> RequestParts:
        headers = {"host": "127.0.0.1:9000"}
        added = sign_headers(
            method,
            "/bucket/key",
            (),
            headers,
            access_key,
            secret,
            REGION,
            self.clock.now(),
            "UNSIGNED-PAYLOAD",
        )
        pairs = [(n.encode(), v.encode()) for n, v in (headers | added).items()]
        return RequestParts(method, b"/bucket/key", b"", pairs)
