"""A drive that was replaced: it never helps to call a key absent before it has everything back."""

from __future__ import annotations

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
        repaired = await world.ask(verbs.Repair(HAD, record, b"shard"))
        assert repaired == verbs.RepairDone(Repaired.ADDED)
        state = await world.ask(verbs.Read(HAD, True))
        assert isinstance(state, verbs.State) and state.entries[0].shard == b"shard"

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
