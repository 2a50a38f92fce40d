"""Bad and odd input on the S3 port, byte by byte over real sockets: a clear S3 error, never a hang or a trace."""

from __future__ import annotations

import hashlib
import socket
import zlib
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import pytest

from iam import canonical, sigv4
from node import limits
from node.errors import (
    DeadlineExceeded,
    LockContended,
    OutcomeUnknown,
    QuorumLost,
    Shed,
)
from node.s3.codec import percent_encode
from tests.fakes.s3_world import ROOT, ROOT_SECRET, World, listening

STREAMING = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with listening(World()) as world:
        Wire(world).ask("PUT", "/bucket")
        yield world


@pytest.fixture
def wire(shared: World) -> Iterator[Wire]:
    found = Wire(shared)
    yield found
    shared.store.failure = None
    shared.store.break_after = None
    shared.identity.failure = None


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def code(self) -> str:
        text = self.body.decode()
        return text.partition("<Code>")[2].partition("</Code>")[0]


class Wire:
    """Signs by hand, so that everything can be wrong."""

    def __init__(self, world: World) -> None:
        self.world = world

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.world.port), timeout=10)

    def signed(
        self, method: str, target: str, headers: dict[str, str] | None = None
    ) -> list[tuple[str, str]]:
        path, _, query = target.partition("?")
        plain = {"host": "127.0.0.1", **(headers or {})}
        payload = plain.pop("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
        added = sigv4.sign_headers(
            method,
            path,
            parse_qsl(query, keep_blank_values=True),
            plain,
            ROOT,
            ROOT_SECRET,
            "us-east-1",
            self.world.clock.now(),
            payload,
        )
        return list({**plain, **added}.items())

    def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        sign_it: bool = True,
        length: int | None = None,
    ) -> Answer:
        given = dict(headers or {})
        lines = self.signed(method, target, given) if sign_it else [("host", "h"), *given.items()]
        if "transfer-encoding" not in given and (body or length is not None or method == "PUT"):
            lines.append(("content-length", str(len(body) if length is None else length)))
        head = f"{method} {target} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in lines) + "\r\n"
        return self.raw(head.encode("latin-1") + body, method, end=length is not None)

    def raw(self, data: bytes, method: str = "GET", *, end: bool = False) -> Answer:
        with self.connect() as connection:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            return read_answer(connection, method)


def read_answer(connection: socket.socket, method: str = "GET") -> Answer:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            raise ConnectionError(f"no answer, only {data!r}")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    status = int(first.split()[1])
    if status == 100:
        return Answer(100, headers, body)
    want = 0 if method == "HEAD" else int(headers.get("content-length", 0))
    while len(body) < want:
        more = connection.recv(65536)
        if not more:
            break
        body += more
    return Answer(status, headers, body)


def framed(data: bytes, trailer: str = "") -> bytes:
    return b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(data), data, trailer.encode())


# ---- bodies -------------------------------------------------------------------------------------------


def test_a_body_shorter_than_announced_is_not_stored(wire: Wire) -> None:
    answer = wire.ask("PUT", "/bucket/short", b"abc", length=10)
    assert (answer.status, answer.code) == (400, "IncompleteBody")
    assert wire.ask("GET", "/bucket/short").code == "NoSuchKey"


def test_a_body_longer_than_announced_is_cut_there(wire: Wire) -> None:
    assert wire.ask("PUT", "/bucket/long", b"abcdef", length=3).status == 200
    assert wire.ask("GET", "/bucket/long").body == b"abc"


def test_a_body_without_length_is_refused(wire: Wire) -> None:
    answer = wire.ask(
        "PUT", "/bucket/k", b"3\r\nabc\r\n0\r\n\r\n", {"transfer-encoding": "chunked"}
    )
    assert (answer.status, answer.code) == (411, "MissingContentLength")
    answer = wire.ask("PUT", "/bucket/k", framed(b"abc"), {"x-amz-content-sha256": STREAMING})
    assert (answer.status, answer.code) == (411, "MissingContentLength")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-md5": "bm90IGFuIG1kNQ=="}, "InvalidDigest"),
        ({"content-md5": "1B2M2Y8AsgTpgAmY7PhCfg=="}, "BadDigest"),
        ({"x-amz-checksum-crc32": "AAAAAA=="}, "BadDigest"),
        ({"x-amz-checksum-crc32": "AAAA"}, "InvalidRequest"),
        (
            {"x-amz-checksum-crc32": "AAAAAA==", "x-amz-checksum-crc32c": "AAAAAA=="},
            "InvalidRequest",
        ),
        ({"x-amz-sdk-checksum-algorithm": "MD4"}, "InvalidRequest"),
        ({"x-amz-content-sha256": "0" * 64}, "XAmzContentSHA256Mismatch"),
        ({"x-amz-storage-class": "GLACIER"}, "InvalidStorageClass"),
        ({"x-amz-acl": "public-read"}, "AccessControlListNotSupported"),
        ({"x-amz-object-lock-mode": "GOVERNANCE"}, "InvalidRequest"),
        ({"x-amz-meta-big": "x" * 2048}, "MetadataTooLarge"),
        ({"x-amz-tagging": "a=1&a=2"}, "InvalidTag"),
        ({"x-amz-tagging": "&".join(f"k{n}=v" for n in range(11))}, "InvalidTag"),
    ],
)
def test_wrong_headers_of_a_put(wire: Wire, headers: dict[str, str], code: str) -> None:
    answer = wire.ask("PUT", "/bucket/never", b"hello", headers)
    assert (answer.status, answer.code) == (400, code)
    assert wire.ask("GET", "/bucket/never").status == 404


def test_encryption_is_not_silently_left_out(wire: Wire) -> None:
    answer = wire.ask("PUT", "/bucket/k", b"x", {"x-amz-server-side-encryption": "AES256"})
    assert (answer.status, answer.code) == (501, "NotImplemented")


def test_an_upload_beyond_the_maximum_is_refused_before_it_is_read(wire: Wire) -> None:
    head = wire.signed("PUT", "/bucket/k")
    text = "".join(f"{name}: {value}\r\n" for name, value in head)
    data = f"PUT /bucket/k HTTP/1.1\r\n{text}content-length: {limits.MAX_OBJECT_BYTES + 1}\r\n\r\n"
    answer = wire.raw(data.encode(), "PUT")
    assert (answer.status, answer.code) == (400, "EntityTooLarge")
    assert answer.headers["connection"] == "close"


def test_aws_chunked_is_decoded_and_its_trailer_checked(wire: Wire) -> None:
    data = b"payload" * 1000
    good = b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    headers = {
        "x-amz-content-sha256": STREAMING,
        "x-amz-decoded-content-length": str(len(data)),
        "x-amz-trailer": "x-amz-checksum-crc32",
        "content-encoding": "aws-chunked,gzip",
    }
    put = wire.ask("PUT", "/bucket/c", framed(data, f"x-amz-checksum-crc32:{good}\r\n"), headers)
    assert (put.status, put.headers["x-amz-checksum-crc32"]) == (200, good)
    got = wire.ask("GET", "/bucket/c", headers={"x-amz-checksum-mode": "ENABLED"})
    assert (got.body, got.headers["content-encoding"]) == (data, "gzip")
    assert got.headers["x-amz-checksum-crc32"] == good
    for trailer, code in (
        ("x-amz-checksum-crc32:AAAAAA==\r\n", "BadDigest"),
        ("x-amz-checksum-crc32:!\r\n", "InvalidRequest"),
        ("", "MalformedTrailerError"),
        ("x-amz-checksum-sha1:AAAA\r\n", "MalformedTrailerError"),
    ):
        answer = wire.ask("PUT", "/bucket/d", framed(data, trailer), headers)
        assert (answer.status, answer.code) == (400, code)
    for length in (len(data) - 1, len(data) + 1):
        wrong = {**headers, "x-amz-decoded-content-length": str(length)}
        body = framed(data, f"x-amz-checksum-crc32:{good}\r\n")
        assert wire.ask("PUT", "/bucket/d", body, wrong).code == "IncompleteBody"
    broken = wire.ask("PUT", "/bucket/d", b"zz\r\nnot chunked", headers)
    assert (broken.status, broken.code) == (400, "InvalidRequest")
    assert wire.ask("GET", "/bucket/d").status == 404


@pytest.mark.parametrize("tampered", [False, True])
def test_signed_chunks_are_verified_against_the_request(wire: Wire, tampered: bool) -> None:
    chunks = [b"a" * 8192, b"b" * 100, b""]
    size = sum(len(chunk) for chunk in chunks)
    given = {
        "x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        "x-amz-decoded-content-length": str(size),
    }
    lines = wire.signed("PUT", f"/bucket/signed-{tampered}", given)
    added = dict(lines)
    date = added["x-amz-date"]
    scope = f"{date[:8]}/us-east-1/s3/aws4_request"
    key = canonical.signing_key(ROOT_SECRET, date[:8], "us-east-1", "s3")
    previous = added["authorization"].rpartition("Signature=")[2]
    body = b""
    for chunk in chunks:
        text = "\n".join(
            (
                "AWS4-HMAC-SHA256-PAYLOAD",
                date,
                scope,
                previous,
                hashlib.sha256(b"").hexdigest(),
                hashlib.sha256(chunk).hexdigest(),
            )
        )
        previous = canonical.sign_string(key, text)
        sent = chunk.replace(b"b", b"c") if tampered else chunk
        body += f"{len(chunk):x};chunk-signature={previous}\r\n".encode() + sent + b"\r\n"
    lines.append(("content-length", str(len(body))))
    head = f"PUT /bucket/signed-{tampered} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in lines) + "\r\n"
    answer = wire.raw(head.encode() + body, "PUT")
    got = wire.ask("GET", f"/bucket/signed-{tampered}")
    if tampered:
        assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")
        assert got.code == "NoSuchKey"
    else:
        assert (answer.status, got.body) == (200, b"".join(chunks))


def test_continue_is_answered_only_when_the_upload_is_wanted(wire: Wire) -> None:
    def expecting(lines: list[tuple[str, str]]) -> bytes:
        text = "".join(f"{name}: {value}\r\n" for name, value in lines)
        return f"PUT /bucket/e HTTP/1.1\r\n{text}expect: 100-continue\r\ncontent-length: 5\r\n\r\n".encode()

    with wire.connect() as connection:
        connection.sendall(expecting(wire.signed("PUT", "/bucket/e")))
        assert read_answer(connection).status == 100
        connection.sendall(b"hello")
        assert read_answer(connection).status == 200
    before = wire.world.store.bodies_read
    for lines, code in (
        ([("host", "h")], "AccessDenied"),
        (wire.signed("PUT", "/bucket/other"), "SignatureDoesNotMatch"),
    ):
        with wire.connect() as connection:
            connection.sendall(expecting(lines))
            answer = read_answer(connection)
            assert (answer.status, answer.code) == (403, code)
            assert answer.headers["connection"] == "close"
            assert connection.recv(10) == b""  # nothing waits for a body that will not come
    assert wire.world.store.bodies_read == before


# ---- documents ------------------------------------------------------------------------------------------

_DELETE = "<Delete>{}</Delete>"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no xml",
        "<Delete>",
        "<Other/>",
        "<Delete/>",
        "<Delete><Object/></Delete>",
        "<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>",
        '<!DOCTYPE x [<!ENTITY e "boom">]><Delete><Object><Key>&e;</Key></Object></Delete>',
        "<!DOCTYPE Delete><Delete><Object><Key>a</Key></Object></Delete>",
        '<?xml version="1.0" encoding="nonsense"?><Delete><Object><Key>a</Key></Object></Delete>',
        _DELETE.format("<Object><Key>a</Key></Object>" * 1001),
        "<a>" * 5000 + "</a>" * 5000,
        _DELETE.format("<x/>" * 70_000),
        "\x00<Delete/>",
    ],
    ids=range(14),
)
def test_malformed_documents(wire: Wire, text: str) -> None:
    answer = wire.ask("POST", "/bucket?delete", text.encode())
    assert (answer.status, answer.code) == (400, "MalformedXML")


def test_a_document_that_is_too_large_is_not_read(wire: Wire) -> None:
    answer = wire.ask("POST", "/bucket?delete", b"<", length=limits.MAX_XML_BYTES + 1)
    assert (answer.status, answer.code) == (400, "MaxMessageLengthExceeded")


# ---- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/bucket/%00", 400, "InvalidURI"),
        ("/bucket/%ff%fe", 400, "InvalidURI"),
        ("/bucket/%zz", 400, "InvalidURI"),
        ("/bucket/" + "k" * 1025, 400, "KeyTooLongError"),
        ("/bucket/" + percent_encode("é" * 513), 400, "KeyTooLongError"),
        ("/Bucket", 400, "InvalidBucketName"),
        ("/ab", 400, "InvalidBucketName"),
        ("//key", 400, "InvalidBucketName"),
        ("/192.168.0.1", 400, "InvalidBucketName"),
        ("/metrics/key", 400, "InvalidBucketName"),
        ("/health", 400, "InvalidBucketName"),
        ("/.holdfast/key", 400, "InvalidBucketName"),
        ("/%2e%2e/key", 400, "InvalidBucketName"),
        ("/no-such-bucket-1/key", 404, "NoSuchBucket"),
        ("/bucket?max-keys=x", 400, "InvalidArgument"),
        ("/bucket?max-keys=-1", 400, "InvalidArgument"),
        ("/bucket?encoding-type=rot13", 400, "InvalidArgument"),
        ("/bucket?prefix=a&prefix=b", 400, "InvalidArgument"),
        ("/bucket?uploads&versions", 400, "InvalidArgument"),
        ("/bucket?list-type=3", 400, "InvalidArgument"),
        ("/bucket?frobnicate", 501, "NotImplemented"),
        ("/bucket/key?frobnicate", 501, "NotImplemented"),
        ("/bucket/key?acl", 501, "NotImplemented"),
        ("/bucket/key?versionId=x", 404, "NoSuchVersion"),
        ("/bucket/key?versionId=", 400, "InvalidArgument"),
        ("/bucket/key?uploadId=nope", 404, "NoSuchUpload"),
    ],
)
def test_targets_that_are_refused(wire: Wire, target: str, status: int, code: str) -> None:
    answer = wire.ask("GET", target)
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["server"] == "Holdfast"
    assert f"<RequestId>{answer.headers['x-amz-request-id']}</RequestId>" in answer.body.decode()


def test_a_delete_with_an_unknown_query_deletes_nothing(wire: Wire) -> None:
    wire.ask("PUT", "/bucket/kept", b"x")
    for query in ("?frobnicate", "?frobnicate=1", "?acl", "?uploads", "?partNumber=1"):
        assert wire.ask("DELETE", f"/bucket/kept{query}").status in (400, 405, 501)
    assert wire.ask("PUT", "/bucket/kept?partNumber=1", b"y").code == "InvalidArgument"
    assert wire.ask("GET", "/bucket/kept?frobnicate=1&x-id=GetObject").body == b"x"


def test_methods_that_nothing_has(wire: Wire) -> None:
    for method, target in (("PATCH", "/bucket/k"), ("POST", "/bucket/k"), ("DELETE", "/")):
        answer = wire.ask(method, target)
        assert (answer.status, answer.code) == (405, "MethodNotAllowed")


# ---- the connection -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        b"GET /b/k HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /b/k HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET /b/\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=range(8),
)
def test_requests_that_smuggle_or_are_none(wire: Wire, head: bytes) -> None:
    answer = wire.raw(head)
    assert (answer.status, answer.code) == (400, "InvalidRequest")
    assert answer.headers["connection"] == "close"


def test_other_transfer_encodings_are_refused(wire: Wire) -> None:
    answer = wire.raw(b"PUT /b/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n")
    assert (answer.status, answer.code) == (501, "NotImplemented")


@pytest.mark.parametrize("ended", [True, False])
def test_headers_beyond_the_maximum(wire: Wire, ended: bool) -> None:
    head = b"GET / HTTP/1.1\r\nHost: h\r\nX-Big: " + b"x" * (limits.MAX_HEADER_BYTES + 1000)
    with wire.connect() as connection:
        for place in range(0, len(head), 4096):
            connection.sendall(head[place : place + 4096])
        if ended:
            connection.sendall(b"\r\n\r\n")
        answer = read_answer(connection)
    assert (answer.status, answer.code) == (400, "RequestHeaderSectionTooLarge")


def test_requests_on_one_connection_follow_each_other(wire: Wire) -> None:
    wire.ask("PUT", "/bucket/one", b"1")
    lines = "".join(f"{n}: {v}\r\n" for n, v in wire.signed("GET", "/bucket/one"))
    request = f"GET /bucket/one HTTP/1.1\r\n{lines}\r\n".encode()
    with wire.connect() as connection:
        connection.sendall(request * 3)  # pipelined
        data = b""
        while data.count(b"HTTP/1.1 200") < 3 or not data.endswith(b"1"):
            more = connection.recv(65536)
            assert more
            data += more
    # A refused small upload is skipped, and the connection goes on.
    with wire.connect() as connection:
        connection.sendall(
            b"PUT /bucket/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" + request
        )
        data = b""
        while not data.endswith(b"\r\n\r\n1"):
            more = connection.recv(65536)
            assert more
            data += more
    assert b"403 Forbidden" in data and b"200 OK" in data


def test_an_early_answer_reaches_a_client_that_still_uploads(wire: Wire) -> None:
    with wire.connect() as connection:
        connection.sendall(b"PUT /bucket/x HTTP/1.1\r\nHost: h\r\nContent-Length: 90000000\r\n\r\n")
        for _ in range(40):
            connection.sendall(bytes(100_000))
        answer = read_answer(connection)
    assert (answer.status, answer.code) == (403, "AccessDenied")
    assert answer.headers["connection"] == "close"


def test_a_header_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEADER_TIMEOUT_S", 0.2)
    with listening(World()) as world:
        for opening in (b"", b"GET / HT", b"\r\n"):
            with socket.create_connection(("127.0.0.1", world.port), timeout=10) as connection:
                connection.sendall(opening)
                assert connection.recv(100) == b""


def test_an_upload_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_PROGRESS_TIMEOUT_S", 0.2)
    with listening(World()) as world:
        wire = Wire(world)
        wire.ask("PUT", "/bucket")
        lines = "".join(f"{n}: {v}\r\n" for n, v in wire.signed("PUT", "/bucket/k"))
        with wire.connect() as connection:
            connection.sendall(
                f"PUT /bucket/k HTTP/1.1\r\n{lines}content-length: 9\r\n\r\nab".encode()
            )
            answer = read_answer(connection)
        assert (answer.status, answer.code) == (400, "RequestTimeout")


def test_a_client_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_PROGRESS_TIMEOUT_S", 0.3)
    with listening(World()) as world:
        wire = Wire(world)
        wire.ask("PUT", "/bucket")
        size = 32 * limits.MIB
        wire.ask("PUT", "/bucket/big", bytes(size))
        lines = "".join(f"{n}: {v}\r\n" for n, v in wire.signed("GET", "/bucket/big"))
        with wire.connect() as connection:
            connection.sendall(f"GET /bucket/big HTTP/1.1\r\n{lines}\r\n".encode())
            reading = _wait_for(lambda: world.store.readings and world.store.readings[-1].closed)
            assert reading, "the download was never given up"
            taken = 0
            with pytest.raises(ConnectionError):
                while True:
                    got = len(connection.recv(1 << 20))
                    if not got:
                        raise ConnectionError("ended short")
                    taken += got
            assert taken < size


def _wait_for(what: Any) -> bool:
    import threading

    tick = threading.Event()
    for _ in range(1000):
        if what():
            return True
        tick.wait(0.01)
    return False


def test_a_download_that_breaks_is_never_ended_cleanly(wire: Wire) -> None:
    size = 2 * limits.MIB
    wire.ask("PUT", "/bucket/breaks", bytes(size))
    wire.world.store.break_after = limits.MIB
    with pytest.raises(ConnectionError), wire.connect() as connection:
        lines = "".join(f"{n}: {v}\r\n" for n, v in wire.signed("GET", "/bucket/breaks"))
        connection.sendall(f"GET /bucket/breaks HTTP/1.1\r\n{lines}\r\n".encode())
        taken = 0
        while True:
            got = connection.recv(1 << 20)
            if not got:
                assert taken < size
                raise ConnectionError("ended short")
            taken += len(got)
    assert wire.world.store.readings[-1].closed
    wire.world.store.break_after = 0  # before the first byte it is an honest error
    answer = wire.ask("GET", "/bucket/breaks")
    assert (answer.status, answer.code) == (503, "ServiceUnavailable")


# ---- the cluster's troubles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (Shed("full"), 503, "SlowDown"),
        (LockContended("k"), 503, "SlowDown"),
        (QuorumLost("5 of 9"), 503, "ServiceUnavailable"),
        (OutcomeUnknown("sent"), 503, "ServiceUnavailable"),
        (DeadlineExceeded("late"), 503, "ServiceUnavailable"),
        (RuntimeError("a secret detail of the inside"), 500, "InternalError"),
    ],
    ids=lambda value: (
        getattr(value, "args", [value])[0] if isinstance(value, Exception) else str(value)
    ),
)
def test_failures_inside_become_s3_errors(
    wire: Wire, failure: Exception, status: int, code: str
) -> None:
    for place in ("store", "identity"):
        setattr(getattr(wire.world, place), "failure", failure)  # noqa: B010
        answer = wire.ask("GET", "/bucket/k")
        assert (answer.status, answer.code) == (status, code)
        assert ("retry-after" in answer.headers) == (status == 503)
        assert b"secret detail" not in answer.body and b"Traceback" not in answer.body
        head = wire.ask("HEAD", "/bucket/k")
        assert (head.status, head.body) == (status, b"")
        setattr(getattr(wire.world, place), "failure", None)  # noqa: B010
    if status == 500:
        assert any(event["event"] == "unexpected" for event in wire.world.logged)


def test_anonymous_requests_are_denied(wire: Wire) -> None:
    for method, target in (
        ("GET", "/"),
        ("GET", "/bucket"),
        ("GET", "/bucket/k"),
        ("PUT", "/new-one"),
    ):
        answer = wire.ask(method, target, sign_it=False)
        assert (answer.status, answer.code) == (403, "AccessDenied")


def test_in_flight_is_given_back(wire: Wire) -> None:
    wire.ask("GET", "/bucket/none")
    wire.ask("GET", "/bucket")
    assert _wait_for(lambda: not any(wire.world.metrics.running.values()))


def test_health_and_metrics(wire: Wire) -> None:
    paths = ("/live", "/ready", "/ready/write", "/cluster", "/cluster/read")
    for prefix in ("/health", "/minio/health"):
        for path in paths:
            assert wire.ask("GET", prefix + path, sign_it=False).status == 200
    assert b"up 1" in wire.ask("GET", "/metrics", sign_it=False).body
    wire.world.health.fine = False
    try:
        assert wire.ask("GET", "/health/live", sign_it=False).status == 200
        assert wire.ask("GET", "/health/ready/write", sign_it=False).status == 503
        assert wire.ask("GET", "/health/cluster", sign_it=False).status == 503
        answer = wire.ask("GET", "/health/cluster?maintenance=true", sign_it=False)
        assert answer.status == 412
    finally:
        wire.world.health.fine = True
    for path in ("/docs", "/openapi.json", "/redoc"):
        assert wire.ask("GET", path, sign_it=False).code in ("InvalidBucketName", "AccessDenied")
