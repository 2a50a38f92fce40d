"""make bench: measure a local cluster, print the figures beside the aims, keep them as JSON.

  python -m bench.run                       the short set, a few minutes
  python -m bench.run --full                all sizes, mixed, listings of 100,000, one node dark
  python -m bench.run --case put-4k-32 --case get-64m
  python -m bench.run --env HOLDFAST_PARITY=4
  python -m bench.run --case put-4k-32 --versus HOLDFAST_LOG_LEVEL=debug --rounds 3

With --versus a second cluster runs with these settings added, and the rounds of both interleave.
CPU figures sum all server processes: on a shared machine wall time is noise, CPU is not.
Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import machine
from bench.cases import CASES, PER_MIB, Case
from bench.cluster import ROOT, ClusterFailed, DevCluster, scratch_dir
from bench.engine import MIB

RESULTS = ROOT / "bench-results"
CASE_S = 900.0
Figures = dict[str, Any]


class CaseFailed(RuntimeError):
    """The load client did not come to an end; carries what it said."""


def client(module: str, argv: list[str], env: dict[str, str]) -> Figures:
    """Run a client program; the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, "-m", module, *argv],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=CASE_S,
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise CaseFailed((done.stderr or done.stdout).strip()[-600:])
    figures: Figures = json.loads(lines[-1])
    return figures


def load(cluster: DevCluster, argv: list[str]) -> Figures:
    keys = {"AWS_ACCESS_KEY_ID": cluster.access_key, "AWS_SECRET_ACCESS_KEY": cluster.secret_key}
    return client("bench.s3load", argv, keys)


def endpoints(cluster: DevCluster, frozen_node: int | None) -> list[str]:
    alive = [e for n, e in enumerate(cluster.endpoints, 1) if n != frozen_node]
    return [part for e in alive for part in ("--endpoint", e)]


def measure(cluster: DevCluster, case: Case, turn: int) -> Figures:
    """One round of one case."""
    if case.kind == "memory":
        return idle_memory(cluster)
    pids = ["--server-pids", ",".join(map(str, cluster.pids()))]
    common = [*endpoints(cluster, case.frozen_node), "--bucket", "bench"]
    prefix = f"{case.name}-{turn}/"
    if case.kind == "multipart":
        return multipart(cluster, prefix)
    if case.kind == "list":
        return listing(cluster, [*common, "--prefix", prefix], list(case.load), pids)
    argv = [*common, "--prefix", prefix, *case.load, *pids]
    with cluster.frozen(case.frozen_node):
        figures = load(cluster, argv)
    if case.clear:
        count = max(figures["ops"], int(value_of(case.load, "--keys", "0")))
        clear = ["--op", "delete", "--conns", "4", "--count", str(count)]
        load(cluster, [*common, "--prefix", prefix, *clear])
    return figures


def value_of(argv: tuple[str, ...], name: str, default: str) -> str:
    return argv[argv.index(name) + 1] if name in argv else default


def idle_memory(cluster: DevCluster) -> Figures:
    time.sleep(3)
    nodes = [machine.pss_bytes(pids) / MIB for pids in cluster.node_pids()]
    before = machine.cpu_ticks(cluster.pids())
    time.sleep(3)
    user, system = machine.cpu_between(before, machine.cpu_ticks(cluster.pids()))
    return {
        "node_pss_mib": round(statistics.mean(nodes), 1),
        "node_pss_mib_max": round(max(nodes), 1),
        "idle_cpu_percent": round((user + system) / 3 * 100, 1),
        "errors": 0,
    }


def listing(cluster: DevCluster, common: list[str], keys: list[str], pids: list[str]) -> Figures:
    """Fill a prefix, unmeasured, then list it page by page, three times."""
    fill = ["--op", "put", "--size", "1K", "--conns", "32", "--count", keys[1], *keys]
    filled = load(cluster, [*common, *fill])
    if filled["errors"]:
        raise CaseFailed(f"filling: {filled['error_kinds']}")
    figures = load(cluster, [*common, "--op", "list", "--count", "3", *pids])
    figures["server_cpu_ms_per_1000_keys"] = round(
        figures["server_cpu_s"] * 1e6 / max(1, figures["keys_listed"]), 3
    )
    return figures


def multipart(cluster: DevCluster, prefix: str) -> Figures:
    """1 GiB in parts of 16 MiB over two connections, read back and compared afterwards."""
    keys = {"AWS_ACCESS_KEY_ID": cluster.access_key, "AWS_SECRET_ACCESS_KEY": cluster.secret_key}
    address = cluster.endpoints[0].removeprefix("http://")
    argv = ["--endpoint", address, "--bucket", "bench", "--key", f"{prefix}big"]
    argv += ["--size-mb", "1024", "--part-mb", "16"]
    before = machine.cpu_ticks(cluster.pids())
    put = client("tests.cluster.upload", ["put", *argv], keys)
    user, system = machine.cpu_between(before, machine.cpu_ticks(cluster.pids()))
    back = client("tests.cluster.upload", ["verify", *argv], keys)
    failed = put["failure"] or back["failure"] or back["wrong_mib"]
    return {
        "mib_s": put["mib_s"],
        "elapsed_s": put["took_s"],
        "server_cpu_ms_per_mib": round((user + system) * 1e3 / 1024, 3),
        "errors": int(bool(failed)),
        "error_sample": str(failed or ""),
    }


# -- results


def machine_name() -> str:
    """Figures are compared only within one of these."""
    model = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as table:
        for line in table:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{platform.node()}, {os.cpu_count()} x {model}"


def last_results(name: str) -> dict[str, Figures]:
    """Figures by case of the last runs of this machine (a short run hides no older case)."""
    found: dict[str, Figures] = {}
    for path in sorted(RESULTS.glob("bench-*.json")):
        kept = json.loads(path.read_text())
        if kept["machine"] == name and not kept["settings"]:
            found.update({row["case"]: row["figures"] for row in kept["rows"]})
    return found


def median_figures(rounds: list[Figures]) -> Figures:
    """The median of each number over the rounds; other values from the last."""
    out = dict(rounds[-1])
    for key, value in out.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers = [r[key] for r in rounds if isinstance(r.get(key), int | float)]
            out[key] = statistics.median(numbers)
    out["errors"] = sum(r.get("errors", 0) for r in rounds)
    return out


def table(rows: list[dict[str, Any]], last: dict[str, Figures]) -> Table:
    out = Table(title="server CPU is the sum over all processes of the cluster")
    columns = "case variant CPU/op CPU/MiB ops/s MiB/s p50 p99 max PSS/node aim last errors"
    for name in columns.split():
        left = name in ("case", "variant")
        out.add_column(name, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        figures, case = row["figures"], row["case"]
        value, before = figures.get(row["metric"]), last.get(case, {}).get(row["metric"])
        change = f"{(value / before - 1) * 100:+.1f} %" if value and before else ""
        missed = value is not None and row["aim"] is not None and value > row["aim"]
        aim = "" if row["aim"] is None else f"{row['aim']:g}"
        out.add_row(
            case,
            row["variant"],
            text(figures, "server_cpu_ms_per_op", " ms", 3),
            text(figures, "server_cpu_ms_per_mib", " ms", 2) if row["metric"] == PER_MIB else "",
            text(figures, "ops_s", "", 0),
            text(figures, "mib_s", "", 0),
            text(figures, "p50_ms", " ms", 2),
            text(figures, "p99_ms", " ms", 2),
            text(figures, "max_ms", " ms", 1),
            text(figures, "node_pss_mib", " MiB", 0),
            f"[red]{aim} missed[/red]" if missed else f"[green]{aim}[/green]" if aim else "",
            change,
            str(figures.get("errors") or ""),
        )
    return out


def text(figures: Figures, key: str, unit: str, digits: int) -> str:
    value = figures.get(key)
    return "" if value is None else f"{value:.{digits}f}{unit}"


def save(name: str, args: argparse.Namespace, rows: list[dict[str, Any]]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = RESULTS / f"bench-{stamp}.json"
    settings = {"env": args.env, "versus": args.versus} if args.env or args.versus else {}
    kept = {"at": stamp, "machine": name, "settings": settings, "rows": rows}
    path.write_text(json.dumps(kept, indent=1))
    return path


# -- the run


def variants(args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Settings by variant's name; pairs are KEY=VALUE."""
    base = dict(pair.split("=", 1) for pair in args.env)
    found = {"": base}
    if args.versus:
        found[" ".join(args.versus)] = base | dict(pair.split("=", 1) for pair in args.versus)
    return found


def run_durability(
    durability: str, cases: list[Case], args: argparse.Namespace, folder: Path, screen: Console
) -> list[dict[str, Any]]:
    """All cases of one durability, on one cluster per variant, their rounds interleaved."""
    rows: list[dict[str, Any]] = []
    clusters: dict[str, DevCluster] = {}
    try:
        for number, (name, settings) in enumerate(variants(args).items()):
            made = DevCluster(
                folder / f"{durability}{number}", {"HOLDFAST_DURABILITY": durability, **settings}
            )
            clusters[name] = made
            took = made.start()
            screen.print(f"cluster {durability} {name} ready after {took:.1f} s in {made.folder}")
            load(
                made,
                [
                    "--endpoint",
                    made.endpoints[0],
                    "--bucket",
                    "bench",
                    "--create-bucket",
                    "--op",
                    "list",
                    "--count",
                    "1",
                    "--strict",
                ],
            )
        for case in cases:
            rounds: dict[str, list[Figures]] = {name: [] for name in clusters}
            for turn in range(args.rounds):
                for name, cluster in clusters.items():
                    screen.print(f"{case.name} {name} round {turn + 1}", style="dim")
                    try:
                        rounds[name].append(measure(cluster, case, turn))
                    except (CaseFailed, subprocess.TimeoutExpired) as error:
                        screen.print(f"{case.name}: {error}", style="red")
            for name, found in rounds.items():
                if found:
                    rows.append({
                        "case": case.name, "variant": name, "durability": durability,
                        "metric": case.metric, "aim": case.aim,
                        "figures": median_figures(found), "rounds": found,
                    })  # fmt: skip
    finally:
        for cluster in clusters.values():
            cluster.stop()
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return rows


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    names = [case.name for case in CASES]
    top.add_argument("--full", action="store_true", help="all cases")
    top.add_argument(
        "--case",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"only these: {' '.join(names)}",
    )
    top.add_argument("--dir", type=Path, help="where the data goes (default: memory, if roomy)")
    top.add_argument("--keep", action="store_true", help="leave the data and the servers' log")
    top.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    top.add_argument("--versus", action="append", default=[], metavar="KEY=VALUE")
    top.add_argument("--rounds", type=int, default=1)
    return top


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    screen = Console(width=max(150, Console().width))
    cases = [c for c in CASES if (c.name in args.case if args.case else args.full or not c.full)]
    name = machine_name()
    last = last_results(name)
    rows: list[dict[str, Any]] = []
    for durability in ("relaxed", "strict"):
        chosen = [case for case in cases if case.durability == durability]
        if chosen:
            folder = args.dir / f"bench-{durability}" if args.dir else scratch_dir()
            rows += run_durability(durability, chosen, args, folder, screen)
    screen.print(f"machine: {name}")
    screen.print(table(rows, last))
    screen.print(f"kept in {save(name, args, rows)}")
    return 0 if rows else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (CaseFailed, ClusterFailed) as error:
        sys.exit(f"bench: {error}")
