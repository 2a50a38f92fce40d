"""Uploads that are read straight into the store's buffer: every byte, no more, and the connection goes on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from hashlib import sha256

import pytest

from node import limits
from node.objects.api import Body, BodyResult
from node.s3.inlet import Inlet
from tests.fakes.memory_store import MemoryStore
from tests.fakes.s3_world import World, listening
from tests.unit.test_s3_wire import Answer, Wire, read_answer

ROW = 100_003  # rows of an odd length: a chunk from before fits none


class RowStore(MemoryStore):
    """Takes bodies row by row, as stripes do; `give_up_after` bytes it fails."""

    give_up_after: int | None = None

    async def _read(self, body: Body) -> tuple[bytes, BodyResult]:
        data = bytearray(body.size)
        with memoryview(data) as view:
            for start in range(0, body.size, ROW):
                if self.give_up_after is not None and start >= self.give_up_after:
                    raise TimeoutError
                row = view[start : start + ROW]
                await body.readinto(row)
                body.digest(row)
        return bytes(data), await body.finish()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Inlet]:
    """The inlets that were used."""
    found: list[Inlet] = []
    begin = Inlet.offer

    def offer(self: Inlet, view: memoryview) -> None:
        if self not in found:
            found.append(self)
        begin(self, view)

    monkeypatch.setattr(Inlet, "offer", offer)
    return found


@pytest.fixture
def wire(opened: list[Inlet]) -> Iterator[Wire]:
    world = World(store=RowStore)
    with listening(world):
        found = Wire(world)
        found.ask("PUT", "/bucket")
        yield found


def head(wire: Wire, method: str, target: str, size: int = 0, **headers: str) -> bytes:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{n}: {v}\r\n" for n, v in wire.signed(method, target, given))
    length = f"content-length: {size}\r\n" if method == "PUT" else ""
    return f"{method} {target} HTTP/1.1\r\n{lines}{length}\r\n".encode()


def stored(wire: Wire, key: str) -> bytes:
    return bytes(wire.world.store._bucket("bucket").objects[key].data)


def data_of(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + bytes(size % 251)


@pytest.mark.parametrize("size", [limits.SMALL_BODY_BYTES + 1, ROW, 2 * ROW, 3_000_000])
def test_every_byte_arrives_and_the_next_request_too(
    wire: Wire, opened: list[Inlet], size: int
) -> None:
    body = data_of(size)
    with wire.connect() as connection:
        for number in range(3):  # on one connection
            asked = head(wire, "PUT", f"/bucket/k{number}", size)
            connection.sendall(asked + body[: 5000 * number])
            for start in range(5000 * number, size, 70_001):
                connection.sendall(body[start : start + 70_001])
            assert read_answer(connection).status == 200
            assert stored(wire, f"k{number}") == body
    assert opened, "the socket was never read into the buffer"


def test_what_follows_the_body_is_the_next_request(wire: Wire, opened: list[Inlet]) -> None:
    body = data_of(1_000_000)
    with wire.connect() as connection:
        connection.settimeout(10)
        connection.sendall(head(wire, "PUT", "/bucket/first", len(body)))
        # The end of the body, a whole upload and the head of a third request in one go.
        connection.sendall(
            body
            + head(wire, "PUT", "/bucket/second", 3)
            + b"two"
            + head(wire, "HEAD", "/bucket/second")
        )
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 3:
            more = connection.recv(65536)
            assert more, answers
            answers += more
    assert opened
    assert (stored(wire, "first"), stored(wire, "second")) == (body, b"two")


def test_an_upload_that_breaks_off_is_not_stored(wire: Wire, opened: list[Inlet]) -> None:
    body = data_of(1_000_000)
    for missing in (1, 400_000, len(body)):
        with wire.connect() as connection:
            connection.sendall(head(wire, "PUT", "/bucket/short", len(body)))
            connection.sendall(body[: len(body) - missing])
            connection.shutdown(socket.SHUT_WR)
            answer = read_answer(connection)
        assert (answer.status, answer.code) == (400, "IncompleteBody")
    with wire.connect() as connection:  # and one whose client is gone altogether
        connection.sendall(head(wire, "PUT", "/bucket/short", len(body)) + body[:500_000])
    assert wire.ask("HEAD", "/bucket/short").status == 404
    assert opened


def test_an_upload_that_stalls_in_the_middle_is_given_up(
    wire: Wire, opened: list[Inlet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODY_PROGRESS_TIMEOUT_S", 0.3)
    with wire.connect() as connection:
        connection.sendall(head(wire, "PUT", "/bucket/k", 1_000_000) + bytes(300_000))
        answer = read_answer(connection)
        assert (answer.status, answer.code) == (400, "RequestTimeout")
        assert answer.headers["connection"] == "close"
        assert connection.recv(1) == b""
    assert opened


@pytest.mark.parametrize("left", [ROW, limits.DISCARDED_BODY_BYTES // 2])
def test_a_request_that_gives_up_ends_its_connection(
    wire: Wire, opened: list[Inlet], left: int
) -> None:
    """Even with little to come: the parser would take the rest of the body for more than it is."""
    size = 3 * ROW + left
    store = wire.world.store
    assert isinstance(store, RowStore)
    store.give_up_after = 3 * ROW
    with wire.connect() as connection:
        connection.sendall(head(wire, "PUT", "/bucket/k", size) + bytes(3 * ROW))
        answer = read_answer(connection)
        assert answer.status == 500
        assert answer.headers["connection"] == "close"
        connection.sendall(bytes(left))
        assert connection.recv(1) == b""
    assert opened


def test_continue_is_said_when_the_body_is_asked_for(wire: Wire, opened: list[Inlet]) -> None:
    body = data_of(500_000)
    with wire.connect() as connection:
        connection.sendall(head(wire, "PUT", "/bucket/k", len(body), expect="100-continue"))
        assert read_answer(connection).status == 100
        connection.sendall(body)
        assert read_answer(connection).status == 200
    assert stored(wire, "k") == body
    assert opened


def test_digests_are_checked(wire: Wire, opened: list[Inlet]) -> None:
    body = data_of(500_000)

    def put(claimed: bytes) -> Answer:
        claim = {"x-amz-content-sha256": sha256(claimed).hexdigest()}
        return wire.ask("PUT", "/bucket/k", body, claim)

    assert put(body).status == 200
    assert put(b"another").code == "XAmzContentSHA256Mismatch"
    assert opened
