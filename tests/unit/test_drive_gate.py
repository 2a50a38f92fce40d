"""The drive gate over a drive that answers when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from node.errors import DeadlineExceeded, DriveFailed, HoldfastError, TargetDown, TargetFailed
from node.guard.guard import Guard
from node.guard.policy import DRIVE_OPERATIONS
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from node.runtime.ports import Clock
from node.runtime.system import SystemClock, SystemRng
from node.store import drive_gate
from node.store.drive_gate import DriveGate, DriveState
from tests.unit.identity_world import LoopClock
from tests.unit.locks_world import run_virtual

DRIVE = b"d" * 16
CHECK_S = 0.05
USAGE = verbs.Usage(100, 50, 1, 0, 0, 0.001)


class FakeDrive:
    """The Drive port. `reply` answers a verb, or None: never, until `release`."""

    def __init__(self) -> None:
        self.on_change: Callable[[bool], None] | None = None
        self.on_failed: Callable[[bytes], None] | None = None
        self.running = False
        self.restarts = 0
        self.frames: list[bytes] = []
        self.held: list[asyncio.Future[bytes]] = []
        self.reply: Callable[[verbs.Verb], verbs.Reply | None] = self.healthy

    @staticmethod
    def healthy(verb: verbs.Verb) -> verbs.Reply | None:
        return USAGE if isinstance(verb, verbs.Check) else verbs.Done()

    def submit(self, frame: bytes, /) -> asyncio.Future[bytes]:
        self.frames.append(frame)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if not self.running:
            future.set_exception(TargetFailed("not running"))
            return future
        reply = self.reply(verbs.decode_verb(frame[16:]))
        if reply is None:
            self.held.append(future)
        else:
            if isinstance(reply, verbs.Failed) and self.on_failed is not None:
                self.on_failed(verbs.encode(reply))
            future.set_result(verbs.encode(reply))
        return future

    def send(self, frame: bytes, answered: Callable[[bytes | HoldfastError], None], /) -> None:
        self.submit(frame).add_done_callback(lambda f: answered(f.exception() or f.result()))  # type: ignore[arg-type]

    def release(self, reply: verbs.Reply) -> None:
        held, self.held = self.held, []
        for future in held:
            if not future.done():
                future.set_result(verbs.encode(reply))

    def start(self) -> None:
        self.up(True)

    def stop(self) -> None:
        self.running = False

    def restart(self) -> None:
        self.restarts += 1
        self.up(False)
        self.reply = self.healthy
        self.up(True)

    def up(self, running: bool) -> None:
        self.running = running
        if not running:
            held, self.held = self.held, []
            for future in held:
                if not future.done():
                    future.set_exception(TargetFailed("process ended"))
        if self.on_change is not None:
            self.on_change(running)


class Metrics:
    def __init__(self) -> None:
        self.timeouts: list[str] = []
        self.checks: list[float] = []
        self.states: list[int] = []

    def disk_check(self, seconds: float) -> None:
        self.checks.append(seconds)

    def disk_check_timeout(self, set_drive: str) -> None:
        self.timeouts.append(set_drive)

    def drive_state(self, drive: str, state: int) -> None:
        self.states.append(state)

    def drive_operation(self, drive: str, operation: str, seconds: float) -> None: ...

    def drive_usage(self, drive: str, total: int, free: int) -> None: ...

    def drive_sync(self, drive: str, s: float) -> None: ...


class Slab:
    def __init__(self) -> None:
        self.pins = 0

    def pin(self) -> None:
        self.pins += 1

    def unpin(self) -> None:
        self.pins -= 1


class World:
    def __init__(self, clock: Clock | None = None) -> None:
        self.drive = FakeDrive()
        self.metrics = Metrics()
        clock = clock or SystemClock()
        self.gate = DriveGate([("/d0", self.drive)], Guard(clock, SystemRng()), clock, self.metrics)

    def call(self, verb: verbs.Verb, **more: object) -> asyncio.Future[bytes]:
        deadline = asyncio.get_running_loop().time() + 20
        return self.gate.call(DRIVE, verb, deadline=deadline, **more)  # type: ignore[arg-type]

    async def until(self, state: DriveState) -> None:
        await self.when(lambda: self.gate.state(DRIVE) is state)

    async def when(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.005)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Checks sixty times as often as in production, bounds as much shorter."""
    rows = {
        name: replace(row, attempt_s=row.attempt_s / 60, total_s=row.total_s / 60)
        for name, row in DRIVE_OPERATIONS.items()
    }
    monkeypatch.setattr(drive_gate, "DRIVE_OPERATIONS", rows)
    monkeypatch.setattr(drive_gate, "DRIVE_STATE_CHECK_S", CHECK_S)
    monkeypatch.setattr(drive_gate, "DRIVE_SICK_CHECK_S", CHECK_S / 2)
    monkeypatch.setattr(drive_gate, "_NEXT_PROBE_S", CHECK_S / 10)
    one = World()
    one.gate.start()
    one.gate.bind(0, DRIVE, "2-7")
    yield one
    one.gate.stop()


async def test_verbs_go_to_the_drive_they_are_meant_for(world: World) -> None:
    await world.until(DriveState.ONLINE)
    assert await world.call(verbs.Read(b"k")) == verbs.encode(verbs.Done())
    assert world.drive.frames[-1] == DRIVE + verbs.encode(verbs.Read(b"k"))
    deadline = asyncio.get_running_loop().time() + 20
    with pytest.raises(DriveFailed) as refused:
        await world.gate.ask(b"?" * 16, verbs.Read(b"k"), deadline=deadline)
    assert refused.value.fault == DriveFault.WRONG_DRIVE
    reply = verbs.decode_reply(await world.gate.call(DRIVE, b"\x93", deadline=deadline))
    assert isinstance(reply, verbs.Failed) and reply.fault == DriveFault.BAD_REQUEST
    await world.gate.ask_at(0, verbs.FormatRead(), deadline=deadline)
    assert world.drive.frames[-1] == bytes(16) + verbs.encode(verbs.FormatRead())
    (drive,) = world.gate.local_drives()
    assert (drive.index, drive.label, drive.usage) == (0, "2-7", USAGE)


async def test_every_verb_has_a_policy_row_and_is_known_by_its_tag() -> None:
    assert {drive_gate.operation_of(verbs.encode(v)) for v in (verbs.Check(), verbs.Scan("b"))} == {
        "Check",
        "Scan",
    }
    assert set(drive_gate._OPERATIONS.values()) == set(DRIVE_OPERATIONS)


async def test_a_slab_stays_pinned_until_the_drive_itself_answers(world: World) -> None:
    await world.until(DriveState.ONLINE)
    slab = Slab()
    world.drive.reply = lambda verb: None if isinstance(verb, verbs.ShardRead) else USAGE
    call = world.call(verbs.ShardRead(b"d" * 16, 0, 1, 0), slabs=(slab,))
    with pytest.raises(DeadlineExceeded):
        await call
    assert slab.pins == 1, "the drive may still write into it"
    cancelled = world.call(verbs.ShardRead(b"d" * 16, 0, 1, 0), slabs=(slab,))
    cancelled.cancel()
    await asyncio.sleep(0)
    assert slab.pins == 2
    world.drive.release(verbs.Count(1))
    await asyncio.sleep(0)
    assert slab.pins == 0
    ended = world.call(verbs.ShardRead(b"d" * 16, 0, 1, 0), slabs=(slab,))
    world.drive.up(False)
    with pytest.raises(TargetFailed):
        await ended
    assert slab.pins == 0
    assert world.gate.state(DRIVE) is DriveState.OFFLINE


async def test_a_hung_drive_is_refused_at_once_counted_and_comes_back_by_itself(
    world: World,
) -> None:
    await world.until(DriveState.ONLINE)
    world.drive.reply = lambda verb: None
    await world.until(DriveState.HUNG)
    with pytest.raises(TargetDown):
        await world.call(verbs.Read(b"k"))
    sent = len(world.drive.frames)
    counted = len(world.metrics.timeouts)
    # Each check that is due counts, though none is sent to a drive that hangs.
    await world.when(lambda: len(world.metrics.timeouts) >= counted + 4)
    assert len(world.drive.frames) == sent
    assert set(world.metrics.timeouts) == {"2-7"}
    assert max(world.metrics.checks) >= CHECK_S
    answered: list[verbs.Verb] = []

    def back(verb: verbs.Verb) -> verbs.Reply | None:
        answered.append(verb)
        return FakeDrive.healthy(verb)

    world.drive.reply = back
    world.drive.release(USAGE)
    await world.until(DriveState.ONLINE)
    assert len(answered) >= 3 and all(isinstance(v, verbs.Check) for v in answered)
    await world.call(verbs.Read(b"k"))


async def test_verbs_that_fail_in_a_row_take_the_drive_out_before_the_next_check(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.until(DriveState.ONLINE)
    world.drive.reply = lambda verb: None if isinstance(verb, verbs.Read) else USAGE
    for outcome in await asyncio.gather(
        *(world.call(verbs.Read(b"k")) for _ in range(3)), return_exceptions=True
    ):
        assert isinstance(outcome, DeadlineExceeded)
    with pytest.raises(TargetDown):
        await world.call(verbs.Read(b"k"))
    assert DriveState.HUNG in world.metrics.states


async def test_a_condemned_drive_is_started_anew(world: World) -> None:
    await world.until(DriveState.ONLINE)
    world.drive.reply = lambda verb: verbs.Failed(DriveFault.CONDEMNED, "sync failed")
    await world.call(verbs.Read(b"k"))
    await world.when(lambda: world.drive.restarts > 0)
    await world.until(DriveState.ONLINE)
    assert world.drive.restarts == 1
    assert (world.metrics.states[-4:]) == [
        DriveState.CONDEMNED,
        DriveState.OFFLINE,
        DriveState.STARTING,
        DriveState.ONLINE,
    ]


@pytest.mark.parametrize("how", ["silent", "gone"])
def test_one_hung_drive_is_enough_for_the_alert_on_timeouts(how: str) -> None:
    """DiskStateCheckTimeoutHigh asks for more than 0.5 timeouts per second; a healthy drive makes none."""

    async def story() -> None:
        world = World(LoopClock())
        world.gate.start()
        world.gate.bind(0, DRIVE, "2-7")
        await asyncio.sleep(60)
        assert not world.metrics.timeouts
        checks = [f for f in world.drive.frames if f[16:] == verbs.encode(verbs.Check())]
        assert 15 <= len(checks) <= 25, "a drive that answers is asked every three seconds"
        if how == "gone":
            world.drive.up(False)
        world.drive.reply = lambda verb: None
        await asyncio.sleep(30)
        before = len(world.metrics.timeouts)
        await asyncio.sleep(300)
        assert 0.6 * 300 <= len(world.metrics.timeouts) - before <= 0.7 * 300
        world.drive.reply = FakeDrive.healthy
        world.drive.up(True)
        world.drive.release(USAGE)
        await asyncio.sleep(30)
        assert world.gate.state(DRIVE) is DriveState.ONLINE
        world.gate.stop()

    run_virtual(story())


async def test_a_process_that_takes_long_to_start_is_not_hung(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.until(DriveState.ONLINE)
    counted = len(world.metrics.timeouts)
    world.drive.up(False)
    world.drive.reply = lambda verb: None
    world.drive.up(True)
    early = world.call(verbs.Read(b"k"))
    with pytest.raises(DeadlineExceeded):  # it may queue, within its bound
        await early
    await asyncio.sleep(4 * CHECK_S)
    assert world.gate.state(DRIVE) is DriveState.STARTING
    assert len(world.metrics.timeouts) == counted
    world.drive.reply = FakeDrive.healthy
    world.drive.release(USAGE)
    await world.until(DriveState.ONLINE)
    world.drive.up(False)
    monkeypatch.setattr(drive_gate, "DRIVE_START_S", 2 * CHECK_S)
    world.drive.reply = lambda verb: None
    world.drive.up(True)
    await world.until(DriveState.HUNG)


async def test_states_are_what_the_check_says(world: World) -> None:
    await world.until(DriveState.ONLINE)
    seen: list[DriveState] = []
    world.gate.on_state(lambda drive: seen.append(drive.state))
    for fault, state in (
        (DriveFault.FOREIGN, DriveState.FOREIGN),
        (DriveFault.WRONG_DRIVE, DriveState.WRONG),
        (DriveFault.CORRUPT, DriveState.CORRUPT),
        (DriveFault.UNFORMATTED, DriveState.UNFORMATTED),
        (DriveFault.IO, DriveState.OFFLINE),
    ):
        world.drive.reply = lambda verb, f=fault: verbs.Failed(f, "why")  # type: ignore[misc]
        await world.until(state)
        assert world.gate.local_drives()[0].detail == "why"
    world.drive.reply = FakeDrive.healthy
    await world.until(DriveState.ONLINE)
    assert seen[-1] is DriveState.ONLINE and world.drive.restarts == 0
