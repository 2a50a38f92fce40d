"""An S3 client of the simulation: signed requests through ASGI, with the answers a network would give."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from iam.signer import encode_pairs, sign_headers
from node.s3.pipeline import ABORT

if TYPE_CHECKING:
    from tests.sim.world import World

REGION = "us-east-1"
S3_PORT = 9000
_CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`status` 0: there was none, and `error` says why (refused, timeout, broken)."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: str = ""

    @property
    def code(self) -> str:
        """The S3 error code in the body."""
        begin = self.body.find(b"<Code>")
        if begin < 0:
            return ""
        return self.body[begin + 6 : self.body.index(b"</Code>")].decode()


class _Exchange:
    """One request and its answer, as an ASGI server carries them."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.sent = 0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.complete = False
        self.broken = False

    async def receive(self) -> dict[str, Any]:
        if self.sent > len(self.body) or (self.sent and self.sent == len(self.body)):
            # A client that waits for its answer sends nothing more.
            await asyncio.get_running_loop().create_future()
        data = self.body[self.sent : self.sent + _CHUNK]
        self.sent += len(data) or 1
        await asyncio.sleep(0.0002)
        return {
            "type": "http.request",
            "body": data,
            "more_body": self.sent < len(self.body),
        }

    async def send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in message["headers"]
            }
        else:
            self.parts.append(bytes(message.get("body", b"")))
            self.complete = not message.get("more_body", False)

    def abort(self) -> None:
        self.broken = True


class Client:
    """Requests of one access key. Its own clock is right."""

    def __init__(self, world: World, access_key: str, secret: str) -> None:
        self._world = world
        self._access_key, self._secret = access_key, secret
        self.requests = 0

    async def request(
        self,
        number: int,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 90.0,
    ) -> Answer:
        """A request to the node with this number, answered, broken or given up after `timeout_s`."""
        self.requests += 1
        box = self._world.boxes[number]
        await asyncio.sleep(self._world.rng.uniform(0.0001, 0.001))
        served = box.apps.get(S3_PORT)
        if not box.powered:
            await asyncio.sleep(min(timeout_s, 3.0))  # a connect that nobody answers
            return Answer(status=0, error="unreachable")
        if served is None:
            return Answer(status=0, error="refused")
        life, app = served
        exchange = _Exchange(body)
        scope = self._scope(method, path, query, headers or {}, body, box.name)
        scope["extensions"] = {ABORT: exchange.abort}
        task = life.spawn(app(scope, exchange.receive, exchange.send), "request")
        try:
            async with asyncio.timeout(timeout_s):
                while not task.done() and life.alive and not exchange.complete:
                    await asyncio.wait([task], timeout=0.25)
        except TimeoutError:
            task.cancel()
            return Answer(status=0, error="timeout")
        if not life.alive and not exchange.complete:
            # A power-off is silent: the client waits for its own patience. A killed process is heard of.
            if not box.powered:
                await asyncio.sleep(1.0)
            return Answer(status=0, error="broken")
        if not task.done():
            await asyncio.wait([task], timeout=1.0)
        if task.done() and not task.cancelled() and task.exception() is not None:
            return Answer(status=0, error=f"broken: {task.exception()!r}")
        if exchange.broken or not exchange.complete:
            return Answer(status=0, error="broken")
        return Answer(
            status=exchange.status, headers=exchange.headers, body=b"".join(exchange.parts)
        )

    def _scope(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        headers: Mapping[str, str],
        body: bytes,
        host: str,
    ) -> dict[str, Any]:
        raw = quote(path, safe="/~-._")
        named = {"host": host.replace("9002", str(S3_PORT)), **headers}
        if body or method in ("PUT", "POST"):
            named["content-length"] = str(len(body))
        now_s = self._world.true_wall_s()
        digest = hashlib.sha256(body).hexdigest()
        signed = sign_headers(
            method, raw, query, named, self._access_key, self._secret, REGION, now_s, digest
        )
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": raw.encode("ascii"),
            "query_string": encode_pairs(query).encode("ascii"),
            "headers": [
                (name.encode("latin-1"), value.encode("latin-1"))
                for name, value in {**named, **signed}.items()
            ],
            "client": ("10.0.0.9", 40000),
            "server": (host, S3_PORT),
        }
