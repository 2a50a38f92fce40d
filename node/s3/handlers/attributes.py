"""What is said about an object without its bytes: GetObjectAttributes, GetObjectTagging."""

from __future__ import annotations

from node import limits
from node.errors import CodedError, NoSuchKey
from node.protocol.record import Record
from node.s3 import codec
from node.s3.codec import NAMESPACE, XML_DECLARATION, escape
from node.s3.handlers.objects import reveal_missing
from node.s3.replies import check_version, checksum_elements, last_modified
from node.s3.shapes import Reply, Request, xml_reply

_KNOWN = ("ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize")


async def _head(request: Request) -> Record:
    check_version(request.query.get("versionId"))
    try:
        return await request.store.head(request.bucket, request.key, deadline=request.deadline)
    except NoSuchKey:
        reveal_missing(request)
        raise


async def get_attributes(request: Request) -> Reply:
    request.allow("s3:GetObject", request.bucket, request.key)
    wanted = [
        name
        for item in request.headers.get("x-amz-object-attributes", "").split(",")
        if (name := item.strip())
    ]
    if not wanted or any(name not in _KNOWN for name in wanted):
        raise CodedError(
            "InvalidArgument",
            "Invalid attribute name specified."
            if wanted
            else "The x-amz-object-attributes header specifying the attributes to be retrieved is "
            "either missing or empty",
            ArgumentName="x-amz-object-attributes",
        )
    record = await _head(request)
    text = ""
    if "ETag" in wanted:
        text += f"<ETag>{escape(record.etag)}</ETag>"
    if "Checksum" in wanted and record.checksums:
        text += f"<Checksum>{checksum_elements(record.checksums)}</Checksum>"
    if "ObjectParts" in wanted and "-" in record.etag:
        text += _parts(request, record)
    if "StorageClass" in wanted:
        text += "<StorageClass>STANDARD</StorageClass>"
    if "ObjectSize" in wanted:
        text += f"<ObjectSize>{record.size}</ObjectSize>"
    reply = xml_reply(
        f'{XML_DECLARATION}<GetObjectAttributesResponse xmlns="{NAMESPACE}">{text}'
        "</GetObjectAttributesResponse>"
    )
    reply.headers.append(last_modified(record.mtime_ns))
    return reply


def _parts(request: Request, record: Record) -> str:
    headers = request.headers
    limit = min(
        codec.integer(headers.get("x-amz-max-parts", "1000"), "max-parts", 0, 2**31 - 1),
        limits.MAX_LIST_KEYS,
    )
    after = codec.integer(
        headers.get("x-amz-part-number-marker", "0"), "part-number-marker", 0, 2**31 - 1
    )
    left = [part for part in record.parts if part.number > after]
    page = left[:limit]
    text = (
        f"<PartsCount>{len(record.parts)}</PartsCount><PartNumberMarker>{after}</PartNumberMarker>"
        f"<NextPartNumberMarker>{page[-1].number if page else after}</NextPartNumberMarker>"
        f"<MaxParts>{limit}</MaxParts><IsTruncated>{str(len(left) > limit).lower()}</IsTruncated>"
    )
    # As S3 has it, single parts are told only where they have checksums.
    text += "".join(
        f"<Part><PartNumber>{part.number}</PartNumber><Size>{part.size}</Size>"
        f"{checksum_elements(part.checksums, with_type=False)}</Part>"
        for part in page
        if part.checksums
    )
    return f"<ObjectParts>{text}</ObjectParts>"


async def get_tagging(request: Request) -> Reply:
    record = await _head(request)
    tags = "".join(
        f"<Tag><Key>{escape(name)}</Key><Value>{escape(value)}</Value></Tag>"
        for name, value in sorted(record.tags.items())
    )
    return xml_reply(
        f'{XML_DECLARATION}<Tagging xmlns="{NAMESPACE}"><TagSet>{tags}</TagSet></Tagging>'
    )
