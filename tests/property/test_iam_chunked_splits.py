"""An aws-chunked body means the same however the network cuts it, and no damaged one passes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from iam.chunked import ChunkedDecoder
from iam.errors import AuthError
from iam.sigv4 import PayloadKind
from tests.unit.test_iam_chunked import CRC, SIGNED, decoder, encode

kinds = st.sampled_from(
    [
        PayloadKind.STREAMING_SIGNED,
        PayloadKind.STREAMING_SIGNED_TRAILER,
        PayloadKind.STREAMING_UNSIGNED_TRAILER,
    ]
)
chunk_lists = st.lists(st.binary(min_size=1, max_size=40), max_size=4)


def body_of(kind: PayloadKind, chunks: list[bytes]) -> tuple[bytes, dict[str, str]]:
    trailers = {} if kind is SIGNED else {CRC: "AAAAAA==", "x-amz-checksum-sha1": "b c"}
    return b"".join(encode(kind, chunks, trailers)), trailers


def run(decoding: ChunkedDecoder, body: bytes, cuts: list[int]) -> tuple[bytes, dict[str, str]]:
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    payload = b""
    for start, end in pairwise(edges):
        payload += b"".join(decoding.feed(body[start:end]))
    return payload, decoding.finish()


@given(kinds, chunk_lists, st.lists(st.integers(0, 2000), max_size=30))
def test_any_split_gives_the_same(kind: PayloadKind, chunks: list[bytes], cuts: list[int]) -> None:
    body, trailers = body_of(kind, chunks)
    payload = b"".join(chunks)
    assert run(decoder(kind, len(payload), tuple(trailers)), body, cuts) == (payload, trailers)


@given(kinds, chunk_lists, st.lists(st.integers(0, 2000), max_size=6), st.data())
def test_every_proper_beginning_is_incomplete(
    kind: PayloadKind, chunks: list[bytes], cuts: list[int], data: st.DataObject
) -> None:
    body, trailers = body_of(kind, chunks)
    kept = data.draw(st.integers(0, len(body) - 1))
    decoding = decoder(kind, sum(map(len, chunks)), tuple(trailers))
    try:
        run(decoding, body[:kept], cuts)
    except AuthError as error:
        assert error.code == "IncompleteBody"
    else:
        raise AssertionError("a cut body was accepted")


@given(
    st.sampled_from([PayloadKind.STREAMING_SIGNED, PayloadKind.STREAMING_SIGNED_TRAILER]),
    st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4),
    st.integers(0),
    st.integers(1, 255),
)
def test_no_changed_byte_of_a_signed_body_changes_what_is_accepted(
    kind: PayloadKind, chunks: list[bytes], place: int, flip: int
) -> None:
    body, trailers = body_of(kind, chunks)
    payload = b"".join(chunks)
    damaged = bytearray(body)
    damaged[place % len(body)] ^= flip
    decoding = decoder(kind, len(payload), tuple(trailers))
    try:
        got = run(decoding, bytes(damaged), [])
    except AuthError:
        return
    # Upper case of a size or of a trailer's name: the same meaning in other bytes.
    assert got == (payload, trailers)
    assert bytes(damaged).lower() == body.lower()


@given(st.binary(max_size=300), kinds)
def test_garbage_raises_nothing_but_auth_errors(body: bytes, kind: PayloadKind) -> None:
    try:
        run(decoder(kind, 100), body, [1, 2, 3, 50])
    except AuthError:
        return
    raise AssertionError("garbage was accepted as a body of 100 bytes")
