"""A small blocking HTTP/1.1 client and S3 signatures: cheap, no retries, every wait bounded.

A test client must not hide what it is to measure: no pool, no retry, one socket per Connection.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

Query = Iterable[tuple[str, str]]
Network = Callable[[], AbstractContextManager[Any]]  # where the socket is made (a namespace)
STALE_S = 2.0  # an idle connection is not reused after this: the server may be closing it


class WireError(OSError):
    """No complete answer: the outcome of the request is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One keep-alive connection; `timeout_s` bounds a whole request, connecting included."""

    def __init__(
        self, host: str, port: int, *, timeout_s: float, network: Network = nullcontext
    ) -> None:
        self.host, self.port, self.timeout_s = host, port, timeout_s
        self._network = network
        self._sock: socket.socket | None = None
        self._used_at = 0.0

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _connected(self, deadline: float) -> socket.socket:
        if self._sock is not None and time.monotonic() - self._used_at > STALE_S:
            self.close()
        if self._sock is None:
            wait_s = max(0.01, deadline - time.monotonic())
            with self._network():
                self._sock = socket.create_connection((self.host, self.port), timeout=wait_s)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A small send buffer: progress as seen here is progress of the server.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)
        return self._sock

    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes] = b"",
        *,
        length: int | None = None,
        on_data: Callable[[bytes], None] | None = None,
        on_sent: Callable[[int], None] | None = None,
    ) -> Response:
        """One request; a body given in pieces needs its `length` in bytes.

        `on_data` takes a 2xx body piece by piece (then Response.body is empty), `on_sent` hears
        of every piece the kernel has accepted, in bytes.  Raises WireError.
        """
        deadline = time.monotonic() + self.timeout_s
        pieces = [body] if isinstance(body, bytes) else body
        size = len(body) if isinstance(body, bytes) else length
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.host}:{self.port}"]
        lines += [f"{k}: {v}" for k, v in (headers or {}).items()]
        if size or method in ("PUT", "POST"):
            lines.append(f"Content-Length: {size}")
        head = "\r\n".join([*lines, "", ""]).encode()
        try:
            sock = self._connected(deadline)
            first = head + body if isinstance(body, bytes) and len(body) < 65536 else head
            try:
                self._send(sock, first, deadline, None)
                if first is head:
                    for piece in pieces:
                        self._send(sock, piece, deadline, on_sent)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the server may have refused early: its answer is still to be read
            answer = self._receive(sock, method, deadline, on_data)
        except OSError as error:
            self.close()
            raise WireError(f"{type(error).__name__}: {error}") from error
        self._used_at = time.monotonic()
        if answer.headers.get("connection", "").lower() == "close":
            self.close()
        return answer

    @staticmethod
    def _wait(sock: socket.socket, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("request deadline")
        sock.settimeout(left)

    def _send(
        self,
        sock: socket.socket,
        data: bytes,
        deadline: float,
        on_sent: Callable[[int], None] | None,
    ) -> None:
        view = memoryview(data)
        while view:
            self._wait(sock, deadline)
            sent = sock.send(view[:262144])
            view = view[sent:]
            if on_sent:
                on_sent(sent)

    def _receive(
        self,
        sock: socket.socket,
        method: str,
        deadline: float,
        on_data: Callable[[bytes], None] | None,
    ) -> Response:
        def more(limit: int = 262144) -> bytes:
            self._wait(sock, deadline)
            data = sock.recv(limit)
            if not data:
                raise ConnectionResetError("closed before the answer was complete")
            return data

        status, buffer = 100, b""
        while status == 100:
            while (end := buffer.find(b"\r\n\r\n")) < 0:
                buffer += more()
            first, *rest = buffer[:end].decode("latin-1").split("\r\n")
            buffer = buffer[end + 4 :]
            status = int(first.split(" ", 2)[1])
        headers = {k.strip().lower(): v.strip() for k, _, v in (row.partition(":") for row in rest)}
        if method == "HEAD" or status in (204, 304):
            return Response(status=status, headers=headers, body=b"")
        sink = on_data if on_data and status < 300 else None
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = self._chunked(buffer, more)
            if sink:
                sink(body)
            return Response(status=status, headers=headers, body=b"" if sink else body)
        left = int(headers.get("content-length", "0")) - len(buffer)
        parts = [buffer]
        if sink and buffer:
            sink(buffer)
        while left > 0:
            data = more(min(left, 262144))
            left -= len(data)
            if sink:
                sink(data)
            else:
                parts.append(data)
        return Response(status=status, headers=headers, body=b"" if sink else b"".join(parts))

    @staticmethod
    def _chunked(buffer: bytes, more: Callable[[], bytes]) -> bytes:
        out = []
        while True:
            while (end := buffer.find(b"\r\n")) < 0:
                buffer += more()
            size = int(buffer[:end].split(b";")[0], 16)
            while len(buffer) < end + 4 + size:
                buffer += more()
            out.append(buffer[end + 2 : end + 2 + size])
            buffer = buffer[end + 4 + size :]
            if not size:
                return b"".join(out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"

    @staticmethod
    def of_environment() -> Credentials:
        """From AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, as every S3 client reads them."""
        return Credentials(
            access_key=os.environ["AWS_ACCESS_KEY_ID"],
            secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        )

    def environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}


def _quote(text: str) -> str:
    return urllib.parse.quote(text, safe="-_.~")


def sign(
    credentials: Credentials, method: str, host: str, path: str, query: Query = ()
) -> tuple[str, dict[str, str]]:
    """Target and headers of a SigV4 request with an unsigned payload, dated now."""
    amz_date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    scope = f"{amz_date[:8]}/{credentials.region}/s3/aws4_request"
    key = b"AWS4" + credentials.secret_key.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    path = urllib.parse.quote(path, safe="/-_.~")
    text = "&".join(f"{_quote(k)}={_quote(v)}" for k, v in sorted(query))
    payload, names = "UNSIGNED-PAYLOAD", "host;x-amz-content-sha256;x-amz-date"
    lines = [method, path, text, f"host:{host}", f"x-amz-content-sha256:{payload}"]
    lines += [f"x-amz-date:{amz_date}", "", names, payload]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    signature = hmac.digest(
        key, f"AWS4-HMAC-SHA256\n{amz_date}\n{scope}\n{digest}".encode(), "sha256"
    ).hex()
    return path + (f"?{text}" if text else ""), {
        "x-amz-content-sha256": payload,
        "x-amz-date": amz_date,
        "Authorization": f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}",
    }


class S3:
    """Signed requests to one endpoint over one connection."""

    def __init__(
        self,
        endpoint: tuple[str, int],
        credentials: Credentials,
        *,
        timeout_s: float = 15.0,
        network: Network = nullcontext,
    ) -> None:
        self.endpoint, self.credentials = endpoint, credentials
        self.connection = Connection(*endpoint, timeout_s=timeout_s, network=network)

    def __enter__(self) -> S3:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.connection.close()

    def call(
        self,
        method: str,
        path: str,
        query: Query = (),
        body: bytes | Iterable[bytes] = b"",
        *,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
        on_data: Callable[[bytes], None] | None = None,
        on_sent: Callable[[int], None] | None = None,
    ) -> Response:
        host, port = self.endpoint
        target, signed = sign(self.credentials, method, f"{host}:{port}", path, query)
        return self.connection.request(
            method,
            target,
            {**signed, **(headers or {})},
            body,
            length=length,
            on_data=on_data,
            on_sent=on_sent,
        )

    def expect(
        self, method: str, path: str, query: Query = (), body: bytes = b"", ok: int = 200
    ) -> Response:
        """A call that must succeed; AssertionError shows the server's answer."""
        answer = self.call(method, path, query, body)
        if answer.status != ok:
            raise AssertionError(f"{method} {path}: {answer.status} {answer.body[:500]!r}")
        return answer


def endpoint(text: str) -> tuple[str, int]:
    """ "host:port" as a pair."""
    host, _, port = text.rpartition(":")
    return host, int(port)
