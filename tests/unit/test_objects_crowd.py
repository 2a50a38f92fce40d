"""Many uploads at once on slow drives, in virtual time: they take longer, and none fails for it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from node.limits import DRIVE_BULK_VOLLEYS
from node.protocol import verbs
from node.store.drive_gate import DriveState
from tests.fakes.cluster_world import ClusterWorld, simulate
from tests.fakes.memory_drive import MemoryDrive

WRITE_S = 0.25  # that a drive takes for one stripe's shard, one after the other
UPLOADS = 16
SIZE = 1_100_000  # two stripes


def make_drives_slow(monkeypatch: pytest.MonkeyPatch) -> Counter[MemoryDrive]:
    """-> the most writes that lay before each drive at once."""
    free_at: dict[MemoryDrive, float] = {}
    waiting: Counter[MemoryDrive] = Counter()
    most: Counter[MemoryDrive] = Counter()
    submit = MemoryDrive.submit

    def submit_slowly(self: MemoryDrive, frame: bytes) -> asyncio.Future[bytes]:
        if not isinstance(verbs.decode_verb(frame[16:]), verbs.StageWrite):
            return submit(self, frame)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        waiting[self] += 1
        most[self] = max(most[self], waiting[self])
        free_at[self] = max(free_at.get(self, 0.0), loop.time()) + WRITE_S

        def work() -> None:
            waiting[self] -= 1
            done = submit(self, frame)
            done.add_done_callback(lambda d: answer.done() or answer.set_result(d.result()))

        loop.call_at(free_at[self], work)
        return answer

    monkeypatch.setattr(MemoryDrive, "submit", submit_slowly)
    return most


def test_more_uploads_than_the_drives_can_take_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    most = make_drives_slow(monkeypatch)

    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        data = {f"k{n}": random.Random(n).randbytes(SIZE) for n in range(UPLOADS)}
        work = [asyncio.ensure_future(world.put(key, data[key])) for key in data]
        await asyncio.wait(work)
        assert [task.exception() for task in work if task.exception()] == []
        for key in ("k0", f"k{UPLOADS - 1}"):
            assert await world.get(key) == data[key]
        for node in world.up():
            states = {drive.state for drive in node.gate.local_drives()}
            assert states == {DriveState.ONLINE}, "a drive that was only busy is out"

    simulate(story)
    assert 1 < max(most.values()) <= DRIVE_BULK_VOLLEYS
