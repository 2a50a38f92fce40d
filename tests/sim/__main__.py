"""`make sim`: fresh seeds until the budget is spent, or one seed again with its story.

python -m tests.sim --budget 60s            fresh seeds on every core, a report at the end
python -m tests.sim --seed 7                one seed, with the lines of its story
python -m tests.sim --budget 60s --from 1   seeds from 1 on, in place of fresh ones
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.sim.scenario import Plan, Result, run_seed

STORY_SHOWN = 400
REPLAY = "make sim SEED={}"


@dataclass(slots=True, kw_only=True)
class Report:
    """What all seeds of a run gave together."""

    seeds: list[int] = field(default_factory=list)
    virtual_s: float = 0.0
    operations: int = 0
    failed: int = 0
    histories: int = 0
    undetermined: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    unsynced: Counter[str] = field(default_factory=Counter)
    bad: list[Result] = field(default_factory=list)
    real_s: float = 0.0

    def add(self, result: Result) -> None:
        self.seeds.append(result.seed)
        self.virtual_s += result.virtual_s
        self.operations += result.operations
        self.failed += result.failed
        self.histories += result.histories
        self.undetermined += result.undetermined
        self.faults.update(result.faults)
        self.unsynced.update(result.unsynced)
        if result.anomalies:
            self.bad.append(result)

    def __str__(self) -> str:
        virtual_s, real_s = max(self.virtual_s, 1e-9), max(self.real_s, 1e-9)
        faults = sum(self.faults.values())
        kinds = ", ".join(f"{kind} {n}" for kind, n in self.faults.most_common())
        fates = ", ".join(f"{fate} {n}" for fate, n in sorted(self.unsynced.items()))
        lines = [
            f"seeds            {len(self.seeds)} ({', '.join(map(str, self.seeds[:8]))}"
            f"{', …' if len(self.seeds) > 8 else ''})",
            f"virtual time     {virtual_s / 3600:.2f} h in {real_s:.0f} s",
            f"operations       {self.operations} ({self.failed} not acknowledged), "
            f"{self.operations / virtual_s:.1f} a virtual second, "
            f"{self.operations / real_s:.1f} a real second",
            f"faults           {faults}, {faults / real_s:.2f} a real second: {kinds}",
            f"unsynced changes {fates}",
            f"histories        {self.histories} checked, {self.undetermined} undetermined",
            f"anomalies        {sum(len(each.anomalies) for each in self.bad)}"
            f" in {len(self.bad)} seeds",
        ]
        for result in self.bad:
            lines.append(f"  seed {result.seed}: {result.anomalies[0][:300]}")
            lines.append(f"    again, with its story: {REPLAY.format(result.seed)}")
        return "\n".join(lines)


def seeds_from(first: int | None) -> Iterator[int]:
    """Seeds one after the other from `first`, or fresh ones."""
    while True:
        if first is None:
            yield secrets.randbelow(1 << 31)
        else:
            yield first
            first += 1


def run_budget(
    budget_s: float, *, first: int | None = None, plan: Plan | None = None, jobs: int = 0
) -> Report:
    """Seeds on `jobs` processes (0: one a core) until `budget_s` of real time is over."""
    report = Report()
    jobs = jobs or max(1, min(8, os.cpu_count() or 1))
    began = time.monotonic()
    following = seeds_from(first)
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, maxtasksperchild=8) as pool:
        running = [pool.apply_async(run_seed, (next(following), plan)) for _ in range(jobs)]
        while running:
            done = running.pop(0)
            report.add(done.get())
            if time.monotonic() - began < budget_s:
                running.append(pool.apply_async(run_seed, (next(following), plan)))
    report.real_s = time.monotonic() - began
    return report


def story_of(result: Result) -> str:
    """What happened, one line each, and what was wrong with it."""
    lines = [*result.story[-STORY_SHOWN:], *(f"ANOMALY {each}" for each in result.anomalies)]
    lines.append(f"seed {result.seed}: trace {result.trace}")
    return "\n".join(lines)


def seconds(text: str) -> float:
    """60, 60s, 10m or 8h."""
    factor = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:], 0.0)
    return float(text[:-1]) * factor if factor else float(text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--budget", type=seconds, default=60.0, help="real time: 60s, 10m, 8h")
    parser.add_argument("--seed", type=int, help="run this seed and print its story")
    parser.add_argument("--from", dest="first", type=int, help="seeds from this one on")
    parser.add_argument("--jobs", type=int, default=0, help="processes (0: one a core)")
    args = parser.parse_args(argv)
    if args.seed is not None:
        result = run_seed(args.seed)
        print(story_of(result))
        report = Report(real_s=result.real_s)
        report.add(result)
    else:
        report = run_budget(args.budget, first=args.first, jobs=args.jobs)
    print(report)
    return 1 if report.bad else 0


if __name__ == "__main__":
    sys.exit(main())
