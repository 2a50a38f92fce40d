"""A drive process that is stopped in its tracks: its node goes on, and nothing is reused too early."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from node.errors import DeadlineExceeded, TargetDown
from node.guard.guard import Guard
from node.guard.policy import DRIVE_OPERATIONS
from node.protocol import verbs
from node.runtime.arena import Arena
from node.runtime.drive_client import DriveProcess, DriveSettings
from node.runtime.system import SystemClock, SystemRng
from node.store import drive_gate
from node.store.drive_gate import DriveGate, DriveState
from tests.contract.drive_world import DRIVE, FORMAT, until
from tests.unit.test_drive_gate import Metrics


async def test_a_stopped_drive_fails_fast_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        n: replace(r, attempt_s=r.attempt_s / 6, total_s=r.total_s / 6)
        for n, r in DRIVE_OPERATIONS.items()
    }
    monkeypatch.setattr(drive_gate, "DRIVE_OPERATIONS", rows)
    monkeypatch.setattr(drive_gate, "DRIVE_STATE_CHECK_S", 0.5)
    clock, arena, metrics = SystemClock(), Arena(1 << 20), Metrics()
    settings = DriveSettings(reserve_bytes=0, reserve_fraction=0.0)
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.mkdir()
    services = [DriveProcess(str(path), arena, settings) for path in paths]
    guard = Guard(clock, SystemRng())
    gate = DriveGate(
        [(str(p), s) for p, s in zip(paths, services, strict=True)], guard, clock, metrics
    )
    gate.start()
    ids = [DRIVE, DRIVE[::-1]]

    def soon() -> float:
        return clock.monotonic() + 10

    for index, drive_id in enumerate(ids):
        data = FORMAT.replace(DRIVE.hex().encode(), drive_id.hex().encode())
        await until_formatted(gate, index, data)
        gate.bind(index, drive_id)
        await until(lambda d=drive_id: gate.state(d) is DriveState.ONLINE)  # type: ignore[misc]
    hung = services[0].pid
    assert hung is not None
    os.kill(hung, signal.SIGSTOP)
    try:
        slab = await arena.alloc(4096, deadline=soon())
        reading = gate.call(
            ids[0],
            verbs.ShardRead(b"x" * 16, 0, 4096, slab.offset),
            deadline=soon(),
            slabs=(slab,),
        )
        with pytest.raises(DeadlineExceeded):
            await reading
        slab.release()
        assert arena.free_bytes < arena.size_bytes, "the hung process may still write there"
        await until(lambda: gate.state(ids[0]) is DriveState.HUNG)
        with pytest.raises(TargetDown):
            await gate.call(ids[0], verbs.Read(b"b\0k"), deadline=soon())
        other = await gate.ask(ids[1], verbs.Read(b"b\0k"), deadline=soon())
        assert isinstance(other, verbs.State)
    finally:
        os.kill(hung, signal.SIGCONT)
    await until(lambda: gate.state(ids[0]) is DriveState.ONLINE)
    assert services[0].pid == hung and services[0].starts == 1, "it was never restarted"
    assert isinstance(await gate.ask(ids[0], verbs.Read(b"b\0k"), deadline=soon()), verbs.State)
    await until(lambda: arena.free_bytes == arena.size_bytes)
    gate.stop()
    arena.close()


async def until_formatted(gate: DriveGate, index: int, data: bytes) -> None:
    """FormatWrite with the shortened bounds of this test; a busy machine may need more than one attempt."""
    async with asyncio.timeout(30):
        while True:
            try:
                deadline = asyncio.get_running_loop().time() + 10
                await gate.ask_at(index, verbs.FormatWrite(data), deadline=deadline)
                return
            except (DeadlineExceeded, TargetDown):
                await asyncio.sleep(0.1)
