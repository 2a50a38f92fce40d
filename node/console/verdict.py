"""What an operator must see first: is the cluster well, what is dark, what may still go, what is repaired.

A pure reading of the facts, so that the page, whatever its looks, says one thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from node.console.models import Cluster, Node, Set
from node.limits import SETTLE_AFTER_S

STALE_S = 10.0  # facts older than this are marked with their age


class Level(StrEnum):
    GOOD = "good"
    DEGRADED = "degraded"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`headline`: one sentence. `margin`: what may still go dark. `problems`: one line each."""

    level: Level
    headline: str
    margin: str
    problems: tuple[str, ...]


def judge(facts: Cluster) -> Verdict:
    problems = [*_notices(facts), *_nodes(facts), *_drives(facts), *_repair(facts)]
    if facts.durability == "relaxed":
        problems.append(
            "durability is relaxed: acknowledged writes are lost when the power of several nodes fails"
        )
    if not facts.ready:
        level, headline = Level.BAD, "Not ready: this node cannot serve reads"
    elif not facts.write_ready:
        level, headline = Level.BAD, "Reads work, writes are refused"
    elif problems:
        level, headline = Level.DEGRADED, "Reads and writes work, but not everything is well"
    else:
        level, headline = Level.GOOD, "Healthy: every node and every drive is there"
    return Verdict(
        level=level, headline=headline, margin=_margin(facts.sets), problems=tuple(problems)
    )


def _margin(sets: tuple[Set, ...]) -> str:
    if not sets:
        return "nothing is known of the erasure sets yet"
    reads = min(sets, key=lambda found: found.read_tolerance)
    writes = min(sets, key=lambda found: found.write_tolerance)
    return (
        f"reads {_may_lose(reads.read_tolerance, reads.drives_per_node)}; "
        f"writes {_may_lose(writes.write_tolerance, writes.drives_per_node)}"
    )


def _may_lose(drives: int, per_node: int) -> str:
    if drives < 0:
        return f"lack {count(-drives, 'drive')}"
    if drives == 0:
        return "survive no further loss"
    nodes = drives // max(per_node, 1)
    if nodes == 0 or per_node == 1:
        return f"survive {count(drives, 'more drive')}"
    return f"survive {count(nodes, 'more node')} ({count(drives, 'drive')})"


def _nodes(facts: Cluster) -> list[str]:
    lines = []
    for node in facts.nodes:
        if node.state == "dead":
            lines.append(f"{node.name} is dark{_since(node)}")
        elif node.state == "suspect":
            lines.append(f"{node.name} is silent{_since(node)}")
        elif node.state == "unknown":
            lines.append(f"{node.name} has not been heard of yet")
        else:
            opened = sorted(name for name, state in node.breakers.items() if state != "closed")
            if opened:
                lines.append(f"breakers to {node.name} are not closed: {', '.join(opened)}")
    return lines


def _since(node: Node) -> str:
    return "" if node.since_s is None else f" since {duration(node.since_s)}"


def _notices(facts: Cluster) -> list[str]:
    """What the node says itself, but for drives that do not answer: their state is said already."""
    silent = tuple(f"{place}: does not answer" for place in _sick(facts))
    return [notice for notice in facts.notices if not notice.startswith(silent)]


def _drives(facts: Cluster) -> list[str]:
    return [f"{place} is {state}" for place, state in _sick(facts).items()]


def _sick(facts: Cluster) -> dict[str, str]:
    """Drives of nodes that are there: those of a dark node are dark with it."""
    return {
        f"{node.name}{drive.path}": drive.state
        for node in facts.nodes
        if node.state in ("up", "suspect")
        for drive in node.drives
        if drive.state not in ("online", "unknown")
    }


def _repair(facts: Cluster) -> list[str]:
    repair = facts.repair
    lines = []
    if repair.queue:
        line = f"{count(repair.queue, 'object')} being repaired"
        if repair.paused:
            line = f"{count(repair.queue, 'object')} wait for repair, which is paused"
        elif repair.eta_s is not None:
            line += f", done in about {duration(repair.eta_s)}"
        lines.append(line)
    elif repair.paused:
        lines.append("repair is paused")
    for fill in repair.fills:
        line = f"{fill.node}{fill.path} is being filled"
        lines.append(line if fill.eta_s is None else f"{line}, about {duration(fill.eta_s)} left")
    census = repair.census
    if census is not None and census.finished_s and not census.whole and not repair.queue:
        lines.append("the last census found objects that lack shards")
    # Every write is undecided for a moment; one that stays so is news.
    if repair.undecided and repair.undecided_oldest_s >= SETTLE_AFTER_S:
        lines.append(f"{count(repair.undecided, 'write')} undecided")
    return lines


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """'8 s', '3 min', '2 h', '5 d': what one says."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count_bytes: float) -> str:
    """'3.1 GiB'"""
    value = float(count_bytes)
    if value < 1024:
        return f"{value:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"
    return f"{value / 1024:,.3g} PiB"
