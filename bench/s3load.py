"""A cheap S3 load generator (one process, one thread, standard library only); prints JSON.

  python -m bench.s3load --endpoint http://127.0.0.1:9000 --access-key AK --secret-key SK \\
      --bucket b --create-bucket --op put --size 1M --conns 16 --duration 10 \\
      --server-pids 11,12 --tree
  ... --op get --prepare --keys 64 --size 4K --conns 1 --count 2000 --verify
  ... --op mixed --get-pct 70 --payload signed      (header auth, real SHA-256 of the body)
  ... --op list --count 1 --prefix x/               (whole listing, page by page)

With --tree all descendants of --server-pids are added.  Server CPU is user + system time out of
/proc, read just before and --settle seconds after the run.  --endpoint may be repeated:
connection i talks to endpoint i modulo their number.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import html
import json
import os
import re
import resource
import socket
import sys
import time
import urllib.parse
from typing import Any

from bench import machine
from bench.engine import MIB, Bodies, Conn, Engine, Request, Tally
from bench.signer import EMPTY_SHA, UNSIGNED, Query, Signer, query_string

METHODS = {"put": "PUT", "get": "GET", "head": "HEAD", "delete": "DELETE"}
NO_END = 1 << 62


class Load:
    """One run of one operation: its keys, its signed requests and its figures."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.hosts: list[str] = []
        self.addresses: list[tuple[str, int]] = []
        for text in args.endpoint:
            url = urllib.parse.urlsplit(text)
            if url.scheme != "http" or not url.hostname:
                sys.exit("only http:// endpoints")
            port = url.port or 80
            self.addresses.append((url.hostname, port))
            self.hosts.append(args.host or (f"{url.hostname}:{port}" if url.port else url.hostname))
        self.signer = Signer(args.access_key, args.secret_key, args.region)
        count = args.bodies or (8 if args.size <= 4 * MIB else 2)
        signed = args.payload == "signed"
        self.bodies = Bodies(args.size, count, args.verify or signed)
        self.shas = [
            hashlib.sha256(b or b"").hexdigest() if signed else UNSIGNED for b in self.bodies.kept
        ]
        self.keys = args.keys or min(args.count or 20000, 20000)
        self.op, self.limit, self.deadline = args.op, NO_END, float("inf")
        self.issued = self.puts = self.listed_keys = 0
        self.tokens: dict[int, str] = {}
        self.heads: dict[str, list[list[bytes]]] = {}

    # -- requests

    def sign(
        self, method: str, host: str, path: str, query: Query = (), sha: str = UNSIGNED
    ) -> tuple[str, str]:
        match self.args.auth:
            case "none":
                text = query_string(query)
                return path + (f"?{text}" if text else ""), ""
            case "presign":
                return self.signer.presign(method, host, path, query)
            case _:
                return self.signer.header(method, host, path, query, sha)

    def empty_sha(self) -> str:
        return EMPTY_SHA if self.args.payload == "signed" else UNSIGNED

    def first_key(self, op: str) -> int:
        """Mixed load writes to keys of its own, behind those it reads."""
        mixed_put = op == "put" and self.args.op == "mixed" and self.op == "mixed"
        return int(self.args.first_key) + (self.keys if mixed_put else 0)

    def build_heads(self, op: str) -> list[list[bytes]]:
        """[endpoint][key] -> request head, all signed before the clock starts."""
        out = []
        for host in self.hosts:
            row = []
            for key in range(self.first_key(op), self.first_key(op) + self.keys):
                name = urllib.parse.quote(f"{self.args.prefix}{key:08d}", safe="/-_.~")
                sha, extra = self.empty_sha(), ""
                if op == "put":
                    sha = self.shas[key % self.bodies.count]
                    extra = f"Content-Length: {self.args.size}\r\n"
                elif op == "get" and self.args.range:
                    extra = f"Range: bytes={self.args.range}\r\n"
                path = f"/{self.args.bucket}/{name}"
                target, lines = self.sign(METHODS[op], host, path, (), sha)
                text = f"{METHODS[op]} {target} HTTP/1.1\r\nHost: {host}\r\n{extra}{lines}\r\n"
                row.append(text.encode())
            out.append(row)
        return out

    def create_bucket(self) -> None:
        host, path = self.hosts[0], f"/{self.args.bucket}"
        target, lines = self.sign("PUT", host, path, (), self.empty_sha())
        head = f"PUT {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n"
        with socket.create_connection(self.addresses[0], timeout=self.args.timeout) as sock:
            sock.sendall(f"{head}Connection: close\r\n{lines}\r\n".encode())
            answer = b""
            while data := sock.recv(65536):
                answer += data
        if answer[9:12] not in (b"200", b"204", b"409"):
            sys.exit(f"create bucket: {answer[:600]!r}")

    def next_request(self, conn: Conn) -> Request | None:
        endpoint = conn.number % len(self.hosts)
        if self.op == "list":
            return self._next_page(conn, endpoint)
        number = self.issued
        if number >= self.limit or time.perf_counter() > self.deadline:
            return None
        self.issued += 1
        op, key = self.op, number % self.keys
        if op == "mixed":
            op = "get" if (number * 61) % 100 < self.args.get_pct else "put"
            if op == "put":
                key, self.puts = self.puts % self.keys, self.puts + 1
        if op == "get" and (self.args.random or self.op == "mixed"):
            key = (number * 7919) % self.keys
        return Request(op, key + self.first_key(op), self.heads[op][endpoint][key])

    def _next_page(self, conn: Conn, endpoint: int) -> Request | None:
        token = self.tokens.get(conn.number)
        if token is None:
            if self.issued >= self.limit or time.perf_counter() > self.deadline:
                return None
            self.issued += 1
        query = [("list-type", "2"), ("prefix", self.args.prefix)]
        query += [("continuation-token", token)] if token else []
        host = self.hosts[endpoint]
        target, lines = self.sign("GET", host, f"/{self.args.bucket}", query, self.empty_sha())
        head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n"
        return Request("list", 0, head.encode())

    def take_page(self, conn: Conn, body: bytes) -> None:
        self.listed_keys += body.count(b"<Key>")
        found = re.search(rb"<NextContinuationToken>([^<]*)<", body)
        if found:
            self.tokens[conn.number] = html.unescape(found[1].decode())
        else:
            self.tokens.pop(conn.number, None)

    # -- runs

    def drive(self, op: str, conns: int, limit: int, seconds: float = 0.0) -> tuple[Tally, float]:
        self.op, self.limit, self.issued, self.puts = op, limit, 0, 0
        ops = ["get", "put"] if op == "mixed" else [op] if op in METHODS else []
        self.heads = {each: self.build_heads(each) for each in ops}
        engine = Engine(
            self.addresses,
            self.bodies,
            self.next_request,
            self.take_page,
            verify=self.args.verify,
            ranged=bool(self.args.range),
            timeout_s=self.args.timeout,
        )
        self.deadline = time.perf_counter() + seconds if seconds else float("inf")
        took, _ = engine.run(conns)
        return engine.tally, took

    def run(self) -> dict[str, Any]:
        args = self.args
        if args.create_bucket:
            self.create_bucket()
        if args.prepare:
            tally, _ = self.drive("put", min(args.prepare_conns, self.keys), self.keys)
            if tally.errors:
                sys.exit(f"prepare failed: {dict(tally.errors)} {tally.error_sample}")
        if args.warmup:
            self.drive(args.op, args.conns, args.warmup)
        self.listed_keys = 0
        pids = server_pids(args)
        machine_before, cpu_before = machine.MachineTicks.now(), machine.cpu_ticks(pids)
        written_before = machine.written_bytes(pids)
        client_before = client_cpu()
        tally, took = self.drive(args.op, args.conns, args.count or NO_END, args.duration)
        client_s = client_cpu() - client_before
        if pids:
            time.sleep(args.settle)
        pids = server_pids(args)
        figures = self.figures(tally, took, client_s)
        if pids:
            user, system = machine.cpu_between(cpu_before, machine.cpu_ticks(pids))
            written = machine.written_bytes(pids) - written_before
            figures |= server_figures(tally, pids, user, system, written)
        after = machine.MachineTicks.now()
        figures["machine_busy_pct"] = machine_before.busy_percent(after)
        figures["machine_steal_pct"] = machine_before.steal_percent(after)
        if args.mem and pids:
            figures["server_pss_mib"] = round(machine.pss_bytes(pids) / MIB, 1)
        return figures

    def figures(self, tally: Tally, took: float, client_s: float) -> dict[str, Any]:
        args = self.args
        good = sorted(x for op, row in tally.latencies.items() if op != "error" for x in row)
        count = len(good)
        out: dict[str, Any] = {
            "label": args.label, "op": args.op, "size": args.size, "conns": args.conns,
            "auth": args.auth, "payload": args.payload, "verify": args.verify,
            "elapsed_s": round(took, 3), "ops": count, "ops_s": round(count / took, 2),
            "mib_s": round((tally.bytes_up + tally.bytes_down) / MIB / took, 2),
            **percentiles(good),
            "longest_gap_ms": round(tally.gap_s * 1e3, 1),
            "errors": tally.errors.total(), "error_kinds": dict(tally.errors),
            "client_cpu_s": round(client_s, 3),
        }  # fmt: skip
        if tally.error_sample:
            out["error_sample"] = tally.error_sample
        if args.op == "mixed":
            for op in ("get", "put"):
                row = sorted(tally.latencies[op])
                out[op] = {"ops": len(row), **percentiles(row)}
        if args.op == "list":
            out["keys_listed"] = self.listed_keys
        if args.op in METHODS and self.issued > self.keys:
            out["keys_reused"] = True
        if args.timeline and tally.done_at:
            first = tally.done_at[0]
            per_second = collections.Counter(int(t - first) for t in tally.done_at)
            out["timeline_ops_per_s"] = [per_second[i] for i in range(max(per_second) + 1)]
        return out


def percentiles(ordered: list[float]) -> dict[str, float | None]:
    def at(part: float) -> float | None:
        if not ordered:
            return None
        return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))] * 1e3, 3)

    return {"p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "max_ms": at(1.0)}


def client_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def server_pids(args: argparse.Namespace) -> list[int]:
    pids = [int(text) for text in re.findall(r"\d+", args.server_pids)]
    return machine.with_descendants(pids) if args.tree else pids


def server_figures(
    tally: Tally, pids: list[int], user: float, system: float, written: int
) -> dict[str, Any]:
    count = sum(len(row) for op, row in tally.latencies.items() if op != "error")
    mib = (tally.bytes_up + tally.bytes_down) / MIB
    cpu_ms = (user + system) * 1e3
    return {
        "server_procs": len(pids),
        "server_cpu_s": round(user + system, 2),
        "server_user_s": round(user, 2),
        "server_sys_s": round(system, 2),
        "server_cpu_ms_per_op": round(cpu_ms / count, 4) if count else None,
        "server_cpu_ms_per_mib": round(cpu_ms / mib, 3) if mib else None,
        "server_write_mib": round(written / MIB, 2),
    }


def parse_size(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)(iB|B)?", text, re.I)
    if not found:
        raise argparse.ArgumentTypeError(f"bad size {text}")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2].upper()]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bench.s3load", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    add = top.add_argument
    add("--endpoint", action="append", required=True)
    add("--host", help="Host header to send and sign (default: the endpoint)")
    add("--access-key", default=os.environ.get("AWS_ACCESS_KEY_ID", ""))
    add("--secret-key", default=os.environ.get("AWS_SECRET_ACCESS_KEY", ""))
    add("--region", default="us-east-1")
    add("--bucket", default="s3load")
    add("--create-bucket", action="store_true")
    add("--op", choices=[*METHODS, "mixed", "list"], required=True)
    add("--size", type=parse_size, default=4096)
    add("--conns", type=int, default=1)
    add("--duration", type=float, default=0)
    add("--count", type=int, default=0)
    add("--keys", type=int, default=0, help="distinct keys (default: count, at most 20000)")
    add("--first-key", type=int, default=0)
    add("--prefix", default="o/")
    add("--prepare", action="store_true", help="PUT the keys first, outside the measured part")
    add("--prepare-conns", type=int, default=4)
    add("--warmup", type=int, default=0, help="unmeasured requests before the measured part")
    add("--random", action="store_true", help="GET keys in a scattered order")
    add("--get-pct", type=int, default=70)
    add("--auth", choices=["presign", "header", "none"], help="default: presign")
    add("--payload", choices=["unsigned", "signed"], help="signed: SHA-256 of the body is sent")
    add("--range", help="for GET, e.g. 0-65535")
    add("--verify", action="store_true", help="compare every GET byte (with --prepare)")
    add("--bodies", type=int, default=0, help="number of different bodies (8, or 2 for big ones)")
    add("--timeout", type=float, default=60)
    add("--strict", action="store_true", help="exit 1 on any error")
    add("--server-pids", default="", help="separated by commas")
    add("--tree", action="store_true")
    add("--settle", type=float, default=0.3)
    add("--mem", action="store_true", help="also sum the PSS of the server processes")
    add("--timeline", action="store_true")
    add("--label", default="")
    return top


def main(argv: list[str] | None = None) -> int:
    top = parser()
    args = top.parse_args(argv)
    args.auth = args.auth or ("header" if args.payload else "presign")
    args.payload = args.payload or "unsigned"
    if args.payload == "signed" and args.auth != "header":
        top.error("--payload signed needs --auth header")
    if not args.duration and not args.count:
        top.error("--duration or --count")
    if args.verify and (args.range or not args.prepare):
        top.error("--verify needs --prepare (the bodies are random) and no --range")
    figures = Load(args).run()
    print(json.dumps(figures))
    return 1 if figures["errors"] and args.strict else 0


if __name__ == "__main__":
    sys.exit(main())
