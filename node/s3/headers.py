"""What requests say in headers, as values of the object layer: conditions, ranges, metadata, checksums, copies."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from urllib.parse import unquote_plus

from node import limits
from node.errors import CodedError
from node.objects.api import NO_CONDITIONS, ByteRange, Conditions
from node.s3 import codec

# Algorithm -> digest length in bytes.
CHECKSUM_BYTES = {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8, "SHA1": 20, "SHA256": 32}
CHECKSUM_HEADERS = {f"x-amz-checksum-{name.lower()}": name for name in CHECKSUM_BYTES}
FULL_OBJECT_ONLY = frozenset({"CRC64NVME"})
COMPOSITE_ONLY = frozenset({"SHA1", "SHA256"})

STORED_HEADERS = (
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "x-amz-website-redirect-location",
)
_META = "x-amz-meta-"
_CONDITION_NAMES = {
    prefix: tuple(
        f"{prefix}if-{name}"
        for name in ("match", "none-match", "modified-since", "unmodified-since")
    )
    for prefix in ("", "x-amz-copy-source-")
}
_ACL_FOR_OWNER = frozenset({"private", "bucket-owner-full-control"})


def conditions(headers: Mapping[str, str], prefix: str = "") -> Conditions:
    """The four conditions; `prefix` is "x-amz-copy-source-" for those on a copy's source."""
    match, none_match, modified, unmodified = _CONDITION_NAMES[prefix]
    since, until = headers.get(modified), headers.get(unmodified)
    if since is None and until is None and match not in headers and none_match not in headers:
        return NO_CONDITIONS
    return Conditions(
        if_match=_etags(headers.get(match, "")),
        if_none_match=_etags(headers.get(none_match, "")),
        if_modified_since_s=None if since is None else codec.parse_http_date(since),
        if_unmodified_since_s=None if until is None else codec.parse_http_date(until),
    )


def _etags(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    return tuple(tag for item in text.split(",") if (tag := codec.strip_etag(item)))


def write_conditions(headers: Mapping[str, str]) -> Conditions:
    """Conditions on a write: If-Match with one ETag, or If-None-Match: *."""
    found = conditions(headers)
    if found.if_none_match and found.if_none_match != ("*",):
        raise not_implemented(
            "If-None-Match", "A header you provided implies functionality that is not implemented"
        )
    if len(found.if_match) > 1:
        raise not_implemented("If-Match", "If-Match takes one ETag on a write")
    return Conditions(if_match=found.if_match, if_none_match=found.if_none_match)


def byte_range(text: str) -> ByteRange | None:
    """One range in any of its forms; None for what is to be ignored (malformed, several ranges)."""
    unit, equals, spec = text.partition("=")
    if not equals or unit.strip().lower() != "bytes" or "," in spec:
        return None
    first, dash, last = spec.strip().partition("-")
    first, last = first.strip(), last.strip()
    if not dash or not _digits(first) or not _digits(last) or not (first or last):
        return None
    if not first:
        return ByteRange(first=None, last=int(last))
    if last and int(last) < int(first):
        return None
    return ByteRange(first=int(first), last=int(last) if last else None)


def _digits(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit() and len(text) <= 19)


def copy_range(text: str) -> ByteRange:
    """x-amz-copy-source-range: only bytes=first-last."""
    found = byte_range(text)
    if found is None or found.first is None or found.last is None:
        raise CodedError(
            "InvalidArgument",
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and "
            "last are the zero-based offsets of the first and last bytes to copy",
            ArgumentName="x-amz-copy-source-range",
            ArgumentValue=text[:100],
        )
    return found


def resolve_range(wanted: ByteRange, size: int) -> tuple[int, int]:
    """(start, end exclusive) of a range in `size` bytes; raises InvalidRange."""
    if wanted.first is None:
        start = max(0, size - (wanted.last or 0))
        end = size
        satisfiable = bool(wanted.last) and size > 0
    else:
        start = wanted.first
        end = size if wanted.last is None else min(size, wanted.last + 1)
        satisfiable = start < size
    if not satisfiable:
        raise CodedError(
            "InvalidRange",
            "The requested range is not satisfiable",
            ActualObjectSize=str(size),
        )
    return start, end


def stored_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The representation headers an object keeps. The framing of aws-chunked is never kept."""
    found = {name: headers[name] for name in STORED_HEADERS if headers.get(name)}
    encoding = found.pop("content-encoding", "")
    if encoding:
        kept = [item for part in encoding.split(",") if (item := part.strip()) != "aws-chunked"]
        if any(kept):
            found["content-encoding"] = ",".join(kept)
    found.setdefault("content-type", "binary/octet-stream")
    return found


def metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """User metadata without the prefix; bytes beyond ASCII travel as Latin-1 and back unchanged."""
    found = {name[len(_META) :]: value for name, value in headers.items() if name.startswith(_META)}
    size = sum(len(name) + len(value) for name, value in found.items())
    if size > limits.MAX_METADATA_BYTES:
        raise CodedError(
            "MetadataTooLarge",
            "Your metadata headers exceed the maximum allowed metadata size",
            Size=str(size),
            MaxSizeAllowed=str(limits.MAX_METADATA_BYTES),
        )
    return found


def check_tags(tags: Mapping[str, str]) -> None:
    if len(tags) > limits.MAX_TAGS:
        raise CodedError("InvalidTag", "Object tags cannot be greater than 10")
    for name, value in tags.items():
        if not 1 <= len(name) <= 128 or name.startswith("aws:"):
            raise CodedError("InvalidTag", "The TagKey you have provided is invalid")
        if len(value) > 256:
            raise CodedError("InvalidTag", "The TagValue you have provided is invalid")


def tagging(text: str) -> dict[str, str]:
    """The x-amz-tagging header: URL-encoded pairs."""
    found: dict[str, str] = {}
    for pair in text.split("&"):
        if not pair:
            continue
        raw_name, _, raw_value = pair.partition("=")
        name = unquote_plus(raw_name)
        if name in found:
            raise CodedError("InvalidTag", "Cannot provide multiple Tags with the same key")
        found[name] = unquote_plus(raw_value)
    check_tags(found)
    return found


def claimed_checksums(headers: Mapping[str, str]) -> dict[str, str]:
    """x-amz-checksum-* headers of a body, checked for form: algorithm -> base64."""
    found: dict[str, str] = {}
    for header, algorithm in CHECKSUM_HEADERS.items():
        value = headers.get(header)
        if value is None:
            continue
        if not valid_checksum(algorithm, value):
            raise CodedError("InvalidRequest", f"Value for {header} header is invalid.")
        found[algorithm] = value
    if len(found) > 1:
        raise CodedError(
            "InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple were provided."
        )
    return found


def valid_checksum(algorithm: str, value: str) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == CHECKSUM_BYTES[algorithm]
    except (binascii.Error, ValueError):
        return False


def checksum_algorithm(text: str, header: str) -> str:
    """The name of an algorithm as a client spells it, or "" for none."""
    name = text.upper()
    if name and name not in CHECKSUM_BYTES:
        raise CodedError(
            "InvalidRequest",
            f"Checksum algorithm provided is unsupported ({header}). Please try again with any of the "
            "valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]",
        )
    return name


def upload_checksum(headers: Mapping[str, str]) -> tuple[str, str]:
    """(algorithm, type) that a multipart upload declares; ("", "") for none."""
    algorithm = checksum_algorithm(
        headers.get("x-amz-checksum-algorithm", ""), "x-amz-checksum-algorithm"
    )
    kind = headers.get("x-amz-checksum-type", "").upper()
    if not algorithm:
        if kind:
            raise CodedError(
                "InvalidRequest",
                "The x-amz-checksum-type header can only be used with x-amz-checksum-algorithm.",
            )
        return "", ""
    if not kind:
        kind = "FULL_OBJECT" if algorithm in FULL_OBJECT_ONLY else "COMPOSITE"
    if kind not in ("COMPOSITE", "FULL_OBJECT"):
        raise CodedError("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
    if (kind == "COMPOSITE" and algorithm in FULL_OBJECT_ONLY) or (
        kind == "FULL_OBJECT" and algorithm in COMPOSITE_ONLY
    ):
        raise CodedError(
            "InvalidRequest",
            f"The {kind} checksum type cannot be used with the {algorithm.lower()} checksum algorithm.",
        )
    return algorithm, kind


def refuse_unsupported(headers: Mapping[str, str]) -> None:
    """Headers that ask for what is not done are refused, never ignored."""
    for name in headers:
        if not name.startswith("x-amz-"):
            continue
        if name.startswith("x-amz-server-side-encryption") or name in (
            "x-amz-write-offset-bytes",
            "x-amz-bucket-object-lock-enabled",
        ):
            if headers[name].lower() != "false":
                raise not_implemented(
                    name, "A header you provided implies functionality that is not implemented"
                )
        elif name.startswith("x-amz-object-lock-"):
            raise CodedError("InvalidRequest", "Bucket is missing Object Lock Configuration")
        elif name.startswith("x-amz-grant-") or (
            name == "x-amz-acl" and headers[name] not in _ACL_FOR_OWNER
        ):
            raise CodedError("AccessControlListNotSupported", "The bucket does not allow ACLs")
        elif name == "x-amz-storage-class" and headers[name] != "STANDARD":
            raise CodedError("InvalidStorageClass", "The storage class you specified is not valid")


def not_implemented(name: str, message: str) -> CodedError:
    return CodedError("NotImplemented", message, Header=name)


def copy_source(text: str) -> tuple[str, str, str]:
    """(bucket, key, version id or "") of x-amz-copy-source. '+' is a plus."""
    path, question, query = text.partition("?")
    version = ""
    if question:
        name, _, version = query.partition("=")
        if name != "versionId":
            path, version = text, ""
    if path.startswith("arn:"):
        raise not_implemented("x-amz-copy-source", "Access points are not implemented")
    decoded = codec.percent_decode(path.encode("utf-8", "surrogateescape"))
    bucket, _, key = decoded.removeprefix("/").partition("/")
    if not bucket or not key:
        raise CodedError(
            "InvalidArgument",
            "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
            ArgumentName="x-amz-copy-source",
        )
    return bucket, key, version
