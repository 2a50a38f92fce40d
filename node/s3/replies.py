"""Headers and fragments that several replies share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

from node.errors import CodedError
from node.protocol.record import Record
from node.s3 import codec
from node.s3.shapes import Request

Headers = list[tuple[bytes, bytes]]

_OVERRIDES = (
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
)
# As S3 spells them; anything else goes out as it was stored.
_SPELLED = {
    "content-type": b"Content-Type",
    "cache-control": b"Cache-Control",
    "content-disposition": b"Content-Disposition",
    "content-encoding": b"Content-Encoding",
    "content-language": b"Content-Language",
    "expires": b"Expires",
}


def text_header(name: bytes, value: str) -> tuple[bytes, bytes]:
    """A header from stored or client-given text: what HTTP cannot carry is left out."""
    clean = value if value.isprintable() else "".join(c for c in value if c >= " " and c != "\x7f")
    try:
        return name, clean.encode("latin-1")
    except UnicodeEncodeError:
        return name, clean.encode("utf-8")


def etag_header(etag: str) -> tuple[bytes, bytes]:
    return b"ETag", f'"{etag}"'.encode("latin-1")


def last_modified(mtime_ns: int) -> tuple[bytes, bytes]:
    return b"Last-Modified", codec.http_date(mtime_ns // 1_000_000_000).encode("ascii")


def checksum_headers(checksums: Mapping[str, str]) -> Headers:
    """x-amz-checksum-* and the type; a composite value carries -parts."""
    found: Headers = []
    for algorithm, value in checksums.items():
        found.append((f"x-amz-checksum-{algorithm.lower()}".encode(), value.encode("latin-1")))
    if checksums:
        found.append((b"x-amz-checksum-type", checksum_type(checksums).encode()))
    return found


def checksum_type(checksums: Mapping[str, str]) -> str:
    return "COMPOSITE" if any("-" in value for value in checksums.values()) else "FULL_OBJECT"


def checksum_elements(checksums: Mapping[str, str], *, with_type: bool = True) -> str:
    text = "".join(
        f"<Checksum{name}>{codec.escape(value)}</Checksum{name}>"
        for name, value in checksums.items()
    )
    if checksums and with_type:
        text += f"<ChecksumType>{checksum_type(checksums)}</ChecksumType>"
    return text


def object_headers(request: Request, record: Record) -> Headers:
    """What GET and HEAD say about an object, without its length and checksums."""
    found: Headers = [
        last_modified(record.mtime_ns),
        etag_header(record.etag),
        (b"Accept-Ranges", b"bytes"),
    ]
    stored = record.headers
    if "response-" in "".join(request.query):
        stored = {**stored, **_overrides(request)}
    found.extend(
        text_header(_SPELLED.get(name, name.encode("latin-1")), value)
        for name, value in stored.items()
    )
    if "content-type" not in stored:
        found.append((b"Content-Type", b"binary/octet-stream"))
    found.extend(
        text_header(b"x-amz-meta-" + name.encode("latin-1", "replace"), value)
        for name, value in record.metadata.items()
    )
    if record.tags:
        found.append((b"x-amz-tagging-count", str(len(record.tags)).encode()))
    return found


def _overrides(request: Request) -> dict[str, str]:
    assert request.caller is not None
    found = {
        name: request.query[f"response-{name}"]
        for name in _OVERRIDES
        if f"response-{name}" in request.query
    }
    if found and request.caller.anonymous:
        raise CodedError(
            "InvalidRequest",
            "Request specific response headers cannot be used for anonymous GET requests.",
        )
    return found


@lru_cache(maxsize=1024)
def owner_id(owner: str) -> str:
    """S3's canonical user id has 64 hex digits; ours is the digest of the owner's name."""
    return hashlib.sha256(b"holdfast-owner:" + owner.encode()).hexdigest()


@lru_cache(maxsize=1024)
def owner_element(owner: str, tag: str = "Owner") -> str:
    return (
        f"<{tag}><ID>{owner_id(owner)}</ID><DisplayName>{codec.escape(owner)}</DisplayName></{tag}>"
    )


def check_version(version_id: str | None) -> None:
    """Buckets are never versioned here: the null version is the only one."""
    if version_id is None or version_id == "null":
        return
    if not version_id:
        raise CodedError(
            "InvalidArgument", "Version id cannot be the empty string", ArgumentName="versionId"
        )
    raise CodedError(
        "NoSuchVersion",
        "The specified version does not exist.",
        VersionId=version_id[:100],
    )
