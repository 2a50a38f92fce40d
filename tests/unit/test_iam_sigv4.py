"""SigV4 against the published examples of AWS and against botocore's own signer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from iam import sigv4
from iam.canonical import EMPTY_SHA256, date_seconds
from iam.errors import AuthError
from iam.sigv4 import AuthKind, PayloadKind, RequestParts, Verified

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
AMZ_DATE = "20130524T000000Z"
NOW_S = date_seconds(AMZ_DATE)
HOST = "examplebucket.s3.amazonaws.com"


def parts_of(method: str, url: str, headers: Mapping[str, str]) -> RequestParts:
    split = urlsplit(url)
    raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    if not any(name == b"host" for name, _ in raw):
        raw.append((b"host", split.netloc.encode()))
    return RequestParts(method, split.path.encode(), split.query.encode(), raw)


def check(
    parts: RequestParts,
    *,
    now_s: float = NOW_S,
    secret: str = SECRET,
    region: str = "us-east-1",
    service: str = "s3",
    payload_sha256: str = "",
) -> Verified:
    return sigv4.verify(
        sigv4.parse(parts),
        parts,
        secret,
        now_s=now_s,
        region=region,
        service=service,
        payload_sha256=payload_sha256,
    )


def refused(parts: RequestParts, **options: object) -> AuthError:
    with pytest.raises(AuthError) as caught:
        check(parts, **options)  # type: ignore[arg-type]
    return caught.value


def published(
    method: str, target: str, signature: str, headers: dict[str, str], payload: str = EMPTY_SHA256
) -> RequestParts:
    signed = {"host": HOST, "x-amz-content-sha256": payload, "x-amz-date": AMZ_DATE} | headers
    names = ";".join(sorted(signed))
    signed["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20130524/us-east-1/s3/aws4_request,"
        f"SignedHeaders={names},Signature={signature}"
    )
    return parts_of(method, f"http://{HOST}{target}", signed)


# The examples of "Signature Calculations for the Authorization Header" in the S3 API reference.
PUBLISHED = [
    published(
        "GET",
        "/test.txt",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        {"range": "bytes=0-9"},
    ),
    published(
        "PUT",
        "/test%24file.text",
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        {
            "date": "Fri, 24 May 2013 00:00:00 GMT",
            "x-amz-storage-class": "REDUCED_REDUNDANCY",
        },
        "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
    ),
    published(
        "GET",
        "/?lifecycle",
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        {},
    ),
    published(
        "GET",
        "/?max-keys=2&prefix=J",
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        {},
    ),
]

PRESIGNED_QUERY = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256"
    "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
    "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
    "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
)


def presigned_parts(query: str = PRESIGNED_QUERY) -> RequestParts:
    return parts_of("GET", f"http://{HOST}/test.txt?{query}", {})


@pytest.mark.parametrize("parts", PUBLISHED, ids=lambda parts: parts.raw_path.decode())
def test_published_header_examples_hold(parts: RequestParts) -> None:
    assert len(check(parts).signing_key) == 32


def test_the_unescaped_dollar_of_the_published_put_is_the_same_key() -> None:
    parts = PUBLISHED[1]
    raw = RequestParts(parts.method, b"/test$file.text", b"", parts.headers)
    assert check(raw) == check(parts)


def test_published_presigned_example_holds() -> None:
    parts = presigned_parts()
    auth = sigv4.parse(parts)
    assert auth.kind is AuthKind.PRESIGNED and auth.expires_s == 86400
    assert auth.payload is PayloadKind.UNSIGNED
    check(parts)


# ---- against botocore ---------------------------------------------------------------------------


@pytest.fixture
def at_now(monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    moment = datetime.datetime.fromtimestamp(NOW_S, datetime.UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: moment)


def botocore_signed(request: AWSRequest, token: str | None = None) -> RequestParts:
    S3SigV4Auth(Credentials(ACCESS_KEY, SECRET, token), "s3", "us-east-1").add_auth(request)
    return parts_of(request.method, request.url, dict(request.headers.items()))


@pytest.mark.usefixtures("at_now")
def test_botocore_header_signature_with_body_token_and_spaces() -> None:
    request = AWSRequest(
        "PUT",
        "http://node:9000/b/a%20b//%C3%BC/../x%2By",
        data=b"hello",
        headers={"x-amz-meta-note": "  two   spaces\t here ", "Content-Type": "text/plain"},
    )
    parts = botocore_signed(request, token="the/token==")
    auth = sigv4.parse(parts)
    assert auth.kind is AuthKind.HEADER and auth.session_token == "the/token=="
    assert auth.payload is PayloadKind.SIGNED
    assert auth.payload_sha256 == hashlib.sha256(b"hello").hexdigest()
    assert check(parts).seed_signature == auth.signature


@pytest.mark.usefixtures("at_now")
def test_botocore_presigned_url_with_token() -> None:
    request = AWSRequest(
        "GET", "http://node:9000/b/k%252F%2520//x?versionId=a%2Bb&response-expires=%20"
    )
    S3SigV4QueryAuth(
        Credentials(ACCESS_KEY, SECRET, "tok+en/="), "s3", "us-east-1", expires=60
    ).add_auth(request)
    parts = parts_of("GET", request.url, {})
    assert sigv4.parse(parts).session_token == "tok+en/="
    check(parts, now_s=NOW_S + 60)
    assert refused(parts, now_s=NOW_S + 61).message == "Request has expired"


@pytest.mark.usefixtures("at_now")
def test_a_service_that_does_not_state_the_body_hash() -> None:
    body = b"Action=GetCallerIdentity&Version=2011-06-15"
    request = AWSRequest("POST", "http://node:9000/", data=body)
    SigV4Auth(Credentials(ACCESS_KEY, SECRET), "sts", "us-east-1").add_auth(request)
    parts = parts_of("POST", request.url, dict(request.headers.items()))
    assert sigv4.parse(parts).payload is PayloadKind.UNSTATED
    check(parts, service="sts", payload_sha256=hashlib.sha256(body).hexdigest())
    error = refused(parts, service="sts", payload_sha256=EMPTY_SHA256)
    assert error.code == "SignatureDoesNotMatch"


# ---- our own signer -----------------------------------------------------------------------------


def own_signed(query: list[tuple[str, str]], now_s: float = NOW_S) -> RequestParts:
    headers = {"Host": "node:9000", "x-amz-meta-a": "b"}
    added = sigv4.sign_headers(
        "GET", "/b/k%20%C3%BC", query, headers, ACCESS_KEY, SECRET, "us-east-1", now_s, EMPTY_SHA256
    )
    url = f"http://node:9000/b/k%20%C3%BC?{sigv4.encode_pairs(query)}"
    return parts_of("GET", url, headers | added)


def test_own_header_signature_holds() -> None:
    check(own_signed([("prefix", "a b/+ü"), ("list-type", "2"), ("delimiter", "")]))


def test_own_presigned_url_holds_and_header_is_bound() -> None:
    target = sigv4.presign(
        "PUT",
        "node:9000",
        "/b/k",
        [("partNumber", "1")],
        ACCESS_KEY,
        SECRET,
        "us-east-1",
        NOW_S,
        60,
        headers={"x-amz-acl": "private"},
        session_token="tok",
    )
    url = f"http://node:9000{target}"
    check(parts_of("PUT", url, {"x-amz-acl": "private"}))
    error = refused(parts_of("PUT", url, {"x-amz-acl": "public-read"}))
    assert error.code == "SignatureDoesNotMatch"


# ---- refusals -----------------------------------------------------------------------------------


def with_header(parts: RequestParts, name: bytes, value: bytes | None) -> RequestParts:
    kept = [(n, v) for n, v in parts.headers if n != name]
    if value is not None:
        kept.append((name, value))
    return RequestParts(parts.method, parts.raw_path, parts.raw_query, kept)


def test_wrong_secret_shows_the_string_to_sign() -> None:
    error = refused(PUBLISHED[0], secret="other")
    assert error.code == "SignatureDoesNotMatch"
    assert error.details["StringToSign"].startswith("AWS4-HMAC-SHA256\n20130524T000000Z\n")
    assert "bytes=0-9" in error.details["CanonicalRequest"]


def test_every_signed_part_is_bound() -> None:
    parts = PUBLISHED[3]
    for changed in (
        RequestParts("PUT", parts.raw_path, parts.raw_query, parts.headers),
        RequestParts(parts.method, b"/x", parts.raw_query, parts.headers),
        RequestParts(parts.method, b"//", parts.raw_query, parts.headers),
        RequestParts(parts.method, parts.raw_path, b"max-keys=3&prefix=J", parts.headers),
        RequestParts(parts.method, parts.raw_path, parts.raw_query + b"&acl", parts.headers),
        with_header(parts, b"host", b"other"),
        with_header(parts, b"x-amz-content-sha256", b"UNSIGNED-PAYLOAD"),
        with_header(parts, b"x-amz-date", b"20130524T000001Z"),
    ):
        assert refused(changed).code == "SignatureDoesNotMatch"
    assert refused(with_header(PUBLISHED[0], b"range", b"bytes=0-99")).code == (
        "SignatureDoesNotMatch"
    )


def test_an_unsigned_amz_header_is_refused_and_other_headers_are_not() -> None:
    error = refused(with_header(PUBLISHED[0], b"x-amz-acl", b"public-read"))
    assert (error.code, error.details["HeadersNotSigned"]) == ("AccessDenied", "x-amz-acl")
    check(with_header(PUBLISHED[0], b"user-agent", b"curl"))
    unsigned = with_header(presigned_parts(), b"x-amz-acl", b"public-read")
    assert refused(unsigned).code == "AccessDenied"


def test_host_must_be_signed() -> None:
    value = dict(PUBLISHED[0].headers)[b"authorization"].replace(b"=host;", b"=")
    error = refused(with_header(PUBLISHED[0], b"authorization", value))
    assert error.details["HeadersNotSigned"] == "host"


def test_repeated_headers_are_joined_in_order() -> None:
    headers = {"host": "h", "x-amz-meta-a": "one,two"}
    added = sigv4.sign_headers(
        "GET", "/", [], headers, ACCESS_KEY, SECRET, "us-east-1", NOW_S, EMPTY_SHA256
    )
    joined = parts_of("GET", "http://h/", headers | added)
    twice = with_header(joined, b"x-amz-meta-a", b"one")
    twice = RequestParts("GET", b"/", b"", [*twice.headers, (b"x-amz-meta-a", b" two ")])
    assert check(twice) == check(joined)


def test_expect_that_a_proxy_took_away_still_counts() -> None:
    headers = {"host": "h", "expect": "100-continue"}
    added = sigv4.sign_headers(
        "PUT", "/k", [], headers, ACCESS_KEY, SECRET, "us-east-1", NOW_S, EMPTY_SHA256
    )
    check(parts_of("PUT", "http://h/k", {"host": "h"} | added))


@pytest.mark.parametrize("offset_s", [901, -901])
def test_skew(offset_s: int) -> None:
    error = refused(PUBLISHED[0], now_s=NOW_S + offset_s)
    assert error.code == "RequestTimeTooSkewed"
    assert error.details["MaxAllowedSkewMilliseconds"] == "900000"
    check(PUBLISHED[0], now_s=NOW_S + offset_s // 901 * 900)


def test_presigned_time_limits() -> None:
    check(presigned_parts(), now_s=NOW_S + 86400)
    assert refused(presigned_parts(), now_s=NOW_S + 86401).message == "Request has expired"
    assert refused(presigned_parts(), now_s=NOW_S - 901).message == "Request is not yet valid"


def test_wrong_region_names_the_right_one() -> None:
    error = refused(PUBLISHED[0], region="eu-1")
    assert error.code == "AuthorizationHeaderMalformed"
    assert error.details["Region"] == "eu-1" and "expecting 'eu-1'" in error.message
    error = refused(presigned_parts(), region="eu-1")
    assert error.code == "AuthorizationQueryParametersError"


def test_wrong_service_is_malformed() -> None:
    assert refused(PUBLISHED[0], service="iam").code == "AuthorizationHeaderMalformed"


def test_date_header_stands_in_for_amz_date() -> None:
    headers = {"host": "h", "date": "Fri, 24 May 2013 00:00:00 GMT"}
    added = sigv4.sign_headers(
        "GET", "/", [], headers, ACCESS_KEY, SECRET, "us-east-1", NOW_S, EMPTY_SHA256
    )
    parts = with_header(parts_of("GET", "http://h/", headers | added), b"x-amz-date", None)
    assert sigv4.parse(parts).amz_date == AMZ_DATE
    assert sigv4.parse(with_header(parts, b"date", AMZ_DATE.encode())).amz_date == AMZ_DATE
    for bad in (None, b"", b"yesterday", b"99999999"):
        with pytest.raises(AuthError, match="valid Date or x-amz-date"):
            sigv4.parse(with_header(parts, b"date", bad))


def test_a_moment_that_does_not_exist_is_refused() -> None:
    value = dict(PUBLISHED[0].headers)[b"authorization"].replace(b"20130524", b"20131399")
    parts = with_header(PUBLISHED[0], b"authorization", value)
    parts = with_header(parts, b"x-amz-date", b"20131399T000000Z")
    assert refused(parts).code == "AccessDenied"


CREDENTIAL = f"Credential={ACCESS_KEY}/20130524/us-east-1/s3/aws4_request"


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        ("", "AccessDenied"),
        ("Bearer abc", "InvalidArgument"),
        (f"AWS {ACCESS_KEY}:c2lnbmF0dXJl", "InvalidRequest"),
        (f"AWS4-ECDSA-P256-SHA256 {CREDENTIAL}, SignedHeaders=host, Signature=a", "InvalidRequest"),
        ("AWS4-HMAC-SHA256", "AuthorizationHeaderMalformed"),
        (f"AWS4-HMAC-SHA256 {CREDENTIAL}", "AuthorizationHeaderMalformed"),
        (
            f"AWS4-HMAC-SHA256 {CREDENTIAL},{CREDENTIAL},SignedHeaders=host,Signature=a",
            "AuthorizationHeaderMalformed",
        ),
        (
            f"AWS4-HMAC-SHA256 {CREDENTIAL},SignedHeaders=host,Signature=a,Extra=1",
            "AuthorizationHeaderMalformed",
        ),
        (
            "AWS4-HMAC-SHA256 Credential=a/b/s3/aws4_request,SignedHeaders=host,Signature=a",
            "AuthorizationHeaderMalformed",
        ),
        (
            "AWS4-HMAC-SHA256 Credential=a/2013/r/s3/aws4_request,SignedHeaders=host,Signature=a",
            "AuthorizationHeaderMalformed",
        ),
        (
            f"AWS4-HMAC-SHA256 {CREDENTIAL[:-1]}x,SignedHeaders=host,Signature=a",
            "AuthorizationHeaderMalformed",
        ),
        (
            f"AWS4-HMAC-SHA256 {CREDENTIAL.replace('20130524', '20130525')},SignedHeaders=host,"
            "Signature=a",
            "AuthorizationHeaderMalformed",
        ),
        (
            f"AWS4-HMAC-SHA256 {CREDENTIAL},SignedHeaders=host;Range,Signature=a",
            "AuthorizationHeaderMalformed",
        ),
        (
            f"AWS4-HMAC-SHA256 {CREDENTIAL},SignedHeaders=host;host,Signature=a",
            "AuthorizationHeaderMalformed",
        ),
        ("AWS4-HMAC-SHA256 " + "x" * 9000, "AuthorizationHeaderMalformed"),
        (f"AWS4-HMAC-SHA256 {CREDENTIAL},SignedHeaders=host,Signature=\xff", None),
    ],
)
def test_malformed_authorization(authorization: str, code: str | None) -> None:
    parts = with_header(PUBLISHED[2], b"authorization", authorization.encode("latin-1"))
    if code is None:
        assert sigv4.parse(parts).signature == "\xff"
        return
    with pytest.raises(AuthError) as caught:
        sigv4.parse(parts)
    assert caught.value.code == code


def test_sigv2_refusals_say_so() -> None:
    with pytest.raises(AuthError, match="SigV2"):
        sigv4.parse(with_header(PUBLISHED[2], b"authorization", b"AWS a:b"))
    for query in ("AWSAccessKeyId=a&Expires=1&Signature=b", "acl&Signature=x"):
        with pytest.raises(AuthError, match="SigV2") as caught:
            sigv4.parse(parts_of("GET", f"http://h/k?{query}", {}))
        assert caught.value.code == "InvalidRequest"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("X-Amz-Expires=86400", "X-Amz-Expires=604801"),
        ("X-Amz-Expires=86400", "X-Amz-Expires=0"),
        ("X-Amz-Expires=86400", "X-Amz-Expires=-5"),
        ("X-Amz-Expires=86400", "X-Amz-Expires=soon"),
        ("X-Amz-Expires=86400", "X-Amz-Expires=" + "9" * 5000),
        ("X-Amz-Expires=86400", "X-Amz-Expires=86400&X-Amz-Expires=1"),
        ("&X-Amz-Expires=86400", ""),
        ("X-Amz-Date=20130524T000000Z", "X-Amz-Date=2013-05-24"),
        ("X-Amz-Date=20130524T000000Z", "X-Amz-Date=20130525T000000Z"),
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
        ("X-Amz-SignedHeaders=host", "X-Amz-SignedHeaders=ho%ffst"),
        ("%2Faws4_request", "%2Faws5_request"),
        ("%2Fs3%2Faws4_request", ""),
    ],
)
def test_malformed_presigned(old: str, new: str) -> None:
    with pytest.raises(AuthError) as caught:
        sigv4.parse(presigned_parts(PRESIGNED_QUERY.replace(old, new)))
    assert caught.value.code == "AuthorizationQueryParametersError"


def test_two_mechanisms_at_once_are_refused() -> None:
    parts = PUBLISHED[0]
    both = RequestParts("GET", parts.raw_path, PRESIGNED_QUERY.encode(), parts.headers)
    with pytest.raises(AuthError) as caught:
        sigv4.parse(both)
    assert caught.value.code == "InvalidArgument"
    repeated = [*parts.headers, (b"authorization", b"x")]
    with pytest.raises(AuthError):
        sigv4.parse(RequestParts("GET", b"/", b"", repeated))


def test_payload_forms() -> None:
    def kind_of(value: bytes) -> PayloadKind:
        return sigv4.parse(with_header(PUBLISHED[0], b"x-amz-content-sha256", value)).payload

    assert kind_of(b"UNSIGNED-PAYLOAD") is PayloadKind.UNSIGNED
    for kind in (
        PayloadKind.STREAMING_SIGNED,
        PayloadKind.STREAMING_SIGNED_TRAILER,
        PayloadKind.STREAMING_UNSIGNED_TRAILER,
    ):
        assert kind_of(kind.value.encode()) is kind and kind.streaming
    for bad, code in (
        (b"SIGNED", "InvalidArgument"),
        (b"UNSTATED", "InvalidArgument"),
        (b"STREAMING-UNSIGNED-PAYLOAD", "InvalidArgument"),
        (b"E" * 64, "InvalidArgument"),
        (b"STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", "NotImplemented"),
    ):
        with pytest.raises(AuthError) as caught:
            kind_of(bad)
        assert caught.value.code == code
    with pytest.raises(AuthError) as caught:
        sigv4.parse(with_header(PUBLISHED[0], b"x-amz-content-sha256", None))
    assert caught.value.code == "InvalidRequest"


def test_requests_without_a_signature() -> None:
    anonymous = parts_of("GET", "http://h/b/k?X-Amz-Date=x&prefix=Signature", {})
    assert sigv4.parse(anonymous).kind is AuthKind.ANONYMOUS
    form = parts_of("POST", "http://h/b", {"Content-Type": "multipart/form-data; boundary=x"})
    assert sigv4.parse(form).kind is AuthKind.POST_POLICY
    for parts in (anonymous, form):
        assert not sigv4.parse(parts).signed
        assert refused(parts).code == "AccessDenied"
    streaming = {"x-amz-content-sha256": PayloadKind.STREAMING_SIGNED.value}
    with pytest.raises(AuthError):
        sigv4.parse(parts_of("PUT", "http://h/b/k", streaming))


def test_secrets_do_not_show() -> None:
    verified = check(PUBLISHED[0])
    assert verified.signing_key.hex() not in repr(verified)
    assert verified.seed_signature not in repr(verified)
    assert "f0e8bdb8" not in repr(sigv4.parse(PUBLISHED[0]))


def test_body_hash_error_carries_both() -> None:
    error = sigv4.content_sha256_mismatch("aa", "bb")
    assert error.code == "XAmzContentSHA256Mismatch"
    assert error.details["S3ComputedContentSHA256"] == "bb"
