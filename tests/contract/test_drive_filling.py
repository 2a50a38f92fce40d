"""A drive that was replaced: it never helps to call a key absent before it has everything back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from node.protocol import epoch as ep
from node.protocol import verbs
from node.protocol.register import Repaired
from node.protocol.verbs import DriveFault
from tests.contract.drive_world import (
    FORMAT,
    NO_DRIVE,
    drive_world,
    fault,
    new_epoch,
    object_record,
)

HAD, NEW = b"bucket\0had", b"bucket\0new"
FORMED = FORMAT.replace(b"}", b', "state": "formed"}')
FORMING = FORMAT.replace(b"}", b', "state": "forming"}')


async def test_a_replaced_drive_is_silent_about_what_it_lacks_until_it_is_filled(
    tmp_path: Path,
) -> None:
    async with drive_world(tmp_path, formatted=False) as world:
        assert await world.ask(verbs.FormatWrite(FORMED), NO_DRIVE) == verbs.Done()
        written, later = new_epoch(1), new_epoch(2)
        record = object_record(written)
        for verb in (
            verbs.Read(HAD),
            verbs.Fence(HAD, later),
            verbs.Commit(HAD, record, b"shard"),
            verbs.Scan("bucket"),
        ):
            assert fault(await world.ask(verb)) == DriveFault.FILLING
        for half in (
            verbs.Repair(HAD, record, b"shard"),
            verbs.Repair(HAD, record, b"shard", top=later),  # not by the one that fills it
        ):
            assert fault(await world.ask(half)) == DriveFault.FILLING
        whole = verbs.Repair(HAD, record, b"shard", top=later, refill=True)
        repaired = await world.ask(whole)
        assert repaired == verbs.RepairDone(Repaired.ADDED)
        state = await world.ask(verbs.Read(HAD, True))
        assert isinstance(state, verbs.State) and state.entries[0].shard == b"shard"
        assert state.top == later, "what the lost drive may have promised"

        await world.crash()  # what it lacks is not forgotten with the process
        usage = await world.ask(verbs.Check())
        assert isinstance(usage, verbs.Usage) and usage.filling
        assert fault(await world.ask(verbs.Read(NEW))) == DriveFault.FILLING

        assert await world.ask(verbs.Filled()) == verbs.Done()
        await world.crash()
        state = await world.ask(verbs.Read(NEW))
        assert isinstance(state, verbs.State) and state.top == ep.ZERO and not state.entries
        committed = await world.ask(verbs.Commit(NEW, object_record(later), b"shard"))
        assert isinstance(committed, verbs.Committed) and committed.accepted


@pytest.mark.parametrize("written", [FORMING, FORMAT])
async def test_a_drive_of_a_new_cluster_has_missed_nothing(tmp_path: Path, written: bytes) -> None:
    async with drive_world(tmp_path, formatted=False) as world:
        assert await world.ask(verbs.FormatWrite(written), NO_DRIVE) == verbs.Done()
        assert await world.ask(verbs.FormatWrite(FORMED), NO_DRIVE) == verbs.Done()
        assert isinstance(await world.ask(verbs.Read(NEW)), verbs.State)
        await world.crash()
        assert isinstance(await world.ask(verbs.Read(NEW)), verbs.State)


async def test_promises_without_a_version_and_the_floor_come_back_too(tmp_path: Path) -> None:
    async with drive_world(tmp_path, formatted=False) as world:
        assert await world.ask(verbs.FormatWrite(FORMED), NO_DRIVE) == verbs.Done()
        low, middle, high = new_epoch(1), new_epoch(5), new_epoch(9)
        assert await world.ask(verbs.Promise(HAD, high)) == verbs.Done()
        assert fault(await world.ask(verbs.Read(HAD))) == DriveFault.FILLING, "until it is filled"
        assert await world.ask(verbs.Filled(middle)) == verbs.Done()
        await world.crash()
        for key, top in ((HAD, high), (NEW, middle)):
            state = await world.ask(verbs.Read(key))
            assert isinstance(state, verbs.State) and state.top == top and not state.entries
            refused = await world.ask(verbs.Commit(key, object_record(new_epoch(2), low), b"s"))
            assert refused == verbs.Committed(False, top)
        page = await world.ask(verbs.Entries(tops=True))
        assert isinstance(page, verbs.RawPage)
        assert [(e.key, e.top, e.newest) for e in page.entries] == [(HAD, high, b"")]
        page = await world.ask(verbs.Entries())
        assert isinstance(page, verbs.RawPage) and not page.entries
        assert await world.ask(verbs.Promise(NEW, high)) == verbs.Done()
        state = await world.ask(verbs.Read(NEW))
        assert isinstance(state, verbs.State) and state.top == middle, "it knows by itself now"


async def test_commits_of_an_older_view_are_refused_for_good(tmp_path: Path) -> None:
    async with drive_world(tmp_path) as world:
        assert await world.ask(verbs.BucketFence("old", 7)) == verbs.Done()
        adopted = await world.ask(verbs.Adopt(2))
        assert adopted == verbs.Promised(ep.ZERO, (("old", 7),))
        record = object_record(new_epoch(1))
        await world.crash()
        for view in (0, 1):
            late = verbs.Commit(NEW, record, b"shard", view)
            assert fault(await world.ask(late)) == DriveFault.OLD_VIEW
        assert isinstance(await world.ask(verbs.Adopt(1)), verbs.Promised), "never falls"
        assert fault(await world.ask(verbs.Commit(NEW, record, b"s", 1))) == DriveFault.OLD_VIEW
        taken = await world.ask(verbs.Commit(NEW, record, b"shard", 2))
        assert isinstance(taken, verbs.Committed) and taken.accepted


async def test_a_catalog_that_lost_its_rows_is_refused_until_it_is_retired(tmp_path: Path) -> None:
    from node.runtime.drive.engine import Engine

    async with drive_world(tmp_path, formatted=False) as world:
        assert await world.ask(verbs.FormatWrite(FORMED), NO_DRIVE) == verbs.Done()
        refused = await world.ask(verbs.Retire(), NO_DRIVE)
        assert isinstance(refused, verbs.Failed) and "can be opened" in refused.detail
        shutil.rmtree(tmp_path / "catalog")
        Engine(str(tmp_path / "catalog")).close()  # an empty one, as a lost manifest may leave
        await world.crash()
        for _ in range(2):  # each check tries to open it again
            failed = await world.ask(verbs.Check())
            assert isinstance(failed, verbs.Failed) and failed.fault == DriveFault.CORRUPT
            assert "holdfast drive rebuild" in failed.detail
        assert await world.ask(verbs.Retire(), NO_DRIVE) == verbs.Done()
        assert (tmp_path / "retired" / "format.json").read_bytes() == FORMED
        assert await world.ask(verbs.FormatRead(), NO_DRIVE) == verbs.Blob(b"")
        assert await world.ask(verbs.FormatWrite(FORMED), NO_DRIVE) == verbs.Done()
        assert fault(await world.ask(verbs.Read(HAD))) == DriveFault.FILLING
