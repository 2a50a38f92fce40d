"""Metrics: names and types of the specification, what each report adds, and whose Protocols are met."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from locks.driver import LockObserver
from node.console import ports as console
from node.guard.observer import Observer
from node.identity import ports as identity
from node.limits import METRIC_CHILDREN
from node.objects.repair import RepairObserver
from node.objects.service import ReadObserver
from node.objects.write import WriteObserver
from node.observe import metrics as observed
from node.observe.families import Counters
from node.observe.metrics import Metrics
from node.runtime.ports import Clock
from node.s3 import ports as s3
from node.store.drive_gate import DriveMetrics, DriveState

SPECIFIED = {
    "rustfs_disk_state_check_duration_seconds": ("histogram", ()),
    "rustfs_disk_state_check_timeouts": ("counter", ("set",)),
    "rustfs_config_read_duration_seconds": ("histogram", ("operation",)),
    "rustfs_config_lock_retries": ("counter", ("operation",)),
    "rustfs_config_lock_timeouts": ("counter", ("operation",)),
    "rustfs_config_read_timeouts": ("counter", ("operation",)),
}


@dataclass
class HandClock:
    """Moves when told to."""

    at: float = 100.0

    def monotonic(self) -> float:
        return self.at

    def now(self) -> float:
        return 1_700_000_000.0 + self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds


def samples(metrics: Metrics) -> dict[str, float]:
    """`name{label="value"}` -> value, as Prometheus would read the page."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_one_class_meets_every_protocol() -> None:
    # Checked by mypy: an assignment fails to type-check when a method is missing or differs.
    metrics = Metrics()
    guard: Observer = metrics
    locks: LockObserver = metrics
    writes: WriteObserver = metrics
    reads: ReadObserver = metrics
    drives: DriveMetrics = metrics
    face: s3.Metrics = metrics
    people: identity.Metrics = metrics
    repairs: RepairObserver = metrics
    pages: console.Metrics = metrics
    assert {id(p) for p in (guard, locks, writes, reads, drives, face, people, repairs, pages)} == {
        id(metrics)
    }


@pytest.mark.parametrize(
    "protocol",
    [
        Observer,
        LockObserver,
        WriteObserver,
        ReadObserver,
        DriveMetrics,
        s3.Metrics,
        identity.Metrics,
        RepairObserver,
        console.Metrics,
    ],
)
def test_every_report_of_a_protocol_can_be_called_as_it_says(protocol: type) -> None:
    # The same once more at run time, for those who run the tests without mypy.
    methods = {n: f for n, f in vars(protocol).items() if callable(f) and not n.startswith("_")}
    assert methods
    for name, wanted in methods.items():
        theirs = list(inspect.signature(wanted).parameters.values())
        ours = list(inspect.signature(getattr(Metrics, name)).parameters.values())
        shape = [(p.name, p.kind, p.annotation) for p in theirs]
        assert [(p.name, p.kind, p.annotation) for p in ours[: len(theirs)]] == shape, name
        assert all(p.default is not p.empty for p in ours[len(theirs) :]), name


def test_the_clock_of_these_tests_is_a_clock() -> None:
    clock: Clock = HandClock()
    assert clock.now() > 0


def test_specified_metrics_have_their_exact_names_types_and_labels() -> None:
    metrics = Metrics()
    metrics.disk_check_timeout("0-3")
    families = {f.name: f for f in text_string_to_metric_families(metrics.render().decode())}
    rustfs = {name for name in families if name.startswith("rustfs_")}
    assert rustfs == set(SPECIFIED)
    for name, (kind, labels) in SPECIFIED.items():
        assert families[name].type == kind
        for sample in families[name].samples:
            assert set(sample.labels) - {"le"} == set(labels), sample
    assert samples(metrics)['rustfs_disk_state_check_timeouts_total{set="0-3"}'] == 1


def test_everything_else_is_ours_by_name() -> None:
    metrics = Metrics()
    for family in metrics.registry.collect():
        assert family.name.startswith("holdfast_") or family.name in SPECIFIED, family.name


@pytest.mark.parametrize(
    "bounds",
    [
        Metrics().disk_checks.cell().bounds,
        Metrics().config_reads.cell("iam").bounds,
        Metrics().guard_seconds.cell("peer", "LOCK").bounds,
        Metrics().first_byte_seconds.cell("GetObject").bounds,
    ],
)
def test_buckets_resolve_the_promised_bounds(bounds: Sequence[float]) -> None:
    assert {2.0, 3.0, 5.0, 10.0} <= set(bounds)
    assert list(bounds) == sorted(set(bounds))


def test_counters_of_rare_events_exist_before_the_first() -> None:
    # A counter that appears with its first event has not grown, to Prometheus.
    metrics = Metrics(clock=HandClock())
    metrics.drive_state("/data/disk1", DriveState.ONLINE)
    metrics.margin_wanted({0: 4})
    metrics.disk_check_known("0-0")
    metrics.breaker_state("n2:9002", "bulk", 0)
    found = samples(metrics)
    for name in (
        'rustfs_config_lock_timeouts_total{operation="iam"}',
        'rustfs_config_lock_retries_total{operation="iam"}',
        'rustfs_config_read_timeouts_total{operation="iam"}',
        'rustfs_config_read_timeouts_total{operation="config"}',
        'rustfs_disk_state_check_timeouts_total{set="0-0"}',
        'holdfast_rotten_blocks_total{drive="/data/disk1"}',
        'holdfast_thin_writes_total{set="0"}',
        'holdfast_locks_lost_total{class="object"}',
        'holdfast_breaker_transitions_total{class="bulk",peer="n2:9002",state="open"}',
        'holdfast_cascades_total{pattern="peer_unreachable_to_lock_timeout"}',
        "holdfast_repair_queue_depth",
        "holdfast_undecided_writes",
        "holdfast_census_failures_total",
    ):
        assert found[name] == 0.0, name


def test_histogram_counts_are_cumulative_and_inclusive() -> None:
    metrics = Metrics()
    for seconds in (0.001, 2.0, 2.0001, 3.0, 99.0):
        metrics.disk_check(seconds)
    found = samples(metrics)
    name = "rustfs_disk_state_check_duration_seconds"
    assert found[f'{name}_bucket{{le="0.005"}}'] == 1
    assert found[f'{name}_bucket{{le="2.0"}}'] == 2
    assert found[f'{name}_bucket{{le="3.0"}}'] == 4
    assert found[f'{name}_bucket{{le="10.0"}}'] == 4
    assert found[f'{name}_bucket{{le="+Inf"}}'] == found[f"{name}_count"] == 5
    assert found[f"{name}_sum"] == pytest.approx(106.0011)


def test_guard_outcomes_are_counted_and_only_real_calls_are_timed() -> None:
    metrics = Metrics()
    for outcome, seconds in (("ok", 0.01), ("ok", 0.02), ("timeout", 3.0), ("refused", 0.0)):
        metrics.guard_outcome("peer", "COMMIT", outcome, seconds)
    found = samples(metrics)
    counted = 'holdfast_guard_outcomes_total{{name="COMMIT",outcome="{}",path="peer"}}'
    assert [found[counted.format(o)] for o in ("ok", "timeout", "refused")] == [2, 1, 1]
    assert found['holdfast_guard_duration_seconds_count{name="COMMIT",path="peer"}'] == 3


def test_requests() -> None:
    metrics = Metrics()
    metrics.in_flight("GetObject", 1)
    metrics.in_flight("GetObject", 1)
    metrics.in_flight("GetObject", -1)
    metrics.request("GetObject", 200, 8.0, 0.02)
    metrics.request("HeadObject", 404, 0.3)
    metrics.shed("s3")
    found = samples(metrics)
    assert found['holdfast_requests_in_flight{operation="GetObject"}'] == 1
    assert found['holdfast_requests_total{operation="GetObject",status="200"}'] == 1
    assert found['holdfast_request_duration_seconds_sum{operation="GetObject"}'] == 8.0
    assert found['holdfast_request_first_byte_seconds_sum{operation="GetObject"}'] == 0.02
    assert found['holdfast_request_first_byte_seconds_sum{operation="HeadObject"}'] == 0.3
    assert found['holdfast_shed_total{what="s3"}'] == 1


def test_breakers_show_their_state_and_count_changes_only() -> None:
    metrics = Metrics()
    for state in (0, 0, 2, 2, 1, 0):
        metrics.breaker_state("n4:9002", "fast", state)
    found = samples(metrics)
    assert found['holdfast_breaker_state{class="fast",peer="n4:9002"}'] == 0
    moved = 'holdfast_breaker_transitions_total{{class="fast",peer="n4:9002",state="{}"}}'
    assert [found[moved.format(s)] for s in ("closed", "half_open", "open")] == [1, 1, 1]


REPORTS: list[tuple[Callable[[Metrics], None], str, float]] = [
    (lambda m: m.peer_state("p", True, 0.5, 7), 'holdfast_peer_up{peer="p"}', 1),
    (lambda m: m.peer_state("p", True, 0.5, 7), 'holdfast_peer_suspicion{peer="p"}', 0.5),
    (lambda m: m.peer_state("p", True, 0.5, 7), 'holdfast_peer_incarnation{peer="p"}', 7),
    (lambda m: m.heartbeat_rtt("p", 0.002), 'holdfast_heartbeat_rtt_seconds_count{peer="p"}', 1),
    (lambda m: m.drive_state("d", DriveState.HUNG), 'holdfast_drive_state{drive="d"}', 7),
    (
        lambda m: m.drive_operation("d", "Commit", 0.25),
        'holdfast_drive_operation_duration_seconds_sum{drive="d",operation="Commit"}',
        0.25,
    ),
    (lambda m: m.drive_usage("d", 100, 40), 'holdfast_drive_total_bytes{drive="d"}', 100),
    (lambda m: m.drive_usage("d", 100, 40), 'holdfast_drive_free_bytes{drive="d"}', 40),
    (
        lambda m: m.drive_sync("d", 0.5),
        'holdfast_drive_sync_duration_seconds_sum{drive="d"}',
        0.5,
    ),
    (
        lambda m: m.config_read("iam", 6.0),
        'rustfs_config_read_duration_seconds_bucket{le="7.5",operation="iam"}',
        1,
    ),
    (
        lambda m: m.config_read_timeout("config"),
        'rustfs_config_read_timeouts_total{operation="config"}',
        1,
    ),
    (lambda m: m.on_retry("iam"), 'rustfs_config_lock_retries_total{operation="iam"}', 1),
    (lambda m: m.on_timeout("iam"), 'rustfs_config_lock_timeouts_total{operation="iam"}', 1),
    (lambda m: m.on_acquired("object", 0.1), 'holdfast_lock_wait_seconds_sum{class="object"}', 0.1),
    (lambda m: m.on_lost("iam"), 'holdfast_locks_lost_total{class="iam"}', 1),
    (lambda m: m.locks_held(3), "holdfast_locks_held", 3),
    (lambda m: m.set_health(0, 12, 4, 3), 'holdfast_set_drives_online{set="0"}', 12),
    (lambda m: m.set_health(0, 12, 4, 3), 'holdfast_set_read_tolerance{set="0"}', 4),
    (lambda m: m.set_health(0, 8, 0, -1), 'holdfast_set_write_tolerance{set="0"}', -1),
    (lambda m: m.repair_queue(9, 61.0), "holdfast_repair_queue_depth", 9),
    (lambda m: m.repair_queue(9, 61.0), "holdfast_repair_oldest_seconds", 61),
    (lambda m: m.undecided(2, 5.0), "holdfast_undecided_writes", 2),
    (lambda m: m.undecided(2, 5.0), "holdfast_undecided_oldest_seconds", 5),
    (lambda m: m.settled("forward"), 'holdfast_settled_writes_total{direction="forward"}', 1),
    (lambda m: m.repaired(4), "holdfast_repaired_shards_total", 4),
    (lambda m: m.census_failures(2), "holdfast_census_failures_total", 2),
    (lambda m: m.hedge("fast"), 'holdfast_hedges_total{class="fast"}', 1),
    (lambda m: m.straggler("bulk"), 'holdfast_stragglers_total{class="bulk"}', 1),
    (lambda m: m.shard_replaced("late"), 'holdfast_replaced_shards_total{reason="late"}', 1),
    (lambda m: m.rotten_block("d"), 'holdfast_rotten_blocks_total{drive="d"}', 1),
    (lambda m: m.identity_version(12), "holdfast_identity_version", 12),
    (lambda m: m.identity_lag(1.5), "holdfast_identity_lag_seconds", 1.5),
    (
        lambda m: m.scrubbed("d", 1e9),
        'holdfast_scrub_last_pass_timestamp_seconds{drive="d"}',
        1e9,
    ),
    (
        lambda m: m.build_info("0.1.0", "isa-l"),
        'holdfast_build_info{codec="isa-l",version="0.1.0"}',
        1,
    ),
    (lambda m: m.cascade("x"), 'holdfast_cascades_total{pattern="x"}', 1),
]


@pytest.mark.parametrize(("report", "sample", "value"), REPORTS)
def test_each_report_is_exported(
    report: Callable[[Metrics], None], sample: str, value: float
) -> None:
    metrics = Metrics()
    assert samples(metrics).get(sample, 0.0) != value
    report(metrics)
    assert samples(metrics)[sample] == value


def test_margins_and_thin_writes() -> None:
    metrics = Metrics()
    metrics.margin_wanted({0: 4, 1: 2})
    for set_index, margin in ((0, 4), (0, 3), (0, 8), (1, 2), (1, 1), (2, 1), (2, 0)):
        metrics.stripe_margin(set_index, margin)
    found = samples(metrics)
    assert [found[f'holdfast_thin_writes_total{{set="{s}"}}'] for s in range(3)] == [1, 1, 1]
    assert found['holdfast_stripe_margin_bucket{le="3.0",set="0"}'] == 1
    assert found['holdfast_stripe_margin_count{set="0"}'] == 3


def test_wall_clock_is_exported_for_prometheus_to_compare() -> None:
    clock = HandClock()
    metrics = Metrics(clock=clock)
    assert samples(metrics)["holdfast_clock_timestamp_seconds"] == clock.now()
    clock.at += 5
    assert samples(metrics)["holdfast_clock_timestamp_seconds"] == clock.now()
    assert "holdfast_clock_timestamp_seconds" not in samples(Metrics())


def test_a_cascade_is_counted_once_shown_and_clears_by_itself() -> None:
    clock = HandClock()
    metrics = Metrics(clock=clock)
    counted = 'holdfast_cascades_total{pattern="peer_unreachable_to_lock_timeout"}'
    active = 'holdfast_cascade_active{pattern="peer_unreachable_to_lock_timeout"}'

    metrics.peer_state("n4:9002", False, 9.0, 0)  # never seen up: no failure
    metrics.lock_timeout("iam")
    assert samples(metrics)[counted] == 0

    metrics.peer_state("n4:9002", True, 0.0, 1)
    metrics.peer_state("n4:9002", False, 9.0, 1)
    clock.at += 10
    metrics.lock_timeout("object")
    metrics.lock_timeout("object")
    assert (samples(metrics)[counted], samples(metrics)[active]) == (1, 1)
    assert metrics.cascades_active() == ("peer_unreachable_to_lock_timeout",)
    clock.at += 31
    assert (samples(metrics)[counted], samples(metrics)[active]) == (1, 0)
    assert metrics.cascades_active() == ()


def test_uploads_that_fail_after_lock_timeouts_are_a_cascade() -> None:
    clock = HandClock()
    metrics = Metrics(clock=clock)
    metrics.lock_timeout("object")
    metrics.request("GetObject", 503, 0.1)
    metrics.request("PutObject", 412, 0.1)
    assert metrics.cascades_active() == ()
    metrics.request("PutObject", 503, 0.1)
    assert metrics.cascades_active() == ("lock_timeout_to_upload_failed",)


def test_a_family_is_bounded_whatever_its_labels() -> None:
    family = Counters(CollectorRegistry(), "holdfast_test", "A test.", ["name"])
    for n in range(METRIC_CHILDREN + 50):
        family.cell(str(n)).value += 1
    assert len(family) == METRIC_CHILDREN + 1
    assert family.cell("other").value == 50
    assert sum(cell.value for _, cell in family.cells()) == METRIC_CHILDREN + 50


def test_a_name_is_registered_once() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics(registry)


def test_nodes_in_one_process_do_not_mix() -> None:
    one, two = Metrics(), Metrics()
    one.repaired(1)
    assert samples(two)["holdfast_repaired_shards_total"] == 0


def test_hot_reports_stay_cheap() -> None:
    # Generous: measured 0.5 us where the promise is 3; a label lookup by prometheus_client alone is 2.
    metrics = Metrics()
    rounds = 20_000
    best = min(_timed(metrics, rounds) for _ in range(3))
    assert best / rounds < 30e-6


def _timed(metrics: Metrics, rounds: int) -> float:
    began = time.perf_counter()
    for _ in range(rounds):
        metrics.guard_outcome("peer", "PREPARE", "ok", 0.003)
    return time.perf_counter() - began


def test_instant_outcomes_are_names_the_guard_uses() -> None:
    assert {"refused", "shed", "retried"} == observed.INSTANT_OUTCOMES
