"""What a request claims about who sent it, read without any secret and proved by nobody yet.

Source: "Authenticating Requests (AWS Signature Version 4)" in the Amazon S3 API reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import TypeAlias

import msgspec

from .canonical import ALGORITHM, MAX_EXPIRES_S, TERMINATOR, UNSIGNED_PAYLOAD, decode_query
from .errors import AuthError

MAX_AUTHORIZATION_BYTES = 8192
MAX_SIGNED_HEADERS = 128

_ErrorMaker: TypeAlias = Callable[[str, Mapping[str, str] | None], AuthError]

_HEX64 = re.compile(r"[0-9a-f]{64}")
_SIGNED_HEADERS = re.compile(r"[!#$%&'*+.^_`|~0-9a-z\-]+(?:;[!#$%&'*+.^_`|~0-9a-z\-]+)*")
_ISO_BASIC = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_QUERY_FIELDS = (
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
)
_QUERY_INCOMPLETE = (
    "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, "
    "X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters."
)
_V2_MESSAGE = (
    "The authorization mechanism you have provided is not supported: Signature Version 2 (SigV2) "
    "is refused. Please use AWS4-HMAC-SHA256."
)


class AuthKind(StrEnum):
    HEADER = "header"
    PRESIGNED = "presigned"
    ANONYMOUS = "anonymous"
    POST_POLICY = "post-policy"


class PayloadKind(StrEnum):
    """How the body is bound to the signature; the streaming values are those on the wire."""

    UNSIGNED = UNSIGNED_PAYLOAD
    SIGNED = "SIGNED"
    STREAMING_SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
    STREAMING_SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
    STREAMING_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    # Services other than S3 sign the body's SHA-256 without stating it in a header: the caller
    # reads the (small) body and hands its digest to verify().
    UNSTATED = "UNSTATED"

    @property
    def streaming(self) -> bool:
        return self in _STREAMING


_STREAMING = frozenset(
    {
        PayloadKind.STREAMING_SIGNED,
        PayloadKind.STREAMING_SIGNED_TRAILER,
        PayloadKind.STREAMING_UNSIGNED_TRAILER,
    }
)
_PAYLOAD_NAMES: Mapping[str, PayloadKind] = {
    kind.value: kind for kind in (PayloadKind.UNSIGNED, *_STREAMING)
}


class RequestParts(msgspec.Struct, frozen=True):
    """The signed parts of a request as they came: header names in lower case, nothing decoded."""

    # msgspec structs here, not dataclasses: one of each is built per request.

    method: str
    raw_path: bytes
    raw_query: bytes
    headers: Sequence[tuple[bytes, bytes]]


class Authentication(msgspec.Struct, frozen=True, kw_only=True):
    """What a request claims about itself. Nothing of it is proved before ``verify``."""

    kind: AuthKind
    access_key: str = ""
    date: str = ""  # YYYYMMDD of the credential scope
    region: str = ""
    service: str = ""
    signed_headers: tuple[str, ...] = ()
    signature: str = ""
    amz_date: str = ""  # YYYYMMDDTHHMMSSZ
    payload: PayloadKind = PayloadKind.UNSIGNED
    payload_sha256: str = ""  # hex, only for PayloadKind.SIGNED
    expires_s: int = 0  # only for PRESIGNED
    session_token: str = ""

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/{TERMINATOR}"

    @property
    def signed(self) -> bool:
        """True when the request names an access key, so that ``verify`` has something to do."""
        return self.kind is AuthKind.HEADER or self.kind is AuthKind.PRESIGNED

    def __repr__(self) -> str:
        return (
            f"Authentication({self.kind.value}, access_key={self.access_key!r}, "
            f"scope={self.scope!r}, payload={self.payload.value})"
        )


# ---- the claim ----------------------------------------------------------------------------------


def parse(parts: RequestParts) -> Authentication:
    """Read the claim of a request. Raises AuthError with S3's code when it is malformed."""
    authorization: bytes | None = None
    content_sha256 = amz_date = date = token = content_type = b""
    for name, value in parts.headers:
        if name == b"authorization":
            if authorization is not None:
                raise AuthError("InvalidArgument", "Only one Authorization header is allowed")
            authorization = value
        elif name == b"x-amz-content-sha256":
            content_sha256 = value
        elif name == b"x-amz-date":
            amz_date = value
        elif name == b"date":
            date = value
        elif name == b"x-amz-security-token":
            token = value
        elif name == b"content-type":
            content_type = value
    query = _auth_query(parts.raw_query)
    if authorization is not None:
        if query:
            raise AuthError(
                "InvalidArgument",
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, "
                "Signature query string parameter or the Authorization header should be specified",
            )
        return _parse_header(authorization, content_sha256, amz_date, date, token)
    if query:
        return _parse_query(query, _text(content_sha256))
    if parts.method == "POST" and content_type[:19].lower() == b"multipart/form-data":
        return Authentication(kind=AuthKind.POST_POLICY)
    kind, digest = _payload(_text(content_sha256)) if content_sha256 else _UNSIGNED
    if kind is PayloadKind.STREAMING_SIGNED or kind is PayloadKind.STREAMING_SIGNED_TRAILER:
        raise AuthError("AccessDenied", "Anonymous requests cannot carry a signed payload")
    return Authentication(kind=AuthKind.ANONYMOUS, payload=kind, payload_sha256=digest)


_UNSIGNED = (PayloadKind.UNSIGNED, "")


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip()


def _payload(value: str) -> tuple[PayloadKind, str]:
    kind = _PAYLOAD_NAMES.get(value)
    if kind is not None:
        return kind, ""
    if _HEX64.fullmatch(value):
        return PayloadKind.SIGNED, value
    if value.startswith("STREAMING-AWS4-ECDSA"):
        raise AuthError("NotImplemented", f"The payload form {value} is not supported")
    raise AuthError(
        "InvalidArgument",
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, "
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a "
        "valid sha256 value.",
        {"ArgumentName": "x-amz-content-sha256", "ArgumentValue": value},
    )


def content_sha256_mismatch(claimed: str, computed: str) -> AuthError:
    """The error for a body whose SHA-256 is not the signed one (both in hex)."""
    return AuthError(
        "XAmzContentSHA256Mismatch",
        "The provided 'x-amz-content-sha256' header does not match what was computed.",
        {"ClientComputedContentSHA256": claimed, "S3ComputedContentSHA256": computed},
    )


def malformed(message: str, details: Mapping[str, str] | None = None) -> AuthError:
    return AuthError(
        "AuthorizationHeaderMalformed",
        f"The authorization header is malformed; {message}",
        details or {},
    )


def bad_query(message: str, details: Mapping[str, str] | None = None) -> AuthError:
    return AuthError("AuthorizationQueryParametersError", message, details or {})


def _parse_header(
    authorization: bytes, content_sha256: bytes, amz_date: bytes, date: bytes, token: bytes
) -> Authentication:
    fields = _authorization_fields(_text(authorization))
    access_key, scope_date, region, service, terminator = split_credential(
        fields["Credential"], malformed
    )
    if terminator != TERMINATOR:
        raise malformed(f'incorrect terminal "{terminator}". This endpoint uses "{TERMINATOR}".')
    when = _iso_basic(_text(amz_date)) if amz_date else _header_date(_text(date))
    if when[:8] != scope_date:
        raise malformed(
            f'Invalid credential date "{scope_date}". This date is not the same as X-Amz-Date: '
            f'"{when[:8]}".'
        )
    if content_sha256:
        payload, digest = _payload(_text(content_sha256))
    elif service == "s3":
        raise AuthError(
            "InvalidRequest", "Missing required header for this request: x-amz-content-sha256"
        )
    else:
        payload, digest = PayloadKind.UNSTATED, ""
    return Authentication(
        kind=AuthKind.HEADER,
        access_key=access_key,
        date=scope_date,
        region=region,
        service=service,
        signed_headers=_signed_headers(fields["SignedHeaders"], malformed),
        signature=fields["Signature"],
        amz_date=when,
        payload=payload,
        payload_sha256=digest,
        session_token=_text(token) if token else "",
    )


def _authorization_fields(value: str) -> dict[str, str]:
    """Credential, SignedHeaders and Signature of an Authorization header."""
    if not value:
        raise AuthError("AccessDenied", "The Authorization header is empty")
    if len(value) > MAX_AUTHORIZATION_BYTES:
        raise malformed(f"it is longer than {MAX_AUTHORIZATION_BYTES} bytes.")
    algorithm, _, rest = value.partition(" ")
    if algorithm != ALGORITHM:
        if algorithm == "AWS":
            raise AuthError("InvalidRequest", _V2_MESSAGE)
        if algorithm.startswith("AWS4-"):
            raise AuthError(
                "InvalidRequest",
                f"The authorization mechanism {algorithm} is not supported. "
                "Please use AWS4-HMAC-SHA256.",
            )
        raise AuthError(
            "InvalidArgument",
            "Unsupported Authorization Type",
            {"ArgumentName": "Authorization", "ArgumentValue": algorithm},
        )
    fields: dict[str, str] = {}
    for field in rest.split(","):
        name, _, text = field.strip().partition("=")
        if name in fields or name not in ("Credential", "SignedHeaders", "Signature"):
            raise malformed(
                "it must have Credential, SignedHeaders and Signature, each of them once."
            )
        fields[name] = text
    for name in ("Credential", "SignedHeaders", "Signature"):
        if not fields.get(name):
            raise malformed(f"{name} is missing.")
    return fields


def split_credential(value: str, error: _ErrorMaker) -> list[str]:
    """Access key, date, region, service and terminator of a credential scope."""
    # From the right: an access key id chosen by an operator may hold a slash.
    found = value.rsplit("/", 4)
    if len(found) != 5 or not found[0]:
        raise error(
            "the Credential is mal-formed; expecting "
            '"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".',
            None,
        )
    if len(found[1]) != 8 or not (found[1].isascii() and found[1].isdigit()):
        raise error(
            f'incorrect date format "{found[1]}". This date in the credential must be in the '
            'format "yyyyMMdd".',
            None,
        )
    return found


def _signed_headers(value: str, error: _ErrorMaker) -> tuple[str, ...]:
    if not _SIGNED_HEADERS.fullmatch(value):
        raise error("SignedHeaders must be lower-case header names separated by semicolons.", None)
    names = tuple(value.split(";"))
    if len(names) > MAX_SIGNED_HEADERS or len(set(names)) != len(names):
        raise error("SignedHeaders names a header twice, or too many.", None)
    return names


def _iso_basic(value: str) -> str:
    if not _ISO_BASIC.fullmatch(value):
        raise AuthError(
            "AccessDenied",
            "AWS authentication requires a valid Date or x-amz-date header",
        )
    return value


def _header_date(value: str) -> str:
    """The time of a request without x-amz-date, from its Date header in either form."""
    if _ISO_BASIC.fullmatch(value):
        return value
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError, IndexError, OverflowError):
        return _iso_basic("")
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return when.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def _auth_query(raw_query: bytes) -> dict[str, str]:
    """The authentication parameters of a query, decoded; empty when it has none."""
    if not (b"Amz-" in raw_query or b"Signature=" in raw_query or b"AWSAccessKeyId" in raw_query):
        return {}
    found: dict[str, str] = {}
    for pair in raw_query.split(b"&"):
        raw_name, _, raw_value = pair.partition(b"=")
        name = decode_query(raw_name).decode("utf-8", "replace")
        if name.startswith("X-Amz-") or name in ("Signature", "AWSAccessKeyId"):
            if name in found:
                raise bad_query(f"The query parameter {name} must appear only once")
            found[name] = decode_query(raw_value).decode("utf-8", "replace")
    if "Signature" in found or "AWSAccessKeyId" in found:
        if "X-Amz-Algorithm" in found:
            raise AuthError("InvalidArgument", "Only one auth mechanism allowed")
        raise AuthError("InvalidRequest", _V2_MESSAGE)
    # A lone X-Amz-Date or X-Amz-Security-Token does not make a request a signed one.
    if any(name in found for name in ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature")):
        return found
    return {}


def _parse_query(query: dict[str, str], header_sha256: str) -> Authentication:
    for name in _QUERY_FIELDS:
        if not query.get(name):
            raise bad_query(_QUERY_INCOMPLETE)
    if query["X-Amz-Algorithm"] != ALGORITHM:
        raise bad_query(f'X-Amz-Algorithm only supports "{ALGORITHM}"')

    def bad_credential(message: str, details: Mapping[str, str] | None) -> AuthError:
        return bad_query(f"Error parsing the X-Amz-Credential parameter; {message}", details)

    access_key, scope_date, region, service, terminator = split_credential(
        query["X-Amz-Credential"], bad_credential
    )
    if terminator != TERMINATOR:
        raise bad_credential(
            f'incorrect terminal "{terminator}". This endpoint uses "{TERMINATOR}".', None
        )
    when = query["X-Amz-Date"]
    if not _ISO_BASIC.fullmatch(when):
        raise bad_query("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
    if when[:8] != scope_date:
        raise bad_credential(
            f'Invalid credential date "{scope_date}". This date is not the same as X-Amz-Date: '
            f'"{when[:8]}".',
            None,
        )
    stated = query.get("X-Amz-Content-Sha256") or query.get("X-Amz-Content-SHA256")
    payload, digest = _payload(stated or header_sha256 or UNSIGNED_PAYLOAD)
    return Authentication(
        kind=AuthKind.PRESIGNED,
        access_key=access_key,
        date=scope_date,
        region=region,
        service=service,
        signed_headers=_signed_headers(query["X-Amz-SignedHeaders"], bad_query),
        signature=query["X-Amz-Signature"],
        amz_date=when,
        payload=payload,
        payload_sha256=digest,
        expires_s=_expires(query["X-Amz-Expires"]),
        session_token=query.get("X-Amz-Security-Token", ""),
    )


def _expires(value: str) -> int:
    digits = value[1:] if value.startswith("-") else value
    if not digits or len(digits) > 18 or not (digits.isascii() and digits.isdigit()):
        raise bad_query("X-Amz-Expires should be a number")
    expires_s = int(value)
    if expires_s < 0:
        raise bad_query("X-Amz-Expires must be non-negative")
    if expires_s > MAX_EXPIRES_S:
        raise bad_query(
            "X-Amz-Expires must be less than a week (in seconds); that is, the given "
            f"X-Amz-Expires must be less than {MAX_EXPIRES_S} seconds"
        )
    if expires_s == 0:
        raise bad_query(f"X-Amz-Expires must be between 1 and {MAX_EXPIRES_S}")
    return expires_s
