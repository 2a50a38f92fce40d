"""The disk chokepoint: the only user of the Drive port, and the watch over each drive's state.

Theory of operation. A verb goes to its drive through Guard.start: one future, no task. Verbs that name
slabs of the arena keep them pinned until the drive itself has answered or its process is gone, also
when the guard gave up long before.

Every DRIVE_STATE_CHECK_S each drive is checked, with the same bound; one that is HUNG or OFFLINE every
DRIVE_SICK_CHECK_S. A drive is

    ONLINE       the last check was good
    STARTING     its process was (re)started; verbs queue until it answers; one good check -> ONLINE
    HUNG         a check found no answer in time, or the breaker is open: verbs are refused at once, so
                 that no client's request is the probe; three good checks in a row -> ONLINE
    CONDEMNED    a sync or write failed: verbs are refused, the process is started anew and opens the
                 drive only if its own check passes -> STARTING
    UNFORMATTED, FOREIGN, WRONG, CORRUPT   what the check said; verbs are passed on and told so

A check that is still unanswered when the next is due is not sent again; it counts as one more timeout,
and so does one that the breaker refuses. So a single hung drive makes two timeouts in three seconds,
which is what the alert on them asks for.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from node.errors import DeadlineExceeded, DriveFailed, HoldfastError, TargetDown, TargetFailed
from node.guard.breaker import BreakerState
from node.guard.calls import PENDING, Send
from node.guard.guard import Guard, Target
from node.guard.policy import DRIVE_OPERATIONS
from node.limits import (
    DRIVE_BULK_VOLLEYS,
    DRIVE_RESPAWN_MAX_S,
    DRIVE_SICK_CHECK_S,
    DRIVE_START_S,
    DRIVE_STATE_CHECK_S,
    LATE_DRIVE_S,
)
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from node.runtime.ports import Clock

T = TypeVar("T")
Answered = Callable[[bytes | HoldfastError], None]

NO_DRIVE = bytes(16)
_GOOD_CHECKS = 3
_NEXT_PROBE_S = 0.3  # between the good checks that bring a drive back
_FIRST_PROBE_S = (
    1.2  # after it was taken out, if nothing is outstanding: its breaker lets one through by then
)
_SAMPLE = 8  # one small verb in so many is timed; bulk verbs all are
_LATE = verbs.encode(verbs.Failed(DriveFault.IO, "no answer in time"))
_OPERATIONS: dict[int, str] = {
    int(verb.__struct_config__.tag): verb.__name__ for verb in verbs.Verb.__args__
}


class DriveState(enum.IntEnum):
    """Values are those of the metric."""

    ONLINE = 0
    STARTING = 1
    UNFORMATTED = 2
    FOREIGN = 3
    WRONG = 4
    CORRUPT = 5
    CONDEMNED = 6
    HUNG = 7
    OFFLINE = 8


_OF_FAULT = {
    DriveFault.UNFORMATTED: DriveState.UNFORMATTED,
    DriveFault.FOREIGN: DriveState.FOREIGN,
    DriveFault.WRONG_DRIVE: DriveState.WRONG,
    DriveFault.CORRUPT: DriveState.CORRUPT,
    DriveFault.CONDEMNED: DriveState.CONDEMNED,
}
_SICK = frozenset({DriveState.HUNG, DriveState.OFFLINE})
_REFUSING = frozenset({DriveState.HUNG, DriveState.CONDEMNED})


class Pinnable(Protocol):
    def pin(self) -> None: ...

    def unpin(self) -> None: ...


class DriveService(Protocol):
    """The Drive port, and what its owner must be able to do with it (node.runtime.drive_client)."""

    on_change: Callable[[bool], None] | None
    on_failed: Callable[[bytes], None] | None

    @property
    def running(self) -> bool: ...

    def submit(self, frame: bytes, /) -> asyncio.Future[bytes]: ...

    def send(self, frame: bytes, answered: Answered, /) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def restart(self) -> None: ...


class DriveMetrics(Protocol):
    def disk_check(self, seconds: float) -> None: ...

    def disk_check_timeout(self, set_drive: str) -> None: ...

    def drive_state(self, drive: str, state: int) -> None: ...

    def drive_operation(self, drive: str, operation: str, seconds: float) -> None: ...

    def drive_usage(self, drive: str, total: int, free: int) -> None: ...

    def drive_sync(self, drive: str, s: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDrive:
    """A drive of this node as it is now. `drive_id` is b"" until it is known; `usage` of the last good check."""

    index: int
    path: str
    label: str  # "set-drive"
    drive_id: bytes
    state: DriveState
    detail: str
    usage: verbs.Usage | None
    checked_at: float  # clock.monotonic() of the last good check; 0.0: never


class _Watched:
    """What the gate remembers of one drive."""

    def __init__(self, index: int, path: str, service: DriveService, target: Target) -> None:
        self.index = index
        self.path = path
        self.label = f"0-{index}"
        self.service = service
        self.target = target
        self.drive_id = b""
        self.state = DriveState.STARTING
        self.detail = ""
        self.usage: verbs.Usage | None = None
        self.checked_at = 0.0
        self.good = 0
        self.started_at = 0.0
        self.changes = 0  # how often its process came or went: a check's result is of one process
        self.check: asyncio.Future[bytes] | None = None  # sent and not answered by the drive yet
        self.due_at = float("-inf")  # of the next check, unless the drive is sick
        self.restart_at = 0.0
        self.restart_pause_s = DRIVE_STATE_CHECK_S
        self.count = 0


class DriveGate:
    """Verbs in, encoded replies out. `start` on the event loop that uses it."""

    def __init__(
        self,
        drives: Sequence[tuple[str, DriveService]],
        guard: Guard,
        clock: Clock,
        metrics: DriveMetrics,
    ) -> None:
        """`drives`: (path, service) in the order of this node's volumes."""
        self._guard = guard
        self._clock = clock
        self._metrics = metrics
        self._drives = [
            _Watched(index, path, service, guard.target("drive", path, "drive"))
            for index, (path, service) in enumerate(drives)
        ]
        self._by_id: dict[bytes, _Watched] = {}
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[LocalDrive], None]] = []
        # Held while a stripe is written. Many uploads at once would else lie in front of the drives for
        # longer than a verb may take, and healthy drives would be taken for hung.
        self.bulk = asyncio.Semaphore(DRIVE_BULK_VOLLEYS)

    # ---- life --------------------------------------------------------------------------------------
    def start(self) -> None:
        """Starts the drives' processes and the check loop."""
        for drive in self._drives:
            drive.service.on_change = lambda up, d=drive: self._changed(d, up)
            drive.service.on_failed = lambda reply, d=drive: self._failed(d, reply)
            drive.service.start()
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="drive checks")

    def stop(self) -> None:
        """Lets the processes end. Waits for none of them."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for drive in self._drives:
            drive.service.on_change = drive.service.on_failed = None
            drive.service.stop()

    def bind(self, index: int, drive_id: bytes, label: str | None = None) -> None:
        """Makes a drive known by its id (b"": unknown again); `label` is its place, "set-drive"."""
        drive = self._drives[index]
        if drive.drive_id:
            self._by_id.pop(drive.drive_id, None)
        drive.drive_id = drive_id
        if drive_id:
            self._by_id[drive_id] = drive
        if label is not None:
            drive.label = label

    def on_state(self, listener: Callable[[LocalDrive], None]) -> None:
        """`listener` is called at each change of a drive's state."""
        self._listeners.append(listener)

    def local_drives(self) -> tuple[LocalDrive, ...]:
        return tuple(_snapshot(drive) for drive in self._drives)

    def state(self, drive_id: bytes) -> DriveState:
        """OFFLINE for a drive that is not one of ours."""
        drive = self._by_id.get(drive_id)
        return DriveState.OFFLINE if drive is None else drive.state

    # ---- verbs -------------------------------------------------------------------------------------
    def call(
        self,
        drive_id: bytes,
        verb: verbs.Verb | bytes,
        *,
        operation: str | None = None,
        deadline: float,
        slabs: Sequence[Pinnable] = (),
    ) -> asyncio.Future[bytes]:
        """The encoded reply, a Failed included. Fails with Unavailable errors of the guard alone."""
        drive = self._by_id.get(drive_id)
        if drive is None:
            detail = f"{drive_id.hex()} is not a drive of this node"
            return _answered(verbs.Failed(DriveFault.WRONG_DRIVE, detail))
        return self._call(drive, drive_id, verb, operation, deadline, slabs)

    def together(
        self,
        calls: Sequence[tuple[bytes, bytes]],
        made: Callable[[tuple[bytes, ...]], T],
        *,
        operation: str,
        deadline: float,
        late_s: float = LATE_DRIVE_S,
        slabs: Sequence[Pinnable] = (),
    ) -> asyncio.Future[T]:
        """One verb to each of several drives (id, encoded verb); -> made(the encoded replies, in order).

        A drive that fails, is refused or stays behind its neighbours gives an encoded Failed.
        """
        sends: list[tuple[Target, Send] | HoldfastError] = []
        asked: list[_Watched] = []
        for drive_id, verb in calls:
            drive = self._by_id.get(drive_id)
            if drive is None:
                detail = f"{drive_id.hex()} is not a drive of this node"
                sends.append(DriveFailed(DriveFault.WRONG_DRIVE, detail))
            elif drive.state in _REFUSING:
                sends.append(TargetDown(f"drive {drive.path} is {drive.state.name.lower()}"))
            else:
                asked.append(drive)
                sends.append((drive.target, self._sender(drive, drive_id + verb, operation, slabs)))
        future = self._guard.volley(
            "drive",
            operation,
            DRIVE_OPERATIONS[operation],
            sends,
            lambda answers: made(tuple(map(_encoded, answers))),
            late_s=late_s,
            deadline=deadline,
        )
        for drive in asked:
            self._take_out_if_sick(drive)
        return future

    def _take_out_if_sick(self, drive: _Watched) -> None:
        if drive.target.breaker.state is BreakerState.OPEN and drive.state is DriveState.ONLINE:
            self._set(drive, DriveState.HUNG, "too many verbs failed or were slow")

    def _sender(
        self, drive: _Watched, frame: bytes, operation: str, slabs: Sequence[Pinnable]
    ) -> Send:
        """How a volley sends to a drive; what it sends keeps `slabs` pinned until the drive's own answer."""
        drive.count += 1
        timed = bool(slabs) or not drive.count % _SAMPLE
        if not timed:
            return partial(drive.service.send, frame)

        def send(answered: Answered) -> None:
            began = self._clock.monotonic()
            for slab in slabs:
                slab.pin()

            def own(answer: bytes | HoldfastError) -> None:
                for slab in slabs:
                    slab.unpin()
                if isinstance(answer, bytes):
                    seconds = self._clock.monotonic() - began
                    self._metrics.drive_operation(drive.path, operation, seconds)
                answered(answer)

            drive.service.send(frame, own)

        return send

    async def ask(
        self,
        drive_id: bytes,
        verb: verbs.Verb,
        *,
        deadline: float,
        slabs: Sequence[Pinnable] = (),
    ) -> verbs.Reply:
        """The decoded reply; DriveFailed for a Failed."""
        return _checked(await self.call(drive_id, verb, deadline=deadline, slabs=slabs))

    async def ask_at(self, index: int, verb: verbs.Verb, *, deadline: float) -> verbs.Reply:
        """To a drive by its place, before its id is known: FormatRead, FormatWrite, Check."""
        drive = self._drives[index]
        return _checked(await self._call(drive, NO_DRIVE, verb, None, deadline, ()))

    def _call(
        self,
        drive: _Watched,
        drive_id: bytes,
        verb: verbs.Verb | bytes,
        operation: str | None,
        deadline: float,
        slabs: Sequence[Pinnable],
    ) -> asyncio.Future[bytes]:
        data = verb if isinstance(verb, bytes) else verbs.encode(verb)
        name = operation or operation_of(data)
        if name is None:
            return _answered(verbs.Failed(DriveFault.BAD_REQUEST, "no verb of a drive"))
        if drive.state in _REFUSING:
            refused: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            refused.set_exception(TargetDown(f"drive {drive.path} is {drive.state.name.lower()}"))
            return refused
        frame = drive_id + data
        submit = drive.service.submit
        future = self._guard.start(
            "drive",
            name,
            DRIVE_OPERATIONS[name],
            drive.target,
            (lambda: _pinned(submit, frame, slabs)) if slabs else (lambda: submit(frame)),
            deadline=deadline,
        )
        drive.count += 1
        if slabs or not drive.count % _SAMPLE:
            began = self._clock.monotonic()
            future.add_done_callback(lambda f: self._timed(drive, name, began, f))
        self._take_out_if_sick(drive)
        return future

    def _timed(
        self, drive: _Watched, name: str, began: float, future: asyncio.Future[bytes]
    ) -> None:
        if not future.cancelled() and future.exception() is None:
            seconds = self._clock.monotonic() - began
            self._metrics.drive_operation(drive.path, name, seconds)

    # ---- the watch ---------------------------------------------------------------------------------
    async def _watch(self) -> None:
        while True:
            now = self._clock.monotonic()
            for drive in self._drives:
                if drive.state in _SICK or now >= drive.due_at - DRIVE_SICK_CHECK_S / 2:
                    drive.due_at = now + DRIVE_STATE_CHECK_S
                    self._due(drive)
            await self._clock.sleep(DRIVE_SICK_CHECK_S)

    def _due(self, drive: _Watched) -> None:
        if not drive.service.running:
            self._metrics.disk_check_timeout(drive.label)
            self._set(drive, DriveState.OFFLINE, "its process is not running")
        elif drive.check is not None and self._is_starting(drive):
            return
        elif drive.check is not None:
            self._metrics.disk_check_timeout(drive.label)
            self._metrics.disk_check(DRIVE_STATE_CHECK_S)
            self._set(drive, DriveState.HUNG, "a check is unanswered")
        else:
            self._check(drive)

    def _check(self, drive: _Watched) -> None:
        """Sends one check. `drive.check` stays set until the drive itself has answered."""
        frame = (drive.drive_id or NO_DRIVE) + verbs.encode(verbs.Check())

        def begin() -> asyncio.Future[bytes]:
            sent = drive.service.submit(frame)
            drive.check = sent
            outer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

            def answered(future: asyncio.Future[bytes]) -> None:
                if drive.check is future:
                    drive.check = None
                    if outer.done() and future.exception() is None and drive.service.running:
                        self._check(drive)  # it hung and is back: see at once how it is
                _forward(future, outer)

            sent.add_done_callback(answered)
            return outer

        began = self._clock.monotonic()
        checked = self._guard.start(
            "drive",
            "Check",
            DRIVE_OPERATIONS["Check"],
            drive.target,
            begin,
            deadline=began + DRIVE_STATE_CHECK_S,
        )
        changes = drive.changes

        def judge(future: asyncio.Future[bytes]) -> None:
            if not future.cancelled():
                error = future.exception()
                if drive.changes == changes:
                    self._judge(drive, began, future, error)

        checked.add_done_callback(judge)

    def _judge(
        self,
        drive: _Watched,
        began: float,
        future: asyncio.Future[bytes],
        error: BaseException | None,
    ) -> None:
        seconds = self._clock.monotonic() - began
        if isinstance(error, DeadlineExceeded) and self._is_starting(drive):
            return
        if isinstance(error, DeadlineExceeded | TargetDown):
            # A check the breaker refused was due all the same.
            self._metrics.disk_check_timeout(drive.label)
            self._metrics.disk_check(max(seconds, DRIVE_STATE_CHECK_S))
            drive.good = 0
            self._set(drive, DriveState.HUNG, str(error))
            return
        if error is not None:
            if not drive.service.running:
                self._set(drive, DriveState.OFFLINE, str(error))
            return
        self._metrics.disk_check(seconds)
        reply = verbs.decode_reply(future.result())
        if isinstance(reply, verbs.Usage):
            self._good(drive, reply)
        elif isinstance(reply, verbs.Failed):
            self._bad(drive, reply)

    def _good(self, drive: _Watched, usage: verbs.Usage) -> None:
        drive.usage = usage
        drive.checked_at = self._clock.monotonic()
        drive.good += 1
        drive.restart_pause_s = DRIVE_STATE_CHECK_S
        self._metrics.drive_usage(drive.path, usage.total_bytes, usage.free_bytes)
        self._metrics.drive_sync(drive.path, usage.sync_seconds)
        if drive.state is DriveState.HUNG and drive.good < _GOOD_CHECKS:
            asyncio.get_running_loop().call_later(_NEXT_PROBE_S, self._again, drive)
            return
        self._set(drive, DriveState.ONLINE if drive.drive_id else DriveState.UNFORMATTED, "")

    def _again(self, drive: _Watched) -> None:
        """A check between those that are due, unless one is outstanding or would be refused."""
        if self._task is None or drive.check is not None or not drive.service.running:
            return
        if not drive.target.breaker.would_refuse(self._clock.monotonic()):
            self._check(drive)

    def _is_starting(self, drive: _Watched) -> bool:
        """Still within the time a process may take to open its drive."""
        return (
            drive.state is DriveState.STARTING
            and self._clock.monotonic() - drive.started_at < DRIVE_START_S
        )

    def _bad(self, drive: _Watched, failed: verbs.Failed) -> None:
        drive.good = 0
        state = _OF_FAULT.get(DriveFault(failed.fault), DriveState.OFFLINE)
        self._set(drive, state, failed.detail)
        now = self._clock.monotonic()
        if state is DriveState.CONDEMNED and now >= drive.restart_at:
            drive.restart_at = now + drive.restart_pause_s
            drive.restart_pause_s = min(drive.restart_pause_s * 2, 3 * DRIVE_RESPAWN_MAX_S)
            drive.service.restart()

    def _changed(self, drive: _Watched, up: bool) -> None:
        """The drive's process was started, or ended."""
        drive.good = 0
        drive.changes += 1
        if not up:
            drive.check = None
            self._set(drive, DriveState.OFFLINE, "its process ended")
            return
        drive.started_at = self._clock.monotonic()
        self._set(drive, DriveState.STARTING, "")
        self._guard.allow(drive.path)
        if self._task is not None:
            asyncio.get_running_loop().call_soon(self._again, drive)

    def _failed(self, drive: _Watched, reply: bytes) -> None:
        """Some verb was answered with a Failed: a sick drive is looked at now, not in three seconds."""
        if drive.state is DriveState.ONLINE and drive.check is None:
            failed = verbs.decode_reply(reply)
            if isinstance(failed, verbs.Failed) and failed.fault in (
                DriveFault.CONDEMNED,
                DriveFault.IO,
            ):
                asyncio.get_running_loop().call_soon(self._again, drive)

    def _set(self, drive: _Watched, state: DriveState, detail: str) -> None:
        drive.detail = detail
        if state is DriveState.HUNG and drive.state is not DriveState.HUNG:
            drive.good = 0
            asyncio.get_running_loop().call_later(_FIRST_PROBE_S, self._again, drive)
        if state is drive.state:
            return
        drive.state = state
        self._metrics.drive_state(drive.path, int(state))
        for listener in self._listeners:
            listener(_snapshot(drive))


def _pinned(
    submit: Callable[[bytes], asyncio.Future[bytes]], frame: bytes, slabs: Sequence[Pinnable]
) -> asyncio.Future[bytes]:
    """Submits with the slabs pinned until the drive's own answer; -> a future the guard may fail earlier."""
    for slab in slabs:
        slab.pin()
    sent = submit(frame)
    outer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def answered(future: asyncio.Future[bytes]) -> None:
        for slab in slabs:
            slab.unpin()
        _forward(future, outer)

    sent.add_done_callback(answered)
    return outer


def _forward(future: asyncio.Future[bytes], outer: asyncio.Future[bytes]) -> None:
    error = future.exception() if not future.cancelled() else TargetFailed("cancelled")
    if outer.done():
        return
    if error is not None:
        outer.set_exception(error)
    else:
        outer.set_result(future.result())


def _checked(data: bytes) -> verbs.Reply:
    reply = verbs.decode_reply(data)
    if isinstance(reply, verbs.Failed):
        raise DriveFailed(reply.fault, reply.detail)
    return reply


def _answered(reply: verbs.Reply) -> asyncio.Future[bytes]:
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    future.set_result(verbs.encode(reply))
    return future


def _encoded(answer: bytes | HoldfastError | object) -> bytes:
    """A drive's own reply, or a Failed that says why there is none."""
    if isinstance(answer, bytes):
        return answer
    if answer is PENDING:
        return _LATE
    if isinstance(answer, DriveFailed):
        return verbs.encode(verbs.Failed(answer.fault, answer.detail))
    return verbs.encode(verbs.Failed(DriveFault.IO, f"{type(answer).__name__}: {answer}"))


def operation_of(data: bytes) -> str | None:
    """A verb's name by its tag, without decoding it; None when it is none."""
    return _OPERATIONS.get(data[1]) if len(data) > 1 else None


def _snapshot(drive: _Watched) -> LocalDrive:
    return LocalDrive(
        index=drive.index,
        path=drive.path,
        label=drive.label,
        drive_id=drive.drive_id,
        state=drive.state,
        detail=drive.detail,
        usage=drive.usage,
        checked_at=drive.checked_at,
    )
