"""AWS Signature Version 4: what a request claims, whether the claim holds, and how to make one.

Theory of operation. ``parse`` reads the claim (who, when, which scope, which payload form) without
any secret; the caller looks the access key up; ``verify`` rebuilds the canonical request from the
bytes on the wire and compares signatures. Between the two stands no state, so either may be
repeated. The canonical form is in ``canonical``, the claim in ``claim``, the other side in
``signer``; this module is the door to all of them.

Source: "Authenticating Requests (AWS Signature Version 4)" in the Amazon S3 API reference.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

import msgspec

from .canonical import (
    canonical_path,
    canonical_query,
    canonical_request,
    date_seconds,
    iso_date,
    sign_string,
    signing_key,
    string_to_sign,
)
from .claim import (
    Authentication,
    AuthKind,
    PayloadKind,
    RequestParts,
    bad_query,
    content_sha256_mismatch,
    malformed,
    parse,
)
from .errors import AuthError
from .post_policy import PostPolicy, parse_post_form, verify_post_policy
from .signer import encode_pairs, presign, sign_headers

__all__ = [
    "AuthKind",
    "Authentication",
    "PayloadKind",
    "PostPolicy",
    "RequestParts",
    "Verified",
    "content_sha256_mismatch",
    "encode_pairs",
    "parse",
    "parse_post_form",
    "presign",
    "sign_headers",
    "verify",
    "verify_post_policy",
]

SKEW_S = 900

_UNSIGNED_MESSAGE = "There were headers present in the request which were not signed"


class Verified(msgspec.Struct, frozen=True):
    """A proved request. Both values seed the signature chain of an aws-chunked body."""

    signing_key: bytes
    seed_signature: str

    def __repr__(self) -> str:
        return "Verified(...)"


def verify(
    auth: Authentication,
    parts: RequestParts,
    secret_key: str,
    *,
    now_s: float,
    region: str,
    service: str = "s3",
    skew_s: float = SKEW_S,
    payload_sha256: str = "",
) -> Verified:
    """Prove the claim of ``parse`` with the secret of its access key, or raise AuthError.

    ``now_s`` is seconds since 1970. ``payload_sha256`` (hex, of the body received) is for
    PayloadKind.UNSTATED only. The body itself is checked elsewhere: by the caller against
    ``auth.payload_sha256``, or by a ChunkedDecoder seeded with the result.
    """
    presigned = auth.kind is AuthKind.PRESIGNED
    if not presigned and auth.kind is not AuthKind.HEADER:
        raise AuthError("AccessDenied", "Access Denied")
    _check_scope(auth, region, service, presigned)
    _check_time(auth, now_s, skew_s, presigned)
    headers = _joined_headers(parts.headers)
    _check_signed_headers(auth, headers)
    if auth.payload is PayloadKind.SIGNED:
        payload = auth.payload_sha256
    elif auth.payload is PayloadKind.UNSTATED:
        payload = payload_sha256
    else:
        payload = auth.payload.value
    canonical = canonical_request(
        parts.method,
        canonical_path(parts.raw_path),
        canonical_query(parts.raw_query, b"X-Amz-Signature" if presigned else b""),
        headers,
        auth.signed_headers,
        payload,
    )
    text = string_to_sign(auth.amz_date, auth.scope, canonical)
    key = signing_key(secret_key, auth.date, auth.region, auth.service)
    expected = sign_string(key, text)
    if not hmac.compare_digest(expected.encode(), auth.signature.encode("utf-8", "replace")):
        raise _mismatch(auth, text, canonical)
    return Verified(key, expected)


def _mismatch(auth: Authentication, text: str, canonical: bytes) -> AuthError:
    return AuthError(
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided. "
        "Check your key and signing method.",
        {
            "AWSAccessKeyId": auth.access_key,
            "StringToSign": text,
            "SignatureProvided": auth.signature,
            "CanonicalRequest": canonical.decode("utf-8", "replace"),
        },
    )


def _check_scope(auth: Authentication, region: str, service: str, presigned: bool) -> None:
    if auth.region != region:
        message = f"the region '{auth.region}' is wrong; expecting '{region}'"
        details = {"Region": region}
    elif auth.service != service:
        message = f'incorrect service "{auth.service}". This endpoint belongs to "{service}".'
        details = {}
    else:
        return
    if presigned:
        raise bad_query(f"Error parsing the X-Amz-Credential parameter; {message}", details)
    raise malformed(message, details)


def _check_time(auth: Authentication, now_s: float, skew_s: float, presigned: bool) -> None:
    try:
        when_s = date_seconds(auth.amz_date)
    except (ValueError, OverflowError):
        raise AuthError(
            "AccessDenied", "AWS authentication requires a valid Date or x-amz-date header"
        ) from None
    if not presigned:
        if abs(now_s - when_s) > skew_s:
            raise AuthError(
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too large.",
                {
                    "RequestTime": auth.amz_date,
                    "ServerTime": iso_date(now_s),
                    "MaxAllowedSkewMilliseconds": str(round(skew_s * 1000)),
                },
            )
        return
    if when_s - now_s > skew_s:
        raise AuthError(
            "AccessDenied",
            "Request is not yet valid",
            {"X-Amz-Date": auth.amz_date, "ServerTime": iso_date(now_s)},
        )
    if now_s > when_s + auth.expires_s:
        raise AuthError(
            "AccessDenied",
            "Request has expired",
            {
                "X-Amz-Expires": str(auth.expires_s),
                "Expires": iso_date(when_s + auth.expires_s),
                "ServerTime": iso_date(now_s),
            },
        )


def _joined_headers(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    joined = dict(headers)
    if len(joined) != len(headers):
        joined = {}
        for name, value in headers:
            joined[name] = joined[name] + b"," + value.strip() if name in joined else value.strip()
    return joined


def _check_signed_headers(auth: Authentication, headers: dict[bytes, bytes]) -> None:
    """Refuse when an x-amz-* header or the host is there but not under the signature."""
    signed = auth.signed_headers
    if "host" not in signed:
        raise AuthError("AccessDenied", _UNSIGNED_MESSAGE, {"HeadersNotSigned": "host"})
    for name in headers:
        if name[:6] == b"x-amz-" and name.decode("latin-1") not in signed:
            raise AuthError(
                "AccessDenied", _UNSIGNED_MESSAGE, {"HeadersNotSigned": name.decode("latin-1")}
            )
    # A proxy that answers 100-continue itself takes the header away after it was signed.
    if "expect" in signed and b"expect" not in headers:
        headers[b"expect"] = b"100-continue"
