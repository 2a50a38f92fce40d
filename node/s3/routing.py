"""From the raw request line and headers to bucket, key and the row of the operation table.

Routing takes the row with the most required query keys and headers that match. A sub-resource that no
row of this method has is refused by name, and so is a query key that might be one: `?unknown` never
falls through to GetObject, and `DELETE /bucket/key?unknown` never deletes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from node.errors import CodedError
from node.objects.names import RESERVED_BUCKETS as RESERVED_BUCKETS
from node.objects.names import check_bucket_name as check_bucket_name
from node.objects.names import check_key as check_key
from node.objects.names import is_bucket_name as is_bucket_name
from node.s3 import codec
from node.s3.shapes import Level, Operation, Request

_NOT_HOISTED = frozenset(
    f"x-amz-{name}"
    for name in (
        "algorithm",
        "credential",
        "date",
        "expires",
        "signedheaders",
        "signature",
        "security-token",
        "content-sha256",
    )
)


def virtual_bucket(host: str, domain: str) -> str:
    """The bucket that a Host header names, "" in path style."""
    if not domain:
        return ""
    name = host.rpartition(":")[0] if host[-1:].isdigit() and ":" in host else host
    name = name.lower()
    return name[: -len(domain) - 1] if name.endswith("." + domain) else ""


def parse_query(raw: bytes) -> tuple[dict[str, str], frozenset[str]]:
    """Decoded query, and the names that came bare (no value). A name may come once."""
    query: dict[str, str] = {}
    bare: set[str] = set()
    for pair in raw.split(b"&"):
        if not pair:
            continue
        raw_name, equals, raw_value = pair.partition(b"=")
        name, value = _decode_query(raw_name), _decode_query(raw_value)
        if name in query:
            raise CodedError(
                "InvalidArgument",
                f"The query parameter {name} must appear only once",
                ArgumentName=name,
            )
        query[name] = value
        if not equals or not value:
            bare.add(name)
    return query, frozenset(bare)


def _decode_query(raw: bytes) -> str:
    if b"%" in raw or b"+" in raw:
        raw = unquote_to_bytes(raw.replace(b"+", b" "))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise CodedError("InvalidURI", "The query is not valid UTF-8.") from None


def header_map(header_list: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by lower-case name; one that came twice is joined by commas."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in header_list:
        name = raw_name.decode("latin-1")
        value = raw_value.decode("latin-1")
        if name in headers:
            headers[name] = f"{headers[name]},{value}"
        else:
            headers[name] = value
    return headers


@dataclass(frozen=True, slots=True)
class _Slot:
    """The rows of one level and method, most demanding first."""

    rows: tuple[Operation, ...]
    plain: tuple[Operation, ...]  # those that require no query key


class Router:
    def __init__(self, operations: Iterable[Operation], domain: str) -> None:
        rows = sorted(operations, key=lambda row: len(row.query) + len(row.headers), reverse=True)
        self._domain = domain.lower()
        self._slots: dict[tuple[Level, str], _Slot] = {}
        self._subresources: dict[Level, frozenset[str]] = {}
        for level in Level:
            here = [row for row in rows if row.level is level]
            self._subresources[level] = frozenset().union(*(row.required_keys for row in here))
            for method in {row.method for row in here}:
                mine = tuple(row for row in here if row.method == method)
                plain = tuple(row for row in mine if not row.query)
                self._slots[level, method] = _Slot(mine, plain)

    def route(self, request: Request) -> Operation:
        """Fill bucket, key, query and headers of `request`; returns its row. Raises ClientError."""
        request.headers = header_map(request.header_list)
        request.host = request.headers.get("host", "")
        self._split_path(request)
        bare: frozenset[str] = frozenset()
        if request.raw_query:
            request.query, bare = parse_query(request.raw_query)
            if "X-Amz-Signature" in request.query:
                _hoist(request.query, request.headers)
        if request.key:
            level = Level.OBJECT
        else:
            level = Level.BUCKET if request.bucket else Level.SERVICE
        request.operation = self._pick(level, request, bare)
        if request.bucket:
            check_bucket_name(request.bucket)
            check_key(request.key)
        return request.operation

    def _split_path(self, request: Request) -> None:
        raw = request.raw_path
        if raw[:1] != b"/":
            raise CodedError("InvalidURI", "Couldn't parse the specified URI.")
        bucket = virtual_bucket(request.host, self._domain)
        if bucket:
            request.virtual_host = True
            request.bucket = bucket
            raw_key = raw[1:]
        else:
            raw_bucket, slash, raw_key = raw[1:].partition(b"/")
            request.bucket = codec.percent_decode(raw_bucket)
            if slash and not raw_bucket:
                raise CodedError("InvalidBucketName", "The specified bucket is not valid.")
        request.key = codec.percent_decode(raw_key)

    def _pick(self, level: Level, request: Request, bare: frozenset[str]) -> Operation:
        slot = self._slots.get((level, request.method))
        if slot is None:
            raise _method_not_allowed(request)
        query = request.query
        if not query:
            return self._match(slot.plain, request)
        subresources = self._subresources[level]
        named = query.keys() & subresources
        row = self._match(slot.rows if named else slot.plain, request)
        self._check_rest(row, request, named, bare)
        return row

    def _match(self, rows: tuple[Operation, ...], request: Request) -> Operation:
        query, headers = request.query, request.headers
        for row in rows:
            if all(_has(query, item) for item in row.query) and all(
                name in headers for name in row.headers
            ):
                return row
        raise _method_not_allowed(request)

    def _check_rest(
        self,
        row: Operation,
        request: Request,
        named: frozenset[str] | set[str],
        bare: frozenset[str],
    ) -> None:
        """Whatever the row does not know must be harmless."""
        required = row.required_keys
        left = [name for name in request.query if name not in required and name not in row.optional]
        for name in left:
            if name in named:
                slot = self._slots[row.level, request.method]
                if required or any(name in other.required_keys for other in slot.rows):
                    raise CodedError(
                        "InvalidArgument",
                        "Conflicting or incomplete query string parameters: "
                        + ", ".join(sorted(named)),
                        ArgumentName=name,
                    )
                raise _method_not_allowed(request)
            if name[:2].lower() == "x-":
                continue  # signatures, x-id, and clients' own marks
            if name in bare or request.method not in ("GET", "HEAD"):
                raise CodedError(
                    "NotImplemented",
                    f"The query parameter {name[:100]} implies functionality that is not implemented",
                    ArgumentName=name[:100],
                )


def _has(query: Mapping[str, str], item: str) -> bool:
    name, equals, value = item.partition("=")
    found = query.get(name)
    return found is not None and (not equals or found == value)


def _hoist(query: Mapping[str, str], headers: dict[str, str]) -> None:
    """Presigned requests may carry x-amz-* headers in the (signed) query."""
    for name, value in query.items():
        lower = name.lower()
        if lower.startswith("x-amz-") and lower not in _NOT_HOISTED:
            headers.setdefault(lower, value)


def _method_not_allowed(request: Request) -> CodedError:
    return CodedError(
        "MethodNotAllowed",
        "The specified method is not allowed against this resource.",
        Method=request.method,
    )
