"""The console behind the node's own HTTP server, on real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
import pytest

from node.s3.server import HttpServer
from tests.fakes.console_world import Console
from tests.unit.identity_world import ROOT_PASSWORD, ROOT_USER


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Console, httpx.AsyncClient]]:
    """A console on a port of the loopback, and a client that is logged in."""
    console = Console()
    server = HttpServer(console.app, "127.0.0.1", 0)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            keys = {"access_key": ROOT_USER, "secret_key": ROOT_PASSWORD}
            answer = await client.post("/api/login", json=keys)
            client.headers["X-CSRF-Token"] = answer.json()["csrf"]
            await client.post("/api/buckets", json={"name": "photos"})
            yield console, client
    finally:
        await server.stop(1.0)


@contextmanager
def broken_off() -> Iterator[None]:
    with pytest.raises(httpx.RemoteProtocolError):
        yield


URL = "/api/buckets/photos/object?key=a"
DATA = bytes(range(256)) * 4096  # 1 MiB


async def test_a_megabyte_goes_in_and_comes_out() -> None:
    async with listening() as (_, client):
        assert (await client.put(URL, content=DATA)).json()["size"] == len(DATA)
        assert (await client.get(URL)).content == DATA
        assert (await client.get("/cluster")).status_code == 200


async def test_a_download_that_breaks_is_never_taken_for_whole() -> None:
    async with listening() as (console, client):
        await client.put(URL, content=DATA)
        console.store.break_after = len(DATA) // 2
        with broken_off():
            await client.get(URL)
        console.store.break_after = 0  # before the first byte it is still an error like any other
        answer = await client.get(URL)
        assert (answer.status_code, answer.json()["code"]) == (503, "ServiceUnavailable")
        console.store.break_after = None
        assert (await client.get(URL)).content == DATA
        assert all(reading.closed for reading in console.store.readings)


async def test_a_refused_upload_leaves_nothing_and_the_next_one_works() -> None:
    async with listening() as (console, client):
        answer = await client.put(URL, content=DATA, headers={"X-CSRF-Token": "wrong"})
        assert answer.status_code == 403 and console.store.bodies_read == 0
        assert (await client.put(URL, content=b"small")).status_code == 201
