"""Figures of the power-off tests: printed beside limit and aim, kept as JSON to be compared."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "test-results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured value; `limit` is the specification's, `aim` our own, both in `unit`."""

    test: str
    what: str
    value: float
    unit: str
    limit: float | None
    aim: float | None


class Report:
    def __init__(self) -> None:
        self.world = ""
        self.figures: list[Figure] = []
        self.details: dict[str, Any] = {}

    def figure(
        self,
        test: str,
        what: str,
        value: float,
        *,
        unit: str = "s",
        limit: float | None = None,
        aim: float | None = None,
    ) -> float:
        """Keep a figure; the caller asserts the limit."""
        value = round(value, 3)
        made = Figure(test=test, what=what, value=value, unit=unit, limit=limit, aim=aim)
        self.figures.append(made)
        return value

    def lines(self) -> list[str]:
        rows = [f"world: {self.world}"]
        for f in self.figures:
            limit = "-" if f.limit is None else f"{f.limit:g}"
            aim = "-" if f.aim is None else f"{f.aim:g}"
            missed = f.aim is not None and f.value > f.aim
            rows.append(
                f"{f.test:<12} {f.what:<58} {f.value:>9.3f} {f.unit:<5} limit {limit:>5}  "
                f"aim {aim:>5}{'  (aim missed)' if missed else ''}"
            )
        return rows

    def save(self) -> Path:
        """Write test-results/poweroff.json, and a dated copy to compare over time."""
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(
            {
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "machine": platform.node(),
                "world": self.world,
                "figures": [asdict(f) for f in self.figures],
                "details": self.details,
            },
            indent=1,
        )
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        (RESULTS / f"poweroff-{stamp}.json").write_text(text)
        latest = RESULTS / "poweroff.json"
        latest.write_text(text)
        return latest


REPORT = Report()
