"""What the kernel says of processes and of the machine: CPU, memory, bytes written (/proc)."""

from __future__ import annotations

import collections
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[bytes] | None:
    """Fields of /proc/PID/stat from the third (state) on; None when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
    except OSError:
        return None


def with_descendants(pids: list[int]) -> list[int]:
    """The processes and all their children's children."""
    children = collections.defaultdict(list)
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if stat := _stat(int(entry)):
            children[int(stat[1])].append(int(entry))
    found = list(pids)
    for pid in found:
        found += [child for child in children[pid] if child not in found]
    return sorted(found)


def children(pid: int) -> list[int]:
    """Direct children, lowest pid first."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if (stat := _stat(int(entry))) and int(stat[1]) == pid:
            found.append(int(entry))
    return sorted(found)


def cpu_ticks(pids: list[int]) -> dict[int, tuple[int, int]]:
    """User and system ticks by process, with those of children it has reaped."""
    found = {}
    for pid in pids:
        if stat := _stat(pid):
            user, system, reaped_user, reaped_system = (int(x) for x in stat[11:15])
            found[pid] = user + reaped_user, system + reaped_system
    return found


def cpu_between(
    before: dict[int, tuple[int, int]], after: dict[int, tuple[int, int]]
) -> tuple[float, float]:
    """User and system seconds that passed between two readings."""
    user = sum(a[0] - before.get(pid, (0, 0))[0] for pid, a in after.items())
    system = sum(a[1] - before.get(pid, (0, 0))[1] for pid, a in after.items())
    return user / TICK, system / TICK


def _sum_of_field(pids: list[int], file: str, field: str) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
                if line.startswith(field):
                    total += int(line.split()[1])
    return total


def pss_bytes(pids: list[int]) -> int:
    """Proportional set size: memory shared between processes counts once."""
    return _sum_of_field(pids, "smaps_rollup", "Pss:") * 1024


def written_bytes(pids: list[int]) -> int:
    """Bytes the processes caused to be written to a block device."""
    return _sum_of_field(pids, "io", "write_bytes:")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineTicks:
    """Ticks of all cores since boot."""

    total: int
    idle: int
    steal: int

    @staticmethod
    def now() -> MachineTicks:
        with open("/proc/stat") as table:
            ticks = [int(x) for x in table.readline().split()[1:9]]
        return MachineTicks(total=sum(ticks), idle=ticks[3] + ticks[4], steal=ticks[7])

    def busy_percent(self, later: MachineTicks) -> float:
        total = later.total - self.total
        return round(100 * (1 - (later.idle - self.idle) / total), 1) if total else 0.0

    def steal_percent(self, later: MachineTicks) -> float:
        total = later.total - self.total
        return round(100 * (later.steal - self.steal) / total, 1) if total else 0.0
