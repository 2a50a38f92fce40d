"""The tables are complete, and a table that is not is refused at start."""

from __future__ import annotations

import dataclasses

import pytest

from node.guard import policy as tables
from node.guard.policy import (
    ADMIN,
    DRIVE_OPERATIONS,
    JOBS,
    PEER_METHODS,
    S3_OPERATIONS,
    assert_tables,
)
from node.rpc.methods import Method

METHODS = [method.name for method in Method]

# s3.md, the operations that exist from the first version on.
S3 = [
    "ListBuckets",
    "CreateBucket",
    "HeadBucket",
    "DeleteBucket",
    "GetBucketLocation",
    "PutObject",
    "GetObject",
    "HeadObject",
    "DeleteObject",
    "DeleteObjects",
    "CopyObject",
    "ListObjects",
    "ListObjectsV2",
    "GetObjectAttributes",
    "CreateMultipartUpload",
    "UploadPart",
    "UploadPartCopy",
    "CompleteMultipartUpload",
    "AbortMultipartUpload",
    "ListMultipartUploads",
    "ListParts",
    "DEFAULT",
]


def test_the_tables_hold() -> None:
    assert_tables(METHODS)
    assert set(S3) <= S3_OPERATIONS.keys()
    assert "DEFAULT" in ADMIN and "console_peer" in ADMIN


def test_the_promised_bounds_are_in_the_rows() -> None:
    assert JOBS["drive_check"].attempt_s == 3.0 and JOBS["drive_check"].retries == 0
    refresh = JOBS["identity_refresh"]
    assert (refresh.attempt_s, refresh.total_s, refresh.retries) == (3.0, 10.0, 2)
    lock = PEER_METHODS["LOCK"]
    assert (lock.attempt_s, lock.total_s, lock.backoff_s) == (1.0, 5.0, (0.1, 0.2, 0.4))
    assert ADMIN["console_peer"].total_s == 2.0
    assert PEER_METHODS["upload"].attempt_s == PEER_METHODS["download"].attempt_s == 3.0


def test_a_method_without_a_row_is_an_error_at_start() -> None:
    with pytest.raises(AssertionError, match=r"PEER_METHODS: missing \['NOVEL'\]"):
        assert_tables([*METHODS, "NOVEL"])
    with pytest.raises(AssertionError, match=r"unknown \['COMMIT'\]"):
        assert_tables([name for name in METHODS if name != "COMMIT"])


def test_a_verb_without_a_row_is_an_error_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(DRIVE_OPERATIONS, "Commit")
    with pytest.raises(AssertionError, match=r"DRIVE_OPERATIONS: missing \['Commit'\]"):
        assert_tables(METHODS)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"retries": 5, "backoff_s": (0.1,) * 5}, "attempts need"),
        ({"retries": 1, "backoff_s": ()}, "one backoff per retry"),
        ({"retries": 1, "backoff_s": (0.1,), "idempotent": False}, "only an idempotent"),
        ({"total_s": 60.0}, "outlives the request"),
        ({"max_running": 0}, "bounds"),
    ],
)
def test_rows_that_do_not_fit_together_are_errors_at_start(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], complaint: str
) -> None:
    row = dataclasses.replace(PEER_METHODS["COMMIT"], **changes)  # type: ignore[arg-type]
    monkeypatch.setitem(tables.PEER_METHODS, "COMMIT", row)
    with pytest.raises(AssertionError, match=complaint):
        assert_tables(METHODS)
