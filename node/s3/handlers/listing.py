"""Listings of objects: version 1, version 2, and of versions (of which there is one each)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node import limits
from node.errors import CodedError
from node.objects.api import ListedObject, Listing
from node.s3 import codec
from node.s3.codec import NAMESPACE, XML_DECLARATION, escape
from node.s3.replies import owner_element
from node.s3.shapes import Reply, Request, xml_reply


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    """What all listings ask alike. `spell` writes a key as the client wants it."""

    prefix: str
    delimiter: str
    limit: int
    encoded: bool

    @property
    def spell(self) -> Callable[[str], str]:
        return codec.percent_encode if self.encoded else escape

    def head(self, request: Request, after_name: str, after: str) -> str:
        """The elements that repeat the question."""
        spell = self.spell
        text = f"<Name>{request.bucket}</Name><Prefix>{spell(self.prefix)}</Prefix>"
        if after_name:
            text += f"<{after_name}>{spell(after)}</{after_name}>"
        if self.delimiter:
            text += f"<Delimiter>{spell(self.delimiter)}</Delimiter>"
        if self.encoded:
            text += "<EncodingType>url</EncodingType>"
        return text


def list_query(request: Request, limit_name: str = "max-keys") -> ListQuery:
    query = request.query
    encoding = query.get("encoding-type", "")
    if encoding and encoding.lower() != "url":
        raise CodedError(
            "InvalidArgument",
            "Invalid Encoding Method specified in Request",
            ArgumentName="encoding-type",
            ArgumentValue=encoding[:100],
        )
    text = query.get(limit_name) or str(limits.MAX_LIST_KEYS)
    limit = codec.integer(text, limit_name, 0, 2**31 - 1)
    return ListQuery(
        prefix=query.get("prefix", ""),
        delimiter=query.get("delimiter", ""),
        limit=min(limit, limits.MAX_LIST_KEYS),
        encoded=bool(encoding),
    )


async def _page(request: Request, asked: ListQuery, after: str) -> Listing:
    if asked.limit == 0:
        await request.store.head_bucket(request.bucket, deadline=request.deadline)
        return Listing(objects=(), common_prefixes=(), next_after=None)
    return await request.store.list_objects(
        request.bucket,
        prefix=asked.prefix,
        delimiter=asked.delimiter,
        after=after,
        limit=asked.limit,
        deadline=request.deadline,
    )


def _contents(objects: tuple[ListedObject, ...], spell: Callable[[str], str], owner: bool) -> str:
    # Flat on purpose: a page of 1,000 keys is written in a few milliseconds.
    iso = codec.iso_date
    return "".join(
        [
            f"<Contents><Key>{spell(one.key)}</Key><LastModified>{iso(one.mtime_ns)}</LastModified>"
            f"<ETag>&quot;{one.etag}&quot;</ETag><Size>{one.size}</Size>"
            f"{owner_element(one.owner) if owner else ''}<StorageClass>STANDARD</StorageClass></Contents>"
            for one in objects
        ]
    )


def common_prefixes(prefixes: tuple[str, ...], spell: Callable[[str], str]) -> str:
    return "".join(
        [f"<CommonPrefixes><Prefix>{spell(one)}</Prefix></CommonPrefixes>" for one in prefixes]
    )


def truncated(flag: bool) -> str:
    return f"<IsTruncated>{'true' if flag else 'false'}</IsTruncated>"


async def list_objects(request: Request) -> Reply:
    asked = list_query(request)
    marker = request.query.get("marker", "")
    page = await _page(request, asked, marker)
    spell = asked.spell
    next_marker = (
        f"<NextMarker>{spell(page.next_after)}</NextMarker>"
        if page.next_after is not None and asked.delimiter
        else ""
    )
    return xml_reply(
        f'{XML_DECLARATION}<ListBucketResult xmlns="{NAMESPACE}">'
        f"{asked.head(request, 'Marker', marker)}{next_marker}<MaxKeys>{asked.limit}</MaxKeys>"
        f"{truncated(page.next_after is not None)}{_contents(page.objects, spell, True)}"
        f"{common_prefixes(page.common_prefixes, spell)}</ListBucketResult>"
    )


async def list_objects_v2(request: Request) -> Reply:
    asked = list_query(request)
    query = request.query
    start_after = query.get("start-after", "")
    token = query.get("continuation-token")
    after = codec.parse_list_token(token) if token is not None else start_after
    page = await _page(request, asked, after)
    spell = asked.spell
    text = asked.head(request, "StartAfter" if start_after else "", start_after)
    if token is not None:
        text += f"<ContinuationToken>{escape(token)}</ContinuationToken>"
    if page.next_after is not None:
        text += (
            f"<NextContinuationToken>{codec.list_token(page.next_after)}</NextContinuationToken>"
        )
    count = len(page.objects) + len(page.common_prefixes)
    owner = query.get("fetch-owner", "").lower() == "true"
    return xml_reply(
        f'{XML_DECLARATION}<ListBucketResult xmlns="{NAMESPACE}">{text}'
        f"<KeyCount>{count}</KeyCount><MaxKeys>{asked.limit}</MaxKeys>"
        f"{truncated(page.next_after is not None)}{_contents(page.objects, spell, owner)}"
        f"{common_prefixes(page.common_prefixes, spell)}</ListBucketResult>"
    )


async def list_versions(request: Request) -> Reply:
    """Buckets are never versioned: each object is its own latest, null version."""
    asked = list_query(request)
    marker = request.query.get("key-marker", "")
    version_marker = request.query.get("version-id-marker", "")
    if version_marker and not marker:
        raise CodedError(
            "InvalidArgument", "A version-id marker cannot be specified without a key marker."
        )
    page = await _page(request, asked, marker)
    spell, iso = asked.spell, codec.iso_date
    text = asked.head(request, "KeyMarker", marker)
    text += f"<VersionIdMarker>{escape(version_marker)}</VersionIdMarker>"
    if page.next_after is not None:
        text += f"<NextKeyMarker>{spell(page.next_after)}</NextKeyMarker>"
        text += "<NextVersionIdMarker>null</NextVersionIdMarker>"
    versions = "".join(
        [
            f"<Version><Key>{spell(one.key)}</Key><VersionId>null</VersionId><IsLatest>true</IsLatest>"
            f"<LastModified>{iso(one.mtime_ns)}</LastModified><ETag>&quot;{one.etag}&quot;</ETag>"
            f"<Size>{one.size}</Size>{owner_element(one.owner)}"
            "<StorageClass>STANDARD</StorageClass></Version>"
            for one in page.objects
        ]
    )
    return xml_reply(
        f'{XML_DECLARATION}<ListVersionsResult xmlns="{NAMESPACE}">{text}'
        f"<MaxKeys>{asked.limit}</MaxKeys>{truncated(page.next_after is not None)}{versions}"
        f"{common_prefixes(page.common_prefixes, spell)}</ListVersionsResult>"
    )
