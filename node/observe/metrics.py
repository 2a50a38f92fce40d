"""Every metric of a node, on a registry that is handed in.

The six names that begin with `rustfs_` are fixed by the product's specification; all others begin with
`holdfast_`. Labels come from closed sets (operation, method, class, peer, drive, set, outcome), never from
what clients name. The Protocols of those who report (guard, locks, drives, objects, S3) are met by this one
class. All methods are called on the event loop's thread.

Known label values are exported as 0 from the start: to Prometheus a counter that appears with its first
event has not grown, and the alert on that event would stay silent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest

from node.observe.cascade import PATTERNS, Correlator, Event
from node.observe.catalog import Catalog
from node.observe.families import Computed, Number, Spread
from node.runtime.ports import Clock

# Outcomes of the guard that took no time of their own and would only blur the latencies.
INSTANT_OUTCOMES = frozenset({"refused", "shed", "retried"})
UPLOADS = frozenset(
    {"PutObject", "UploadPart", "UploadPartCopy", "CopyObject", "CompleteMultipartUpload"}
)
_FIRST_FAILURE = 500


class _Outcome:
    """What one outcome of one guarded name adds to."""

    __slots__ = ("count", "latency")

    def __init__(self, count: Number, latency: Spread | None) -> None:
        self.count = count
        self.latency = latency


class Metrics(Catalog):
    """`clock` gives the wall clock that is exported, and the time that cascades are judged by.

    Without it neither is exported. `registry`: a fresh one by default, never the process-wide one.
    """

    def __init__(
        self, registry: CollectorRegistry | None = None, *, clock: Clock | None = None
    ) -> None:
        super().__init__(registry if registry is not None else CollectorRegistry())
        self._clock = clock
        self._correlator = Correlator()
        self._guard_rows: dict[tuple[str, str, str], _Outcome] = {}
        self._drive_rows: dict[tuple[str, str], Spread] = {}
        self._request_rows: dict[tuple[str, int], tuple[Number, Spread, Spread]] = {}
        self._peer_up: dict[str, bool] = {}
        self._breakers: dict[tuple[str, str], int] = {}
        self._margin_wanted: dict[int, int] = {}
        Computed(
            self.registry,
            "holdfast_cascade_active",
            "1 while a cascading failure goes on.",
            ["pattern"],
            self._cascades_now,
        )
        Computed(
            self.registry,
            "holdfast_clock_timestamp_seconds",
            "This node's wall clock when it was scraped.",
            [],
            self._clock_now,
        )

    def render(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self.registry)

    def _cascades_now(self) -> Iterable[tuple[tuple[str, ...], float]]:
        if self._clock is not None:
            now = self._clock.monotonic()
            for pattern in PATTERNS:
                yield (pattern.name,), float(self._correlator.is_active(pattern.name, now))

    def _clock_now(self) -> Iterable[tuple[tuple[str, ...], float]]:
        if self._clock is not None:
            yield (), self._clock.now()

    def _event(self, event: Event) -> None:
        if self._clock is not None:
            for pattern in self._correlator.note(event, self._clock.monotonic()):
                self.cascade(pattern)

    # ---- the guard -------------------------------------------------------------------------------------
    def guard_outcome(self, path: str, name: str, outcome: str, seconds: float) -> None:
        row = self._guard_rows.get((path, name, outcome))
        if row is None:
            latency = None if outcome in INSTANT_OUTCOMES else self.guard_seconds.cell(path, name)
            row = _Outcome(self.guard_outcomes.cell(path, name, outcome), latency)
            self._guard_rows[path, name, outcome] = row
        row.count.value += 1.0
        if row.latency is not None:
            row.latency.observe(seconds)

    def breaker_state(self, peer: str, klass: str, state: int) -> None:
        """0 closed, 1 half-open, 2 open."""
        before = self._breakers.get((peer, klass))
        self._breakers[peer, klass] = state
        self.breaker_states.cell(peer, klass).value = float(state)
        if before is None:
            for name in _BREAKER_NAMES.values():
                self.breaker_transitions.cell(peer, klass, name)
        elif before != state:
            self.breaker_transitions.cell(peer, klass, _BREAKER_NAMES[state]).value += 1.0

    # ---- peers -----------------------------------------------------------------------------------------
    def peer_state(self, peer: str, up: bool, suspicion: float, incarnation: int) -> None:
        if not up and self._peer_up.get(peer):
            self._event(Event.PEER_UNREACHABLE)
        self._peer_up[peer] = up
        self.peers_up.cell(peer).value = float(up)
        self.peer_suspicion.cell(peer).value = suspicion
        self.peer_incarnation.cell(peer).value = float(incarnation)

    def heartbeat_rtt(self, peer: str, s: float) -> None:
        self.heartbeat_seconds.cell(peer).observe(s)

    # ---- requests --------------------------------------------------------------------------------------
    def request(
        self, operation: str, status: int, seconds: float, first_byte_s: float | None = None
    ) -> None:
        """`first_byte_s` None: the answer came in one piece, at its end."""
        row = self._request_rows.get((operation, status))
        if row is None:
            row = self._request_rows[operation, status] = (
                self.requests.cell(operation, str(status)),
                self.request_seconds.cell(operation),
                self.first_byte_seconds.cell(operation),
            )
        count, whole, first = row
        count.value += 1.0
        whole.observe(seconds)
        first.observe(seconds if first_byte_s is None else first_byte_s)
        if status >= _FIRST_FAILURE and operation in UPLOADS:
            self._event(Event.UPLOAD_FAILED)

    def in_flight(self, operation: str, delta: int) -> None:
        self.requests_in_flight.cell(operation).value += delta

    def shed(self, what: str) -> None:
        self.sheds.cell(what).value += 1.0

    # ---- drives ----------------------------------------------------------------------------------------
    def disk_check(self, seconds: float) -> None:
        self.disk_checks.cell().observe(seconds)

    def disk_check_known(self, set_drive: str) -> None:
        """Export the timeouts of this drive from now on, 0 so far."""
        self.disk_check_timeouts.cell(set_drive)

    def disk_check_timeout(self, set_drive: str) -> None:
        self.disk_check_timeouts.cell(set_drive).value += 1.0
        self._event(Event.DRIVE_CHECK_TIMEOUT)

    def drive_state(self, drive: str, state: int) -> None:
        """`state`: a node.store.drive_gate.DriveState."""
        self.drive_states.cell(drive).value = float(state)
        self.rotten_blocks.cell(drive)

    def drive_operation(self, drive: str, operation: str, seconds: float) -> None:
        row = self._drive_rows.get((drive, operation))
        if row is None:
            row = self._drive_rows[drive, operation] = self.drive_seconds.cell(drive, operation)
        row.observe(seconds)

    def drive_usage(self, drive: str, total: int, free: int) -> None:
        self.drive_total_bytes.cell(drive).value = float(total)
        self.drive_free_bytes.cell(drive).value = float(free)

    def drive_sync(self, drive: str, s: float) -> None:
        self.drive_sync_seconds.cell(drive).observe(s)

    # ---- identity and configuration --------------------------------------------------------------------
    def config_read(self, operation: str, seconds: float) -> None:
        """`operation`: iam or config. Reads that timed out are reported here too, with what they took."""
        self.config_reads.cell(operation).observe(seconds)

    def config_read_timeout(self, operation: str) -> None:
        self.config_read_timeouts.cell(operation).value += 1.0
        self._event(Event.IDENTITY_TIMEOUT)

    def identity_version(self, v: int) -> None:
        self.identity_versions.cell().value = float(v)

    def identity_lag(self, s: float) -> None:
        self.identity_lags.cell().value = s

    # ---- locks -----------------------------------------------------------------------------------------
    def lock_retry(self, operation: str) -> None:
        self.config_lock_retries.cell(operation).value += 1.0

    def lock_timeout(self, operation: str) -> None:
        self.config_lock_timeouts.cell(operation).value += 1.0
        self._event(Event.LOCK_TIMEOUT)

    def lock_acquired(self, cls: str, seconds: float) -> None:
        self.lock_seconds.cell(cls).observe(seconds)

    def lock_lost(self, cls: str) -> None:
        self.locks_lost.cell(cls).value += 1.0

    def locks_held(self, n: int) -> None:
        self.locks_held_now.cell().value = float(n)

    # The names by which the lock service reports (locks.driver.LockObserver).
    def on_retry(self, resource_class: str) -> None:
        self.lock_retry(resource_class)

    def on_timeout(self, resource_class: str) -> None:
        self.lock_timeout(resource_class)

    def on_acquired(self, resource_class: str, seconds: float) -> None:
        self.lock_acquired(resource_class, seconds)

    def on_lost(self, resource_class: str) -> None:
        self.lock_lost(resource_class)

    # ---- sets and repair -------------------------------------------------------------------------------
    def set_health(
        self, set_index: int, online: int, read_tolerance: int, write_tolerance: int
    ) -> None:
        """Tolerances in drives; negative: that many are missing. See node.observe.health."""
        name = str(set_index)
        self.set_online.cell(name).value = float(online)
        self.set_read_tolerance.cell(name).value = float(read_tolerance)
        self.set_write_tolerance.cell(name).value = float(write_tolerance)

    def margin_wanted(self, wanted: Mapping[int, int]) -> None:
        """By set: the drives that one node has in it. A write with less margin counts as thin."""
        self._margin_wanted = dict(wanted)
        for set_index in wanted:
            self.thin_writes.cell(str(set_index))

    def stripe_margin(self, set_index: int, margin: int) -> None:
        name = str(set_index)
        self.margins.cell(name).observe(float(margin))
        thin = self.thin_writes.cell(name)
        if margin < self._margin_wanted.get(set_index, 1):
            thin.value += 1.0

    def repair_queue(self, depth: int, oldest_s: float) -> None:
        self.repair_depth.cell().value = float(depth)
        self.repair_oldest.cell().value = oldest_s

    def undecided(self, n: int, oldest_s: float) -> None:
        self.undecided_writes.cell().value = float(n)
        self.undecided_oldest.cell().value = oldest_s

    def settled(self, direction: str) -> None:
        """`direction`: one of SETTLE_DIRECTIONS."""
        self.settlements.cell(direction).value += 1.0

    def settle_failed(self) -> None:
        self.settle_failures.cell().value += 1.0

    def recommitted(self) -> None:
        self.recommits.cell().value += 1.0

    # ---- tombstones ------------------------------------------------------------------------------------
    def tombstones(self, n: int) -> None:
        self.tombstone_rows.cell().value = float(n)

    def collected(self, n: int) -> None:
        self.collections.cell().value += n

    def collect_lacking(self, n: int) -> None:
        self.collect_lacks.cell().value += n

    # ---- repair ----------------------------------------------------------------------------------------
    def repaired(self, n: int) -> None:
        self.repairs.cell().value += n

    def census_failures(self, n: int) -> None:
        self.censuses_failed.cell().value += n

    def scrubbed(self, drive: str, timestamp_s: float) -> None:
        """Wall clock of the drive's last full pass; of its taking in as long as there was none."""
        self.scrubbed_at.cell(drive).value = timestamp_s

    def scrub_read(self, drive: str, size_bytes: int) -> None:
        self.scrub_bytes.cell(drive).value += size_bytes

    def scrub_fault(self, reason: str) -> None:
        """`reason`: one of SCRUB_REASONS."""
        self.scrub_finds.cell(reason).value += 1.0

    # ---- reads and calls of many -----------------------------------------------------------------------
    def hedge(self, cls: str) -> None:
        self.hedges.cell(cls).value += 1.0

    def straggler(self, cls: str) -> None:
        self.stragglers.cell(cls).value += 1.0

    def shard_replaced(self, reason: str) -> None:
        self.replaced_shards.cell(reason).value += 1.0

    def rotten_block(self, drive: str) -> None:
        """`drive`: a local drive's path, or the peer whose drive it is."""
        self.rotten_blocks.cell(drive).value += 1.0

    # ---- the whole -------------------------------------------------------------------------------------
    def cascade(self, pattern: str) -> None:
        self.cascades.cell(pattern).value += 1.0

    def cascades_active(self) -> tuple[str, ...]:
        """For the console: the patterns that go on now."""
        return () if self._clock is None else self._correlator.active(self._clock.monotonic())

    def build_info(self, version: str, codec: str) -> None:
        self.builds.cell(version, codec).value = 1.0


_BREAKER_NAMES = {0: "closed", 1: "half_open", 2: "open"}
