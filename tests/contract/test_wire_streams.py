"""Uploads and downloads over real gRPC: whole, refused, stalled, cut off."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncIterator

import pytest

from node.errors import DriveFailed, Shed, TargetDown, TargetFailed
from node.guard.breaker import BreakerState
from node.guard.guard import Guard
from node.guard.policy import PEER_METHODS
from node.peer.inbound import PeerContext
from node.rpc.methods import Lane
from tests.contract.wire_world import CLOCK, RNG, Callee, caller, listening, until, within

MIB = 1 << 20


async def take_all(context: PeerContext, header: bytes, data: AsyncIterator[bytes]) -> bytes:
    digest = hashlib.sha256(header)
    async for message in data:
        digest.update(message)
    return digest.digest()


async def stuck(_context: PeerContext, _header: bytes, _data: AsyncIterator[bytes]) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress bounds of half a second instead of three."""
    for name in ("upload", "download"):
        row = dataclasses.replace(PEER_METHODS[name], attempt_s=0.5)
        monkeypatch.setitem(PEER_METHODS, name, row)


async def test_an_upload_of_8_mib_arrives_whole_and_brings_the_reply() -> None:
    parts = [RNG.bytes(MIB) for _ in range(8)]
    async with listening(Callee(upload=take_all)) as callee, caller(callee.name) as peers:
        upload = await peers.open_upload(callee.name, b"header", deadline=within(60))
        for part in parts:
            await upload.send(part)
        expected = hashlib.sha256(b"header" + b"".join(parts)).digest()
        assert await upload.finish() == expected
        with pytest.raises(TargetFailed):
            await upload.send(b"more")


async def test_uploads_run_beside_each_other() -> None:
    async with listening(Callee(upload=take_all)) as callee, caller(callee.name) as peers:

        async def one(number: int) -> None:
            data = bytes([number]) * MIB
            upload = await peers.open_upload(callee.name, b"", deadline=within(60))
            for _ in range(3):
                await upload.send(data)
            assert await upload.finish() == hashlib.sha256(data * 3).digest()

        await asyncio.gather(*(one(n) for n in range(8)))
        assert peers._streams.running == {"upload": 0, "download": 0}


async def test_an_empty_upload_has_a_reply_too() -> None:
    async with listening(Callee(upload=take_all)) as callee, caller(callee.name) as peers:
        upload = await peers.open_upload(callee.name, b"h", deadline=within(60))
        assert await upload.finish() == hashlib.sha256(b"h").digest()


async def test_a_receiver_that_gives_up_in_mid_upload_says_why() -> None:
    async def full(_context: PeerContext, _header: bytes, data: AsyncIterator[bytes]) -> bytes:
        await anext(data)
        raise DriveFailed("no_space", "disk1")

    guard = Guard(CLOCK, RNG)
    async with listening(Callee(upload=full)) as callee, caller(callee.name, guard=guard) as peers:
        for _ in range(4):
            upload = await peers.open_upload(callee.name, b"", deadline=within(60))
            with pytest.raises(DriveFailed, match="no_space"):
                while True:
                    await upload.send(bytes(MIB))
        bulk = guard.target("peer", callee.name, Lane.BULK)
        assert bulk.breaker.state is BreakerState.CLOSED, "the peer answered: it is well"


@pytest.mark.usefixtures("impatient")
async def test_a_receiver_that_stops_reading_fails_the_upload() -> None:
    async with listening(Callee(upload=stuck)) as callee, caller(callee.name) as peers:
        upload = await peers.open_upload(callee.name, b"", deadline=within(60))
        with pytest.raises(TargetFailed, match="no progress"):
            for _ in range(200):
                await upload.send(bytes(MIB))
        assert peers.linked(callee.name, Lane.BULK), "the link itself is not to blame"


@pytest.mark.parametrize("reading", [False, True])
async def test_an_abort_ends_the_receivers_handler(reading: bool) -> None:
    """Also when the handler sits in a read: to gRPC's server a cancelled stream looks like a finished one."""
    began = asyncio.Event()
    ended = asyncio.Event()
    arrived = asyncio.Event()

    async def watch(_context: PeerContext, _header: bytes, data: AsyncIterator[bytes]) -> bytes:
        began.set()
        try:
            async for _ in data:
                arrived.set()
        except BaseException:
            ended.set()
            raise
        return b"an aborted upload must not look like a finished one"

    async with listening(Callee(upload=watch)) as callee, caller(callee.name) as peers:
        upload = await peers.open_upload(callee.name, b"", deadline=within(60))
        await upload.send(b"part")
        # An abort that overtakes the opening leaves no handler to end.
        await asyncio.wait_for((arrived if reading else began).wait(), 20)
        upload.abort()
        await asyncio.wait_for(ended.wait(), 20)


async def test_a_dead_verdict_cuts_a_transfer_that_stands_still_and_no_other() -> None:
    async with listening(Callee(upload=take_all)) as callee, caller(callee.name) as peers:
        still = await peers.open_upload(callee.name, b"", deadline=within(60))
        busy = await peers.open_upload(callee.name, b"", deadline=within(60))
        still._moved_at -= 2.0
        peers.lost(callee.name)
        with pytest.raises(TargetDown):
            await still.send(b"x")
        await busy.send(b"x")
        assert await busy.finish() == hashlib.sha256(b"x").digest()
        with pytest.raises(TargetDown):
            await peers.open_upload(callee.name, b"", deadline=within(60))


async def test_more_uploads_than_allowed_are_shed(monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataclasses.replace(PEER_METHODS["upload"], max_running=1, max_waiting=1)
    monkeypatch.setitem(PEER_METHODS, "upload", row)
    async with listening(Callee(upload=take_all)) as callee, caller(callee.name) as peers:
        uploads = [await peers.open_upload(callee.name, b"", deadline=within(60)) for _ in range(2)]
        with pytest.raises(Shed):
            await peers.open_upload(callee.name, b"", deadline=within(60))
        for upload in uploads:
            await upload.finish()
        await (await peers.open_upload(callee.name, b"", deadline=within(60))).finish()


# ---- downloads ----------------------------------------------------------------------------------------------
async def test_a_download_of_8_mib_arrives_whole() -> None:
    parts = [RNG.bytes(MIB) for _ in range(8)]

    async def give(_context: PeerContext, header: bytes) -> AsyncIterator[bytes]:
        assert header == b"which"
        for part in parts:
            yield part

    async with listening(Callee(download=give)) as callee, caller(callee.name) as peers:
        download = peers.open_download(callee.name, b"which", deadline=within(60))
        assert [data async for data in download] == parts
        assert peers._streams.running["download"] == 0


async def test_a_refused_download_keeps_its_class_and_one_that_breaks_is_never_short() -> None:
    async def refuse(_context: PeerContext, _header: bytes) -> AsyncIterator[bytes]:
        raise DriveFailed("not_found", "shard")
        yield b""

    async def broken(_context: PeerContext, _header: bytes) -> AsyncIterator[bytes]:
        yield b"first"
        raise DriveFailed("io", "disk2")

    async with listening(Callee(download=refuse)) as callee, caller(callee.name) as peers:
        with pytest.raises(DriveFailed, match="not_found"):
            async for _ in peers.open_download(callee.name, b"", deadline=within(60)):
                pass
    async with listening(Callee(download=broken)) as callee, caller(callee.name) as peers:
        download = peers.open_download(callee.name, b"", deadline=within(60))
        assert await anext(download) == b"first"
        with pytest.raises(TargetFailed, match="disk2"):
            await anext(download)
        with pytest.raises(StopAsyncIteration):
            await anext(download)


@pytest.mark.usefixtures("impatient")
async def test_a_sender_that_stalls_fails_the_download() -> None:
    async def stall(_context: PeerContext, _header: bytes) -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.Event().wait()

    async with listening(Callee(download=stall)) as callee, caller(callee.name) as peers:
        download = peers.open_download(callee.name, b"", deadline=within(60))
        assert await anext(download) == b"first"
        with pytest.raises(TargetFailed, match="no progress"):
            await anext(download)


async def test_closing_a_download_early_stops_the_sender() -> None:
    stopped = asyncio.Event()

    async def endless(_context: PeerContext, _header: bytes) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(MIB)
        finally:
            stopped.set()

    async with listening(Callee(download=endless)) as callee, caller(callee.name) as peers:
        download = peers.open_download(callee.name, b"", deadline=within(60))
        await anext(download)
        download.close()
        await asyncio.wait_for(stopped.wait(), 20)
        await until(lambda: peers._streams.running["download"] == 0)
