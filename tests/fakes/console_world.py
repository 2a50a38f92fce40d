"""The console of a node over a store in memory, real identities, and a cluster that can be made to ail."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import httpx
import structlog

from iam.sigv4 import encode_pairs, sign_headers
from node.console import models
from node.console.app import create_console
from node.errors import CodedError
from node.guard.guard import Guard
from tests.fakes.memory_store import MemoryStore
from tests.unit.identity_world import REGION, ROOT_PASSWORD, ROOT_USER, LoopClock, SeededRng
from tests.unit.identity_world import World as Identities

HOST = "node1:9001"
TIB = 1 << 40


def drive(index: int, *, state: str = "online") -> models.Drive:
    return models.Drive(
        index=index,
        path=f"/data/disk{index + 1}",
        drive_id=f"{index:032x}",
        set=0,
        state=state,
        total_bytes=4 * TIB,
        free_bytes=3 * TIB - index * TIB // 3,
    )


def node(number: int, **change: Any) -> models.Node:
    facts: dict[str, Any] = {
        "name": f"node{number}:9002",
        "state": "up",
        "this": number == 1,
        "incarnation": number,
        "rtt_ms": None if number == 1 else 0.4 + number / 10,
        "since_s": 7300.0,
        "facts_age_s": 0.4,
        "breakers": {}
        if number == 1
        else dict.fromkeys(("bulk", "control", "fast", "heartbeat", "lock"), "closed"),
        "drives": tuple(drive(index) for index in range(4)),
    }
    return models.Node(**(facts | change))


def healthy() -> models.Cluster:
    return models.Cluster(
        cluster_id="0d1f" * 8,
        node="node1:9002",
        version="0.1.0",
        parity=8,
        durability="strict",
        ready=True,
        write_ready=True,
        nodes=tuple(node(number) for number in (1, 2, 3, 4)),
        sets=(
            models.Set(
                index=0,
                online=16,
                n=16,
                k=8,
                write_quorum=9,
                read_tolerance=8,
                write_tolerance=7,
                margin=8,
                drives_per_node=4,
            ),
        ),
    )


def one_dark() -> models.Cluster:
    """Node 4 lost power; a drive of node 2 hangs; repair waits for what node 4 missed."""
    dark = node(
        4,
        state="dead",
        since_s=201.0,
        facts_age_s=203.0,
        rtt_ms=None,
        breakers=dict.fromkeys(("bulk", "control", "fast", "heartbeat", "lock"), "open"),
    )
    hung = node(2, drives=(drive(0), drive(1, state="hung"), drive(2), drive(3)))
    whole = healthy()
    return whole.model_copy(
        update={
            "nodes": (whole.nodes[0], hung, whole.nodes[2], dark),
            "sets": (
                whole.sets[0].model_copy(
                    update={"online": 11, "read_tolerance": 3, "write_tolerance": 2, "margin": 3}
                ),
            ),
            "repair": models.Repair(queue=1234, oldest_s=200.0, rate_per_s=40.0, eta_s=31.0),
        }
    )


@dataclass
class FakeView:
    """node.console.ports.ClusterView."""

    facts: models.Cluster = field(default_factory=healthy)
    held: dict[str, models.Lock] = field(default_factory=dict)
    accepted: list[tuple[str, str]] = field(default_factory=list)
    failure: BaseException | None = None
    counting: bool = False

    def cluster(self) -> models.Cluster:
        if self.failure is not None:
            raise self.failure
        return self.facts

    def repair(self) -> models.Repair:
        return self.facts.repair

    async def pause_repair(self, paused: bool, *, deadline: float) -> models.Repair:
        repair = self.facts.repair.model_copy(update={"paused": paused})
        self.facts = self.facts.model_copy(update={"repair": repair})
        return repair

    async def census(self, *, deadline: float) -> models.Census:
        return models.Census(objects=3, by_shards={"16": 2, "12": 1}, complete=True)

    def start_census(self) -> models.Census:
        self.counting = True
        return self.own_census()

    def own_census(self) -> models.Census:
        return models.Census(
            objects=3,
            by_shards={"12": 1, "16": 2},
            complete=True,
            finished_s=1_700_000_000.0,
            running=self.counting,
            counted=2,
            expected=3,
            sets=(
                models.SetCensus(
                    index=0, n=16, k=8, objects=4, by_shards={"7": 1, "12": 1, "16": 2}, whole=False
                ),
            ),
        )

    async def locks(self, *, deadline: float) -> tuple[models.Lock, ...]:
        return tuple(self.held.values())

    async def release_lock(self, resource: str, *, deadline: float) -> bool:
        return self.held.pop(resource, None) is not None

    async def accept_drive(
        self, node: str, path: str, *, rebuild: bool = False, deadline: float
    ) -> None:
        if path.startswith("/nowhere"):
            raise CodedError("NoSuchDrive", f"{node} has no {path}")
        self.accepted.append((node, path))

    def config(self) -> tuple[models.ConfigValue, ...]:
        return (models.ConfigValue(name="root_password", value="********", origin="environment"),)


@dataclass(frozen=True)
class FakeSettings:
    node: str = "node1:9002"
    trusted_proxies: tuple[str, ...] = ("10.0.0.0/8",)


class Sheds:
    def __init__(self) -> None:
        self.count = 0

    def shed(self, what: str) -> None:
        assert what == "console"
        self.count += 1


class ShiftedClock(LoopClock):
    def __init__(self) -> None:
        self.shift_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.shift_s


class Console:
    """One node's console; `nodes` share identities, as a cluster does."""

    def __init__(self, identities: Identities | None = None, number: int = 1) -> None:
        self.identities = identities or Identities()
        self.clock = ShiftedClock()
        self.store = MemoryStore(self.clock.now)
        self.view = FakeView()
        self.metrics = Sheds()
        self.logged: list[dict[str, Any]] = []
        self.guard = Guard(self.clock, SeededRng())
        self.app = create_console(
            self.store,
            self.identities.identity(number),
            self.view,
            self.metrics,
            self.clock,
            SeededRng(number),
            FakeSettings(),
            self.guard,
            log=structlog.wrap_logger(None, processors=[self._keep]),
        )

    def _keep(self, logger: Any, method: str, event: Any) -> Any:
        self.logged.append({**event, "level": method})
        raise structlog.DropEvent

    def client(self, address: str = "192.0.2.1") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(
            self.app, raise_app_exceptions=False, client=(address, 4711)
        )
        return httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}")

    async def logged_in(
        self, access_key: str = ROOT_USER, secret: str = ROOT_PASSWORD
    ) -> httpx.AsyncClient:
        """A client with a session and its CSRF token."""
        client = self.client()
        answer = await client.post(
            "/api/login", json={"access_key": access_key, "secret_key": secret}
        )
        assert answer.status_code == 200, answer.text
        client.headers["X-CSRF-Token"] = answer.json()["csrf"]
        return client

    async def signed(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: tuple[tuple[str, str], ...] = (),
        access_key: str = ROOT_USER,
        secret: str = ROOT_PASSWORD,
        sends: bytes | None = None,
        **change: str,
    ) -> httpx.Response:
        """A request as the command line signs it; `sends`: another body than the signed one."""
        data = b"" if body is None else json.dumps(body).encode()
        digest = change.get("payload") or hashlib.sha256(data).hexdigest()
        headers = {"host": HOST} | ({"content-type": "application/json"} if data else {})
        headers |= sign_headers(
            method, path, query, headers, access_key, secret, REGION, self.clock.now(), digest
        )
        async with self.client() as client:
            target = f"{path}?{encode_pairs(query)}" if query else path
            content = data if sends is None else sends
            return await client.request(method, target, headers=headers, content=content)
