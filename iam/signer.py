"""The signing side of Signature Version 4, for our own clients and the tests of the other side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .canonical import (
    ALGORITHM,
    MAX_EXPIRES_S,
    TERMINATOR,
    UNSIGNED_PAYLOAD,
    amz_date,
    canonical_path,
    canonical_request,
    encode_query,
    sign_string,
    signing_key,
    string_to_sign,
)


def encode_pairs(query: Sequence[tuple[str, str]]) -> str:
    """A query string from decoded pairs, in canonical form and order."""
    encoded = sorted((encode_query(n.encode()), encode_query(v.encode())) for n, v in query)
    return "&".join(f"{name}={value}" for name, value in encoded)


def sign_headers(
    method: str,
    url_path: str,
    query: Sequence[tuple[str, str]],
    headers: Mapping[str, str],
    access_key: str,
    secret: str,
    region: str,
    now_s: float,
    payload_sha256: str,
    *,
    service: str = "s3",
    session_token: str = "",
) -> dict[str, str]:
    """The headers to add to a request (lower-case names) so that it is authenticated.

    ``url_path`` is the percent-encoded path as it will be sent; ``query`` are decoded pairs (send
    them with ``encode_pairs``); ``headers`` must hold the host. ``payload_sha256`` is the hex
    digest of the body or one of the payload constants.
    """
    when = amz_date(now_s)
    added = {"x-amz-date": when, "x-amz-content-sha256": payload_sha256}
    if session_token:
        added["x-amz-security-token"] = session_token
    signed = {name.lower(): value for name, value in headers.items()} | added
    names = sorted(signed)
    scope = f"{when[:8]}/{region}/{service}/{TERMINATOR}"
    signature = _signature(
        method, url_path, encode_pairs(query), signed, when, scope, secret, payload_sha256
    )
    added["authorization"] = (
        f"{ALGORITHM} Credential={access_key}/{scope}, SignedHeaders={';'.join(names)}, "
        f"Signature={signature}"
    )
    return added


def presign(
    method: str,
    host: str,
    url_path: str,
    query: Sequence[tuple[str, str]],
    access_key: str,
    secret: str,
    region: str,
    now_s: float,
    expires_s: int,
    *,
    headers: Mapping[str, str] | None = None,
    service: str = "s3",
    session_token: str = "",
) -> str:
    """The path and query of a presigned URL; the caller puts scheme and ``host`` before it.

    ``headers`` (besides the host) are those the user of the URL has to send exactly so.
    """
    if not 1 <= expires_s <= MAX_EXPIRES_S:
        raise ValueError(f"expires_s must be 1..{MAX_EXPIRES_S}, not {expires_s}")
    when = amz_date(now_s)
    scope = f"{when[:8]}/{region}/{service}/{TERMINATOR}"
    signed = {name.lower(): value for name, value in (headers or {}).items()} | {"host": host}
    pairs = [
        *query,
        ("X-Amz-Algorithm", ALGORITHM),
        ("X-Amz-Credential", f"{access_key}/{scope}"),
        ("X-Amz-Date", when),
        ("X-Amz-Expires", str(expires_s)),
        ("X-Amz-SignedHeaders", ";".join(sorted(signed))),
    ]
    if session_token:
        pairs.append(("X-Amz-Security-Token", session_token))
    text = encode_pairs(pairs)
    signature = _signature(method, url_path, text, signed, when, scope, secret, UNSIGNED_PAYLOAD)
    return f"{url_path}?{text}&X-Amz-Signature={signature}"


def _signature(
    method: str,
    url_path: str,
    query: str,
    headers: Mapping[str, str],
    when: str,
    scope: str,
    secret: str,
    payload: str,
) -> str:
    if "host" not in headers:
        raise ValueError("the host header must be signed")
    date, region, service, _ = scope.split("/")
    canonical = canonical_request(
        method,
        canonical_path(url_path.encode("ascii")),
        query,
        {name.encode(): value.encode() for name, value in headers.items()},
        sorted(headers),
        payload,
    )
    key = signing_key(secret, date, region, service)
    return sign_string(key, string_to_sign(when, scope, canonical))
