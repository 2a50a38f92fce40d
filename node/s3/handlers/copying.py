"""Copies: of an object, and of a range into a part."""

from __future__ import annotations

from dataclasses import replace

from node import limits
from node.errors import CodedError, NoSuchKey
from node.objects.api import Conditions, NewObject
from node.s3 import codec, routing
from node.s3 import headers as wire
from node.s3.codec import NAMESPACE, XML_DECLARATION, escape
from node.s3.handlers.objects import new_object
from node.s3.replies import check_version, checksum_elements
from node.s3.shapes import Reply, Request, xml_reply

_SOURCE = "x-amz-copy-source-"


def _source(request: Request) -> tuple[str, str]:
    """The source's bucket and key, once the caller may read it."""
    bucket, key, version = wire.copy_source(request.headers["x-amz-copy-source"])
    routing.check_bucket_name(bucket)
    routing.check_key(key)
    request.allow("s3:GetObjectVersion" if version else "s3:GetObject", bucket, key)
    if version:
        check_version(version)
    return bucket, key


def _directive(request: Request, header: str) -> bool:
    """True for REPLACE."""
    value = request.headers.get(header, "COPY").upper()
    if value not in ("COPY", "REPLACE"):
        raise CodedError(
            "InvalidArgument", f"Unknown {header.removeprefix('x-amz-')}.", ArgumentName=header
        )
    return value == "REPLACE"


async def copy_object(request: Request) -> Reply:
    source_bucket, source_key = _source(request)
    wire.refuse_unsupported(request.headers)
    replace_metadata = _directive(request, "x-amz-metadata-directive")
    replace_tags = _directive(request, "x-amz-tagging-directive")
    same = (source_bucket, source_key) == (request.bucket, request.key)
    if same and not replace_metadata and not replace_tags:
        raise CodedError(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself without "
            "changing the object's metadata, storage class, website redirect location or encryption "
            "attributes.",
        )
    conditions = wire.conditions(request.headers, _SOURCE)
    new = None
    try:
        if replace_metadata or replace_tags:
            new, conditions = await _described(
                request, source_bucket, source_key, conditions, replace_metadata, replace_tags
            )
        record = await request.store.copy(
            source_bucket,
            source_key,
            request.bucket,
            request.key,
            new,
            source_conditions=conditions,
            conditions=wire.write_conditions(request.headers),
            deadline=request.deadline,
        )
    except NoSuchKey:
        request.allow("s3:ListBucket", source_bucket)
        raise
    return xml_reply(
        f'{XML_DECLARATION}<CopyObjectResult xmlns="{NAMESPACE}">'
        f"<LastModified>{codec.iso_date(record.mtime_ns)}</LastModified>"
        f"<ETag>&quot;{escape(record.etag)}&quot;</ETag>{checksum_elements(record.checksums)}"
        "</CopyObjectResult>"
    )


async def _described(
    request: Request,
    bucket: str,
    key: str,
    conditions: Conditions,
    replace_metadata: bool,
    replace_tags: bool,
) -> tuple[NewObject, Conditions]:
    """The copy's description. What stays is read from the source, which must not change until the copy."""
    given = new_object(request)
    if replace_metadata and replace_tags:
        return given, conditions
    record = await request.store.head(
        bucket, key, conditions=_checkable(conditions), deadline=request.deadline
    )
    if replace_metadata:
        new = replace(given, tags=dict(record.tags))
    else:
        new = replace(given, headers=dict(record.headers), metadata=dict(record.metadata))
    return new, replace(conditions, if_match=(record.etag,))


def _checkable(conditions: Conditions) -> Conditions:
    """The conditions that a plain look at the source can check; the copy checks them all."""
    return Conditions(if_match=conditions.if_match)


async def copy_part(request: Request) -> Reply:
    query = request.query
    number = codec.integer(query["partNumber"], "partNumber", 1, limits.MAX_PARTS)
    bucket, key = _source(request)
    text = request.headers.get("x-amz-copy-source-range")
    conditions = wire.conditions(request.headers, _SOURCE)
    try:
        part = await request.store.copy_part(
            bucket,
            key,
            wire.copy_range(text) if text else None,
            request.bucket,
            request.key,
            query["uploadId"],
            number,
            source_conditions=conditions,
            deadline=request.deadline,
        )
    except NoSuchKey:
        request.allow("s3:ListBucket", bucket)
        raise
    return xml_reply(
        f'{XML_DECLARATION}<CopyPartResult xmlns="{NAMESPACE}">'
        f"<LastModified>{codec.iso_date(part.mtime_ns)}</LastModified>"
        f"<ETag>&quot;{escape(part.etag)}&quot;</ETag>"
        f"{checksum_elements(part.checksums, with_type=False)}</CopyPartResult>"
    )
