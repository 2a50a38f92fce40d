"""Objects: put, get, head, delete, delete many."""

from __future__ import annotations

import asyncio

from iam.errors import AuthError
from node import limits
from node.errors import (
    ClientError,
    CodedError,
    HoldfastError,
    NoSuchKey,
    PreconditionFailed,
)
from node.objects.api import ByteRange, Conditions, NewObject
from node.protocol.record import Record
from node.s3 import codec, documents, errors, routing
from node.s3 import headers as wire
from node.s3.body import open_body
from node.s3.codec import NAMESPACE, XML_DECLARATION, escape
from node.s3.replies import (
    Headers,
    check_version,
    checksum_headers,
    etag_header,
    object_headers,
)
from node.s3.shapes import Reply, Request, xml_reply


def new_object(request: Request) -> NewObject:
    """Headers, metadata and tags that a write gives; tags need a permission of their own."""
    headers = request.headers
    wire.refuse_unsupported(headers)
    tags = wire.tagging(headers["x-amz-tagging"]) if headers.get("x-amz-tagging") else {}
    if tags:
        request.allow("s3:PutObjectTagging", request.bucket, request.key)
    return NewObject(
        headers=wire.stored_headers(headers),
        metadata=wire.metadata(headers),
        tags=tags,
        owner=request.owner,
    )


async def put(request: Request) -> Reply:
    assert request.auth is not None
    headers = request.headers
    new = new_object(request)
    conditions = wire.write_conditions(headers)
    wanted = wire.checksum_algorithm(
        headers.get("x-amz-sdk-checksum-algorithm", ""), "x-amz-sdk-checksum-algorithm"
    )
    body = open_body(
        request.receive,
        headers,
        request.auth.auth,
        request.auth.verification,
        max_bytes=limits.MAX_OBJECT_BYTES,
        wanted_algorithm=wanted,
        into=request.receive_into,
    )
    record = await request.store.put(
        request.bucket,
        request.key,
        body,
        new,
        conditions=conditions,
        deadline=request.deadline,
    )
    return Reply(headers=[etag_header(record.etag), *checksum_headers(record.checksums)])


async def get(request: Request) -> Reply:
    check_version(request.query.get("versionId"))
    byte_range, part_number = _range_and_part(request)
    conditions = wire.conditions(request.headers)
    if byte_range is not None and "if-range" in request.headers:
        byte_range = await _if_range(request, byte_range)
    try:
        reading = await request.store.get(
            request.bucket,
            request.key,
            byte_range=byte_range,
            part_number=part_number,
            conditions=conditions,
            deadline=request.deadline,
        )
    except NoSuchKey:
        reveal_missing(request)
        raise
    try:
        record = reading.record
        length = reading.end - reading.start
        partial = part_number is not None or byte_range is not None
        headers = object_headers(request, record)
        headers.append((b"Content-Length", str(length).encode()))
        if partial and length:
            headers.append(_content_range(reading.start, reading.end, record.size))
        headers.extend(_part_headers(request, record, part_number, partial))
    except BaseException:
        await reading.close()
        raise
    return Reply(status=206 if partial and length else 200, headers=headers, reading=reading)


def _range_and_part(request: Request) -> tuple[ByteRange | None, int | None]:
    text = request.headers.get("range")
    byte_range = wire.byte_range(text) if text else None
    if "partNumber" not in request.query:
        return byte_range, None
    if text:
        raise CodedError(
            "InvalidRequest", "Cannot specify both Range header and partNumber query parameter"
        )
    return None, codec.integer(request.query["partNumber"], "partNumber", 1, limits.MAX_PARTS)


async def _if_range(request: Request, byte_range: ByteRange) -> ByteRange | None:
    """The range if If-Range still holds, else the whole object (RFC 9110, 13.1.5)."""
    text = request.headers["if-range"]
    record = await request.store.head(request.bucket, request.key, deadline=request.deadline)
    if '"' in text:
        same = text.strip() == f'"{record.etag}"'
    else:
        same = codec.parse_http_date(text) == record.mtime_ns // 1_000_000_000
    return byte_range if same else None


def reveal_missing(request: Request) -> None:
    """Only who may list the bucket learns that a key is not there; others get AccessDenied."""
    request.allow("s3:ListBucket", request.bucket)


def _content_range(start: int, end: int, size: int) -> tuple[bytes, bytes]:
    return b"Content-Range", f"bytes {start}-{end - 1}/{size}".encode()


def _part_headers(
    request: Request, record: Record, part_number: int | None, partial: bool
) -> Headers:
    found: Headers = []
    multipart = "-" in record.etag
    if part_number is not None and multipart:
        found.append((b"x-amz-mp-parts-count", str(len(record.parts)).encode()))
    if request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
        if part_number is not None and multipart:
            part = next((part for part in record.parts if part.number == part_number), None)
            found.extend(checksum_headers(part.checksums if part is not None else {}))
        elif part_number is not None or not partial:
            found.extend(checksum_headers(record.checksums))
    return found


async def head(request: Request) -> Reply:
    check_version(request.query.get("versionId"))
    byte_range, part_number = _range_and_part(request)
    try:
        record = await request.store.head(
            request.bucket,
            request.key,
            conditions=wire.conditions(request.headers),
            deadline=request.deadline,
        )
    except NoSuchKey:
        reveal_missing(request)
        raise
    start, end = 0, record.size
    if part_number is not None:
        start, end = part_bounds(record, part_number)
    elif byte_range is not None:
        start, end = wire.resolve_range(byte_range, record.size)
    partial = (part_number is not None or byte_range is not None) and end > start
    headers = object_headers(request, record)
    headers.append((b"Content-Length", str(end - start).encode()))
    if partial:
        headers.append(_content_range(start, end, record.size))
    headers.extend(
        _part_headers(
            request, record, part_number, part_number is not None or byte_range is not None
        )
    )
    return Reply(status=206 if partial else 200, headers=headers)


def part_bounds(record: Record, part_number: int) -> tuple[int, int]:
    """(start, end exclusive) of a part; an object that was put whole has one part."""
    if "-" not in record.etag:
        if part_number == 1:
            return 0, record.size
    else:
        start = 0
        for part in record.parts:
            if part.number == part_number:
                return start, start + part.size
            start += part.size
    raise CodedError(
        "InvalidRange",
        "The requested partnumber is not satisfiable",
        ActualPartCount=str(max(1, len(record.parts))),
    )


async def delete(request: Request) -> Reply:
    check_version(request.query.get("versionId"))
    found = wire.conditions(request.headers)
    await request.store.delete(
        request.bucket,
        request.key,
        conditions=Conditions(if_match=found.if_match),
        deadline=request.deadline,
    )
    return Reply(status=204)


async def delete_many(request: Request) -> Reply:
    """Each key by itself: authorized, deleted, and reported."""
    quiet, entries = documents.delete_entries(request.document)
    await request.store.head_bucket(request.bucket, deadline=request.deadline)
    results: list[str] = [""] * len(entries)
    places = iter(range(len(entries)))

    async def worker() -> None:
        for place in places:  # one iterator for all workers: each takes the next entry
            results[place] = await _delete_one(request, entries[place], quiet)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(limits.DELETES_IN_FLIGHT, len(entries))):
            group.create_task(worker())
    return xml_reply(
        f'{XML_DECLARATION}<DeleteResult xmlns="{NAMESPACE}">{"".join(results)}</DeleteResult>'
    )


async def _delete_one(request: Request, entry: documents.DeleteEntry, quiet: bool) -> str:
    version = f"<VersionId>{escape(entry.version_id)}</VersionId>" if entry.version_id else ""
    name = f"<Key>{escape(entry.key)}</Key>{version}"
    action = "s3:DeleteObjectVersion" if entry.version_id else "s3:DeleteObject"
    try:
        routing.check_key(entry.key)
        request.allow(action, request.bucket, entry.key)
        if entry.version_id:
            check_version(entry.version_id)
        conditions = Conditions(if_match=(entry.etag,) if entry.etag else ())
        await request.store.delete(
            request.bucket, entry.key, conditions=conditions, deadline=request.deadline
        )
    except NoSuchKey:
        if entry.etag:
            return _delete_error(name, PreconditionFailed())
    except (AuthError, ClientError, HoldfastError) as error:
        return _delete_error(name, error)
    return "" if quiet else f"<Deleted>{name}</Deleted>"


def _delete_error(name: str, error: Exception) -> str:
    fault = errors.translate(error)
    return (
        f"<Error>{name}<Code>{fault.code}</Code><Message>{escape(fault.message)}</Message></Error>"
    )
