"""Conditions of RFC 9110 on a record, as S3 applies them."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

from node.errors import NoSuchKey, NotModified, PreconditionFailed
from node.objects.api import Conditions
from node.protocol.record import Record


def check_read(record: Record, conditions: Conditions) -> None:
    """PreconditionFailed or NotModified (If-Match wins over the dates, as in AWS's table)."""
    if not conditions:
        return
    modified_s = record.mtime_ns // 1_000_000_000
    matched = _matches(record, conditions.if_match)
    if conditions.if_match:
        if not matched:
            raise PreconditionFailed()
    elif (
        conditions.if_unmodified_since_s is not None
        and modified_s > conditions.if_unmodified_since_s
    ):
        raise PreconditionFailed()
    if conditions.if_none_match:
        if _matches(record, conditions.if_none_match):
            raise _not_modified(record)
    elif (
        conditions.if_modified_since_s is not None and modified_s <= conditions.if_modified_since_s
    ):
        raise _not_modified(record)


def check_write(record: Record | None, conditions: Conditions) -> None:
    """Conditional writes: If-None-Match: * (create only) and If-Match (replace only this)."""
    if (
        conditions.if_none_match
        and record is not None
        and _matches(record, conditions.if_none_match)
    ):
        raise PreconditionFailed()
    if conditions.if_match:
        if record is None:
            raise NoSuchKey()
        if not _matches(record, conditions.if_match):
            raise PreconditionFailed()


def check_source(record: Record, conditions: Conditions) -> None:
    """x-amz-copy-source-if-*: every failure is a 412."""
    try:
        check_read(record, conditions)
    except NotModified as error:
        raise PreconditionFailed() from error


def _not_modified(record: Record) -> NotModified:
    """With the headers that a 304 carries."""
    modified = format_datetime(
        datetime.fromtimestamp(record.mtime_ns // 1_000_000_000, UTC), usegmt=True
    )
    return NotModified(**{"ETag": f'"{record.etag}"', "Last-Modified": modified})


def _matches(record: Record, etags: tuple[str, ...]) -> bool:
    return "*" in etags or record.etag in etags
