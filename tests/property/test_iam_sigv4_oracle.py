"""Odd keys, queries and header values: botocore signs, we verify, and a change is noticed."""

from __future__ import annotations

import datetime
from unittest import mock
from urllib.parse import quote, urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from iam import sigv4
from iam.errors import AuthError
from iam.sigv4 import RequestParts

CREDENTIALS = Credentials("AKIDEXAMPLE", "secret/with+odd=signs")
MOMENT = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)
NOW_S = MOMENT.timestamp()

odd_text = st.text(
    st.one_of(
        st.sampled_from("/.+%&=?#~ *'()!;:@$,\"<>\\^`{|}ü\u20ac\U0001f600\n\t"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=24,
)
keys = st.one_of(odd_text, st.sampled_from(["//", "a//b/", "../..", "./x", "a+b", "a%2Fb", "/a"]))
# The names that carry a signature are no business of this test.
names = odd_text.filter(
    lambda name: name and not name.startswith(("X-Amz-", "Signature", "AWSAccessKeyId"))
)
pairs = st.lists(st.tuples(names, odd_text), max_size=4)
# What an HTTP client lets through as a header value.
header_values = st.text(st.sampled_from("ab \t,;=\"'/+%0123"), max_size=20)


def signed_by_botocore(
    key: str, query: list[tuple[str, str]], note: str, presigned: bool
) -> RequestParts:
    url = "http://node:9000/bucket/" + quote(key.encode(), safe="/~")
    if query:
        url += "?" + "&".join(f"{quote(n, safe='-_.~')}={quote(v, safe='-_.~')}" for n, v in query)
    body = {} if presigned else b"x"
    request = AWSRequest("PUT", url, data=body, headers={"x-amz-meta-note": note})
    with mock.patch("botocore.auth.get_current_datetime", lambda: MOMENT):
        if presigned:
            S3SigV4QueryAuth(CREDENTIALS, "s3", "eu-west-3", expires=600).add_auth(request)
        else:
            S3SigV4Auth(CREDENTIALS, "s3", "eu-west-3").add_auth(request)
    split = urlsplit(request.url)
    headers = [(k.lower().encode(), v.encode()) for k, v in request.headers.items()]
    headers.append((b"host", b"node:9000"))
    return RequestParts("PUT", split.path.encode(), split.query.encode(), headers)


def verify(parts: RequestParts) -> None:
    sigv4.verify(sigv4.parse(parts), parts, CREDENTIALS.secret_key, now_s=NOW_S, region="eu-west-3")


@given(keys, pairs, header_values, st.booleans())
def test_what_botocore_signs_is_accepted(
    key: str, query: list[tuple[str, str]], note: str, presigned: bool
) -> None:
    verify(signed_by_botocore(key, query, note, presigned))


@given(keys, keys, pairs, st.booleans())
def test_another_key_under_the_same_signature_is_refused(
    key: str, other: str, query: list[tuple[str, str]], presigned: bool
) -> None:
    if key == other:
        return
    parts = signed_by_botocore(key, query, "n", presigned)
    path = b"/bucket/" + quote(other.encode(), safe="/~").encode()
    with pytest.raises(AuthError) as caught:
        verify(RequestParts(parts.method, path, parts.raw_query, parts.headers))
    assert caught.value.code == "SignatureDoesNotMatch"


@given(keys, pairs, header_values)
def test_a_path_encoded_another_way_is_the_same_request(
    key: str, query: list[tuple[str, str]], note: str
) -> None:
    parts = signed_by_botocore(key, query, note, False)
    path = b"/bucket/" + "".join(f"%{byte:02x}" for byte in key.encode()).encode()
    verify(RequestParts(parts.method, path, parts.raw_query, parts.headers))


@given(keys, pairs)
def test_our_own_signatures_are_those_of_botocore(key: str, query: list[tuple[str, str]]) -> None:
    theirs = signed_by_botocore(key, query, "n", False)
    ours = sigv4.sign_headers(
        "PUT",
        theirs.raw_path.decode(),
        query,
        {"host": "node:9000", "x-amz-meta-note": "n"},
        "AKIDEXAMPLE",
        CREDENTIALS.secret_key,
        "eu-west-3",
        NOW_S,
        dict(theirs.headers)[b"x-amz-content-sha256"].decode(),
    )
    assert ours["authorization"].encode() == dict(theirs.headers)[b"authorization"]


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=200))
def test_garbage_raises_nothing_but_auth_errors(path: bytes, query: bytes, value: bytes) -> None:
    for header in (value, b"AWS4-HMAC-SHA256 Credential=" + value):
        parts = RequestParts("GET", path, query, [(b"host", b"h"), (b"authorization", header)])
        with pytest.raises(AuthError):
            verify(parts)
