"""`holdfast status`: the cluster as one node sees it, as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_GOOD = frozenset({"up", "online", "closed"})
_BAD = frozenset({"dead", "open", "offline", "condemned", "hung", "foreign", "wrong", "corrupt"})


def print_status(answer: dict[str, Any], console: Console) -> None:
    """`answer` of GET /admin/v1/cluster; members that are missing are left out."""
    _print_head(answer, console)
    nodes = answer.get("nodes", [])
    _print_nodes(nodes, console)
    _print_drives(nodes, console)
    _print_sets(answer.get("sets", []), console)
    repair = answer.get("repair")
    if repair:
        console.print(
            f"repair: {repair.get('queue', 0)} queued, {repair.get('undecided', 0)} writes undecided"
            + (f", oldest {_age(repair['oldest_s'])}" if repair.get("oldest_s") else "")
        )


def _print_head(answer: dict[str, Any], console: Console) -> None:
    writes, reads = answer.get("write_ready"), answer.get("ready")
    state = (
        "reads and writes" if writes else "reads only, writes are refused" if reads else "not ready"
    )
    console.print(
        f"cluster {answer.get('cluster_id', '?')} as seen by {answer.get('node', '?')}: {state}"
        f" (parity {answer.get('parity', '?')}, durability {answer.get('durability', '?')})",
        markup=False,
    )
    for notice in answer.get("notices", []):
        console.print(f"  ! {notice}", markup=False)


def _print_nodes(nodes: list[dict[str, Any]], console: Console) -> None:
    table = Table(
        "node", "state", "since", "round trip", "breakers", "drives", box=None, pad_edge=False
    )
    for node in nodes:
        drives = node.get("drives", [])
        online = sum(drive.get("state") == "online" for drive in drives)
        round_trip = node.get("rtt_ms")
        table.add_row(
            Text(str(node.get("name", "?")) + (" (this)" if node.get("self") else "")),
            _state(node.get("state", "?")),
            _age(node.get("since_s")),
            "" if round_trip is None else f"{round_trip:.1f} ms",
            _breakers(node.get("breakers", {})),
            f"{online}/{len(drives)}",
        )
    console.print(table)


def _print_drives(nodes: list[dict[str, Any]], console: Console) -> None:
    table = Table("drive", "set", "state", "free", "of", "last scrub", box=None, pad_edge=False)
    for node in nodes:
        for drive in node.get("drives", []):
            table.add_row(
                Text(f"{node.get('name', '?')}{drive.get('path', '')}"),
                "" if drive.get("set") is None else str(drive["set"]),
                _state(drive.get("state", "?")),
                _bytes(drive.get("free_bytes")),
                _bytes(drive.get("total_bytes")),
                _scrub(drive),
            )
    if table.row_count:
        console.print(table)


def _scrub(drive: dict[str, Any]) -> str:
    faults = drive.get("scrub_faults", 0)
    found = f", {faults} faults" if faults else ""
    if drive.get("scrubbing"):
        return f"under way{found}"
    age = _age(drive.get("scrub_age_s"))
    return f"{age} ago{found}" if age else ""


def _print_sets(sets: list[dict[str, Any]], console: Console) -> None:
    table = Table(
        "set", "online", "stripe", "reads spare", "writes spare", "margin", box=None, pad_edge=False
    )
    for row in sets:
        k, n = row.get("k", 0), row.get("n", 0)
        table.add_row(
            str(row.get("index", "")),
            f"{row.get('online', '?')}/{n}",
            f"{k}+{n - k}",
            str(row.get("read_tolerance", "")),
            str(row.get("write_tolerance", "")),
            str(row.get("margin", "")),
        )
    if table.row_count:
        console.print(table)


def _state(state: str) -> Text:
    low = state.lower()
    return Text(low, style="green" if low in _GOOD else "red" if low in _BAD else "yellow")


def _breakers(breakers: dict[str, str]) -> Text:
    """Only those that are not closed: a healthy line is short."""
    other = [f"{name} {state}" for name, state in sorted(breakers.items()) if state != "closed"]
    return Text(", ".join(other), style="red") if other else Text("closed" if breakers else "")


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _bytes(count: int | None) -> str:
    if count is None:
        return ""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"
