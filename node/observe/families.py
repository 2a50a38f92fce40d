"""Metric families whose children are plain cells: an observation is an addition, without lock or lookup.

The event loop's thread alone writes; a scrape on the same thread reads. prometheus_client does the
exposition. Its own children take a lock for each number, which is too dear for what is observed many
times within one request, and they read the clock, which a simulation must not.

A family holds at most limits.METRIC_CHILDREN children, whatever its callers hand in as labels; what
comes beyond is gathered under one child whose labels all say "other".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from node.limits import METRIC_CHILDREN

C = TypeVar("C")
OTHER = "other"


class Number:
    """One counter or gauge: add to `value`, or set it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Spread:
    """One histogram. `bounds` ascend; the last count is of everything above them."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulated(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), the last bound +Inf."""
        rows, total = [], 0
        for bound, count in zip(
            (*map(floatToGoString, self.bounds), "+Inf"), self.counts, strict=True
        ):
            total += count
            rows.append((bound, float(total)))
        return rows


class Family(Collector, Generic[C]):
    """All children of one name. `cell` looks one up; hot paths keep what it returns."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        documentation: str,
        labels: Sequence[str],
        make: Callable[[], C],
    ) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = tuple(labels)
        self._make = make
        self._cells: dict[tuple[str, ...], C] = {}
        if not self.labels:
            self.cell()
        registry.register(self)

    def cell(self, *values: str) -> C:
        found = self._cells.get(values)
        if found is None:
            assert len(values) == len(self.labels), (self.name, self.labels, values)
            if len(self._cells) >= METRIC_CHILDREN:
                values = (OTHER,) * len(self.labels)
            found = self._cells.setdefault(values, self._make())
        return found

    def drop(self, *values: str) -> None:
        """Export this child no more."""
        self._cells.pop(values, None)

    def cells(self) -> Iterable[tuple[tuple[str, ...], C]]:
        return tuple(self._cells.items())

    def __len__(self) -> int:
        return len(self._cells)


class Counters(Family[Number]):
    """`name` without `_total`, which the exposition adds."""

    def __init__(
        self, registry: CollectorRegistry, name: str, documentation: str, labels: Sequence[str] = ()
    ) -> None:
        super().__init__(registry, name, documentation, labels, Number)

    def describe(self) -> Iterable[Metric]:
        yield CounterMetricFamily(self.name, self.documentation, labels=self.labels)

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self.name, self.documentation, labels=self.labels)
        for values, cell in self.cells():
            family.add_metric(values, cell.value)
        yield family


class Gauges(Family[Number]):
    def __init__(
        self, registry: CollectorRegistry, name: str, documentation: str, labels: Sequence[str] = ()
    ) -> None:
        super().__init__(registry, name, documentation, labels, Number)

    def describe(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(self.name, self.documentation, labels=self.labels)

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self.name, self.documentation, labels=self.labels)
        for values, cell in self.cells():
            family.add_metric(values, cell.value)
        yield family


class Computed(Collector):
    """A gauge whose values are asked for at each scrape: `read` gives (label values, value)."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        documentation: str,
        labels: Sequence[str],
        read: Callable[[], Iterable[tuple[tuple[str, ...], float]]],
    ) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = tuple(labels)
        self._read = read
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(self.name, self.documentation, labels=self.labels)

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self.name, self.documentation, labels=self.labels)
        for values, value in self._read():
            family.add_metric(values, value)
        yield family


class Histograms(Family[Spread]):
    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        documentation: str,
        bounds: Sequence[float],
        labels: Sequence[str] = (),
    ) -> None:
        assert list(bounds) == sorted(set(bounds)), (name, bounds)
        fixed = tuple(bounds)
        super().__init__(registry, name, documentation, labels, lambda: Spread(fixed))

    def describe(self) -> Iterable[Metric]:
        yield HistogramMetricFamily(self.name, self.documentation, labels=self.labels)

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.labels)
        for values, cell in self.cells():
            family.add_metric(values, cell.cumulated(), cell.sum)
        yield family
