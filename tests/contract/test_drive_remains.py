"""What becomes of a shard file when its last record goes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from node.protocol import verbs
from node.runtime.drive.remains import Remains
from node.runtime.drive_client import DriveSettings
from tests.contract.drive_world import World, drive_world, new_epoch, object_record, tombstone

KEY = b"bucket\0k"
DATA = bytes(range(16))


async def write_and_delete(world: World) -> bytes:
    """-> the tombstone's epoch."""
    await world.stage(DATA, b"content")
    first, second = new_epoch(), new_epoch(2)
    await world.ask(verbs.Commit(KEY, object_record(first, data=(DATA,))))
    await world.ask(verbs.Decided(KEY, first))
    await world.ask(verbs.Commit(KEY, tombstone(second, first)))
    await world.ask(verbs.Decided(KEY, second))
    return second


async def test_a_reader_finishes_and_a_tidy_end_leaves_nothing(tmp_path: Path) -> None:
    settings = DriveSettings(reserve_bytes=0, reserve_fraction=0.0)
    async with drive_world(tmp_path / "disk", settings=settings) as world:
        await write_and_delete(world)
        assert await world.read(DATA, 7) == b"content"
        await world.ended()  # at once: before the lazy flush, far before the file's time is up
        assert not world.file(DATA).exists()


async def test_a_file_that_a_record_names_again_stays(tmp_path: Path) -> None:
    """As when a repair brings a version back whose parts' records had just gone."""
    async with drive_world(tmp_path / "disk") as world:
        deleted = await write_and_delete(world)
        third = new_epoch(3)
        await world.stage(DATA, b"content")
        await world.ask(verbs.Commit(KEY, object_record(third, deleted, data=(DATA,))))
        for _ in range(30):  # well beyond the lazy flush that lets the old reference go
            await world.ask(verbs.Check())
            await asyncio.sleep(0.05)
        assert await world.read(DATA, 7) == b"content"


def test_files_go_in_their_order_once_durable_and_old_enough() -> None:
    now, owned = 100.0, {b"owned"}
    remains = Remains(owned.__contains__, 10.0, lambda: now)
    first, second = remains.add([b"a", b"owned"]), remains.add([b"b"])
    second()
    assert remains.due(all_of_them=True) == [], "the first is not durable"
    first()
    assert remains.due() == []
    now = 109.0
    third = remains.add([b"c"])
    third()
    now = 110.0
    assert remains.due() == [b"a", b"b"]
    assert remains.due() == []
    assert remains.due(all_of_them=True) == [b"c"]
    remains.add([b"d", b"owned"])
    assert remains.all() == [b"d"]
    assert remains.all() == []
