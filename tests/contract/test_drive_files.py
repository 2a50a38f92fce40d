"""Shard files of a real drive: staging, who owns them, rebuilding, and what an unclean end leaves."""

from __future__ import annotations

import asyncio
import mmap
import os
import queue
from pathlib import Path

import pytest

from erasure import frame
from erasure.stripe import StripeLayout
from node.limits import DRIVE_WRITE_BEHIND_BYTES, MIB
from node.protocol import epoch as ep
from node.protocol import verbs
from node.protocol.register import Repaired
from node.protocol.verbs import DriveFault
from node.runtime.drive import files, layout
from node.runtime.drive.writeback import start_writing
from tests.contract.drive_world import (
    World,
    drive_world,
    fault,
    new_epoch,
    object_record,
    tombstone,
    until,
)

KEY, OTHER = b"bucket\0key", b"bucket\0other"
STAGED = [verbs.Done()] * 3


async def commit(
    world: World, key: bytes, base: bytes, data: tuple[bytes, ...], number: int
) -> bytes:
    epoch = new_epoch(number)
    reply = await world.ask(verbs.Commit(key, object_record(epoch, base, data=data)))
    assert reply == verbs.Committed(True, epoch)
    return epoch


async def test_a_file_is_staged_published_read_and_goes_with_its_record(tmp_path: Path) -> None:
    first, second = b"1" * 16, b"2" * 16
    async with drive_world(tmp_path) as world:
        assert await world.stage(first, b"first content") == STAGED
        assert await world.read(first, 5, 6) == b"conte"
        assert await world.read(first, 100, 6) == b"content", "short at the end of the file"
        assert await world.ask(verbs.ShardCheck(first, 13)) == verbs.Count(13)
        assert fault(await world.ask(verbs.ShardCheck(first, 14))) == DriveFault.CORRUPT
        assert fault(await world.read(second, 1)) == DriveFault.NOT_FOUND
        old = await commit(world, KEY, ep.ZERO, (first,), 1)
        await world.stage(second, b"second")
        new = await commit(world, KEY, old, (second,), 2)
        assert world.file(first).exists(), "undecided: the older version stays whole"
        walk = await world.ask(verbs.Entries())
        assert isinstance(walk, verbs.RawPage)
        assert walk.entries[0].data == ((second, 6),) and not walk.entries[0].alone
        await world.ask(verbs.Decided(KEY, new))
        await world.gone(first)
        assert await world.read(second, 6) == b"second"
        await world.ask(verbs.Discard(KEY, new))  # refused: it is decided
        assert await world.read(second, 6) == b"second"


async def test_a_file_stays_while_any_record_names_it(tmp_path: Path) -> None:
    part, more = b"1" * 16, b"2" * 16
    async with drive_world(tmp_path) as world:
        await world.stage(part, b"part one")
        await world.stage(more, b"part two")
        in_part = await commit(world, OTHER, ep.ZERO, (part,), 1)
        await world.ask(verbs.Decided(OTHER, in_part))
        # Complete names the part's file and another that is only staged.
        whole = await commit(world, KEY, ep.ZERO, (part, more), 1)
        await world.ask(verbs.Decided(KEY, whole))
        # Tags change: a new record, the same data; then the part's own record goes.
        tagged = await commit(world, KEY, whole, (part, more), 2)
        await world.ask(verbs.Discard(KEY, tagged))
        removed = new_epoch(2)
        await world.ask(verbs.Commit(OTHER, tombstone(removed, in_part)))
        await world.ask(verbs.Decided(OTHER, removed))
        assert await world.ask(verbs.StageDrop(part)) == verbs.Done()
        await world.crash()
        await world.ask(verbs.Check())
        assert await world.read(part, 8) == b"part one"
        assert await world.read(more, 8) == b"part two"
        deleted = new_epoch(3)
        state = await world.ask(verbs.Read(KEY))
        assert isinstance(state, verbs.State)
        await world.ask(verbs.Commit(KEY, tombstone(deleted, state.top)))
        await world.ask(verbs.Decided(KEY, deleted))
        await world.gone(part)
        await world.gone(more)


async def test_staged_files_survive_a_kill_once_synced_and_can_be_dropped(tmp_path: Path) -> None:
    synced, dropped, unsynced = b"1" * 16, b"2" * 16, b"3" * 16
    async with drive_world(tmp_path) as world:
        assert await world.stage(synced, b"whole") == STAGED
        await world.stage(dropped, b"not wanted")
        await world.together(verbs.StageOpen(unsynced, b"header"))
        await world.crash()
        assert fault(await world.ask(verbs.StageSync(unsynced, 6))) == DriveFault.NOT_FOUND
        await commit(world, KEY, ep.ZERO, (synced,), 1)
        await world.ask(verbs.StageDrop(dropped))
        await world.gone(dropped)
        missing = object_record(new_epoch(2), data=(dropped,))
        assert fault(await world.ask(verbs.Commit(OTHER, missing))) == DriveFault.NOT_FOUND
        await until(lambda: (tmp_path / "quarantine" / unsynced.hex()).exists())
        assert not world.file(unsynced).exists()
        assert await world.read(synced, 5) == b"whole"


async def test_a_file_that_is_only_written_counts_for_nothing(tmp_path: Path) -> None:
    """An upload that gave up between write and sync leaves bytes that look whole; repair must not trust them."""
    data, check = b"4" * 16, verbs.ShardCheck(b"4" * 16, 5)
    async with drive_world(tmp_path) as world:
        slab = await world.arena.alloc(5, deadline=asyncio.get_running_loop().time() + 9)
        slab.view[:] = b"whole"
        opened = verbs.StageOpen(data, b"")
        await world.together(opened, verbs.StageWrite(data, 0, slab.offset, 5))
        slab.release()
        assert fault(await world.ask(check)) == DriveFault.NOT_FOUND
        assert await world.stage(data, b"whole") == STAGED
        assert await world.ask(check) == verbs.Count(5)


async def test_only_an_unclean_end_is_swept(tmp_path: Path) -> None:
    stray = b"s" * 16
    async with drive_world(tmp_path) as world:
        world.file(stray).write_bytes(b"put here by nobody")
    async with drive_world(tmp_path) as world:
        await world.ask(verbs.Check())
        assert world.file(stray).exists(), "a clean start looks at nothing"
        await world.crash()
        await until(lambda: (tmp_path / "quarantine" / stray.hex()).exists())


async def test_a_file_in_use_is_rebuilt_beside_itself(tmp_path: Path) -> None:
    data = b"1" * 16
    async with drive_world(tmp_path) as world:
        await world.stage(data, b"rotten bytes")
        epoch = await commit(world, KEY, ep.ZERO, (data,), 1)
        await world.ask(verbs.Decided(KEY, epoch))
        assert await world.ask(verbs.StageOpen(data, b"")) == verbs.Done()
        assert await world.read(data, 12) == b"rotten bytes", "readers keep the old file meanwhile"
        assert await world.ask(verbs.StageDrop(data)) == verbs.Done()
        assert await world.read(data, 12) == b"rotten bytes"
        assert await world.stage(data, b"whole bytes!") == STAGED
        assert await world.read(data, 12) == b"whole bytes!"
        repair = verbs.Repair(KEY, object_record(epoch, data=(data,)))
        assert await world.ask(repair) == verbs.RepairDone(Repaired.PRESENT)
        await world.crash()
        await world.ask(verbs.Check())
        assert await world.read(data, 12) == b"whole bytes!"
        names = sorted(os.listdir(world.file(data).parent))
        assert names == [data.hex()], "no leftovers"


def test_a_long_file_goes_to_the_device_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left for the sync is a few MiB, however long the file is."""
    began: list[tuple[int, int]] = []
    monkeypatch.setattr(files, "start_writing", lambda _fd, at, size: began.append((at, size)))
    step, count = 3 * MIB, 20
    arena = mmap.mmap(-1, step)
    space = layout.Space(str(tmp_path), 0.0, 0, 0)
    store = files.Files(str(tmp_path), arena, space, relaxed=False)
    os.makedirs(os.path.dirname(store.path_of(b"1" * 16)))
    done: queue.SimpleQueue[object] = queue.SimpleQueue()
    store.open(verbs.StageOpen(b"1" * 16, b""), referenced=False, staged=False, finish=done.put)
    for number in range(count):
        store.write(verbs.StageWrite(b"1" * 16, number * step, 0, step), done.put)
    store.sync(verbs.StageSync(b"1" * 16, count * step), lambda: None, done.put)
    assert [done.get(timeout=30) for _ in range(count + 2)] == [verbs.Done()] * (count + 2)
    assert [at for at, _ in began] == [
        sum(size for _, size in began[:i]) for i in range(len(began))
    ]
    written = sum(size for _, size in began)
    assert count * step - DRIVE_WRITE_BEHIND_BYTES < written <= count * step
    assert start_writing(os.open(os.devnull, os.O_RDONLY), 0, 1) is None, "its failure is nobody's"


async def test_a_size_that_differs_is_not_synced(tmp_path: Path) -> None:
    async with drive_world(tmp_path) as world:
        data = b"1" * 16
        await world.ask(verbs.StageOpen(data, b"header"))
        assert fault(await world.ask(verbs.StageSync(data, 7))) == DriveFault.BAD_REQUEST
        record = object_record(new_epoch(), data=(data,))
        assert fault(await world.ask(verbs.Commit(KEY, record))) == DriveFault.NOT_FOUND
        await world.ask(verbs.StageDrop(data))
        assert not world.file(data).exists()


async def test_small_verbs_are_answered_while_many_files_sync(tmp_path: Path) -> None:
    async with drive_world(tmp_path) as world:
        ids = [bytes([i]) * 16 for i in range(1, 40)]
        await asyncio.gather(*(world.ask(verbs.StageOpen(i, b"h" * 1000)) for i in ids))
        syncs = [asyncio.create_task(world.ask(verbs.StageSync(i, 1000))) for i in ids]
        await asyncio.sleep(0)
        await world.ask(verbs.Read(KEY))
        assert not all(task.done() for task in syncs), "a read does not stand in line behind them"
        assert await asyncio.gather(*syncs) == [verbs.Done()] * len(ids)


@pytest.mark.parametrize("size", [0, 1, 5000, 20_000])
async def test_a_deep_check_finds_one_flipped_bit_anywhere(tmp_path: Path, size: int) -> None:
    data_id = b"1" * 16
    layout = StripeLayout(size_bytes=size, k=2, stripe_data_bytes=4096)
    header = frame.ShardHeader.of(layout, data_id=data_id, shard=1, n=4)
    content = bytearray(header.encode())
    for block in range(layout.stripes):
        one = bytearray(layout.frame_bytes(block))
        frame.seal(memoryview(one), data_id=data_id, shard=1, block=block)
        content += one
    async with drive_world(tmp_path) as world:
        await world.stage(data_id, bytes(content))
        whole = verbs.ShardCheck(data_id, len(content), True)
        assert await world.ask(whole) == verbs.Count(len(content))
        for at in {0, len(content) // 2, len(content) - 1}:
            rotten = bytearray(content)
            rotten[at] ^= 0x10
            world.file(data_id).write_bytes(rotten)
            assert fault(await world.ask(whole)) == DriveFault.CORRUPT
