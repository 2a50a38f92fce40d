"""The ledger: a client that writes unique values through a fault and holds the cluster to them.

Theory of operation.  Every worker owns slots (keys) of its own and has one request at a time, so
for each slot the values that a read may return are known exactly:

    acked write v        possible = {v} and every earlier write whose outcome is unknown
    unknown outcome v    possible gains v (a 5xx or a broken connection may have taken effect)
    read returned v      must be in possible; from then on only v, or unknown writes not yet seen

So a lost acknowledged write, a value that comes back after a newer one, and an unknown write that
was seen and vanished are each found; a value is compared bit by bit.  Version 0 is "absent".

    python -m tests.cluster.ledger write  --endpoints H:P,H:P --journal FILE --seconds 20
    python -m tests.cluster.ledger verify --endpoints H:P,H:P --journal FILE

`write` ends after --seconds or when its standard input closes or says a line, whichever is first;
both print one JSON object.  Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .wire import S3, Credentials, WireError, endpoint

ABSENT = 0
SHOWN = 40  # failures listed in full


def value(key: str, version: int, size: int) -> bytes:
    """The one right body of a version: names itself, not periodic, `size` bytes at most +64."""
    head = f"{key} {version} {size}\n".encode()
    return head + random.Random(head).randbytes(size)


@dataclass(slots=True, kw_only=True)
class Slot:
    """One key and the versions a read of it may return."""

    key: str
    size: int
    last: int = ABSENT
    possible: set[int] = field(default_factory=lambda: {ABSENT})
    unknown: set[int] = field(default_factory=set)

    def acked(self, version: int) -> None:
        self.unknown.discard(version)
        self.possible = {version} | self.unknown

    def lost_track(self, version: int) -> None:
        self.unknown.add(version)
        self.possible.add(version)

    def saw(self, version: int) -> bool:
        """Whether a read may return this version now; narrows what later reads may return."""
        if version not in self.possible:
            return False
        self.unknown.discard(version)
        self.possible = {version} | self.unknown
        return True

    def judge(self, status: int, body: bytes) -> str | None:
        """What is wrong with an answer to a read; None when nothing is."""
        if status == 404:
            return None if self.saw(ABSENT) else f"missing, expected {sorted(self.possible)}"
        try:
            key, version_text, _ = body[: body.index(b"\n")].decode().split(" ")
            version = int(version_text)
        except ValueError:
            return f"unrecognisable body of {len(body)} bytes"
        if key != self.key:
            return f"body of another key: {key}"
        if body != value(self.key, version, self.size):
            return f"version {version} is damaged"
        if not self.saw(version):
            return f"stale version {version}, expected {sorted(self.possible)}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    start: float
    end: float
    kind: str
    failure: str | None


class Worker(threading.Thread):
    """One connection, one request at a time, paced; records every operation."""

    def __init__(self, args: argparse.Namespace, number: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        endpoints = args.endpoints.split(",")
        self.args, self.number, self.stopped = args, number, stop
        self.rng = random.Random(f"{args.seed}/{number}")
        self.s3 = S3(
            endpoint(endpoints[number % len(endpoints)]),
            Credentials.of_environment(),
            timeout_s=args.timeout,
        )
        self.slots = [
            Slot(key=f"{args.prefix}{number:02d}/{n:03d}", size=self._size(n))
            for n in range(args.slots)
        ]
        self.done: list[Operation] = []
        self.wrong: list[str] = []

    def _size(self, n: int) -> int:
        large = self.args.large_every and n % self.args.large_every == self.args.large_every - 1
        return int(self.args.large if large else self.args.small)

    def run(self) -> None:
        pace_s = self.args.conns / self.args.rate if self.args.rate else 0.0
        due = time.monotonic() + pace_s * self.number / self.args.conns
        while not self.stopped.wait(max(0.0, due - time.monotonic())):
            due = max(due + pace_s, time.monotonic() - pace_s)  # no burst after a stall
            slot = self.rng.choice(self.slots)
            dice = self.rng.random()
            if dice < self.args.reads and slot.last:
                self.read(slot)
            elif dice > 0.97 and slot.last:
                self.write(slot, delete=True)
            else:
                self.write(slot)

    def _call(self, kind: str, method: str, slot: Slot, body: bytes, ok: tuple[int, ...]) -> Any:
        start, failure, answer = time.monotonic(), None, None
        try:
            answer = self.s3.call(method, f"/{self.args.bucket}/{slot.key}", body=body)
            if answer.status not in ok:
                failure = f"{answer.status} {answer.body[:200].decode(errors='replace')}"
        except WireError as error:
            failure = str(error)
        self.done.append(Operation(start=start, end=time.monotonic(), kind=kind, failure=failure))
        return None if failure else answer

    def write(self, slot: Slot, delete: bool = False) -> None:
        if delete:
            version, method, body, ok = ABSENT, "DELETE", b"", (200, 204)
        else:
            slot.last += 1
            version, method, ok = slot.last, "PUT", (200,)
            body = value(slot.key, version, slot.size)
        if self._call(method.lower(), method, slot, body, ok) is None:
            slot.lost_track(version)
        else:
            slot.acked(version)

    def read(self, slot: Slot) -> None:
        answer = self._call("get", "GET", slot, b"", (200, 404))
        if answer is not None and (complaint := slot.judge(answer.status, answer.body)):
            self.wrong.append(f"{time.monotonic():.3f} {slot.key}: {complaint}")


def longest_gap(times: list[float], begin: float, end: float) -> tuple[float, float]:
    """Longest pause between successes, the ends of the run included: (seconds, when it began)."""
    points = [begin, *sorted(times), end]
    pairs = itertools.pairwise(points)
    return max(((b - a, a) for a, b in pairs), default=(0.0, begin))


def percentile(values: list[float], part: float) -> float:
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0


def summary(done: list[Operation], begin: float, end: float) -> dict[str, Any]:
    """Counts, gaps and stalls of a run, in seconds, and a row per second of it."""
    good = [op for op in done if op.failure is None]
    bad = [op for op in done if op.failure is not None]
    latencies = sorted(op.end - op.start for op in good)
    gap_s, gap_at = longest_gap([op.end for op in good], begin, end)
    slowest = sorted(done, key=lambda op: op.start - op.end)[:5]
    seconds: dict[int, dict[str, Any]] = {}
    for op in done:
        at = int(op.end - begin)
        row = seconds.setdefault(at, {"s": at, "ok": 0, "failed": 0, "max_ms": 0.0})
        row["ok" if op.failure is None else "failed"] += 1
        row["max_ms"] = max(row["max_ms"], round((op.end - op.start) * 1e3, 1))
    return {
        "begin": begin,
        "end": end,
        "ok": dict(Counter(op.kind for op in good)),
        "failed": len(bad),
        "failures": [
            {"at": op.end, "took_s": round(op.end - op.start, 3), "op": op.kind, "why": op.failure}
            for op in bad[:SHOWN]
        ],
        "longest_gap_s": round(gap_s, 3),
        "longest_gap_at": gap_at,
        "p50_ms": round(percentile(latencies, 0.5) * 1e3, 1),
        "p99_ms": round(percentile(latencies, 0.99) * 1e3, 1),
        "longest_stall_s": round(slowest[0].end - slowest[0].start, 3) if slowest else 0.0,
        "slowest": [
            {"start": op.start, "took_s": round(op.end - op.start, 3), "op": op.kind}
            for op in slowest
        ],
        "operations": [[op.start, op.end, op.kind, op.failure is None] for op in done],
        "seconds": [seconds[s] for s in sorted(seconds)],
    }


def write(args: argparse.Namespace) -> dict[str, Any]:
    stop = threading.Event()

    def watch() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    workers = [Worker(args, n, stop) for n in range(args.conns)]
    begin = time.monotonic()
    for worker in workers:
        worker.start()
    stop.wait(args.seconds)
    stop.set()
    for worker in workers:
        worker.join(args.timeout + 5)
    end = time.monotonic()
    slots = [slot for worker in workers for slot in worker.slots if slot.last]
    rows = [[s.key, s.size, s.last, sorted(s.possible), sorted(s.unknown)] for s in slots]
    Path(args.journal).write_text(json.dumps(rows))
    done = sorted((op for w in workers for op in w.done), key=lambda op: op.end)
    return {
        **summary(done, begin, end),
        "keys": len(slots),
        "wrong": [text for w in workers for text in w.wrong],
    }


def verify(args: argparse.Namespace) -> dict[str, Any]:
    """Read every slot back through the endpoints in turn, and list what is not as it must be."""
    rows = json.loads(Path(args.journal).read_text())
    endpoints = [endpoint(text) for text in args.endpoints.split(",")]
    wrong: list[str] = []
    failed: list[str] = []
    narrowed: list[Slot] = []
    mutex = threading.Lock()

    def work(share: list[tuple[int, list[Any]]], address: tuple[str, int]) -> None:
        with S3(address, Credentials.of_environment(), timeout_s=args.timeout) as s3:
            for _, (key, size, last, possible, unknown) in share:
                slot = Slot(
                    key=key, size=size, last=last, possible=set(possible), unknown=set(unknown)
                )
                complaint = failure = None
                try:
                    answer = s3.call("GET", f"/{args.bucket}/{key}")
                    if answer.status in (200, 404):
                        complaint = slot.judge(answer.status, answer.body)
                    else:
                        failure = f"{answer.status} {answer.body[:200].decode(errors='replace')}"
                except WireError as error:
                    failure = str(error)
                with mutex:
                    narrowed.append(slot)
                    wrong.extend([f"{key}: {complaint}"] if complaint else [])
                    failed.extend([f"{key} by {address[0]}: {failure}"] if failure else [])

    numbered = list(enumerate(rows))
    threads = []
    for n in range(args.conns):
        share = numbered[n :: args.conns]
        address = endpoints[n % len(endpoints)]
        threads.append(threading.Thread(target=work, args=(share, address), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [[s.key, s.size, s.last, sorted(s.possible), sorted(s.unknown)] for s in narrowed]
    Path(args.journal).write_text(json.dumps(rows))
    return {"keys": len(rows), "wrong": wrong, "failed": len(failed), "failures": failed[:SHOWN]}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tests.cluster.ledger", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("verb", choices=["write", "verify"])
    top.add_argument("--endpoints", required=True, help="host:port, separated by commas")
    top.add_argument("--journal", required=True, help="file that carries the ledger over")
    top.add_argument("--bucket", default="ledger")
    top.add_argument("--prefix", default="led/")
    top.add_argument("--conns", type=int, default=16)
    top.add_argument("--rate", type=float, default=0, help="operations a second in all (0: free)")
    top.add_argument("--seconds", type=float, default=20)
    top.add_argument("--slots", type=int, default=8, help="keys per connection")
    top.add_argument("--small", type=int, default=4096)
    top.add_argument("--large", type=int, default=1 << 20)
    top.add_argument("--large-every", type=int, default=8, help="each n-th slot (0: none)")
    top.add_argument("--reads", type=float, default=0.5, help="share of reads")
    top.add_argument("--timeout", type=float, default=15.0, help="seconds per request")
    top.add_argument("--seed", default="1")
    return top


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    print(json.dumps(write(args) if args.verb == "write" else verify(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
