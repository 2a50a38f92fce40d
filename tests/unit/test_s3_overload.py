"""The S3 face under more than it can take, and at its end: refused quickly, never hung, nothing kept."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import uvloop

from node import limits
from node.errors import ConfigError
from node.s3.pipeline import client_ip
from node.s3.server import HttpServer
from tests.fakes.s3_world import FakeSettings, World, listening
from tests.unit.test_s3_wire import Wire, read_answer


def wait_until(what: Callable[[], bool]) -> None:
    tick = threading.Event()
    for _ in range(1000):
        if what():
            return
        tick.wait(0.01)
    raise AssertionError("it never came")


class HeldStore:
    """Holds every HEAD of an object until it is let go."""

    def __init__(self, world: World) -> None:
        self.waiting = 0
        self.event: asyncio.Event | None = None
        self.arrived: asyncio.Event | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        inner = world.store.head

        async def head(*arguments: Any, **named: Any) -> Any:
            self.loop = asyncio.get_running_loop()
            if self.event is None:
                self.event = asyncio.Event()
            self.waiting += 1
            if self.arrived is not None:
                self.arrived.set()
            await self.event.wait()
            return await inner(*arguments, **named)

        world.store.head = head  # type: ignore[method-assign]

    def let_go(self) -> None:
        assert self.loop is not None and self.event is not None
        self.loop.call_soon_threadsafe(self.event.set)

    def until(self, count: int) -> None:
        wait_until(lambda: self.waiting >= count)


def test_more_than_may_run_and_wait_is_shed_and_the_rest_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_RUNNING_REQUESTS", 2)
    monkeypatch.setattr(limits, "MAX_WAITING_REQUESTS", 1)
    monkeypatch.setattr(limits, "ADMISSION_WAIT_S", 20.0)
    with listening(World()) as world, ThreadPoolExecutor(8) as pool:
        wire = Wire(world)
        wire.ask("PUT", "/bucket")
        wire.ask("PUT", "/bucket/k", b"x")
        held = HeldStore(world)
        first = [pool.submit(wire.ask, "HEAD", "/bucket/k") for _ in range(2)]
        held.until(2)
        waits = pool.submit(wire.ask, "HEAD", "/bucket/k")
        wait_until(lambda: world.app.pipeline.waiting == 1)
        answer = wire.ask("GET", "/bucket/k")
        assert (answer.status, answer.code) == (503, "SlowDown")
        assert answer.headers["retry-after"] == "1"
        held.let_go()
        assert [one.result(20).status for one in [*first, waits]] == [200, 200, 200]
        assert wire.ask("GET", "/bucket/k").status == 200
        assert world.metrics.sheds >= 1


def test_a_wait_for_a_place_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_RUNNING_REQUESTS", 1)
    monkeypatch.setattr(limits, "ADMISSION_WAIT_S", 0.1)
    with listening(World()) as world, ThreadPoolExecutor(2) as pool:
        wire = Wire(world)
        wire.ask("PUT", "/bucket")
        wire.ask("PUT", "/bucket/k", b"x")
        held = HeldStore(world)
        first = pool.submit(wire.ask, "HEAD", "/bucket/k")
        held.until(1)
        answer = wire.ask("GET", "/bucket/k")
        assert (answer.status, answer.code) == (503, "SlowDown")
        held.let_go()
        assert first.result(20).status == 200


def test_an_open_that_never_answers_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OPEN_TIMEOUT_S", 0.1)
    with listening(World()) as world:
        wire = Wire(world)
        wire.ask("PUT", "/bucket")
        wire.ask("PUT", "/bucket/k", b"x")

        async def never(*arguments: Any, **named: Any) -> Any:
            await asyncio.Event().wait()

        world.store.get = never  # type: ignore[method-assign]
        answer = wire.ask("GET", "/bucket/k")
        assert (answer.status, answer.code) == (503, "ServiceUnavailable")


def test_connections_beyond_the_maximum_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 3)
    with listening(World()) as world:
        kept = [socket.create_connection(("127.0.0.1", world.port), timeout=10) for _ in range(3)]
        try:
            for one in kept:  # answered, so certainly accepted
                one.sendall(b"GET /health/live HTTP/1.1\r\nHost: h\r\n\r\n")
                assert read_answer(one).status == 200
            with socket.create_connection(("127.0.0.1", world.port), timeout=10) as extra:
                answer = read_answer(extra)
            assert (answer.status, answer.code) == (503, "SlowDown")
        finally:
            for one in kept:
                one.close()


async def _serve_and_stop(grace_s: float, let_go: bool) -> tuple[bytes, float]:
    """One request under way while the server stops: what its client got, and how long stopping took."""
    world = World()
    held = HeldStore(world)
    held.arrived = asyncio.Event()
    server = HttpServer(world.app, "127.0.0.1", 0)
    await server.start()
    world.port = server.port
    await world.store.create_bucket("bucket", "root", deadline=0)
    lines = "".join(f"{n}: {v}\r\n" for n, v in Wire(world).signed("HEAD", "/bucket/k"))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"HEAD /bucket/k HTTP/1.1\r\n{lines}\r\n".encode())
    await held.arrived.wait()
    loop = asyncio.get_running_loop()
    began = loop.time()
    if let_go:
        assert held.event is not None
        loop.call_later(0.2, held.event.set)
    await server.stop(grace_s)
    took = loop.time() - began
    try:
        got = await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        got = b""
    writer.close()
    return got, took


def test_stopping_lets_requests_end_and_cuts_off_what_does_not() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        got, _ = runner.run(_serve_and_stop(20.0, True))
        assert b" 404 " in got and b"Connection: close" in got
        got, took = runner.run(_serve_and_stop(0.2, False))
        assert b"200" not in got and took < 15


def test_a_port_that_is_taken_is_a_configuration_error() -> None:
    async def start() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
                await HttpServer(World().app, "127.0.0.1", port).start()

    asyncio.run(start())


@pytest.mark.parametrize(
    ("client", "forwarded", "expected"),
    [
        ("203.0.113.9", "1.2.3.4", "203.0.113.9"),
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
    ],
)
def test_only_a_trusted_proxy_is_believed(client: str, forwarded: str, expected: str) -> None:
    headers = [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
    scope = {"client": (client, 1), "headers": headers}
    assert client_ip(scope, ("10.0.0.0/8",)) == expected
    assert client_ip(scope, FakeSettings().trusted_proxies) == client
