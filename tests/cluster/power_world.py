"""A cluster that can lose power, with an observer and the clients that hold it to what it acknowledged."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from .ledger import value
from .observer import CLOSED, Observer, wait_for
from .report import REPORT
from .wire import WireError
from .world import NODES, ROOT, ROOT_USER, World, root_s3

START_S = 90.0  # generous: the machine is shared
REPAIR_S = 180.0
BUCKET = "ledger"


class Cluster:
    """The world, an observer, and the clients of these tests."""

    def __init__(self, world: World, tmp: Path) -> None:
        self.world, self.see, self.tmp = world, Observer(world), tmp
        self.missing_since: dict[int, float] = {}

    def alive(self) -> list[int]:
        return [n for n in NODES if self.world.powered(n)]

    def endpoints(self, nodes: list[int]) -> str:
        return ",".join("{}:{}".format(*self.world.s3(n)) for n in nodes)

    def program(self, module: str, *argv: str) -> subprocess.Popen[str]:
        """One of our client programs, where clients live."""
        return self.world.client(
            [sys.executable, "-m", f"tests.cluster.{module}", *argv],
            cwd=ROOT,
            env=ROOT_USER.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ledger(self, verb: str, nodes: list[int], journal: str, *argv: str) -> Any:
        process = self.start_ledger(verb, nodes, journal, *argv)
        return finish(process)

    def start_ledger(
        self, verb: str, nodes: list[int], journal: str, *argv: str
    ) -> subprocess.Popen[str]:
        common = ["--endpoints", self.endpoints(nodes), "--journal", str(self.tmp / journal)]
        return self.program("ledger", verb, *common, "--prefix", f"{journal}/", *argv)

    def verify(self, nodes: list[int], journal: str) -> None:
        """Every acknowledged write of a journal is readable through these nodes, bit-exact."""
        back = self.ledger("verify", nodes, journal, "--conns", "6", "--timeout", "30")
        assert back["keys"] > 0
        assert back["wrong"] == [] and back["failures"] == [], back

    def put(self, node: int, key: str, version: int, size: int = 4096) -> int:
        """Write one value; the status (0: no answer)."""
        with root_s3(self.world, node) as s3:
            try:
                path = f"/{BUCKET}/{key}"
                return s3.call("PUT", path, body=value(key, version, size)).status
            except WireError:
                return 0

    def get(self, node: int, key: str, timeout_s: float = 15.0) -> tuple[int, bytes]:
        with root_s3(self.world, node, timeout_s) as s3:
            try:
                answer = s3.call("GET", f"/{BUCKET}/{key}")
            except WireError as error:
                return 0, str(error).encode()
            return answer.status, answer.body

    def ready(self) -> bool:
        now = time.monotonic()
        missing = [n for n in self.alive() if not self.world.running(n)]
        self.missing_since = {n: self.missing_since.get(n, now) for n in missing}
        for node, since in self.missing_since.items():
            if now - since > 5.0:  # a process that was just started may not be visible yet
                said = self.world.log_path(node).read_text(errors="replace")[-3000:]
                pytest.fail(f"the server of node {node} ended; it said:\n{said}")
        return all(self.see.healthy(n) for n in NODES)

    def repaired(self) -> bool:
        depths = [self.see.gauge(n, "holdfast_repair_queue_depth") for n in self.alive()]
        return all(depth == 0 for depth in depths)

    def breakers_everywhere(self, peer: int, state: int) -> bool:
        others = [n for n in self.alive() if n != peer]
        return all(self.see.all_breakers(n, peer, state) for n in others)

    def whole(self) -> None:
        """Every node powered and taking writes, every breaker closed, nothing left to repair."""
        for node in NODES:
            if not self.world.powered(node):
                self.world.poweron(node)
        wait_for("all nodes take writes", self.ready, START_S)
        for peer in NODES:
            closed = partial(self.breakers_everywhere, peer, CLOSED)
            wait_for(f"breakers of node {peer} are closed", closed, 30)
        wait_for("nothing waits for repair", self.repaired, REPAIR_S, step_s=0.5)

    def census_is_whole(self) -> bool:
        """Every object has a shard on every drive of its set."""
        count = self.see.census(self.alive()[0])
        REPORT.details["census"] = count
        short = {shards: n for shards, n in count["by_shards"].items() if shards != "16" and n}
        return bool(count["complete"]) and count["objects"] > 0 and not short


def finish(process: subprocess.Popen[str], timeout_s: float = 120.0, say: str = "") -> Any:
    """Wait for a client program and parse its last line; `say` ends a running ledger."""
    assert process.stdout is not None and process.stdin is not None
    if say:
        process.stdin.write(f"{say}\n")
        process.stdin.flush()
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        lines = process.stdout.read().splitlines()
    finally:
        timer.cancel()
    assert process.wait() == 0 and lines, f"the client ended with {process.returncode}"
    return json.loads(lines[-1])


def keep_logs(world: World) -> None:
    """Server logs of the last run, to be read after a failure."""
    folder = ROOT / "test-results" / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for node in NODES:
        with contextlib.suppress(OSError):
            (folder / f"node{node}.log").write_bytes(world.log_path(node).read_bytes())
