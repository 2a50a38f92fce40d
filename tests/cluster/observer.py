"""What a test sees of a cluster from outside: health, metrics, console, census."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from .wire import Response, WireError
from .world import ROOT_USER, World, connect

T = TypeVar("T")
OPEN, CLOSED = 2, 0
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? ([-+.\deE]+|NaN|[+-]Inf)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def samples(text: str, name: str) -> list[tuple[dict[str, str], float]]:
    """The samples of one metric in Prometheus's text format."""
    found = []
    for line in text.splitlines():
        if line.startswith(name) and (match := _SAMPLE.match(line)) and match[1] == name:
            found.append((dict(_LABEL.findall(match[2] or "")), float(match[3])))
    return found


class Observer:
    """Questions to the nodes of a world; each is one request with a bound of its own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cookies: dict[int, str] = {}

    def s3_get(self, node: int, target: str, timeout_s: float = 5.0) -> Response:
        connection = connect(self.world, self.world.s3(node), timeout_s)
        try:
            return connection.request("GET", target)
        finally:
            connection.close()

    def healthy(self, node: int, what: str = "ready/write") -> bool:
        try:
            return self.s3_get(node, f"/health/{what}", 3.0).status == 200
        except WireError:
            return False

    def metrics(self, node: int) -> str:
        answer = self.s3_get(node, "/metrics")
        assert answer.status == 200, answer
        return answer.body.decode()

    def breakers(self, node: int, peer: int) -> dict[str, int]:
        """State by class of this node's breakers towards a peer; empty when it cannot say."""
        try:
            text = self.metrics(node)
        except WireError:
            return {}
        name = self.world.peer(peer)
        rows = samples(text, "holdfast_breaker_state")
        return {labels["class"]: int(state) for labels, state in rows if labels.get("peer") == name}

    def all_breakers(self, node: int, peer: int, state: int) -> bool:
        states = self.breakers(node, peer)
        return bool(states) and set(states.values()) == {state}

    def gauge(self, node: int, name: str) -> float | None:
        """Sum over the samples of a gauge; None when the node does not answer."""
        try:
            return sum(value for _, value in samples(self.metrics(node), name))
        except WireError:
            return None

    # -- the console

    def console(
        self,
        node: int,
        method: str,
        target: str,
        body: Any = None,
        timeout_s: float = 5.0,
        cookie: str | None = None,
    ) -> Response:
        connection = connect(self.world, self.world.console(node), timeout_s)
        headers = {"Cookie": cookie} if cookie else {}
        data = b""
        if body is not None:
            headers["Content-Type"], data = "application/json", json.dumps(body).encode()
        try:
            return connection.request(method, target, headers, data)
        finally:
            connection.close()

    def login(self, node: int, timeout_s: float = 5.0) -> str:
        """Log in with the cluster's root credentials; the session cookie."""
        keys = {"access_key": ROOT_USER.access_key, "secret_key": ROOT_USER.secret_key}
        answer = self.console(node, "POST", "/api/login", keys, timeout_s)
        assert answer.status in (200, 204), answer
        cookie = answer.headers.get("set-cookie", "").partition(";")[0]
        assert cookie, answer
        return cookie

    def api(self, node: int, target: str, timeout_s: float = 5.0) -> Any:
        """A JSON answer of the console's API, logged in (once per node)."""
        if node not in self.cookies:
            self.cookies[node] = self.login(node)
        answer = self.console(node, "GET", target, None, timeout_s, self.cookies[node])
        if answer.status == 401:  # the session may have died with the node
            self.cookies[node] = self.login(node)
            answer = self.console(node, "GET", target, None, timeout_s, self.cookies[node])
        assert answer.status == 200, answer
        return json.loads(answer.body)

    def census(self, node: int) -> dict[str, Any]:
        """Shards counted on every drive: {"objects", "by_shards", "complete"}."""
        found: dict[str, Any] = self.api(node, "/admin/v1/heal/census", 30.0)
        return found


def wait_for(
    what: str, test: Callable[[], T], limit_s: float, step_s: float = 0.1, since: float = 0.0
) -> float:
    """Seconds until `test` was true, from `since` (or now); fails the test at the limit."""
    since = since or time.monotonic()
    while not test():
        passed = time.monotonic() - since
        assert passed < limit_s, f"after {passed:.1f} s still not: {what}"
        time.sleep(step_s)
    return time.monotonic() - since
