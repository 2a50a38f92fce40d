"""The canonical request of Signature Version 4 and the keys derived for it.

The canonical form is S3's: the path is decoded once and encoded once, never normalised (``//``,
``.`` and ``..`` are parts of keys); the query is decoded ("+" is a space), encoded and sorted.

Source: "Authenticating Requests (AWS Signature Version 4)" in the Amazon S3 API reference.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote_from_bytes, unquote_to_bytes

ALGORITHM = "AWS4-HMAC-SHA256"
TERMINATOR = "aws4_request"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
MAX_EXPIRES_S = 604_800
SIGNING_KEYS_KEPT = 4096

_SAFE = re.compile(rb"[A-Za-z0-9\-._~]*")
_SAFE_PATH = re.compile(rb"[A-Za-z0-9\-._~/]*")


def canonical_path(raw_path: bytes) -> str:
    """The canonical URI of a path as it came on the wire (percent-encoded, without the query)."""
    if _SAFE_PATH.fullmatch(raw_path):
        return raw_path.decode("ascii") or "/"
    return quote_from_bytes(unquote_to_bytes(raw_path), safe="/-_.~")


def decode_query(raw: bytes) -> bytes:
    """A name or a value of a query string, decoded as S3 does it: "+" is a space."""
    if b"+" in raw:
        raw = raw.replace(b"+", b" ")
    return unquote_to_bytes(raw) if b"%" in raw else raw


def encode_query(value: bytes) -> str:
    """A name or a value of a query string in its canonical encoding."""
    if _SAFE.fullmatch(value):
        return value.decode("ascii")
    return quote_from_bytes(value, safe="-_.~")


def canonical_query(raw_query: bytes, leave_out: bytes = b"") -> str:
    """The canonical query string; the parameter named ``leave_out`` (decoded) is skipped."""
    if not raw_query:
        return ""
    pairs: list[tuple[str, str]] = []
    for pair in raw_query.split(b"&"):
        if not pair:
            continue
        raw_name, _, raw_value = pair.partition(b"=")
        name = decode_query(raw_name)
        if leave_out and name == leave_out:
            continue
        pairs.append((encode_query(name), encode_query(decode_query(raw_value))))
    pairs.sort()
    return "&".join([f"{name}={value}" for name, value in pairs])


def canonical_request(
    method: str,
    path: str,
    query: str,
    headers: Mapping[bytes, bytes],
    signed_headers: Iterable[str],
    payload: str,
) -> bytes:
    """The canonical request, as bytes.

    ``path`` and ``query`` are canonical already. ``headers`` has lower-case names and, for a
    repeated header, its values joined by commas; a signed header it lacks counts as empty.
    """
    lines = [f"{method}\n{path}\n{query}".encode()]
    names = list(signed_headers)
    for name in names:
        raw_name = name.encode("latin-1", "replace")
        lines.append(raw_name + b":" + b" ".join(headers.get(raw_name, b"").split()))
    lines.append(b"")
    lines.append(f"{';'.join(names)}\n{payload}".encode())
    return b"\n".join(lines)


def string_to_sign(amz_date: str, scope: str, canonical: bytes) -> str:
    return f"{ALGORITHM}\n{amz_date}\n{scope}\n{hashlib.sha256(canonical).hexdigest()}"


# Keyed by the secret itself, not by its id: a key derived from a secret that was replaced can
# never be found again. Callers derive only for the current date and their own region, so a
# stranger cannot push entries out.
@lru_cache(maxsize=SIGNING_KEYS_KEPT)
def signing_key(secret_key: str, date: str, region: str, service: str) -> bytes:
    """The derived key (32 bytes) of one secret for one day, region and service."""
    key = hmac.digest(b"AWS4" + secret_key.encode(), date.encode(), "sha256")
    key = hmac.digest(key, region.encode(), "sha256")
    key = hmac.digest(key, service.encode(), "sha256")
    return hmac.digest(key, TERMINATOR.encode(), "sha256")


def sign_string(key: bytes, text: str) -> str:
    """The signature of ``text``, in lower-case hex."""
    return hmac.digest(key, text.encode(), "sha256").hex()


def amz_date(now_s: float) -> str:
    """Seconds since 1970 as YYYYMMDDTHHMMSSZ."""
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%SZ")


def iso_date(now_s: float) -> str:
    """Seconds since 1970 as an S3 error document writes them."""
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def date_seconds(value: str) -> float:
    """Seconds since 1970 of a YYYYMMDDTHHMMSSZ; ValueError when there is no such moment."""
    return datetime(
        int(value[0:4]),
        int(value[4:6]),
        int(value[6:8]),
        int(value[9:11]),
        int(value[11:13]),
        int(value[13:15]),
        tzinfo=UTC,
    ).timestamp()
