"""Locks are counted by class of resource, so that the alerts on identity locks see identity locks."""

from __future__ import annotations

import pytest

from node.identity.vault import DOCUMENT
from node.objects.sets import SYSTEM_BUCKET
from node.objects.write import lock_class
from node.observe.catalog import LOCK_CLASSES


@pytest.mark.parametrize(
    ("bucket", "key", "expected"),
    [
        (SYSTEM_BUCKET, DOCUMENT, "iam"),
        (SYSTEM_BUCKET, "buckets/photos", "bucket"),
        (SYSTEM_BUCKET, "config/region", "config"),
        (SYSTEM_BUCKET, "multipart/photos/cat\0id", "object"),
        (SYSTEM_BUCKET, "part/id/00001", "object"),
        ("photos", "config/iam/directory", "object"),
        ("photos", "cat", "object"),
    ],
)
def test_class_of_a_lock(bucket: str, key: str, expected: str) -> None:
    assert lock_class((bucket, key)) == expected
    assert expected in LOCK_CLASSES
