"""Every S3 operation, asked wrongly in every way there is: generated from the operation table and botocore's model.

A case is one request, signed like a good one. Each parameter of an operation (query, header, element of its
document) is left out, emptied, too long and of a wrong type, one at a time; the framing, the signature and
the document are broken as well. A new row of the table brings its cases with it.
"""

from __future__ import annotations

import socket
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import botocore.session

from iam.signer import encode_pairs, sign_headers
from node.s3.errors import known_codes, status_of
from node.s3.operations import OPERATIONS
from node.s3.shapes import BodyKind, Level, Operation

BUCKET, EMPTY_BUCKET, KEY = "abused-bucket", "empty-bucket", "abused-key"
ANSWER_S = 60.0  # a bound against hanging

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`path` as it is sent; `query` and `headers` in the clear. `raw`: further header lines, not signed."""

    label: str
    method: str
    path: str
    query: Pairs = ()
    headers: Pairs = ()
    body: bytes = b""
    raw: tuple[bytes, ...] = ()
    announce: bool = True  # Content-Length of the body
    secret: str | None = None  # another one than the right one
    payload: str = "UNSIGNED-PAYLOAD"


WRONG_VALUES = (
    "", " ", "-1", "0", "1.5", "true", "null", "abc", "9" * 30, "x" * 3000, "a,b,,c", "é中🙂", "%", "%zz%",
    "../../etc/passwd", "'\"<&>;", "a\tb", "=", "*", "1e9", "Mon, 99 Foo 2024 25:61:61 GMT", "bytes=9-1",
    "bytes=-0,5-", "AAAA====", "{\"a\":[", "arn:aws:s3:::x",
)  # fmt: skip
# Only a query can carry these; a header line would end.
WRONG_QUERY_VALUES = ("\0", "a\nb\rc", "\x7f\x1b[2J", "\ufffe", "a" * 20_000)
WRONG_DOCUMENTS = (
    b"", b" ", b"<", b"<a", b"<a/>", b"</a>", b"\0\0\0", b"\xff\xfe<\0a\0/\0>\0", b"{}", b"<a>" * 2000,
    b"<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>", b"<?xml version='1.0' encoding='utf-99'?><a/>",
    b"<?xml version=\"1.1\"?><a>&#0;</a>", b"<a xmlns:p='q'><p:b/></a>", b"<a>" + b"x" * 3_000_000 + b"</a>",
    b"<a>" + b"<b/>" * 70_000 + b"</a>", b"<a>\xc3\x28</a>",
)  # fmt: skip
ODD_PATHS = (
    "/", "//", "///", "/%2F", "/%00", "/a", "/A_B", "/..", "/../..", "/a%2fb", "/" + "a" * 300, "/192.168.1.1",
    "/xn--bucket", f"/{BUCKET}//", f"/{BUCKET}/.", f"/{BUCKET}/..", f"/{BUCKET}/../x", f"/{BUCKET}/%2E%2E/x",
    f"/{BUCKET}/%00", f"/{BUCKET}/a%00b", f"/{BUCKET}/%01%1f%7f", f"/{BUCKET}/%0d%0aX-A:%20b",
    f"/{BUCKET}/" + "k" * 1024, f"/{BUCKET}/" + "k" * 1025, f"/{BUCKET}/" + "%C3%A9" * 512,
    f"/{BUCKET}/" + "%C3%A9" * 513, f"/{BUCKET}/%C3%28", f"/{BUCKET}/%ff%fe", f"/{BUCKET}/%ED%A0%80", f"/{BUCKET}/%",
    f"/{BUCKET}/%zz", f"/{BUCKET}/a/b/c/", f"/{BUCKET}//a//b//", f"/{BUCKET}/%F0%9F%99%82", "/minio/health/x",
    "/holdfast", "/.sys/config", "/%2Esys/config%2Fiam%2Fdirectory", f"/{BUCKET}/a;b=c&d", f"/{BUCKET}/a+b%20c%2B",
)  # fmt: skip
WRONG_FRAMING: tuple[tuple[bytes, ...], ...] = (
    (b"Content-Length: -1",), (b"Content-Length: +5",), (b"Content-Length: 1e3",), (b"Content-Length: abc",),
    (b"Content-Length: ",), (b"Content-Length: 99999999999999999999999999",), (b"Content-Length: 5, 5",),
    (b"Content-Length: 3", b"Content-Length: 5"), (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    (b"Transfer-Encoding: chunked", b"Content-Length: 5"), (b"Transfer-Encoding: gzip",),
    (b"Transfer-Encoding: chunked, gzip",), (b"Transfer-Encoding: xchunked",), (b"Transfer-Encoding : chunked",),
    (b"Content-Length: 5", b"Host: another"), (b"X-Big: " + b"x" * 40_000,), (b"X-Null: a\0b",), (b"no colon",),
    (b": no name",), (b"Content-Length: 500",), (b"Content-Length: 2",), (b"Content-Length: 6000000000000",),
)  # fmt: skip
# Values that make the untouched request of an operation a good one, where the name alone does not.
_GOOD_QUERY = {"partNumber": "1", "uploadId": "{upload}"}
_GOOD_HEADERS = {"x-amz-copy-source": f"/{BUCKET}/another-key"}
_NEEDED_HEADERS = {"GetObjectAttributes": (("x-amz-object-attributes", "ETag,ObjectSize"),)}
_TARGETS = {"DeleteBucket": f"/{EMPTY_BUCKET}"}
_GOOD_DOCUMENTS = {
    "CreateBucket": b"",
    "DeleteObjects": b"<Delete><Quiet>false</Quiet><Object><Key>k</Key><VersionId>null</VersionId>"
    b"<ETag>&quot;e&quot;</ETag></Object></Delete>",
    "CompleteMultipartUpload": b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber>"
    b"<ETag>&quot;0cc175b9c0f1b6a831c399e269772661&quot;</ETag><ChecksumCRC32>6Le+Qw==</ChecksumCRC32>"
    b"</Part></CompleteMultipartUpload>",
}
_MORE_HEADERS = (
    "content-md5", "content-type", "content-encoding", "x-amz-tagging", "x-amz-checksum-crc32", "x-amz-trailer",
    "x-amz-checksum-sha256", "x-amz-decoded-content-length", "x-amz-sdk-checksum-algorithm", "x-amz-meta-m",
    "x-amz-storage-class", "x-amz-expected-bucket-owner", "x-amz-security-token", "if-match", "if-none-match",
    "if-modified-since", "range", "x-amz-copy-source", "x-amz-date",
)  # fmt: skip


def good(row: Operation, upload: str) -> Case:
    """A request that routes to the row and is well-formed."""
    path = {Level.SERVICE: "/", Level.BUCKET: f"/{BUCKET}", Level.OBJECT: f"/{BUCKET}/{KEY}"}
    query = []
    for item in row.query:
        name, _, value = item.partition("=")
        query.append((name, value or _GOOD_QUERY.get(name, "").replace("{upload}", upload)))
    body = b""
    if row.body is BodyKind.XML or row.name in _GOOD_DOCUMENTS:
        body = _GOOD_DOCUMENTS.get(row.name, b"<Root/>")
    elif row.body is BodyKind.PAYLOAD:
        body = b"a"
    return Case(
        label=row.name,
        method=row.method,
        path=_TARGETS.get(row.name, path[row.level]),
        query=tuple(query),
        headers=(
            *((name, _GOOD_HEADERS.get(name, "x")) for name in row.headers),
            *_NEEDED_HEADERS.get(row.name, ()),
        ),
        body=body,
    )


def cases(row: Operation, upload: str) -> Iterator[Case]:
    """Every way to ask for this row wrongly; the first is the right one."""
    base = good(row, upload)
    yield base
    yield from _signatures(base)
    if not row.implemented:
        yield from _few_parameters(row, base)
        return
    yield from _parameters(row, base)
    yield from _documents(row, base)
    yield from _framing(base)


def _parameters(row: Operation, base: Case) -> Iterator[Case]:
    query, headers = _known_parameters(row)
    for name in sorted({*query, *row.optional, *dict(base.query)}):
        left = tuple(pair for pair in base.query if pair[0] != name)
        if left != base.query:
            yield replace(base, label=f"{row.name} without {name}", query=left)
        for value in (*WRONG_VALUES, *WRONG_QUERY_VALUES):
            yield replace(
                base, label=f"{row.name} ?{name}={value[:30]!r}", query=(*left, (name, value))
            )
        yield replace(
            base, label=f"{row.name} twice {name}", query=(*base.query, (name, "1"), (name, "2"))
        )
    for name in sorted({*headers, *row.headers, *_MORE_HEADERS}):
        left = tuple(pair for pair in base.headers if pair[0] != name)
        if left != base.headers:
            yield replace(base, label=f"{row.name} without {name}", headers=left)
        for value in WRONG_VALUES if name in headers else WRONG_VALUES[:8]:
            yield replace(
                base,
                label=f"{row.name} {name}: {value[:30]!r}",
                headers=(*left, (name, value.strip())),
            )
    for name in ("unknown", "acl2", "X-Amz-Signature", "x-id", "torrents", "", "é"):
        for value in ("", "1"):
            yield replace(
                base, label=f"{row.name} ?{name}={value}", query=(*base.query, (name, value))
            )


def _few_parameters(row: Operation, base: Case) -> Iterator[Case]:
    """Of an operation that is refused by name: its query alone decides."""
    for name in dict(base.query):
        for value in (*WRONG_VALUES[:8], *WRONG_QUERY_VALUES):
            query = (*(pair for pair in base.query if pair[0] != name), (name, value))
            yield replace(base, label=f"{row.name} ?{name}={value[:30]!r}", query=query)
    yield replace(base, label=f"{row.name} with a body", body=b"<a>")


def _known_parameters(row: Operation) -> tuple[set[str], set[str]]:
    """(query, header) names that the client's model has for the operation."""
    model = botocore.session.get_session().get_service_model("s3")
    query: set[str] = set()
    headers: set[str] = set()
    if row.name in model.operation_names:
        shape = model.operation_model(row.name).input_shape
        for member in shape.members.values() if shape is not None else ():
            place, name = member.serialization.get("location"), member.serialization.get("name", "")
            if place == "querystring":
                query.add(name)
            elif place in ("header", "headers"):
                headers.add(name.lower() if place == "header" else f"{name}m".lower())
    return query, headers - {"content-length", "expect"}


def _documents(row: Operation, base: Case) -> Iterator[Case]:
    if not base.body and row.body is BodyKind.NONE:
        return
    for document in WRONG_DOCUMENTS:
        yield replace(base, label=f"{row.name} body {document[:40]!r}", body=document)
    if row.body is not BodyKind.XML or not base.body:
        return
    for path in _elements(base.body):
        yield replace(
            base, label=f"{row.name} without <{path}>", body=_changed(base.body, path, None)
        )
        for value in WRONG_VALUES:
            changed = _changed(base.body, path, value)
            yield replace(base, label=f"{row.name} <{path}>{value[:30]!r}", body=changed)
    yield replace(base, label=f"{row.name} body cut", body=base.body[: len(base.body) // 2])


def _elements(document: bytes) -> list[str]:
    """Tags of the document below its root."""
    return [element.tag for element in ET.fromstring(document).iter()][1:]


def _changed(document: bytes, tag: str, value: str | None) -> bytes:
    root = ET.fromstring(document)
    for parent in root.iter():
        for child in list(parent):
            if child.tag == tag and value is None:
                parent.remove(child)
            elif child.tag == tag:
                child.text = value
    return ET.tostring(root)


def _framing(base: Case) -> Iterator[Case]:
    for lines in WRONG_FRAMING:
        yield replace(
            base, label=f"{base.label} {lines[0][:40]!r}", raw=lines, announce=False, body=b"<abc>"
        )
    for line in (b"", b"GET", b"GET  HTTP/1.1", b"\x16\x03\x01\x02", b"PRI * HTTP/2.0"):
        yield replace(base, label=f"{base.label} first line {line!r}", method="", raw=(line,))


def _signatures(base: Case) -> Iterator[Case]:
    yield replace(base, label=f"{base.label} with a wrong secret", secret="x" * 20)
    for text in (
        "", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=", "AWS rootkey:signature", "Bearer x", "Basic eDp5",
        "AWS4-HMAC-SHA256 Credential=a/b/c/d/e, SignedHeaders=, Signature=", "AWS4-ECDSA-P256-SHA256 Credential=a",
        "AWS4-HMAC-SHA256 Credential=a/20240101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=zz",
    ):  # fmt: skip
        yield replace(
            base,
            label=f"{base.label} authorization {text[:30]!r}",
            secret="",
            raw=(b"Authorization: " + text.encode(), b"x-amz-content-sha256: UNSIGNED-PAYLOAD"),
        )
    for name, value in (
        ("X-Amz-Signature", "0" * 64), ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"), ("Signature", "x"),
        ("AWSAccessKeyId", "rootkey"), ("X-Amz-Expires", "-5"),
    ):  # fmt: skip
        yield replace(
            base,
            label=f"{base.label} presigned by {name}",
            secret="",
            query=(*base.query, (name, value)),
        )


def odd_paths() -> Iterator[Case]:
    for path in ODD_PATHS:
        for method in ("GET", "HEAD", "PUT", "DELETE", "POST"):
            body = b"a" if method == "PUT" and path.count("/") > 1 else b""
            yield Case(label=f"{method} {path[:60]}", method=method, path=path, body=body)
    for method in ("OPTIONS", "TRACE", "CONNECT", "PATCH", "LINK", "PROPFIND"):
        yield Case(label=method, method=method, path=f"/{BUCKET}/{KEY}")


def query_cases(row: Operation, upload: str) -> Iterator[Case]:
    """Of `cases` those that get as far as the store: a good signature, and another query or document."""
    base = good(row, upload)
    for case in (*_parameters(row, base), *_documents(row, base)):
        if (case.query, case.body) != (base.query, base.body) and case.headers == base.headers:
            yield case


def checksum_cases(algorithm: str, right: str, path: str) -> Iterator[tuple[Case, bool]]:
    """(an upload of b"content" with a checksum of this kind, whether it is a good one)."""
    data = b"content"
    header = f"x-amz-checksum-{algorithm.lower()}"
    wrong = ("B" if right[0] == "A" else "A") + right[1:]
    values = (
        (right, True),
        (wrong, False),
        ("", False),
        (right[:-4], False),
        ("?", False),
    )
    for value, fine in values:
        yield (
            Case(
                label=f"{algorithm} header {value}",
                method="PUT",
                path=path,
                headers=((header, value),),
                body=data,
            ),
            fine,
        )
    trailers = [(f"{header}:{value}\r\n".encode(), fine) for value, fine in values]
    trailers += [
        (b"", False),
        (f"{header}:{right}\r\n{header}:{right}\r\n".encode(), False),
        (f"x-amz-checksum-other:{right}\r\n".encode(), False),
        (f"{header} {right}\r\n".encode(), False),
    ]
    for trailer, fine in trailers:
        for framed, sound in (
            (b"7\r\n" + data + b"\r\n0\r\n" + trailer + b"\r\n", True),
            (b"8\r\n" + data + b"\r\n0\r\n" + trailer + b"\r\n", False),
            (b"7\r\n" + data + b"\r\n", False),
            (b"zz\r\n" + data + b"\r\n0\r\n" + trailer + b"\r\n", False),
        ):
            yield (
                Case(
                    label=f"{algorithm} trailer {trailer!r} in {framed[:4]!r}",
                    method="PUT",
                    path=path,
                    headers=(
                        ("content-encoding", "aws-chunked"),
                        ("x-amz-trailer", header),
                        ("x-amz-decoded-content-length", str(len(data))),
                    ),
                    body=framed,
                    payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER",
                ),
                fine and sound,
            )


@dataclass(slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return self.body.decode("utf-8", "replace").partition("<Code>")[2].partition("</Code>")[0]


@dataclass(slots=True)
class Asker:
    """Sends cases to an S3 port and judges the answers."""

    host: str
    port: int
    access_key: str
    secret: str
    wrong: list[str] = field(default_factory=list)
    asked: int = 0

    def ask(self, case: Case) -> Answer | None:
        """None when the server closed the connection without an answer."""
        self.asked += 1
        with socket.create_connection((self.host, self.port), timeout=ANSWER_S) as connection:
            try:
                connection.sendall(self._wire(case))
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # refused before all of it was taken: the answer tells
            try:
                return _answer(connection, case.method)
            except (ConnectionError, ValueError):
                return None

    def judge(self, case: Case) -> Answer | None:
        """Asks, and notes what a client must never see."""
        try:
            answer = self.ask(case)
        except TimeoutError:
            self.wrong.append(f"{case.label}: no answer within {ANSWER_S} s")
            return None
        if answer is None:
            if case.method and not case.raw:
                self.wrong.append(f"{case.label}: the connection was closed without an answer")
            return None
        problem = _problem(case, answer)
        if problem:
            self.wrong.append(f"{case.label}: {answer.status} {answer.code} {problem}")
        return answer

    def prepare(self) -> str:
        """Bucket and object are there, and an upload; -> its id."""
        self.ask(Case(label="bucket", method="PUT", path=f"/{BUCKET}"))
        self.ask(Case(label="empty bucket", method="PUT", path=f"/{EMPTY_BUCKET}"))
        self.ask(Case(label="source", method="PUT", path=f"/{BUCKET}/another-key", body=b"content"))
        put = self.ask(Case(label="object", method="PUT", path=f"/{BUCKET}/{KEY}", body=b"content"))
        begun = self.ask(
            Case(label="upload", method="POST", path=f"/{BUCKET}/{KEY}", query=(("uploads", ""),))
        )
        assert put is not None and put.status == 200, put
        assert begun is not None and begun.status == 200, begun
        upload = begun.body.decode().partition("<UploadId>")[2].partition("</UploadId>")[0]
        self.ask(
            Case(
                label="part",
                method="PUT",
                path=f"/{BUCKET}/{KEY}",
                query=(("partNumber", "1"), ("uploadId", upload)),
                body=b"a",
            )
        )
        return upload

    def abuse(self, row: Operation) -> None:
        upload = self.prepare()
        destroys = row.method == "DELETE" or (
            row.method == "POST" and "uploadId" in row.required_keys
        )
        for number, case in enumerate(list(cases(row, upload))):
            answer = self.judge(_with_upload(case, upload))
            if number == 0:
                self._judge_good(row, answer)
            if destroys and answer is not None and answer.status < 300:
                upload = self.prepare()

    def _judge_good(self, row: Operation, answer: Answer | None) -> None:
        status = answer.status if answer is not None else 0
        if (status < 300) is not row.implemented:
            self.wrong.append(f"{row.name}: {status} for a good request")

    def _wire(self, case: Case) -> bytes:
        query = encode_pairs(case.query)
        target = f"{case.path}?{query}" if query else case.path
        if not case.method:
            return b"\r\n".join((*case.raw, b"", b""))
        named = {"host": f"{self.host}:{self.port}"}
        for name, value in case.headers:
            named[name] = value
        lines = [f"{n}: {v}".encode() for n, v in named.items()]
        if case.secret != "":
            given = {n: v for n, v in named.items() if n != "x-amz-date"}
            added = sign_headers(
                case.method,
                quote(case.path, safe="/%~"),
                case.query,
                {n: _folded(v) for n, v in given.items()},
                self.access_key,
                self.secret if case.secret is None else case.secret,
                "us-east-1",
                time.time(),
                case.payload,
            )
            lines += [f"{n}: {v}".encode() for n, v in added.items()]
        if case.announce and (case.body or case.method in ("PUT", "POST")):
            lines.append(b"Content-Length: %d" % len(case.body))
        head = f"{case.method} {target} HTTP/1.1".encode()
        return b"\r\n".join((head, *lines, *case.raw, b"", case.body))


def _folded(value: str) -> str:
    """A header's value as SigV4 counts it."""
    return " ".join(value.split(" ")) if "  " not in value else " ".join(value.split())


def _with_upload(case: Case, upload: str) -> Case:
    """The upload may have been ended by a case before; this one gets the one that is there now."""
    query = tuple(
        (n, upload if n == "uploadId" and len(v) > 20 and v.isascii() and "x" * 20 not in v and "a" * 20 not in v
         and "9" * 20 not in v else v)
        for n, v in case.query
    )  # fmt: skip
    return replace(case, query=query)


def _problem(case: Case, answer: Answer) -> str:
    text = answer.body.decode("utf-8", "replace")
    if "Traceback" in text or ".py" in text:
        return "tells of the server's inside"
    if answer.status < 400:
        return "" if answer.status in (200, 204, 206, 304) else "is no answer of S3"
    if answer.status in (500, 502, 503, 504):
        return f"is no fault of the server: {text[:300]}"
    if case.method == "HEAD":
        return "has a body" if answer.body else ""
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        return f"is no XML ({error}): {text[:200]}"
    if root.tag != "Error" or answer.code not in known_codes():
        return f"is no error of S3: {text[:200]}"
    if status_of(answer.code) != answer.status:
        return "has a status that is not the code's"
    return ""


def _answer(connection: socket.socket, method: str) -> Answer:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            raise ConnectionError(f"no answer, only {data[:100]!r}")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    want = 0 if method == "HEAD" else int(headers.get("content-length", 0))
    while len(body) < want and (more := connection.recv(65536)):
        body += more
    return Answer(int(first.split()[1]), headers, body[:want] if method != "HEAD" else body)


def rows() -> tuple[Operation, ...]:
    return OPERATIONS


def ids(row: Any) -> str:
    return str(row.name)
