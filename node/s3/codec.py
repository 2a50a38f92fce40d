"""How single values look on the wire: dates, ETags, escaped and percent-encoded text, list tokens."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from node.errors import CodedError

XML_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"

_SPECIAL = re.compile("[&<>\"'\x00-\x1f\x7f\ufffe\uffff]")
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"}
_BROKEN_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def escape(text: str) -> str:
    """Text for an XML element. Control characters become references, as S3 has it."""
    if _SPECIAL.search(text) is None:
        return text
    return _SPECIAL.sub(lambda found: _NAMED.get(found[0]) or f"&#x{ord(found[0]):X};", text)


_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def escape_told(text: str) -> str:
    """Text of an error document: what no XML 1.0 can hold, not even as a reference, becomes U+FFFD."""
    return escape(_NOT_IN_XML.sub("\ufffd", text))


def percent_encode(text: str) -> str:
    """A key in a listing with encoding-type=url: '/' stays, a space is %20."""
    return quote(text, safe="/")


def percent_decode(raw: bytes) -> str:
    """A path or header value as UTF-8. '+' stays a plus. Raises InvalidURI."""
    if b"%" not in raw:
        data = raw
    elif _BROKEN_PERCENT.search(raw):
        raise CodedError("InvalidURI", "Couldn't parse the specified URI.")
    else:
        data = unquote_to_bytes(raw)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise CodedError("InvalidURI", "The key is not valid UTF-8.") from None


@lru_cache(maxsize=4096)
def _iso_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def iso_date(time_ns: int) -> str:
    """2009-10-12T17:50:30.000Z"""
    second, rest = divmod(time_ns, 1_000_000_000)
    return f"{_iso_second(second)}.{rest // 1_000_000:03d}Z"


@lru_cache(maxsize=4096)
def http_date(second: int) -> str:
    """Wed, 12 Oct 2009 17:50:00 GMT"""
    return format_datetime(datetime.fromtimestamp(second, UTC), usegmt=True)


def parse_http_date(text: str) -> float | None:
    """Seconds since 1970, or None for what is no date (RFC 9110: such a condition is ignored)."""
    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        try:
            when = datetime.fromisoformat(text)  # some clients send ISO 8601, and S3 takes it
        except ValueError:
            return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    try:
        return when.timestamp()
    except (OverflowError, ValueError):
        return None


def strip_etag(text: str) -> str:
    """An ETag without weakness and quotes."""
    return text.strip().removeprefix("W/").strip('"')


def list_token(after: str) -> str:
    """An opaque continuation token: nothing but the place to go on behind, so any node can serve it."""
    return base64.urlsafe_b64encode(b"1" + after.encode()).decode()


def parse_list_token(token: str) -> str:
    try:
        data = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
        if data[:1] != b"1":
            raise ValueError
        return data[1:].decode()
    except (ValueError, binascii.Error):
        raise CodedError(
            "InvalidArgument",
            "The continuation token provided is incorrect",
            ArgumentName="continuation-token",
        ) from None


def integer(text: str, name: str, low: int, high: int) -> int:
    """A query or header number within its limits; InvalidArgument otherwise."""
    try:
        if not text.isascii() or len(text) > 20 or "_" in text:
            raise ValueError
        value = int(text)
    except ValueError:
        raise CodedError(
            "InvalidArgument",
            f"Provided {name} not an integer or within integer range",
            ArgumentName=name,
            ArgumentValue=text[:100],
        ) from None
    if not low <= value <= high:
        raise CodedError(
            "InvalidArgument",
            f"Argument {name} must be an integer between {low} and {high}",
            ArgumentName=name,
            ArgumentValue=text[:100],
        )
    return value
