"""Multipart uploads: create, upload part, complete, abort, and both listings."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

from node import limits
from node.errors import CodedError
from node.objects.api import CompletedPart, UploadListing
from node.s3 import codec, documents
from node.s3 import headers as wire
from node.s3.body import open_body
from node.s3.codec import NAMESPACE, XML_DECLARATION, escape
from node.s3.handlers.listing import common_prefixes, list_query, truncated
from node.s3.handlers.objects import new_object
from node.s3.replies import (
    checksum_elements,
    checksum_headers,
    etag_header,
    owner_element,
)
from node.s3.shapes import Reply, Request, xml_reply


async def create(request: Request) -> Reply:
    algorithm, kind = wire.upload_checksum(request.headers)
    given = new_object(request)
    new = replace(given, checksum_algorithm=algorithm, checksum_type=kind)
    upload = await request.store.create_upload(
        request.bucket, request.key, new, deadline=request.deadline
    )
    reply = xml_reply(
        f'{XML_DECLARATION}<InitiateMultipartUploadResult xmlns="{NAMESPACE}">'
        f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key>"
        f"<UploadId>{escape(upload.upload_id)}</UploadId></InitiateMultipartUploadResult>"
    )
    if algorithm:
        reply.headers.append((b"x-amz-checksum-algorithm", algorithm.encode()))
        reply.headers.append((b"x-amz-checksum-type", kind.encode()))
    return reply


async def upload_part(request: Request) -> Reply:
    assert request.auth is not None
    headers, query = request.headers, request.query
    number = codec.integer(query["partNumber"], "partNumber", 1, limits.MAX_PARTS)
    wire.refuse_unsupported(headers)
    wanted = wire.checksum_algorithm(
        headers.get("x-amz-sdk-checksum-algorithm", ""), "x-amz-sdk-checksum-algorithm"
    )
    body = open_body(
        request.receive,
        headers,
        request.auth.auth,
        request.auth.verification,
        max_bytes=limits.MAX_PART_BYTES,
        wanted_algorithm=wanted,
        into=request.receive_into,
    )
    part = await request.store.upload_part(
        request.bucket,
        request.key,
        query["uploadId"],
        number,
        body,
        deadline=request.deadline,
    )
    found = [header for header in checksum_headers(part.checksums) if header[0][-5:] != b"-type"]
    return Reply(headers=[etag_header(part.etag), *found])


async def complete(request: Request) -> Reply:
    parts = documents.completed_parts(request.document)
    headers, upload_id = request.headers, request.query["uploadId"]
    if "x-amz-mp-object-size" in headers:
        await _check_size(request, upload_id, parts)
    record = await request.store.complete_upload(
        request.bucket,
        request.key,
        upload_id,
        parts,
        checksums=_object_checksums(headers),
        conditions=wire.write_conditions(headers),
        deadline=request.deadline,
    )
    return xml_reply(
        f'{XML_DECLARATION}<CompleteMultipartUploadResult xmlns="{NAMESPACE}">'
        f"<Location>{escape(_location(request))}</Location><Bucket>{request.bucket}</Bucket>"
        f"<Key>{escape(request.key)}</Key><ETag>&quot;{escape(record.etag)}&quot;</ETag>"
        f"{checksum_elements(record.checksums)}</CompleteMultipartUploadResult>"
    )


def _object_checksums(headers: dict[str, str]) -> dict[str, str]:
    """Checksums of the whole object that the client expects; composite ones may carry -parts."""
    found: dict[str, str] = {}
    for header, algorithm in wire.CHECKSUM_HEADERS.items():
        value = headers.get(header)
        if value is None:
            continue
        digest, dash, count = value.partition("-")
        if not wire.valid_checksum(algorithm, digest) or (dash and not count.isdigit()):
            raise CodedError("InvalidRequest", f"Value for {header} header is invalid.")
        found[algorithm] = value
    return found


async def _check_size(request: Request, upload_id: str, parts: tuple[CompletedPart, ...]) -> None:
    """x-amz-mp-object-size: what the listed parts must add up to."""
    expected = codec.integer(
        request.headers["x-amz-mp-object-size"], "x-amz-mp-object-size", 0, limits.MAX_OBJECT_BYTES
    )
    wanted = {part.number for part in parts}
    size = after = 0
    while True:
        page = await request.store.list_parts(
            request.bucket, request.key, upload_id, after=after, deadline=request.deadline
        )
        size += sum(part.size for part in page.parts if part.number in wanted)
        if page.next_number is None:
            break
        after = page.next_number
    if size != expected:
        raise CodedError(
            "InvalidRequest",
            f"The provided 'x-amz-mp-object-size' header value {expected} does not match what was "
            f"computed: {size}",
        )


def _location(request: Request) -> str:
    key = quote(request.key, safe="/")
    path = key if request.virtual_host else f"{request.bucket}/{key}"
    return f"{request.scheme}://{request.host}/{path}"


async def abort(request: Request) -> Reply:
    await request.store.abort_upload(
        request.bucket, request.key, request.query["uploadId"], deadline=request.deadline
    )
    return Reply(status=204)


async def list_parts(request: Request) -> Reply:
    query = request.query
    limit = min(
        codec.integer(query.get("max-parts") or "1000", "max-parts", 0, 2**31 - 1),
        limits.MAX_LIST_KEYS,
    )
    after = codec.integer(
        query.get("part-number-marker") or "0", "part-number-marker", 0, 2**31 - 1
    )
    found = await request.store.list_parts(
        request.bucket,
        request.key,
        query["uploadId"],
        after=after,
        limit=max(1, limit),
        deadline=request.deadline,
    )
    parts = found.parts[:limit]
    more = found.next_number is not None and limit > 0
    upload = found.upload
    iso = codec.iso_date
    rows = "".join(
        [
            f"<Part><PartNumber>{part.number}</PartNumber>"
            f"<LastModified>{iso(part.mtime_ns)}</LastModified>"
            f"<ETag>&quot;{escape(part.etag)}&quot;</ETag><Size>{part.size}</Size>"
            f"{checksum_elements(part.checksums, with_type=False)}</Part>"
            for part in parts
        ]
    )
    checksum = (
        f"<ChecksumAlgorithm>{upload.checksum_algorithm}</ChecksumAlgorithm>"
        f"<ChecksumType>{upload.checksum_type}</ChecksumType>"
        if upload.checksum_algorithm
        else ""
    )
    return xml_reply(
        f'{XML_DECLARATION}<ListPartsResult xmlns="{NAMESPACE}"><Bucket>{request.bucket}</Bucket>'
        f"<Key>{escape(request.key)}</Key><UploadId>{escape(upload.upload_id)}</UploadId>"
        f"<PartNumberMarker>{after}</PartNumberMarker>"
        f"<NextPartNumberMarker>{parts[-1].number if parts else after}</NextPartNumberMarker>"
        f"<MaxParts>{limit}</MaxParts>{truncated(more)}{rows}"
        f"{owner_element(upload.owner, 'Initiator')}{owner_element(upload.owner)}"
        f"<StorageClass>STANDARD</StorageClass>{checksum}</ListPartsResult>"
    )


async def list_uploads(request: Request) -> Reply:
    asked = list_query(request, "max-uploads")
    query = request.query
    key_marker = query.get("key-marker", "")
    upload_marker = query.get("upload-id-marker", "") if key_marker else ""
    if asked.limit == 0:
        await request.store.head_bucket(request.bucket, deadline=request.deadline)
        page = UploadListing(uploads=(), common_prefixes=(), next_key=None, next_upload_id=None)
    else:
        page = await request.store.list_uploads(
            request.bucket,
            prefix=asked.prefix,
            delimiter=asked.delimiter,
            after_key=key_marker,
            after_upload_id=upload_marker,
            limit=asked.limit,
            deadline=request.deadline,
        )
    spell, iso = asked.spell, codec.iso_date
    head = asked.head(request, "KeyMarker", key_marker).replace("<Name>", "<Bucket>", 1)
    head = head.replace("</Name>", "</Bucket>", 1)
    if page.next_key is not None:
        head += f"<NextKeyMarker>{spell(page.next_key)}</NextKeyMarker>"
        head += f"<NextUploadIdMarker>{escape(page.next_upload_id or '')}</NextUploadIdMarker>"
    rows = "".join(
        [
            f"<Upload><Key>{spell(one.key)}</Key><UploadId>{escape(one.upload_id)}</UploadId>"
            f"{owner_element(one.owner, 'Initiator')}{owner_element(one.owner)}"
            "<StorageClass>STANDARD</StorageClass>"
            f"<Initiated>{iso(round(one.initiated_s * 1e9))}</Initiated>"
            + (
                f"<ChecksumAlgorithm>{one.checksum_algorithm}</ChecksumAlgorithm>"
                f"<ChecksumType>{one.checksum_type}</ChecksumType>"
                if one.checksum_algorithm
                else ""
            )
            + "</Upload>"
            for one in page.uploads
        ]
    )
    return xml_reply(
        f'{XML_DECLARATION}<ListMultipartUploadsResult xmlns="{NAMESPACE}">{head}'
        f"<UploadIdMarker>{escape(upload_marker)}</UploadIdMarker><MaxUploads>{asked.limit}</MaxUploads>"
        f"{truncated(page.next_key is not None)}{rows}"
        f"{common_prefixes(page.common_prefixes, spell)}</ListMultipartUploadsResult>"
    )
