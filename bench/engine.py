"""The load engine: one thread, epoll, raw sockets; what the client costs is not the servers' to pay.

Bodies leave by sendfile out of a memfd, and bodies of answers are dropped inside the kernel
(MSG_TRUNC) unless they are to be compared.  Requests are signed before the clock starts.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

MIB = 1 << 20
SMALL = 64 * 1024  # a body up to this size leaves together with its head
UNTIL_CLOSE = -2


class Bodies:
    """`count` different bodies of one size, in a memfd (and in memory where they are needed)."""

    def __init__(self, size: int, count: int, keep: bool) -> None:
        self.size, self.count = size, count
        self.file = os.memfd_create("body")
        self.kept: list[bytes | None] = []
        for number in range(count):
            body = self._make(number)
            done = 0
            while done < size:
                done += os.pwrite(self.file, memoryview(body)[done:], number * size + done)
            self.kept.append(body if keep or size <= SMALL else None)

    def _make(self, number: int) -> bytes:
        block = os.urandom(min(self.size, MIB))
        if self.size <= MIB:
            return block
        body = bytearray((block * (self.size // MIB + 1))[: self.size])
        for at in range(0, self.size - 8, MIB):  # every MiB differs
            body[at : at + 8] = (at + number).to_bytes(8, "big")
        return bytes(body)


@dataclass(slots=True, eq=False)
class Request:
    """What to send next: an operation, its key number and its signed head."""

    op: str
    key: int
    head: bytes


@dataclass(slots=True, eq=False)
class Conn:
    """One connection and the request under way on it."""

    number: int
    address: tuple[str, int]
    sock: socket.socket | None = None
    request: Request | None = None
    begun: float = 0.0
    head_sent: int = 0
    body_sent: int = 0
    body_size: int = 0
    waits_to_send: bool = False
    buffer: bytes = b""
    status: int = 0
    left: int = -1  # bytes of the answer's body to come
    buffers: bool = False  # listings and errors are kept, other bodies dropped
    chunked: bool = False
    closes: bool = False
    differs: bool = False
    got: int = 0

    def begin(self, request: Request, body_size: int) -> None:
        self.request, self.body_size, self.begun = request, body_size, time.perf_counter()
        self.head_sent = self.body_sent = self.got = self.status = 0
        self.buffer, self.left = b"", -1
        self.buffers = self.chunked = self.closes = self.differs = False


@dataclass(slots=True)
class Tally:
    """What a run counted; latencies in seconds by operation, "error" for failed ones."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: collections.defaultdict(list))
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    error_sample: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    gap_s: float = 0.0
    last: float = 0.0
    done_at: list[float] = field(default_factory=list)

    def success(self, op: str, begun: float, up: int, down: int) -> None:
        now = time.perf_counter()
        self.latencies[op].append(now - begun)
        self.bytes_up += up
        self.bytes_down += down
        self.gap_s = max(self.gap_s, now - self.last)
        self.last = now
        self.done_at.append(now)

    def failure(self, why: str, begun: float, sample: str = "") -> None:
        self.errors[why] += 1
        self.error_sample = self.error_sample or sample
        self.latencies["error"].append(time.perf_counter() - begun)


class Engine:
    """Drives `conns` connections with requests from `source` until it gives no more.

    `source(conn)` returns the next Request or None; `listed(conn, body)` receives listings.
    """

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        bodies: Bodies,
        source: Callable[[Conn], Request | None],
        listed: Callable[[Conn, bytes], None],
        *,
        verify: bool,
        ranged: bool,
        timeout_s: float,
    ) -> None:
        self.addresses, self.bodies = addresses, bodies
        self.source, self.listed = source, listed
        self.verify, self.ranged, self.timeout_s = verify, ranged, timeout_s
        self.tally = Tally()
        self._epoll = select.epoll()
        self._by_fd: dict[int, Conn] = {}
        self._idle: list[Conn] = []
        self._scratch = memoryview(bytearray(MIB))

    def run(self, conns: int) -> tuple[float, float]:
        """Seconds it took, and the perf_counter at its start."""
        begun = self.tally.last = time.perf_counter()
        for number in range(conns):
            conn = Conn(number, self.addresses[number % len(self.addresses)])
            self._idle.append(conn)
        active, next_check = conns, begun + 1
        while active:
            while self._idle:
                batch, self._idle = self._idle, []
                active -= sum(not self._begin(conn) for conn in batch)
            if not active:
                break
            for fd, events in self._epoll.poll(1.0):
                self._event(fd, events)
            if (now := time.perf_counter()) > next_check:
                next_check = now + 1
                for conn in list(self._by_fd.values()):
                    if conn.request and now - conn.begun > self.timeout_s:
                        self._fail(conn, "timeout")
        return time.perf_counter() - begun, begun

    def _event(self, fd: int, events: int) -> None:
        conn = self._by_fd.get(fd)
        if conn is None:
            return
        if conn.request is None:
            self._drop(conn)  # closed by the server while idle
            return
        if events & select.EPOLLOUT:
            self._send(conn)
        if events & ~select.EPOLLOUT and conn.request and conn.sock:
            self._read(conn)

    # -- sending

    def _begin(self, conn: Conn) -> bool:
        request = self.source(conn)
        if request is None:
            self._drop(conn)
            return False
        conn.begin(request, self.bodies.size if request.op == "put" else 0)
        if conn.sock is None:
            try:
                self._connect(conn)
            except OSError:
                self._fail(conn, "connect")
                time.sleep(0.01)
                return True
        self._send(conn)
        return True

    def _connect(self, conn: Conn) -> None:
        conn.sock = socket.create_connection(conn.address, timeout=self.timeout_s)
        conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        conn.sock.setblocking(False)
        conn.waits_to_send = False
        self._epoll.register(conn.sock.fileno(), select.EPOLLIN)
        self._by_fd[conn.sock.fileno()] = conn

    def _drop(self, conn: Conn) -> None:
        if conn.sock is not None:
            self._by_fd.pop(conn.sock.fileno(), None)
            with contextlib.suppress(OSError):
                self._epoll.unregister(conn.sock.fileno())
            conn.sock.close()
            conn.sock = None

    def _send(self, conn: Conn) -> None:
        try:
            self._push(conn)
        except BlockingIOError:
            pass
        except OSError as error:
            # The server may have answered and closed before the body was through.
            if not self._read(conn, quiet=True):
                self._fail(conn, f"send: {type(error).__name__}")
            return
        assert conn.request is not None and conn.sock is not None
        pending = conn.head_sent < len(conn.request.head) or conn.body_sent < conn.body_size
        if pending != conn.waits_to_send:
            conn.waits_to_send = pending
            events = select.EPOLLIN | (select.EPOLLOUT if pending else 0)
            self._epoll.modify(conn.sock.fileno(), events)

    def _push(self, conn: Conn) -> None:
        sock, request = conn.sock, conn.request
        assert sock is not None and request is not None
        if conn.head_sent < len(request.head):
            rest = request.head[conn.head_sent :]
            body = self.bodies.kept[request.key % self.bodies.count]
            if conn.body_size and body is not None and len(body) <= SMALL:
                sent = sock.sendmsg([rest, body])
                conn.body_sent += max(0, sent - len(rest))
                conn.head_sent += min(sent, len(rest))
            else:
                conn.head_sent += sock.send(rest, socket.MSG_MORE if conn.body_size else 0)
        if conn.head_sent < len(request.head):
            return
        base = (request.key % self.bodies.count) * self.bodies.size
        while conn.body_sent < conn.body_size:
            left = conn.body_size - conn.body_sent
            sent = os.sendfile(sock.fileno(), self.bodies.file, base + conn.body_sent, left)
            if sent <= 0:
                return
            conn.body_sent += sent

    # -- receiving

    def _read(self, conn: Conn, quiet: bool = False) -> bool:
        """True when the request is over, well or badly; with `quiet` a failure is the caller's."""
        try:
            for _ in range(16):
                if self._read_some(conn):
                    self._finish(conn)
                    return True
            return False  # epoll is level-triggered: the rest is announced again
        except BlockingIOError:
            return False
        except OSError as error:
            if not quiet:
                self._fail(conn, f"recv: {type(error).__name__}")
            return not quiet

    def _read_some(self, conn: Conn) -> bool:
        """One recv; True when the answer is complete."""
        sock = conn.sock
        assert sock is not None
        if conn.status and conn.left > 0 and not conn.buffers:
            return self._read_body(conn, sock)
        data = sock.recv(SMALL)
        if not data:
            if conn.status and conn.left == UNTIL_CLOSE:
                conn.closes = True
                return True
            raise ConnectionResetError("closed")
        conn.buffer += data
        if not conn.status and not self._read_head(conn):
            return False
        if conn.chunked:
            if not conn.buffer.endswith(b"0\r\n\r\n"):
                return False
            conn.buffer = _dechunk(conn.buffer)
            conn.got = len(conn.buffer)
            return True
        if conn.buffers:
            conn.got = len(conn.buffer)
            return 0 <= conn.left <= conn.got
        return conn.left == 0

    def _read_body(self, conn: Conn, sock: socket.socket) -> bool:
        assert conn.request is not None
        limit = min(conn.left, MIB)
        if self.verify and conn.request.op == "get":
            data = sock.recv(min(limit, 4 * SMALL))
            count = len(data)
            self._compare(conn, data)
        else:
            count = sock.recv_into(self._scratch, limit, socket.MSG_TRUNC)
        if count == 0:
            raise ConnectionResetError("closed inside a body")
        conn.left -= count
        conn.got += count
        return conn.left == 0

    def _compare(self, conn: Conn, data: bytes) -> None:
        assert conn.request is not None
        body = self.bodies.kept[conn.request.key % self.bodies.count]
        if data and body is not None and not body.startswith(data, conn.got):
            conn.differs = True

    def _read_head(self, conn: Conn) -> bool:
        """Take the head off the buffer; False while it is not complete."""
        assert conn.request is not None
        end = conn.buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head, conn.buffer = conn.buffer[: end + 2].lower(), conn.buffer[end + 4 :]
        status = int(head[9:12])
        if status == 100:
            return self._read_head(conn) if conn.buffer else False
        conn.status = status
        conn.closes = b"\r\nconnection: close" in head
        conn.left = _body_length(head, conn.request.op, status)
        conn.chunked = b"\r\ntransfer-encoding: chunked" in head
        conn.buffers = conn.request.op == "list" or status >= 300 or conn.left == UNTIL_CLOSE
        if not conn.buffers and not conn.chunked:
            body, conn.buffer = conn.buffer, b""
            if self.verify and conn.request.op == "get":
                self._compare(conn, body)
            conn.got = len(body)
            conn.left -= len(body)
        return True

    # -- the end of a request

    def _fail(self, conn: Conn, why: str) -> None:
        self.tally.failure(why, conn.begun)
        self._drop(conn)
        conn.request = None
        self._idle.append(conn)

    def _finish(self, conn: Conn) -> None:
        request = conn.request
        assert request is not None
        whole = request.op != "get" or self.ranged or conn.got == self.bodies.size
        unsent = conn.body_sent < conn.body_size
        if not 200 <= conn.status < 300:
            sample = conn.buffer[:300].decode("latin-1")
            self.tally.failure(f"http {conn.status}", conn.begun, sample)
        elif not whole:
            self.tally.failure("wrong length", conn.begun)
        elif conn.differs:
            self.tally.failure("bytes differ", conn.begun)
        else:
            self.tally.success(request.op, conn.begun, conn.body_size, conn.got)
            if request.op == "list":
                self.listed(conn, conn.buffer)
        if conn.closes or unsent:
            self._drop(conn)
        conn.request = None
        self._idle.append(conn)


def _body_length(head: bytes, op: str, status: int) -> int:
    if op == "head" or status in (204, 304):
        return 0
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        return int(head[at + 17 : head.index(b"\r", at + 17)])
    return 1 if b"\r\ntransfer-encoding: chunked" in head else UNTIL_CLOSE


def _dechunk(data: bytes) -> bytes:
    out, at = [], 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end].split(b";")[0], 16)
        if size == 0:
            return b"".join(out)
        out.append(data[end + 2 : end + 2 + size])
        at = end + 4 + size
