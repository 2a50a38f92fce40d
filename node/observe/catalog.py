"""The names, labels and buckets of everything a node counts; node.observe.metrics fills them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from node.observe.cascade import PATTERNS
from node.observe.families import Counters, Gauges, Histograms

# Seconds. All resolve 2, 3, 5 and 10: the bounds of checks, attempts and reads.
CALL_BOUNDS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0,
)  # fmt: skip
REQUEST_BOUNDS_S = (*CALL_BOUNDS_S[1:], 30.0, 60.0, 300.0)
CHECK_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0)
READ_BOUNDS_S = (
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0,
)  # fmt: skip
MARGIN_BOUNDS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 12.0, 16.0)

CONFIG_READS = ("iam", "config")
SETTLE_DIRECTIONS = ("forward", "back", "superseded")
SCRUB_REASONS = ("row", "inline", "rotten", "missing")
LOCK_CLASSES = ("iam", "config", "object", "bucket")


class Catalog:
    """Each family of a node as an attribute, registered once on `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._specified()
        self._calls()
        self._peers()
        self._drives()
        self._locks()
        self._data()
        self._whole()

    def _specified(self) -> None:
        r = self.registry
        self.disk_checks = Histograms(
            r,
            "rustfs_disk_state_check_duration_seconds",
            "Drive state checks; one without an answer counts with its bound of 3 s.",
            CHECK_BOUNDS_S,
        )
        self.disk_check_timeouts = Counters(
            r,
            "rustfs_disk_state_check_timeouts",
            "Due drive state checks that found no answer in time, refused ones included.",
            ["set"],
        )
        self.config_reads = Histograms(
            r,
            "rustfs_config_read_duration_seconds",
            "Reads of identities (iam) and configuration (config), retries included.",
            READ_BOUNDS_S,
            ["operation"],
        )
        self.config_lock_retries = Counters(
            r,
            "rustfs_config_lock_retries",
            "Lock attempts that were repeated, by class of resource.",
            ["operation"],
        )
        self.config_lock_timeouts = Counters(
            r,
            "rustfs_config_lock_timeouts",
            "Locks that were not had after all retries, by class of resource.",
            ["operation"],
        )
        self.config_read_timeouts = Counters(
            r,
            "rustfs_config_read_timeouts",
            "Reads of identities or configuration that reached their bound of 10 s in all.",
            ["operation"],
        )
        for operation in CONFIG_READS:
            self.config_reads.cell(operation)
            self.config_read_timeouts.cell(operation)
        for lock_class in LOCK_CLASSES:
            self.config_lock_retries.cell(lock_class)
            self.config_lock_timeouts.cell(lock_class)

    def _calls(self) -> None:
        r = self.registry
        self.guard_outcomes = Counters(
            r,
            "holdfast_guard_outcomes",
            "Guarded calls by path (s3, peer, drive, job, admin), name and outcome.",
            ["path", "name", "outcome"],
        )
        self.guard_seconds = Histograms(
            r,
            "holdfast_guard_duration_seconds",
            "Guarded calls that were let through, by path and name.",
            CALL_BOUNDS_S,
            ["path", "name"],
        )
        self.requests = Counters(
            r, "holdfast_requests", "Answered S3 requests.", ["operation", "status"]
        )
        self.request_seconds = Histograms(
            r,
            "holdfast_request_duration_seconds",
            "S3 requests from their header to the last byte of the answer.",
            REQUEST_BOUNDS_S,
            ["operation"],
        )
        self.first_byte_seconds = Histograms(
            r,
            "holdfast_request_first_byte_seconds",
            "S3 requests from their header to the first byte of the answer.",
            REQUEST_BOUNDS_S,
            ["operation"],
        )
        self.requests_in_flight = Gauges(
            r, "holdfast_requests_in_flight", "S3 requests under way.", ["operation"]
        )
        self.sheds = Counters(
            r, "holdfast_shed", "Work refused since a bound was reached.", ["what"]
        )
        self.sheds.cell("s3")

    def _peers(self) -> None:
        r = self.registry
        self.breaker_states = Gauges(
            r,
            "holdfast_breaker_state",
            "Circuit breaker to a peer: 0 closed, 1 half-open, 2 open.",
            ["peer", "class"],
        )
        self.breaker_transitions = Counters(
            r,
            "holdfast_breaker_transitions",
            "Changes of a breaker's state, by the new state.",
            ["peer", "class", "state"],
        )
        self.peers_up = Gauges(
            r, "holdfast_peer_up", "1: the peer's heartbeats arrive; 0: it is dead.", ["peer"]
        )
        self.peer_suspicion = Gauges(
            r, "holdfast_peer_suspicion", "How overdue the peer's heartbeat is.", ["peer"]
        )
        self.peer_incarnation = Gauges(
            r, "holdfast_peer_incarnation", "The peer's process, by its start.", ["peer"]
        )
        self.heartbeat_seconds = Histograms(
            r,
            "holdfast_heartbeat_rtt_seconds",
            "Round trips of heartbeats.",
            CALL_BOUNDS_S,
            ["peer"],
        )

    def _drives(self) -> None:
        r = self.registry
        self.drive_states = Gauges(
            r,
            "holdfast_drive_state",
            "0 online, 1 starting, 2 unformatted, 3 foreign, 4 wrong, 5 corrupt, 6 condemned,"
            " 7 hung, 8 offline.",
            ["drive"],
        )
        self.drive_seconds = Histograms(
            r,
            "holdfast_drive_operation_duration_seconds",
            "Drive verbs, a sample of the small ones.",
            CALL_BOUNDS_S,
            ["drive", "operation"],
        )
        self.drive_total_bytes = Gauges(
            r, "holdfast_drive_total_bytes", "Size of the drive's file system.", ["drive"]
        )
        self.drive_free_bytes = Gauges(
            r, "holdfast_drive_free_bytes", "Free bytes of the drive's file system.", ["drive"]
        )
        self.drive_sync_seconds = Histograms(
            r,
            "holdfast_drive_sync_duration_seconds",
            "Syncs of the drive's catalog, as its state checks meet them.",
            CALL_BOUNDS_S,
            ["drive"],
        )

    def _locks(self) -> None:
        r = self.registry
        self.lock_seconds = Histograms(
            r,
            "holdfast_lock_wait_seconds",
            "Locks that were won, from asking to holding.",
            CALL_BOUNDS_S,
            ["class"],
        )
        self.locks_lost = Counters(
            r, "holdfast_locks_lost", "Leases that were lost while held.", ["class"]
        )
        self.locks_held_now = Gauges(r, "holdfast_locks_held", "Locks this node holds.")
        for lock_class in LOCK_CLASSES:
            self.locks_lost.cell(lock_class)

    def _data(self) -> None:
        r = self.registry
        self.set_online = Gauges(
            r, "holdfast_set_drives_online", "Drives of the erasure set in reach.", ["set"]
        )
        self.set_read_tolerance = Gauges(
            r,
            "holdfast_set_read_tolerance",
            "Drives the set can lose and still be read; below 0: reads fail.",
            ["set"],
        )
        self.set_write_tolerance = Gauges(
            r,
            "holdfast_set_write_tolerance",
            "Drives the set can lose and still be written; below 0: writes are refused.",
            ["set"],
        )
        self.margins = Histograms(
            r,
            "holdfast_stripe_margin",
            "Shards beyond the needed k that an acknowledged write had.",
            MARGIN_BOUNDS,
            ["set"],
        )
        self.thin_writes = Counters(
            r,
            "holdfast_thin_writes",
            "Writes acknowledged with less margin than the loss of one node takes away.",
            ["set"],
        )
        self.repair_depth = Gauges(
            r, "holdfast_repair_queue_depth", "Entries of the durable repair queue."
        )
        self.repair_oldest = Gauges(
            r, "holdfast_repair_oldest_seconds", "Age of the oldest entry of the repair queue."
        )
        self.repairs = Counters(
            r, "holdfast_repaired_shards", "Shards brought to drives that lacked them."
        )
        self.censuses_failed = Counters(
            r, "holdfast_census_failures", "Repairs whose census still found shards missing."
        )
        self.undecided_writes = Gauges(
            r, "holdfast_undecided_writes", "Writes whose outcome nobody has settled yet."
        )
        self.undecided_oldest = Gauges(
            r, "holdfast_undecided_oldest_seconds", "Age of the oldest undecided write."
        )
        self.settlements = Counters(
            r,
            "holdfast_settled_writes",
            "Undecided writes that the job settled: forward (completed), back (proved dead), superseded.",
            ["direction"],
        )
        for direction in SETTLE_DIRECTIONS:
            self.settlements.cell(direction)
        self.settle_failures = Counters(
            r, "holdfast_settle_failures", "Undecided writes that could not be settled when tried."
        )
        self.recommits = Counters(
            r,
            "holdfast_recommitted_versions",
            "Versions below a drive's floor that repair wrote anew.",
        )
        self.tombstone_rows = Gauges(
            r, "holdfast_tombstones", "Tombstones on the drive of this node that has the most."
        )
        self.collections = Counters(
            r, "holdfast_collected_tombstones", "Tombstones this node let all drives let go."
        )
        self.collect_lacks = Counters(
            r,
            "holdfast_collect_lacking",
            "Tombstones that could not go since a drive lacked them.",
        )
        self.hedges = Counters(
            r, "holdfast_hedges", "Second questions sent since the first was late.", ["class"]
        )
        self.hedges.cell("lookup")
        self.stragglers = Counters(
            r, "holdfast_stragglers", "Parts of a call that were not waited for.", ["class"]
        )
        self.replaced_shards = Counters(
            r,
            "holdfast_replaced_shards",
            "Shards replaced by others while an object was read.",
            ["reason"],
        )
        self.rotten_blocks = Counters(
            r,
            "holdfast_rotten_blocks",
            "Blocks whose checksum was wrong, by the drive or node that holds them.",
            ["drive"],
        )
        self.scrub_bytes = Counters(
            r, "holdfast_scrubbed_bytes", "Bytes that the scrub verified.", ["drive"]
        )
        self.scrub_finds = Counters(
            r,
            "holdfast_scrub_faults",
            "What the scrub found and queued for repair: row, inline, rotten (file), missing (file).",
            ["reason"],
        )
        for reason in SCRUB_REASONS:
            self.scrub_finds.cell(reason)
        self.scrubbed_at = Gauges(
            r,
            "holdfast_scrub_last_pass_timestamp_seconds",
            "When the last full scrub of the drive ended (or the drive was taken in).",
            ["drive"],
        )

    def _whole(self) -> None:
        r = self.registry
        self.identity_versions = Gauges(
            r, "holdfast_identity_version", "Version of the identities this node applies."
        )
        self.identity_lags = Gauges(
            r, "holdfast_identity_lag_seconds", "Since when a newer version is known and not had."
        )
        self.cascades = Counters(
            r, "holdfast_cascades", "Recognised cascading failures.", ["pattern"]
        )
        for pattern in PATTERNS:
            self.cascades.cell(pattern.name)
        self.builds = Gauges(r, "holdfast_build_info", "What runs here.", ["version", "codec"])
