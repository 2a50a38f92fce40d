"""XML documents that clients send. DOCTYPE is refused; size, depth and number of elements are capped."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from node import limits
from node.errors import CodedError
from node.objects.api import CompletedPart
from node.s3 import codec
from node.s3 import headers as wire


class _TooLarge(ValueError):
    """More elements, or deeper ones, than any S3 document has."""


class _CappedBuilder(TreeBuilder):
    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._depth = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        self._count += 1
        self._depth += 1
        if self._count > limits.MAX_XML_ELEMENTS or self._depth > limits.MAX_XML_DEPTH:
            raise _TooLarge
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        self._depth -= 1
        return super().end(tag)


def malformed(message: str = "") -> CodedError:
    return CodedError(
        "MalformedXML",
        message
        or "The XML you provided was not well-formed or did not validate against our published schema",
    )


def parse(data: bytes, root: str) -> Element:
    """The document's root element, which must be `root`. Raises MalformedXML."""
    parser = DefusedXMLParser(
        target=_CappedBuilder(), forbid_dtd=True, forbid_entities=True, forbid_external=True
    )
    try:
        parser.feed(data)
        element: Element = parser.close()
    except (ParseError, DefusedXmlException, _TooLarge, ValueError, LookupError):
        raise malformed() from None
    if _local(element.tag) != root:
        raise malformed()
    return element


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _children(element: Element, name: str) -> Iterator[Element]:
    return (child for child in element if _local(child.tag) == name)


def _fields(element: Element) -> dict[str, str]:
    """Text of the children by name; a name that comes twice is malformed."""
    found: dict[str, str] = {}
    for child in element:
        name = _local(child.tag)
        if name in found:
            raise malformed()
        found[name] = child.text or ""
    return found


def location_constraint(data: bytes) -> str:
    """CreateBucketConfiguration; "" when none is asked for."""
    if not data.strip():
        return ""
    fields = _fields(parse(data, "CreateBucketConfiguration"))
    for name in ("Location", "Bucket"):
        if name in fields:
            raise CodedError("NotImplemented", "Directory buckets are not implemented")
    return fields.get("LocationConstraint", "").strip()


class DeleteEntry:
    __slots__ = ("etag", "key", "version_id")

    def __init__(self, key: str, version_id: str, etag: str) -> None:
        self.key = key
        self.version_id = version_id
        self.etag = etag


def delete_entries(data: bytes) -> tuple[bool, list[DeleteEntry]]:
    """(quiet, entries) of a Delete document of 1 to 1,000 keys."""
    root = parse(data, "Delete")
    quiet = any((child.text or "").strip().lower() == "true" for child in _children(root, "Quiet"))
    entries = []
    for child in _children(root, "Object"):
        fields = _fields(child)
        key = fields.get("Key", "")
        if not key:
            raise malformed()
        entries.append(
            DeleteEntry(
                key, fields.get("VersionId", "").strip(), codec.strip_etag(fields.get("ETag", ""))
            )
        )
    if not 1 <= len(entries) <= limits.MAX_DELETE_KEYS:
        raise malformed()
    return quiet, entries


def completed_parts(data: bytes) -> tuple[CompletedPart, ...]:
    """The parts of a CompleteMultipartUpload document, in ascending order."""
    root = parse(data, "CompleteMultipartUpload")
    parts: list[CompletedPart] = []
    for child in _children(root, "Part"):
        fields = _fields(child)
        number = codec.integer(
            fields.get("PartNumber", "").strip(), "PartNumber", 1, limits.MAX_PARTS
        )
        if parts and number <= parts[-1].number:
            raise CodedError(
                "InvalidPartOrder",
                "The list of parts was not in ascending order. Parts must be ordered by part number.",
            )
        etag = codec.strip_etag(fields.get("ETag", ""))
        if not etag:
            raise malformed()
        checksums = {
            algorithm: text.strip()
            for algorithm in wire.CHECKSUM_BYTES
            if (text := fields.get(f"Checksum{algorithm}"))
        }
        parts.append(CompletedPart(number=number, etag=etag, checksums=checksums))
    if not parts or len(parts) > limits.MAX_PARTS:
        raise malformed()
    return tuple(parts)
