"""The load client counts what happened, compares bytes, and reads the servers' CPU."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import machine
from bench.cases import CASES
from bench.run import median_figures
from bench.s3load import parser

from .standin import Store

ROOT = Path(__file__).parents[2]
KEYS = ["--access-key", "a", "--secret-key", "s"]


def s3load(store: Store, *argv: str) -> dict[str, Any]:
    endpoint = ["--endpoint", f"http://{store.endpoint}", *KEYS]
    done = subprocess.run(
        [sys.executable, "-m", "bench.s3load", *endpoint, *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("size", ["0", "4K", "1M", "3M"])
def test_puts_and_gets_are_counted_and_compared(store: Store, size: str) -> None:
    put = s3load(store, "--op", "put", "--size", size, "--count", "12", "--conns", "3")
    assert put["ops"] == 12 and put["errors"] == 0
    assert len(store.objects) == 12
    get = s3load(store, "--op", "get", "--prepare", "--verify", "--size", size, "--count", "20",
                 "--keys", "5", "--conns", "2")  # fmt: skip
    assert get["ops"] == 20 and get["errors"] == 0
    assert get["p50_ms"] <= get["p99_ms"] <= get["max_ms"]


def test_damage_and_refusal_are_errors(store: Store) -> None:
    store.mode = "damages"
    get = ["--op", "get", "--prepare", "--verify", "--size", "300K", "--count", "20"]
    assert s3load(store, *get)["error_kinds"] == {"bytes differ": 4}
    store.mode, store.writes = "refuses", 0
    put = s3load(store, "--op", "put", "--size", "100K", "--count", "9")
    assert put["error_kinds"] == {"http 503": 3} and put["ops"] == 6
    assert "SlowDown" in put["error_sample"]


def test_head_list_delete_and_mixed(store: Store) -> None:
    fill = s3load(store, "--op", "put", "--count", "250", "--conns", "4", "--create-bucket")
    assert fill["ops"] == 250
    assert s3load(store, "--op", "head", "--count", "50")["ops"] == 50
    pages = s3load(store, "--op", "list", "--count", "2")
    assert pages["keys_listed"] == 500 and pages["ops"] == 6
    mixed = s3load(store, "--op", "mixed", "--count", "100", "--keys", "20", "--prepare")
    assert mixed["get"]["ops"] == 70 and mixed["put"]["ops"] == 30
    gone = s3load(store, "--op", "delete", "--count", "250", "--conns", "4")
    assert gone["ops"] == 250


def test_signed_payloads_carry_the_bodys_hash(store: Store) -> None:
    seen: list[str] = []
    original = store.RequestHandlerClass.do_PUT

    def check(handler: Any) -> None:
        seen.append(handler.headers["x-amz-content-sha256"])
        original(handler)

    store.RequestHandlerClass = type("Check", (store.RequestHandlerClass,), {"do_PUT": check})
    s3load(store, "--op", "put", "--size", "100K", "--count", "3", "--payload", "signed")
    assert set(seen) == {hashlib.sha256(body).hexdigest() for body in store.objects.values()}


def test_cpu_and_memory_of_processes_are_read_from_the_kernel() -> None:
    pids = machine.with_descendants([os.getpid()])
    before, begun = machine.cpu_ticks(pids), time.process_time()
    while time.process_time() - begun < 0.3:
        pass
    user, system = machine.cpu_between(before, machine.cpu_ticks(pids))
    assert 0.2 < user + system < 5
    assert machine.pss_bytes([os.getpid()]) > 5 << 20
    with subprocess.Popen(["sleep", "20"]) as child:
        assert child.pid in machine.with_descendants([os.getpid()])
        assert child.pid in machine.children(os.getpid())
        child.kill()


def test_every_case_is_a_valid_call() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        if case.kind == "load":
            args = parser().parse_args(["--endpoint", "http://h", *case.load])
            assert args.count or args.duration


def test_the_median_of_rounds_adds_errors() -> None:
    rounds = [{"x": 1.0, "errors": 1, "op": "put"}, {"x": 9.0, "errors": 0, "op": "put"},
              {"x": 2.0, "errors": 2, "op": "put"}]  # fmt: skip
    assert median_figures(rounds) == {"x": 2.0, "errors": 3, "op": "put"}
