"""Laws of the S3 face's pure parts: what is written reads back, and no input raises anything but an S3 error."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import zlib
from base64 import b64encode
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iam.sigv4 import Authentication, AuthKind, PayloadKind
from node.errors import ClientError, CodedError
from node.objects.api import ByteRange
from node.s3 import codec, documents, routing
from node.s3 import headers as wire
from node.s3.body import open_body
from node.s3.operations import IMPLEMENTED, OPERATIONS
from node.s3.shapes import Operation, Request

KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
# What XML 1.0 can hold at all; S3 writes the rest as references that lenient parsers take.
XML_TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff")
    | st.sampled_from("\t\n\r")
)


# ---- values -------------------------------------------------------------------------------------------


@given(KEYS)
def test_list_tokens_read_back(key: str) -> None:
    assert codec.parse_list_token(codec.list_token(key)) == key


@given(st.text())
def test_foreign_tokens_are_refused_or_harmless(token: str) -> None:
    try:
        assert isinstance(codec.parse_list_token(token), str)
    except CodedError as error:
        assert error.code == "InvalidArgument"


@given(KEYS)
def test_percent_encoding_reads_back(key: str) -> None:
    assert codec.percent_decode(codec.percent_encode(key).encode()) == key


@given(XML_TEXT)
def test_escaped_text_reads_back(text: str) -> None:
    element = ElementTree.fromstring(f"<a>{codec.escape(text)}</a>")
    assert (element.text or "") == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_escaping_leaves_no_markup_and_no_control(text: str) -> None:
    escaped = codec.escape(text)
    assert not any(c in escaped for c in "<>\"'") and not any(c < " " for c in escaped)


@given(st.integers(0, 4_000_000_000))
def test_http_dates_read_back(second: int) -> None:
    assert codec.parse_http_date(codec.http_date(second)) == second


@given(KEYS, st.sampled_from(["", "/"]))
def test_copy_sources_read_back(key: str, slash: str) -> None:
    text = slash + "bucket/" + quote(key, safe="/")
    assert wire.copy_source(text) == ("bucket", key, "")
    assert wire.copy_source(text + "?versionId=null") == ("bucket", key, "null")


@given(st.text())
def test_odd_header_values_raise_only_client_errors(text: str) -> None:
    for read in (
        lambda: wire.byte_range(text),
        lambda: wire.copy_range(text),
        lambda: wire.copy_source(text),
        lambda: wire.tagging(text),
        lambda: codec.parse_http_date(text),
        lambda: codec.integer(text, "n", 0, 10),
        lambda: wire.conditions({"if-match": text, "if-modified-since": text}),
        lambda: wire.claimed_checksums({"x-amz-checksum-crc32": text}),
        lambda: wire.upload_checksum({"x-amz-checksum-algorithm": text}),
    ):
        with contextlib.suppress(ClientError):
            read()


# ---- ranges -------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(0, 80), st.integers(0, 80))
def test_ranges_are_slices(size: int, first: int, last: int) -> None:
    data = bytes(range(size))
    for wanted, slice_ in (
        (f"bytes={first}-{last}", data[first : last + 1] if last >= first else None),
        (f"bytes={first}-", data[first:]),
        (f"bytes=-{last}", data[-last:] if last else b""),
    ):
        found = wire.byte_range(wanted)
        if slice_ is None:
            assert found is None
            continue
        assert isinstance(found, ByteRange)
        if not slice_:
            with pytest.raises(CodedError):
                wire.resolve_range(found, size)
            continue
        start, end = wire.resolve_range(found, size)
        assert data[start:end] == slice_


# ---- documents ----------------------------------------------------------------------------------------


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "replace")))
def test_no_document_breaks_the_reader(data: bytes) -> None:
    for read in (
        documents.delete_entries,
        documents.completed_parts,
        documents.location_constraint,
    ):
        try:
            read(data)
        except CodedError as error:
            assert error.code in ("MalformedXML", "InvalidArgument")


@given(st.lists(XML_TEXT.filter(lambda key: bool(key)), min_size=1, max_size=20), st.booleans())
def test_delete_documents_read_back(keys: list[str], quiet: bool) -> None:
    text = "".join(f"<Object><Key>{codec.escape(key)}</Key></Object>" for key in keys)
    flag = "<Quiet>true</Quiet>" if quiet else ""
    got_quiet, entries = documents.delete_entries(
        f'<Delete xmlns="{codec.NAMESPACE}">{text}{flag}</Delete>'.encode()
    )
    assert (got_quiet, [entry.key for entry in entries]) == (quiet, keys)


# ---- routing ------------------------------------------------------------------------------------------

ROUTER = routing.Router(OPERATIONS, "s3.example")


def routed(
    method: str, path: str, query: str = "", headers: tuple[tuple[bytes, bytes], ...] = ()
) -> tuple[Operation, Request]:
    request = Request(
        method=method,
        raw_path=path.encode(),
        raw_query=query.encode(),
        header_list=[(b"host", b"h"), *headers],
        receive=_nothing,
        services=None,  # type: ignore[arg-type]
        request_id="",
        client_ip="",
        scheme="http",
    )
    return ROUTER.route(request), request


async def _nothing() -> dict[str, Any]:
    raise AssertionError("routing reads no body")


PATHS = {"service": "/", "bucket": "/some-bucket", "object": "/some-bucket/k"}


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_every_row_is_reached_by_its_own_keys(row: Operation) -> None:
    query = "&".join(item if "=" in item else f"{item}=" for item in row.query)
    headers = tuple((name.encode(), b"x") for name in row.headers)
    found, _ = routed(row.method, PATHS[row.level], query, headers)
    assert found is row


@given(st.sampled_from(IMPLEMENTED), st.text(st.characters(codec="ascii"), min_size=1))
def test_an_unknown_bare_key_reaches_nothing(row: Operation, name: str) -> None:
    known = set().union(*(other.required_keys | other.optional for other in OPERATIONS))
    if name in known or name.lower().startswith("x-"):
        return
    query = "&".join([*row.query, quote(name, safe="")])
    with pytest.raises(CodedError) as error:
        routed(row.method, PATHS[row.level], query, tuple((h.encode(), b"x") for h in row.headers))
    assert error.value.code == "NotImplemented"


@given(KEYS)
def test_keys_come_through_routing_unchanged(key: str) -> None:
    encoded = "/some-bucket/" + quote(key, safe="/")
    if len(key.encode()) > 1024:
        with pytest.raises(CodedError):
            routed("GET", encoded)
        return
    found, request = routed("GET", encoded)
    assert (found.name, request.bucket, request.key) == ("GetObject", "some-bucket", key)
    virtual = ((b"host", b"some-bucket.S3.example:9000"),)
    request.header_list[:] = list(virtual)
    request.raw_path = ("/" + quote(key, safe="/")).encode()
    assert ROUTER.route(request).name == "GetObject"
    assert (request.bucket, request.key) == ("some-bucket", key)


@given(st.text(max_size=70))
def test_bucket_names_hold_nothing_that_could_lead_elsewhere(name: str) -> None:
    if routing.is_bucket_name(name):
        assert 3 <= len(name) <= 63
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
        assert name[0] not in ".-" and name not in routing.RESERVED_BUCKETS


# ---- bodies -------------------------------------------------------------------------------------------


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def _receive(pieces: list[bytes]) -> Any:
    left = list(pieces)

    async def receive() -> dict[str, Any]:
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    return receive


@given(
    st.binary(max_size=400),
    st.lists(st.integers(0, 60), max_size=12),
    st.integers(1, 90),
    st.integers(1, 70),
    st.booleans(),
)
def test_bodies_survive_every_cut(
    data: bytes, cuts: list[int], view_size: int, chunk_size: int, framed: bool
) -> None:
    crc = b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    headers = {"content-length": str(len(data)), "x-amz-checksum-crc32": crc}
    payload, raw = PayloadKind.UNSIGNED, data
    if framed:
        payload = PayloadKind.STREAMING_UNSIGNED_TRAILER
        chunks = [data[n : n + chunk_size] for n in range(0, len(data), chunk_size)]
        raw = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        raw += f"0\r\nx-amz-checksum-crc32:{crc}\r\n\r\n".encode()
        headers = {
            "x-amz-decoded-content-length": str(len(data)),
            "x-amz-trailer": "x-amz-checksum-crc32",
        }
    auth = Authentication(kind=AuthKind.ANONYMOUS, payload=payload)

    async def read() -> tuple[bytes, Any]:
        body = open_body(_receive(_cut(raw, cuts)), headers, auth, None, max_bytes=1000)
        found = b""
        while True:
            view = memoryview(bytearray(view_size))
            count = await body.readinto(view)
            body.digest(view[:count])
            found += view[:count]
            if count < view_size:
                return found, await body.finish()

    found, result = asyncio.run(read())
    assert found == data
    assert result.md5_hex == hashlib.md5(data).hexdigest()
    assert result.checksums == {"CRC32": crc}
