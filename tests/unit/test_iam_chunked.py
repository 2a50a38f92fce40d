"""aws-chunked: the published examples, and every way in which a body may be wrong."""

from __future__ import annotations

import hashlib

import pytest

from iam import sigv4
from iam.canonical import EMPTY_SHA256, date_seconds, sign_string
from iam.chunked import MAX_CHUNK_HEADER_BYTES, MAX_TRAILER_BYTES, ChunkedDecoder
from iam.errors import AuthError
from iam.sigv4 import PayloadKind, RequestParts, Verified

AMZ_DATE = "20130524T000000Z"
SCOPE = "20130524/us-east-1/s3/aws4_request"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
KEY = bytes(range(32))
SEED = "ab" * 32
SIGNED = PayloadKind.STREAMING_SIGNED
SIGNED_TRAILER = PayloadKind.STREAMING_SIGNED_TRAILER
UNSIGNED_TRAILER = PayloadKind.STREAMING_UNSIGNED_TRAILER
CRC = "x-amz-checksum-crc32c"


def encode(
    kind: PayloadKind,
    chunks: list[bytes],
    trailers: dict[str, str] | None = None,
    *,
    key: bytes = KEY,
    seed: str = SEED,
) -> list[bytes]:
    """The body as its frames: one for each chunk, the last chunk, the trailer."""
    frames = []
    previous = seed
    for chunk in [*chunks, b""]:
        header = f"{len(chunk):x}"
        if kind is not UNSIGNED_TRAILER:
            digest = hashlib.sha256(chunk).hexdigest()
            previous = sign_string(
                key,
                f"AWS4-HMAC-SHA256-PAYLOAD\n{AMZ_DATE}\n{SCOPE}\n{previous}\n{EMPTY_SHA256}\n"
                f"{digest}",
            )
            header += f";chunk-signature={previous}"
        frames.append(header.encode() + b"\r\n" + (chunk + b"\r\n" if chunk else b""))
    lines = "".join(f"{name}:{value}\n" for name, value in (trailers or {}).items())
    tail = lines.replace("\n", "\r\n")
    if kind is SIGNED_TRAILER and trailers:
        digest = hashlib.sha256(lines.encode()).hexdigest()
        signature = sign_string(
            key, f"AWS4-HMAC-SHA256-TRAILER\n{AMZ_DATE}\n{SCOPE}\n{previous}\n{digest}"
        )
        tail += f"x-amz-trailer-signature:{signature}\r\n"
    return [*frames, tail.encode() + b"\r\n"]


def decoder(kind: PayloadKind, length: int, trailers: tuple[str, ...] = ()) -> ChunkedDecoder:
    return ChunkedDecoder(kind, KEY, SEED, SCOPE, AMZ_DATE, length, trailers)


def decode(decoding: ChunkedDecoder, body: bytes) -> tuple[bytes, dict[str, str]]:
    payload = b"".join(decoding.feed(body))
    return payload, decoding.finish()


def code_of(decoding: ChunkedDecoder, body: bytes) -> str:
    with pytest.raises(AuthError) as caught:
        decode(decoding, body)
    with pytest.raises(AuthError):
        decoding.finish()
    with pytest.raises(AuthError):
        decoding.feed(b"0\r\n\r\n")
    return caught.value.code


# ---- the published examples ---------------------------------------------------------------------


def published_seed(payload: str, content_length: int, signature: str, more: str) -> Verified:
    headers = {
        "host": "s3.amazonaws.com",
        "x-amz-date": AMZ_DATE,
        "x-amz-storage-class": "REDUCED_REDUNDANCY",
        "x-amz-content-sha256": payload,
        "content-encoding": "aws-chunked",
        "x-amz-decoded-content-length": "66560",
    }
    if more:
        headers["x-amz-trailer"] = more
    else:
        headers["content-length"] = str(content_length)
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/{SCOPE},"
        f"SignedHeaders={';'.join(sorted(headers))},Signature={signature}"
    )
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    parts = RequestParts("PUT", b"/examplebucket/chunkObject.txt", b"", raw)
    auth = sigv4.parse(parts)
    now_s = date_seconds(AMZ_DATE)
    return sigv4.verify(auth, parts, SECRET, now_s=now_s, region="us-east-1")


def test_published_chunked_upload() -> None:
    seed = published_seed(
        SIGNED.value,
        66824,
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
        "",
    )
    body = (
        b"10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"
        b"\r\n" + b"a" * 65536 + b"\r\n"
        b"400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"
        b"\r\n" + b"a" * 1024 + b"\r\n"
        b"0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"
        b"\r\n\r\n"
    )
    assert len(body) == 66824
    decoding = ChunkedDecoder(SIGNED, seed.signing_key, seed.seed_signature, SCOPE, AMZ_DATE, 66560)
    assert decode(decoding, body) == (b"a" * 66560, {})


PUBLISHED_TRAILER = (
    b"10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2"
    b"\r\n" + b"a" * 65536 + b"\r\n"
    b"400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7"
    b"\r\n" + b"a" * 1024 + b"\r\n"
    b"0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n"
    b"x-amz-checksum-crc32c:sOO8/Q==@\r\n"
    b"x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435"
    b"\r\n\r\n"
)


@pytest.mark.parametrize("line_end", [b"", b"\n"], ids=["strict", "as published"])
def test_published_trailer_upload(line_end: bytes) -> None:
    seed = published_seed(
        SIGNED_TRAILER.value,
        0,
        "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
        CRC,
    )
    decoding = ChunkedDecoder(
        SIGNED_TRAILER, seed.signing_key, seed.seed_signature, SCOPE, AMZ_DATE, 66560, [CRC]
    )
    body = PUBLISHED_TRAILER.replace(b"@", line_end)
    assert decode(decoding, body) == (b"a" * 66560, {CRC: "sOO8/Q=="})


def test_the_unsigned_form_as_boto_and_as_minio_clients_send_it() -> None:
    for end in (b"\r\n\r\n", b"\n\r\n\r\n"):
        body = b"4\r\nhell\r\n4\r\no wo\r\n3\r\nrld\r\n0\r\nx-amz-checksum-crc32:DUoRhQ==" + end
        decoding = decoder(UNSIGNED_TRAILER, 11, ("X-Amz-Checksum-Crc32",))
        assert decode(decoding, body) == (b"hello world", {"x-amz-checksum-crc32": "DUoRhQ=="})


# ---- forms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SIGNED, SIGNED_TRAILER, UNSIGNED_TRAILER])
def test_an_empty_object_without_trailers(kind: PayloadKind) -> None:
    assert decode(decoder(kind, 0), b"".join(encode(kind, []))) == (b"", {})


def test_a_large_chunk_is_passed_on_without_a_copy() -> None:
    size = 20 * 1024 * 1024
    data = bytes(size)
    body = memoryview(b"".join(encode(UNSIGNED_TRAILER, [data])))
    slices = decoder(UNSIGNED_TRAILER, size).feed(body)
    assert [len(piece) for piece in slices] == [size]
    assert slices[0].obj is body.obj


def test_progress_is_told() -> None:
    decoding = decoder(UNSIGNED_TRAILER, 3)
    decoding.feed(b"3\r\nab")
    assert decoding.received == 2 and not decoding.done
    decoding.feed(b"c\r\n0\r\n\r\n")
    assert decoding.received == 3 and decoding.done


# ---- the chain ----------------------------------------------------------------------------------

CHUNKS = [b"first chunk", b"second one!", b"third"]
LENGTH = sum(map(len, CHUNKS))


@pytest.mark.parametrize("kind", [SIGNED, SIGNED_TRAILER])
def test_tampered_swapped_repeated_and_missing_chunks(kind: PayloadKind) -> None:
    trailers = {CRC: "AAAAAA=="} if kind is SIGNED_TRAILER else {}
    names = tuple(trailers)
    frames = encode(kind, CHUNKS, trailers)
    assert decode(decoder(kind, LENGTH, names), b"".join(frames)) == (b"".join(CHUNKS), trailers)
    tampered = [frames[0], frames[1].replace(b"second", b"SECOND"), *frames[2:]]
    swapped = [frames[1], frames[0], *frames[2:]]
    repeated = [frames[0], frames[0], *frames[2:]]
    other_seed = encode(kind, CHUNKS, trailers, seed="cd" * 32)
    other_key = encode(kind, CHUNKS, trailers, key=b"k" * 32)
    for wrong in (tampered, swapped, repeated, other_seed, other_key):
        assert code_of(decoder(kind, LENGTH, names), b"".join(wrong)) == "SignatureDoesNotMatch"
    left_out = b"".join(frames[:2] + frames[3:])
    assert code_of(decoder(kind, LENGTH - 5, names), left_out) == "SignatureDoesNotMatch"
    for cut in range(1, len(frames)):
        assert code_of(decoder(kind, LENGTH, names), b"".join(frames[:-cut])) == "IncompleteBody"


def test_an_early_last_chunk_is_incomplete_even_when_unsigned() -> None:
    body = b"".join(encode(UNSIGNED_TRAILER, CHUNKS[:2]))
    assert code_of(decoder(UNSIGNED_TRAILER, LENGTH), body) == "IncompleteBody"


def test_more_than_announced_is_refused_at_the_chunk_header() -> None:
    decoding = decoder(UNSIGNED_TRAILER, 10)
    with pytest.raises(AuthError) as caught:
        decoding.feed(b"b\r\n")
    assert caught.value.code == "IncompleteBody"


def test_a_trailer_signed_by_nobody_is_refused() -> None:
    frames = encode(SIGNED_TRAILER, CHUNKS, {CRC: "AAAAAA=="})
    body = b"".join(frames)
    for wrong in (
        body.replace(b"AAAAAA", b"BBBBBB"),
        body[:-6] + (b"0" if body[-6:-5] != b"0" else b"1") + body[-5:],
        b"".join(frames[:-1]) + f"{CRC}:AAAAAA==\r\n\r\n".encode(),
        body.replace(b"x-amz-trailer-signature:", b"x-amz-trailer-signature:0"),
    ):
        assert code_of(decoder(SIGNED_TRAILER, LENGTH, (CRC,)), wrong) == "SignatureDoesNotMatch"


# ---- framing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"3\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc0\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"-3\r\nabc\r\n0\r\n\r\n",
        b"\r\nabc\r\n0\r\n\r\n",
        b"3;ext=1\r\nabc\r\n0\r\n\r\n",
        b"3;chunk-signature=" + b"a" * 64 + b"\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\r\n\r\nmore",
        b"3\r\nabc\r\nffffffffffffffff\r\n",
        b"3\r\nabc\r\n00000000000000000\r\n\r\n",
        b"1" * (MAX_CHUNK_HEADER_BYTES + 2),
        b"3\r\nabc\r\r",
    ],
)
def test_framing_is_strict(body: bytes) -> None:
    assert code_of(decoder(UNSIGNED_TRAILER, 3), body) == "InvalidRequest"
    byte_wise = decoder(UNSIGNED_TRAILER, 3)
    with pytest.raises(AuthError) as caught:
        for index in range(len(body)):
            byte_wise.feed(body[index : index + 1])
        byte_wise.finish()
    assert caught.value.code == "InvalidRequest"


def test_a_signed_form_needs_a_signature_on_each_chunk() -> None:
    assert code_of(decoder(SIGNED, 3), b"3\r\nabc\r\n0\r\n\r\n") == "InvalidRequest"


@pytest.mark.parametrize(
    "tail",
    [
        b"\r\n",
        b"x-amz-checksum-crc32c AAAA\r\n\r\n",
        b":AAAA\r\n\r\n",
        b"x-amz-checksum-crc32c:AA\x00AA\r\n\r\n",
        b"x-amz-checksum-crc32c:AA\xffAA\r\n\r\n",
        b"x-amz-checksum-crc32c:AA\rAA\r\n\r\n",
        b"x-amz-checksum-crc32c:AAAA\r\nx-amz-checksum-crc32c:AAAA\r\n\r\n",
        b"x-amz-checksum-crc32c:AAAA\r\nx-amz-meta-a:b\r\n\r\n",
        b"x-amz-checksum-crc32c:AAAA\n\n\r\n\r\n",
        b"x-amz-checksum-crc32c:" + b"A" * MAX_TRAILER_BYTES + b"\r\n\r\n",
        b"x-amz-checksum-crc32c:" + b"A" * 3 * MAX_TRAILER_BYTES,
        b"x-amz-checksum-crc32c:AAAA\r\nx-amz-trailer-signature:aa\r\n\r\n",
    ],
)
def test_trailers_are_what_was_announced(tail: bytes) -> None:
    body = b"0\r\n" + tail
    assert code_of(decoder(UNSIGNED_TRAILER, 0, (CRC,)), body) == "MalformedTrailerError"


def test_an_open_trailer_is_incomplete() -> None:
    body = b"0\r\nx-amz-checksum-crc32c:AAAA\r\n"
    assert code_of(decoder(UNSIGNED_TRAILER, 0, (CRC,)), body) == "IncompleteBody"


def test_a_trailer_is_refused_where_the_form_has_none() -> None:
    frames = encode(SIGNED, CHUNKS)
    body = b"".join(frames[:-1]) + b"x-amz-checksum-crc32c:AAAA\r\n\r\n"
    assert code_of(decoder(SIGNED, LENGTH), body) == "InvalidRequest"


def test_wrong_use_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="aws-chunked"):
        decoder(PayloadKind.UNSIGNED, 1)
    with pytest.raises(ValueError, match="negative"):
        decoder(SIGNED, -1)
    with pytest.raises(ValueError, match="signing key"):
        ChunkedDecoder(SIGNED, b"", "", SCOPE, AMZ_DATE, 1)
