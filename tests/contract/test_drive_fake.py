"""The drive in memory, held against the real one: its rows against RocksDB, its answers against a drive process."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.protocol import verbs
from node.runtime.arena import Arena
from node.runtime.drive.engine import Engine
from tests.contract.drive_world import (
    DRIVE,
    drive_world,
    new_epoch,
    object_record,
    tombstone,
)
from tests.fakes.memory_drive import Disk, MemoryDrive, MemoryEngine

_name = st.binary(min_size=1, max_size=3).map(lambda tail: b"r" + tail)
_batch = st.dictionaries(_name, st.none() | st.binary(max_size=4), max_size=5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches=st.lists(st.tuples(_batch, _batch), max_size=8), starts=st.lists(_name, max_size=4))
def test_rows_in_memory_are_as_rocksdb_has_them(
    batches: list[tuple[dict[bytes, bytes | None], dict[bytes, bytes | None]]], starts: list[bytes]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        real, fake = Engine(directory), MemoryEngine()
        try:
            for number, (rows, shards) in enumerate(batches):
                for engine in (real, fake):
                    engine.write(rows, shards)
                    if number % 2:
                        engine.flush()
            for start in (b"r", *starts):
                assert list(real.scan(start, b"s")) == list(fake.scan(start, b"s"))
                assert real.get(start) == fake.get(start)
                assert real.get_shard(start) == fake.get_shard(start)
            one, two = real.cursor(b"s"), fake.cursor(b"s")
            for start in (b"r", *starts):
                for cursor in (one, two):
                    cursor.seek(start)
                while one.item() is not None:
                    assert one.item() == two.item()
                    one.next()
                    two.next()
                assert two.item() is None
        finally:
            real.close()


def test_rows_that_were_not_flushed_are_gone_after_a_power_off() -> None:
    engine = MemoryEngine()
    engine.write({b"ra": b"1", b"rb": b"1"}, {b"s": b"1"})
    engine.flush()
    engine.write({b"ra": b"2", b"rb": None, b"rc": b"2"}, {b"s": None})
    engine.write({b"ra": b"3"}, {b"t": b"3"})
    engine.forget_unsynced()
    assert list(engine.scan(b"r", b"s")) == [(b"ra", b"1"), (b"rb", b"1")]
    assert (engine.get_shard(b"s"), engine.get_shard(b"t")) == (b"1", None)


class Asked:
    """A drive of either kind: verbs in, replies out."""

    def __init__(self, submit: object, arena: Arena) -> None:
        self._submit, self.arena = submit, arena

    async def __call__(self, verb: verbs.Verb) -> verbs.Reply:
        reply = self._submit(DRIVE + verbs.encode(verb))  # type: ignore[operator]
        return verbs.decode_reply(await asyncio.wait_for(reply, 30))


@asynccontextmanager
async def asked(kind: str, path: Path) -> AsyncIterator[Asked]:
    if kind == "real":
        async with drive_world(path) as world:
            yield Asked(world.drive.submit, world.arena)
        return
    arena = Arena(1 << 20)
    drive = MemoryDrive(Disk(DRIVE), arena.memory, lambda: 1.0)
    drive.start()
    try:
        yield Asked(drive.submit, arena)
    finally:
        drive.power_off()
        arena.close()


DATA = bytes(range(16))


@pytest.mark.parametrize("kind", ["real", "fake"])
async def test_a_shard_file_from_its_first_byte_to_its_last(kind: str, tmp_path: Path) -> None:
    key = b"bucket\0k"
    async with asked(kind, tmp_path / "disk") as ask:
        slab = await ask.arena.alloc(100, deadline=asyncio.get_running_loop().time() + 5)
        slab.view[:] = bytes(range(100))

        def fault(reply: verbs.Reply) -> str:
            assert isinstance(reply, verbs.Failed), reply
            return reply.fault

        async def read(offset: int, length: int) -> bytes:
            back = await ask.arena.alloc(length, deadline=asyncio.get_running_loop().time() + 5)
            reply = await ask(verbs.ShardRead(DATA, offset, length, back.offset))
            content = bytes(back.view)
            back.release()
            assert isinstance(reply, verbs.Count), reply
            return content[: reply.count]

        record = object_record(first := new_epoch(), data=(DATA,))
        assert fault(await ask(verbs.StageWrite(DATA, 0, slab.offset, 10))) == "not_found"
        assert fault(await ask(verbs.ShardRead(DATA, 0, 1, slab.offset))) == "not_found"
        assert fault(await ask(verbs.Commit(key, record))) == "not_found"
        assert await ask(verbs.StageOpen(DATA, b"head")) == verbs.Done()
        assert await ask(verbs.StageWrite(DATA, 54, slab.offset + 50, 50)) == verbs.Done()
        assert await ask(verbs.StageWrite(DATA, 4, slab.offset, 50)) == verbs.Done()
        assert fault(await ask(verbs.StageSync(DATA, 105))) == "bad_request"
        # A failed sync ends that file: it is opened anew.
        for verb in (
            verbs.StageOpen(DATA, b"head"),
            verbs.StageWrite(DATA, 4, slab.offset, 100),
            verbs.StageSync(DATA, 104),
        ):
            assert await ask(verb) == verbs.Done()
        assert await read(2, 10) == b"ad" + bytes(range(8))
        assert await read(100, 10) == bytes(range(96, 100))
        assert await ask(verbs.ShardCheck(DATA, 104)) == verbs.Count(104)
        assert fault(await ask(verbs.ShardCheck(DATA, 103))) == "corrupt"
        assert fault(await ask(verbs.ShardCheck(DATA, 104, deep=True))) == "corrupt"
        assert await ask(verbs.Commit(key, record)) == verbs.Committed(True, first)
        assert await ask(verbs.StageDrop(DATA)) == verbs.Done()
        assert await read(0, 4) == b"head", "a record refers to it"
        # Rebuilt beside itself: the old bytes stay until the new ones are whole.
        assert await ask(verbs.StageOpen(DATA, b"HEAD")) == verbs.Done()
        assert await read(0, 4) == b"head"
        assert await ask(verbs.StageSync(DATA, 4)) == verbs.Done()
        assert await read(0, 4) == b"HEAD"
        assert isinstance(await ask(verbs.Repair(key, record)), verbs.RepairDone)
        gone = tombstone(second := new_epoch(2), first)
        assert await ask(verbs.Commit(key, gone)) == verbs.Committed(True, second)
        assert await ask(verbs.Decided(key, second)) == verbs.Done()
        assert await read(0, 4) == b"HEAD", "whoever was reading it may finish"
        slab.release()


@pytest.mark.parametrize("kind", ["real", "fake"])
async def test_the_verbs_of_the_protocol_answer_alike(kind: str, tmp_path: Path) -> None:
    """The code behind them is the same; this is about what the fake puts around it."""
    key = b"bucket\0k"
    async with asked(kind, tmp_path / "disk") as ask:
        first, second = new_epoch(), new_epoch(2)
        one, two = object_record(first), object_record(second, first)
        assert await ask(verbs.Read(key)) == verbs.State(bytes(24), bytes(24))
        assert await ask(verbs.Commit(key, one, b"shard")) == verbs.Committed(True, first)
        assert await ask(verbs.Commit(key, one, b"shard")) == verbs.Committed(True, first)
        state = await ask(verbs.Read(key, True))
        assert isinstance(state, verbs.State) and state.entries[0].shard == b"shard"
        fenced = new_epoch(9)
        state = await ask(verbs.Fence(key, fenced))
        assert isinstance(state, verbs.State) and state.top == fenced
        assert await ask(verbs.Commit(key, two)) == verbs.Committed(False, fenced)
        await ask(verbs.Enqueue(key, first, (1, 5)))
        await ask(verbs.Repaired(key, first, (5, 7)))
        page = await ask(verbs.Pending())
        assert isinstance(page, verbs.PendingPage)
        assert [(e.decided, e.missed) for e in page.entries] == [(False, ()), (True, (1,))]
        await ask(verbs.Decided(key, first))
        await ask(verbs.Repaired(key, first, (1,)))
        page = await ask(verbs.Pending())
        assert isinstance(page, verbs.PendingPage) and page.entries == ()
        assert isinstance(await ask(verbs.Check()), verbs.Usage)


@pytest.mark.parametrize("kind", ["real", "fake"])
async def test_the_copy_of_identities_is_replaced_as_a_whole(kind: str, tmp_path: Path) -> None:
    async with asked(kind, tmp_path / "disk") as ask:
        assert await ask(verbs.IdentityRead()) == verbs.Blob(b"")
        assert await ask(verbs.IdentityWrite(3, b"three" * 1000)) == verbs.Done()
        assert await ask(verbs.IdentityWrite(5, b"five")) == verbs.Done()
        assert await ask(verbs.IdentityWrite(4, b"late")) == verbs.Done()
        assert await ask(verbs.IdentityRead()) == verbs.Blob(b"five")


async def test_the_copy_of_identities_outlives_the_process(tmp_path: Path) -> None:
    async with drive_world(tmp_path / "disk") as world:
        assert await world.ask(verbs.IdentityWrite(3, b"three")) == verbs.Done()
        (world.path / "identity.new").write_bytes(b"a write that power ended")
        await world.crash()
        assert await world.ask(verbs.IdentityRead()) == verbs.Blob(b"three")
        # An older one may be right: what a quorum said after the restart.
        assert await world.ask(verbs.IdentityWrite(2, b"two")) == verbs.Done()
        assert await world.ask(verbs.IdentityRead()) == verbs.Blob(b"two")
        assert isinstance(await world.ask(verbs.Check()), verbs.Usage)
