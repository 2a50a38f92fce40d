"""Drives as a dictionary, for tests of forming: what is on each, and what it answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from node.cluster.forming import Forming
from node.config import Settings
from node.errors import DriveFailed, HoldfastError
from node.options import Secret
from node.store.format import Format, decode_format
from node.volumes import node_names, parse_volumes

T = TypeVar("T")
VOLUMES = "node{1...4}:9002/data/disk{1...4}"


class SteppedClock:
    """Sleep ends at once and moves the time."""

    def __init__(self) -> None:
        self.time = 100.0
        self.sleeps = 0
        self._slept = asyncio.Event()

    async def slept(self, times: int) -> None:
        """Until somebody slept so often."""
        while self.sleeps < times:
            self._slept.clear()
            await self._slept.wait()

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return 1_700_000_000.0

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.sleeps += 1
        self._slept.set()
        await asyncio.sleep(0)


class SeededRng:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def choice(self, items: Sequence[T]) -> T:
        return self._random.choice(items)


class PowerOff(BaseException):
    """The forming node dies here."""


class KeptLog:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    warning = info


class World:
    """The drives of a cluster. Nodes in `dark` do not answer; `broken` drives answer their error."""

    def __init__(self, volumes: str = VOLUMES) -> None:
        self.volumes = parse_volumes(volumes)
        self.nodes = node_names(self.volumes)
        self.content: dict[tuple[str, int], bytes] = {}
        for node in self.nodes:
            for drive in range(sum(v.node == node for v in self.volumes)):
                self.content[node, drive] = b""
        self.dark: set[str] = set()
        self.broken: dict[tuple[str, int], HoldfastError] = {}
        self.mounts: set[str] = set()
        self.writes = 0
        self.writes_left: int | None = None  # then the power goes
        self.seed = 0

    async def read(self, node: str, drive: int, *, deadline: float) -> bytes:
        self._answer(node, drive)
        return self.content[node, drive]

    async def write(self, node: str, drive: int, data: bytes, *, deadline: float) -> None:
        self._answer(node, drive)
        held = self.content[node, drive]
        if held:
            old = msgspec.json.decode(held)
            new = msgspec.json.decode(data)
            if (old["cluster_id"], old["drive_id"]) != (new["cluster_id"], new["drive_id"]):
                raise DriveFailed("foreign", "formatted with other ids")
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise PowerOff
            self.writes_left -= 1
        self.writes += 1
        self.content[node, drive] = data

    def _answer(self, node: str, drive: int) -> None:
        if node in self.dark:
            raise HoldfastError("connection refused")
        if (node, drive) in self.broken:
            raise self.broken[node, drive]

    def format(self, node: str, drive: int) -> Format:
        return decode_format(self.content[node, drive])

    def settings(self, node: str, **changes: Any) -> Settings:
        return Settings(
            **{
                "volumes": self.volumes,
                "node": node,
                "root_user": "admin",
                "root_password": Secret("long-enough"),
                **changes,
            }
        )

    def node(self, node: str, **changes: Any) -> tuple[Forming, SteppedClock, KeptLog]:
        self.seed += 1
        clock, log = SteppedClock(), KeptLog()

        async def own_mount(path: str) -> bool:
            return path in self.mounts

        forming = Forming(
            settings=self.settings(node, **changes),
            access=self,
            clock=clock,
            rng=SeededRng(self.seed),
            own_mount=own_mount,
            log=log,
        )
        return forming, clock, log

    async def form(self) -> Format:
        """All nodes run to the end; -> the cluster as the first one knows it."""
        formings = [self.node(name)[0] for name in self.nodes]
        clusters = await asyncio.gather(*(forming.run() for forming in formings))
        assert all(cluster.pools == clusters[0].pools for cluster in clusters)
        return clusters[0]
