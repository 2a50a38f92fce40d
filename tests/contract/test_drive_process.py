"""What a real drive process promises: formats, ids, syncs, crashes, and nothing of the node's inside it."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from node.errors import TargetFailed
from node.protocol import epoch as ep
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from node.runtime.drive_client import DriveSettings
from tests.contract.drive_world import (
    DRIVE,
    FORMAT,
    NO_DRIVE,
    drive_world,
    fault,
    new_epoch,
    object_record,
    tombstone,
    until,
)

KEY = b"bucket\0key"


async def test_an_empty_drive_answers_nothing_but_formatting(tmp_path: Path) -> None:
    async with drive_world(tmp_path, formatted=False) as world:
        (tmp_path / "lost+found").mkdir()
        assert await world.ask(verbs.FormatRead(), NO_DRIVE) == verbs.Blob(b"")
        assert isinstance(await world.ask(verbs.Check(), NO_DRIVE), verbs.Usage)
        assert fault(await world.ask(verbs.Read(KEY))) == DriveFault.UNFORMATTED
        assert sorted(os.listdir(tmp_path)) == ["lost+found"], "nothing is written before forming"
        await world.format()
        assert await world.ask(verbs.FormatRead(), NO_DRIVE) == verbs.Blob(FORMAT)
        assert await world.ask(verbs.FormatWrite(FORMAT), NO_DRIVE) == verbs.Done()
        newer = FORMAT.replace(b"}", b', "sets": [1]}')
        assert await world.ask(verbs.FormatWrite(newer), DRIVE) == verbs.Done()
        other = FORMAT.replace(DRIVE.hex().encode(), b"77" * 16)
        assert fault(await world.ask(verbs.FormatWrite(other), NO_DRIVE)) == DriveFault.WRONG_DRIVE
        assert (tmp_path / "format.json").read_bytes() == newer


@pytest.mark.parametrize("name", ["vacation.jpg", "catalog/CURRENT", "shards/aa/file"])
async def test_a_foreign_directory_is_never_written_to(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = sorted(os.listdir(tmp_path))
    async with drive_world(tmp_path, formatted=False) as world:
        for verb in (verbs.FormatRead(), verbs.FormatWrite(FORMAT), verbs.Check()):
            assert fault(await world.ask(verb, NO_DRIVE)) == DriveFault.FOREIGN
        assert fault(await world.ask(verbs.Read(KEY))) == DriveFault.FOREIGN
    assert sorted(os.listdir(tmp_path)) == before


async def test_a_message_for_another_drive_is_refused(tmp_path: Path) -> None:
    async with drive_world(tmp_path) as world:
        record = object_record(new_epoch())
        for wrong in (NO_DRIVE, b"\xff" * 16):
            assert fault(await world.ask(verbs.Read(KEY), wrong)) == DriveFault.WRONG_DRIVE
            reply = await world.ask(verbs.Commit(KEY, record), wrong)
            assert fault(reply) == DriveFault.WRONG_DRIVE
        assert fault(await world.ask(verbs.Check(), b"\xff" * 16)) == DriveFault.WRONG_DRIVE
        state = await world.ask(verbs.Read(KEY))
        assert isinstance(state, verbs.State) and not state.entries


async def test_every_answered_sync_write_survives_kills_at_any_moment(tmp_path: Path) -> None:
    rng = random.Random(7)
    acknowledged: dict[bytes, bytes] = {}
    async with drive_world(tmp_path) as world:
        for round_ in range(3):

            async def write(number: int, round_: int = round_) -> None:
                key, epoch = b"bucket\0%d-%d" % (round_, number), new_epoch()
                shard = bytes([number % 256]) * (4000 if number % 5 == 0 else 40)
                try:
                    reply = await world.ask(verbs.Commit(key, object_record(epoch), shard))
                except TargetFailed:
                    return
                assert reply == verbs.Committed(True, epoch)
                acknowledged[key] = epoch
                if number % 2:
                    await world.ask(verbs.Decided(key, epoch))

            writers = [asyncio.create_task(write(number)) for number in range(300)]
            enough = rng.randrange(20, 250) + len(acknowledged)
            await until(
                lambda n=enough, w=writers: len(acknowledged) >= n or all(t.done() for t in w)  # type: ignore[misc]
            )
            await world.crash()
            await asyncio.gather(*writers, return_exceptions=True)
        for key, epoch in acknowledged.items():
            state = await world.ask(verbs.Read(key, True))
            assert isinstance(state, verbs.State)
            assert [e.epoch for e in state.entries] == [epoch]
            number = int(key.rsplit(b"-", 1)[1])
            assert state.entries[0].shard == bytes([number % 256]) * (
                4000 if number % 5 == 0 else 40
            )
    assert len(acknowledged) >= 60


async def test_a_deleted_bucket_and_a_missing_file_are_told_apart_from_a_lost_race(
    tmp_path: Path,
) -> None:
    async with drive_world(tmp_path) as world:
        first, late = new_epoch(1), new_epoch(1)
        assert await world.ask(verbs.BucketFence("bucket", 4)) == verbs.Done()
        refused = await world.ask(verbs.Commit(KEY, object_record(first, generation=4)))
        assert refused == verbs.Committed(False, ep.ZERO, bucket_gone=True)
        await world.crash()
        refused = await world.ask(verbs.Commit(KEY, object_record(first, generation=4)))
        assert refused == verbs.Committed(False, ep.ZERO, bucket_gone=True)
        accepted = verbs.Commit(KEY, object_record(first, generation=5))
        assert await world.ask(accepted) == verbs.Committed(True, first)
        lost = verbs.Commit(KEY, object_record(late, data=(b"d" * 16,), generation=5))
        assert await world.ask(lost) == verbs.Committed(False, first)
        second = new_epoch(2)
        missing = verbs.Commit(KEY, object_record(second, first, data=(b"d" * 16,), generation=5))
        assert fault(await world.ask(missing)) == DriveFault.NOT_FOUND
        # What was accepted stays accepted, whatever became of the bucket.
        await world.ask(verbs.BucketFence("bucket", 9))
        assert await world.ask(accepted) == verbs.Committed(True, first)


async def test_a_full_drive_takes_no_data_but_lets_go(tmp_path: Path) -> None:
    epoch = new_epoch(1)
    async with drive_world(tmp_path) as world:
        assert await world.ask(verbs.Commit(KEY, object_record(epoch), b"x")) == verbs.Committed(
            True, epoch
        )
    full = DriveSettings(reserve_fraction=1.0, reserve_bytes=0)
    async with drive_world(tmp_path, settings=full) as world:
        add = object_record(new_epoch(1))
        assert fault(await world.ask(verbs.Commit(b"bucket\0b", add, b"x"))) == DriveFault.NO_SPACE
        assert fault(await world.ask(verbs.Repair(b"bucket\0b", add, b"x"))) == DriveFault.NO_SPACE
        assert fault(await world.ask(verbs.StageOpen(b"d" * 16, b"h"))) == DriveFault.NO_SPACE
        gone = new_epoch(2)
        assert await world.ask(verbs.Commit(KEY, tombstone(gone, epoch))) == verbs.Committed(
            True, gone
        )
        assert await world.ask(verbs.Decided(KEY, gone)) == verbs.Done()
        assert await world.ask(verbs.Collect(KEY, gone)) == verbs.Done()
        state = await world.ask(verbs.Read(KEY))
        assert state == verbs.State(gone, gone, ())
        assert isinstance(await world.ask(verbs.Check()), verbs.Usage)


async def test_a_rotten_catalog_is_reported_and_left_alone(tmp_path: Path) -> None:
    async with drive_world(tmp_path) as world:
        await world.ask(verbs.Commit(KEY, object_record(new_epoch())))
    (tmp_path / "catalog" / "CURRENT").write_text("MANIFEST-999999\n")
    files = sorted(os.listdir(tmp_path / "catalog"))
    async with drive_world(tmp_path, formatted=False) as world:
        reply = await world.ask(verbs.Read(KEY))
        assert fault(reply) in (DriveFault.CORRUPT, DriveFault.IO)
        assert isinstance(reply, verbs.Failed) and "catalog" in reply.detail
        assert isinstance(await world.ask(verbs.Check()), verbs.Failed)
        assert await world.ask(verbs.FormatRead(), NO_DRIVE) == verbs.Blob(FORMAT)
    assert set(files) <= set(os.listdir(tmp_path / "catalog"))


async def test_a_drive_swapped_under_the_process_is_noticed(tmp_path: Path) -> None:
    async with drive_world(tmp_path) as world:
        (tmp_path / "format.json").write_bytes(FORMAT.replace(DRIVE.hex().encode(), b"77" * 16))
        assert fault(await world.ask(verbs.Check())) == DriveFault.WRONG_DRIVE
        reply = await world.ask(verbs.Commit(KEY, object_record(new_epoch())))
        assert fault(reply) == DriveFault.CONDEMNED
        await world.crash()
        # The catalog knows whose it is: it is not opened for another id.
        assert fault(await world.ask(verbs.Read(KEY))) == DriveFault.CORRUPT


async def test_the_process_has_nothing_of_the_nodes_but_socket_and_arena(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_ROOT_PASSWORD", "secret")
    listener = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    async with drive_world(tmp_path) as world:
        pid = world.drive.pid
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert sum(link.startswith("socket:") for link in links) == 1
        assert os.getsid(pid or 0) != os.getsid(0)
        assert str(tmp_path).encode() in _proc(pid, "cmdline").split(b"\0")
        assert b"HOLDFAST" not in _proc(pid, "environ")
        assert b"grpc" not in _proc(pid, "maps") and b"ssl" not in _proc(pid, "maps")
    listener.close()


def _proc(pid: int | None, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


async def test_calls_fail_at_once_when_the_process_dies_and_it_comes_back(tmp_path: Path) -> None:
    async with drive_world(tmp_path) as world:
        calls = [
            asyncio.create_task(world.ask(verbs.Commit(b"b\0%d" % i, object_record(new_epoch()))))
            for i in range(50)
        ]
        await asyncio.sleep(0)
        await world.crash()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, TargetFailed | verbs.Committed)
        assert isinstance(await world.ask(verbs.Check()), verbs.Usage)


async def test_a_second_process_cannot_open_the_same_drive(tmp_path: Path) -> None:
    async with drive_world(tmp_path), drive_world(tmp_path, formatted=False) as second:
        reply = await second.ask(verbs.Read(KEY))
        assert fault(reply) == DriveFault.IO
        assert isinstance(reply, verbs.Failed) and "another process" in reply.detail


async def test_relaxed_durability_answers_the_same(tmp_path: Path) -> None:
    settings = DriveSettings(relaxed=True, reserve_bytes=0, reserve_fraction=0.0)
    async with drive_world(tmp_path, settings=settings) as world:
        epoch = new_epoch()
        reply = await world.ask(verbs.Commit(KEY, object_record(epoch), b"x" * 5000))
        assert reply == verbs.Committed(True, epoch)
        assert await world.stage(b"d" * 16, b"content") == [verbs.Done()] * 3
        assert await world.read(b"d" * 16, 7) == b"content"


async def test_nonsense_is_answered_and_harms_nobody(tmp_path: Path) -> None:
    async with drive_world(tmp_path) as world:
        garbage = asyncio.wait_for(world.drive.submit(DRIVE + b"\x93garbage"), 30)
        assert fault(verbs.decode_reply(await garbage)) == DriveFault.BAD_REQUEST
        rotten = bytearray(object_record(new_epoch()))
        rotten[20] ^= 1
        assert fault(await world.ask(verbs.Commit(KEY, bytes(rotten)))) == DriveFault.CORRUPT
        assert fault(await world.ask(verbs.Read(b""))) == DriveFault.BAD_REQUEST
        outside = verbs.ShardRead(b"d" * 16, 0, 10, (1 << 20) - 5)
        assert fault(await world.ask(outside)) == DriveFault.BAD_REQUEST
        assert isinstance(await world.ask(verbs.Check()), verbs.Usage)
