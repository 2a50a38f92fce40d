"""The policy tables: one row per peer method, drive operation, S3 operation and job, every field spelled.

Retries do not count the first attempt. `assert_tables` runs at start and checks the relations that
make the rows fit together; a method without a row is an error there, not a surprise later.
Source of the numbers: the promises and classes of docs/FAILURE_MODEL.md.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from node import limits
from node.protocol import verbs

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`attempt_s` bounds one attempt (of a stream: the time without progress), `total_s` all of them."""

    attempt_s: float
    total_s: float
    retries: int
    backoff_s: tuple[float, ...]
    max_running: int
    max_waiting: int
    idempotent: bool


def _row(
    attempt_s: float,
    total_s: float,
    retries: int,
    backoff_s: tuple[float, ...],
    max_running: int,
    max_waiting: int,
    idempotent: bool,
) -> Policy:
    return Policy(
        attempt_s=attempt_s,
        total_s=total_s,
        retries=retries,
        backoff_s=backoff_s,
        max_running=max_running,
        max_waiting=max_waiting,
        idempotent=idempotent,
    )


_QUEUE = limits.PEER_QUEUE_FRAMES

# ---- us to a peer: by name of node.rpc.methods.Method, and the two kinds of byte stream ---------------
#                    attempt  total  retries  backoff           running  waiting  idempotent
PEER_METHODS: dict[str, Policy] = {
    "HELLO": _row(      2.0,    2.0,    0,    (),                  64,      64,   True),
    "HEARTBEAT": _row(  1.0,    1.0,    0,    (),                  64,       0,   True),
    "PREPARE": _row(    3.0,    5.0,    0,    (),              _QUEUE,       0,   False),
    "COMMIT": _row(     3.0,    5.0,    0,    (),              _QUEUE,       0,   True),
    "FINISH": _row(     3.0,    5.0,    0,    (),              _QUEUE,       0,   True),
    "VERBS": _row(      3.0,    5.0,    0,    (),              _QUEUE,       0,   False),
    "LOCK": _row(       1.0,    5.0,    3,    (0.1, 0.2, 0.4), _QUEUE,       0,   True),
    "IDENTITY": _row(   3.0,   10.0,    2,    (0.1, 0.2),         256,     256,   True),
    "INFO": _row(       2.0,    2.0,    0,    (),                 256,     256,   True),
    "FORMING": _row(    3.0,   10.0,    2,    (0.1, 0.2),          64,      64,   True),
    "ADMIN": _row(      2.0,    5.0,    0,    (),                  64,      64,   False),
    # Byte streams: attempt_s bounds a wait without progress, the total is by size.
    "upload": _row(     3.0, 12 * HOUR_S, 0,  (),                1024,    1024,   False),
    "download": _row(   3.0, 12 * HOUR_S, 0,  (),                2048,    2048,   False),
}  # fmt: skip

# ---- us to a drive: by verb ---------------------------------------------------------------------------
_DQ = limits.DRIVE_QUEUE_CALLS
DRIVE_OPERATIONS: dict[str, Policy] = {
    "Read": _row(         2.0,  2.0,  0,  (),  _DQ,  0,  True),
    "Fence": _row(        3.0,  3.0,  0,  (),  _DQ,  0,  True),
    "Commit": _row(       3.0,  3.0,  0,  (),  _DQ,  0,  True),
    "Decided": _row(      3.0,  3.0,  0,  (),  _DQ,  0,  True),
    "Discard": _row(      3.0,  3.0,  0,  (),  _DQ,  0,  True),
    "Repair": _row(       3.0,  3.0,  0,  (),  _DQ,  0,  True),
    "Collect": _row(      3.0,  3.0,  0,  (),  _DQ,  0,  True),
    "Tombstones": _row(   3.0,  3.0,  0,  (),  1024, 0,  True),
    "Standing": _row(     3.0,  3.0,  0,  (),  1024, 0,  True),
    "Scrub": _row(        5.0,  5.0,  0,  (),  64,   0,  True),
    "ScrubMark": _row(    3.0,  3.0,  0,  (),  64,   0,  True),
    "ShardScan": _row(   10.0, 10.0,  0,  (),  64,   0,  True),
    "BucketFence": _row(  3.0,  3.0,  0,  (),  _DQ,  0,  True),
    "Adopt": _row(        3.0,  3.0,  0,  (),  64,   0,  True),
    "Promise": _row(      3.0,  3.0,  0,  (),  _DQ,  0,  True),
    "Scan": _row(         3.0,  3.0,  0,  (),  1024, 0,  True),
    "Entries": _row(      3.0,  3.0,  0,  (),  1024, 0,  True),
    "Pending": _row(      3.0,  3.0,  0,  (),  1024, 0,  True),
    "Repaired": _row(     3.0,  3.0,  0,  (),  _DQ,  0,  True),
    "Enqueue": _row(      3.0,  3.0,  0,  (),  _DQ,  0,  True),
    "StageOpen": _row(    3.0,  3.0,  0,  (),  _DQ,  0,  True),
    "StageWrite": _row(   3.0,  3.0,  0,  (),  _DQ,  0,  True),
    "StageSync": _row(    5.0,  5.0,  0,  (),  _DQ,  0,  True),
    "StageDrop": _row(    3.0,  3.0,  0,  (),  _DQ,  0,  True),
    "ShardRead": _row(    2.0,  2.0,  0,  (),  _DQ,  0,  True),
    "ShardCheck": _row(  10.0, 10.0,  0,  (),  64,   0,  True),
    "Check": _row(        3.0,  3.0,  0,  (),  16,   0,  True),
    "FormatRead": _row(   3.0,  3.0,  0,  (),  16,   0,  True),
    "FormatWrite": _row(  5.0,  5.0,  0,  (),  16,   0,  True),
    "Filled": _row(       3.0,  3.0,  0,  (),  16,   0,  True),
    "IdentityRead": _row( 3.0,  3.0,  0,  (),  16,   0,  True),
    "Retire": _row(       5.0,  5.0,  0,  (),  16,   0,  False),
    "IdentityWrite": _row(5.0,  5.0,  0,  (),  16,   0,  True),
}  # fmt: skip

# ---- client to us: by S3 operation. Bodies are bounded by progress, so those totals only end the absurd.
_R, _W = limits.MAX_RUNNING_REQUESTS, limits.MAX_WAITING_REQUESTS
_DAY_S = 24 * HOUR_S
S3_OPERATIONS: dict[str, Policy] = {
    "ListBuckets": _row(             15.0, 15.0, 0, (), _R, _W, True),
    "CreateBucket": _row(            20.0, 20.0, 0, (), _R, _W, False),
    "HeadBucket": _row(              15.0, 15.0, 0, (), _R, _W, True),
    "DeleteBucket": _row(            30.0, 30.0, 0, (), _R, _W, False),
    "GetBucketLocation": _row(       15.0, 15.0, 0, (), _R, _W, True),
    "PutObject": _row(             _DAY_S, _DAY_S, 0, (), _R, _W, False),
    "GetObject": _row(             _DAY_S, _DAY_S, 0, (), _R, _W, True),
    "HeadObject": _row(              15.0, 15.0, 0, (), _R, _W, True),
    "DeleteObject": _row(            15.0, 15.0, 0, (), _R, _W, False),
    "DeleteObjects": _row(           60.0, 60.0, 0, (), _R, _W, False),
    "CopyObject": _row(            _DAY_S, _DAY_S, 0, (), _R, _W, False),
    "ListObjects": _row(             20.0, 20.0, 0, (), _R, _W, True),
    "ListObjectsV2": _row(           20.0, 20.0, 0, (), _R, _W, True),
    "GetObjectAttributes": _row(     15.0, 15.0, 0, (), _R, _W, True),
    "CreateMultipartUpload": _row(   15.0, 15.0, 0, (), _R, _W, False),
    "UploadPart": _row(            _DAY_S, _DAY_S, 0, (), _R, _W, False),
    "UploadPartCopy": _row(        _DAY_S, _DAY_S, 0, (), _R, _W, False),
    "CompleteMultipartUpload": _row( 60.0, 60.0, 0, (), _R, _W, False),
    "AbortMultipartUpload": _row(    30.0, 30.0, 0, (), _R, _W, False),
    "ListMultipartUploads": _row(    20.0, 20.0, 0, (), _R, _W, True),
    "ListParts": _row(               20.0, 20.0, 0, (), _R, _W, True),
    "DEFAULT": _row(                 15.0, 15.0, 0, (), _R, _W, False),
}  # fmt: skip

# ---- clock to us --------------------------------------------------------------------------------------
JOBS: dict[str, Policy] = {
    "heal": _row(            120.0, 120.0, 0, (),          4, 0, True),
    "upload_sweep": _row(     60.0, 60.0, 0, (),          1, 0, True),
    "fill": _row(             120.0, 120.0, 0, (),        1, 0, True),
    "pause": _row(            10.0, 10.0, 0, (),          1, 0, True),
    "census": _row(          120.0, 120.0, 0, (),        1, 0, True),
    "settle": _row(           60.0, 60.0, 0, (),          1, 0, True),
    "collect": _row(          60.0, 60.0, 0, (),          1, 0, True),
    "scrub": _row(            60.0, 60.0, 0, (),          1, 0, True),
    "drive_check": _row(       3.0,  3.0, 0, (),         64, 0, True),
    "identity_refresh": _row(  3.0, 10.0, 2, (0.1, 0.2),  4, 0, True),
    "drive_review": _row(     10.0, 10.0, 0, (),          1, 0, True),
    "peer_facts": _row(        2.0,  2.0, 0, (),          1, 0, True),
    "gauges": _row(            1.0,  1.0, 0, (),          1, 0, True),
    "lock_tick": _row(         3.0,  3.0, 0, (),          1, 0, True),
}  # fmt: skip

# ---- the console and the command line to us, and what they ask of others on the way ------------------------
ADMIN: dict[str, Policy] = {
    "console_peer": _row(  2.0,  2.0, 0, (),         64,  64, True),
    "config_read": _row(   3.0, 10.0, 2, (0.1, 0.2), 64, 256, True),
    "change": _row(       10.0, 10.0, 0, (),         16,  64, False),
    "census": _row(       60.0, 60.0, 0, (),          2,   4, True),
    "transfer": _row(   _DAY_S, _DAY_S, 0, (),       16,  16, False),
    "DEFAULT": _row(       5.0,  5.0, 0, (),         64,  64, False),
}  # fmt: skip

STREAMS = frozenset({"upload", "download"})


def drive_operation_names() -> frozenset[str]:
    """Every verb of node.protocol.verbs, by class name."""
    return frozenset(verb.__name__ for verb in typing.get_args(verbs.Verb))


def assert_tables(peer_methods: Iterable[str]) -> None:
    """AssertionError that names the row, unless every table is complete and its rows fit together.

    `peer_methods` are the names of node.rpc.methods.Method (a layer above this one).
    """
    _assert_keys("PEER_METHODS", PEER_METHODS, frozenset(peer_methods) | STREAMS)
    _assert_keys("DRIVE_OPERATIONS", DRIVE_OPERATIONS, drive_operation_names())
    tables = {
        "PEER_METHODS": PEER_METHODS,
        "DRIVE_OPERATIONS": DRIVE_OPERATIONS,
        "S3_OPERATIONS": S3_OPERATIONS,
        "JOBS": JOBS,
        "ADMIN": ADMIN,
    }
    for table, rows in tables.items():
        for name, row in rows.items():
            _assert_row(f"{table}[{name}]", row)
    shortest_s = min(row.total_s for row in S3_OPERATIONS.values())
    longest_body_s = max(row.total_s for row in S3_OPERATIONS.values())
    for name, row in PEER_METHODS.items():
        ceiling_s = longest_body_s if name in STREAMS else shortest_s
        assert row.total_s < ceiling_s, f"PEER_METHODS[{name}]: outlives the request it serves"
    for name, row in DRIVE_OPERATIONS.items():
        assert row.total_s < shortest_s, f"DRIVE_OPERATIONS[{name}]: outlives the request it serves"
    assert limits.LOCK_LEASE_S >= 3 * limits.LOCK_REFRESH_S, (
        "a lease must survive two lost refreshes"
    )
    assert PEER_METHODS["LOCK"].backoff_s == limits.LOCK_RETRY_DELAYS_S
    assert JOBS["drive_check"].attempt_s == limits.DRIVE_STATE_CHECK_S
    assert limits.SUSPECT_AFTER_S < limits.DEAD_AFTER_S < limits.HEARTBEAT_MAX_LAG_S


def _assert_keys(table: str, rows: Mapping[str, Policy], wanted: frozenset[str]) -> None:
    missing, unknown = wanted - rows.keys(), rows.keys() - wanted
    assert not missing and not unknown, (
        f"{table}: missing {sorted(missing)}, unknown {sorted(unknown)}"
    )


def _assert_row(name: str, row: Policy) -> None:
    assert row.attempt_s > 0 and row.max_running > 0 and row.max_waiting >= 0, f"{name}: bounds"
    assert row.retries >= 0 and len(row.backoff_s) == row.retries, f"{name}: one backoff per retry"
    assert row.retries == 0 or row.idempotent, f"{name}: only an idempotent call is retried"
    needed_s = (1 + row.retries) * row.attempt_s + sum(row.backoff_s)
    assert needed_s <= row.total_s + 1e-9, f"{name}: attempts need {needed_s} s of {row.total_s} s"
