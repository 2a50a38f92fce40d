"""The drive process in virtual time: its own server, store, catalog, files and sweep over a disk that forgets.

What is replaced, and by what (`installed`): the operating system's files by tests.sim.filesystem, RocksDB
by rows in memory with its write-ahead log's rule (a power-off leaves a prefix of the unsynced batches),
the syncer's thread and the file threads by timers, the socket pair by a delay. The engine in memory is held
against RocksDB by tests/contract/test_drive_fake.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import posixpath
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

from node import limits
from node.errors import HoldfastError, Shed, TargetFailed
from node.protocol.verbs import DriveFault
from node.runtime.arena import Arena
from node.runtime.drive import files, layout, remains, serve, store, sweep, whole
from node.runtime.drive.catalog import Catalog
from node.runtime.drive.faults import DriveError
from node.runtime.drive.serve import HEAD, Server
from node.runtime.drive.store import DriveOptions
from node.runtime.drive.syncer import Encoded
from tests.fakes.memory_drive import MemoryEngine
from tests.sim.filesystem import Disk, FileSystem, SimOpen, SimOs
from tests.sim.loop import Life, current_life

_FAILED_TAG = 100
Answered = Callable[[bytes | HoldfastError], None]


# ---- the catalog's rows ------------------------------------------------------------------------------
class Log(MemoryEngine):
    """Rows of one catalog; they outlive the process, and of what was not flushed a prefix the power."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[int] = []  # of the unsynced batches, as lengths of the undo list
        self.flushed = 0  # batches that are durable
        self.failing = False

    def write(self, rows: Any, shards: Any) -> None:
        super().write(rows, shards)
        self.ends.append(len(self._undo))

    @property
    def written(self) -> int:
        return self.flushed + len(self.ends)

    def flush_to(self, batch: int) -> None:
        """Every batch up to this one is durable."""
        count = batch - self.flushed
        if count <= 0:
            return
        done = self.ends[count - 1]
        del self._undo[:done]
        self.ends = [end - done for end in self.ends[count:]]
        self.flushed = batch

    def flush(self) -> None:
        self.flush_to(self.written)

    def rot(self, rng: random.Random) -> int:
        """Flips one bit in half of the inline shards that have rows of their own; -> how many."""
        count = 0
        for name, value in sorted(self._shards.items()):
            if rng.random() < 0.5 and value:
                rotten = bytearray(value)
                rotten[rng.randrange(len(rotten))] ^= 1 << rng.randrange(8)
                self._shards[name] = bytes(rotten)
                count += 1
        return count

    def power_off(self, rng: random.Random) -> int:
        """Keeps a prefix of what was not synced; -> how many batches are lost."""
        keep = rng.randrange(len(self.ends) + 1)
        lost = len(self.ends) - keep
        self.flush_to(self.flushed + keep)
        self.forget_unsynced()
        self.ends.clear()
        return lost


class SimEngine:
    """node.runtime.drive.engine.Engine on the disk at a path."""

    def __init__(self, path: str) -> None:
        drive = _here().drive_at(posixpath.dirname(path))
        self._drive = drive
        self._log = log = drive.log
        if "catalog" not in drive.disk.root.names:
            _here().os.makedirs(path)
            drive.disk.sync_directory(drive.disk.root)
            descriptor = _here().os.open(posixpath.join(path, "CURRENT"), SimOs.O_CREAT)
            _here().os.fsync(descriptor)
            _here().os.close(descriptor)
            drive.disk.sync_directory(drive.disk.directory(path))
        self.get, self.get_shard = log.get, log.get_shard
        self.scan, self.cursor, self.keys_estimate = log.scan, log.cursor, log.keys_estimate

    @staticmethod
    def there(path: str) -> bool:
        return "catalog" in _here().drive_at(posixpath.dirname(path)).disk.root.names

    def write(self, rows: Any, shards: Any) -> None:
        self._touch("write")
        self._log.write(rows, shards)

    def flush(self) -> None:
        self.flush_to(self._log.written)

    def flush_to(self, batch: int) -> None:
        self._touch("fsync")
        self._log.flush_to(batch)

    @property
    def written(self) -> int:
        return self._log.written

    def _touch(self, operation: str) -> None:
        try:
            self._drive.disk.before(operation, posixpath.join(self._drive.path, "catalog"))
        except OSError as error:
            fault = DriveError(DriveFault.IO, str(error), condemns=True)
            raise fault from error

    def close(self) -> None:
        pass


class SimSyncer:
    """node.runtime.drive.syncer.Syncer with timers in place of its thread."""

    is_quick = False  # every flush takes its time here

    def __init__(
        self,
        catalog: Catalog,
        send: Callable[[Sequence[Encoded]], None],
        fail: Callable[[DriveError, Sequence[Encoded]], None],
    ) -> None:
        self._catalog, self._send, self._fail = catalog, send, fail
        self._drive = _here().current()
        self._answers: list[Encoded] = []
        self._afterwards: list[Callable[[], None]] = []
        self._lazy: asyncio.TimerHandle | None = None
        self._flushing = False
        self._broken = False

    def answer(self, answers: Sequence[Encoded]) -> None:
        self._answers.extend(answers)
        self._begin()

    def touch(self, afterwards: Sequence[Callable[[], None]] = ()) -> None:
        self._afterwards.extend(afterwards)
        if self._lazy is None:
            loop = asyncio.get_running_loop()
            self._lazy = loop.call_later(limits.DRIVE_LAZY_SYNC_S, self._lazily)

    def _lazily(self) -> None:
        self._lazy = None
        self._begin(forced=True)

    def _begin(self, *, forced: bool = False) -> None:
        if self._flushing or self._broken or not (self._answers or forced):
            return
        self._flushing = True
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None
        answers, self._answers = self._answers, []
        afterwards, self._afterwards = self._afterwards, []
        engine: Any = self._catalog.engine
        mark = (self._catalog.written, engine.written, answers, afterwards)
        asyncio.get_running_loop().call_later(self._drive.sync_s(), self._end, *mark)

    def _end(
        self,
        written: int,
        batch: int,
        answers: list[Encoded],
        afterwards: list[Callable[[], None]],
    ) -> None:
        self._flushing = False
        engine: Any = self._catalog.engine
        try:
            engine.flush_to(batch)
        except DriveError as error:
            self._broken = True
            self._fail(error, answers)
            return
        self._catalog.durable = written
        if answers:
            self._send(answers)
        for action in afterwards:
            action()
        self._begin(forced=bool(self._afterwards) and self._lazy is None)

    def stop(self, _timeout_s: float) -> bool:
        engine: Any = self._catalog.engine
        if self._broken:
            return False
        engine.flush()
        answers, self._answers = self._answers, []
        self._broken = True  # nothing more
        if answers:
            self._send(answers)
        return True


# ---- threads and queues ---------------------------------------------------------------------------------
class _Jobs:
    """In place of the queue of the file threads: each job runs a moment after it was put there."""

    def __init__(self) -> None:
        self._drive = _here().current()

    def put(self, job: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(self._drive.work_s(), job)


class _Thread:
    """A short piece of work beside the serving thread; the file threads are `_Jobs`."""

    def __init__(
        self, target: Callable[..., None], args: tuple[Any, ...] = (), name: str = "", **_: Any
    ) -> None:
        self._target, self._arguments, self._name = target, args, name

    def start(self) -> None:
        if not self._name.startswith("files-"):
            delay_s = _here().current().work_s()
            asyncio.get_running_loop().call_later(delay_s, self._target, *self._arguments)


# ---- the process ----------------------------------------------------------------------------------------
class _Socket:
    """The process's end of the socket pair: what it sends arrives at the node a moment later."""

    def __init__(self, deliver: Callable[[bytes], None]) -> None:
        self._deliver = deliver

    def sendall(self, data: bytes) -> None:
        self._deliver(bytes(data))


class SimDrive:
    """What outlives processes: the disk with its catalog, and how slow it is."""

    def __init__(
        self, path: str, disk: Disk, rng: random.Random, wall: Callable[[], float]
    ) -> None:
        self.path = path
        self.disk = disk
        self.log = Log()
        self.rng = rng
        self.wall = wall
        self.slowness = 1.0
        self.process: SimDriveProcess | None = None
        self.operations = 0

    def sync_s(self) -> float:
        return self.rng.uniform(0.0003, 0.003) * self.slowness

    def work_s(self) -> float:
        return self.rng.uniform(0.00005, 0.001) * self.slowness

    def wipe(self) -> None:
        """An empty drive stands in its place; only while no process has it open."""
        assert self.process is None
        self.disk = _here().files.mount(self.path, random.Random(self.rng.randbytes(16)))
        self.log = Log()

    def power_off(self) -> None:
        if self.process is not None:
            self.process.life.end()
            self.process = None
        self.disk.power_off()
        lost = self.log.power_off(self.rng)
        self.disk.lost["lost"] += lost


class SimDriveProcess:
    """node.store.drive_gate.DriveService: the node's end, and the process behind it."""

    def __init__(
        self, drive: SimDrive, arena: Arena, owner: Life, *, unlink_after_s: float
    ) -> None:
        self.on_change: Callable[[bool], None] | None = None
        self.on_failed: Callable[[bytes], None] | None = None
        self.drive = drive
        self._arena = arena
        self._owner = owner
        self._unlink_after_s = unlink_after_s
        self._calls: dict[int, Answered] = {}
        self._next_call = 0
        self._pause_s = limits.DRIVE_RESPAWN_MIN_S
        self._stopped = False
        self.running = False
        self.life = Life(drive.path)
        self._server: Server | None = None
        self._inbox: list[bytes] = []

    # ---- life ------------------------------------------------------------------------------------
    def start(self) -> None:
        self._stopped = False
        self._spawn()

    def _spawn(self) -> None:
        if self._stopped:
            return
        before = self.drive.process
        if before is not None and before is not self and before.life.alive:
            before.life.end()  # its socket is closed since the node's process ended
        self.life = Life(self.drive.path)
        _here().adopt(self.life, self.drive)
        self.drive.process = self
        self.running = True
        self._inbox = []
        self._server = None
        self.life.after(self.drive.rng.uniform(0.05, 0.5), self._open, self.life)
        if self.on_change is not None:
            self.on_change(True)

    def _open(self, life: Life) -> None:
        options = DriveOptions(path=self.drive.path, unlink_after_s=self._unlink_after_s)
        socket: Any = _Socket(lambda data: self._from_process(life, data))
        arena: Any = self._arena.memory
        self._server = server = Server(options, socket, arena)
        server._try_open()
        self._take()

    def stop(self) -> None:
        """The socket is closed: the process ends by itself, tidily if it can."""
        self._stopped = True
        self._end("the node is stopping")

    def restart(self) -> None:
        life, self._server = self.life, None
        life.end()
        self._end("the process was killed")
        self._owner.after(self._pause_s, self._spawn)
        self._pause_s = min(self._pause_s * 2, limits.DRIVE_RESPAWN_MAX_S)

    def _end(self, why: str) -> None:
        if not self.running:
            return
        self.running = False
        server, life = self._server, self.life
        if server is not None and life.alive:
            life.after(0.001, self._close, server, life)
        calls, self._calls = self._calls, {}
        for answered in calls.values():
            answered(TargetFailed(f"{self.drive.path}: {why}"))
        if self.on_change is not None:
            self.on_change(False)

    def _close(self, server: Server, life: Life) -> None:
        if server._store is not None and server._condemned is None:
            server._store.close(2.0)
        life.end()

    def owner_gone(self) -> None:
        """The node's process was killed: the socket is closed, and nobody hears what comes."""
        self._stopped = True
        self.on_change = self.on_failed = None
        self._calls.clear()
        self._end("the node's process is gone")

    @property
    def catalog(self) -> Catalog | None:
        """Of the drive as its process has it open; None: it is not."""
        server = self._server
        if server is None or server._store is None or server._condemned is not None:
            return None
        return server._store.catalog

    # ---- calls -----------------------------------------------------------------------------------
    def submit(self, frame: bytes) -> asyncio.Future[bytes]:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def settle(answer: bytes | HoldfastError) -> None:
            if future.done():
                return
            if isinstance(answer, bytes):
                future.set_result(answer)
            else:
                future.set_exception(answer)

        self.send(frame, settle)
        return future

    def send(self, frame: bytes, answered: Answered) -> None:
        _here().on_verb(self.drive, frame)
        if not self._owner.alive:
            return  # the power is gone; whoever asks does not know it yet
        if not self.running:
            answered(TargetFailed(f"the process of drive {self.drive.path} is not running"))
            return
        if len(self._calls) >= limits.DRIVE_QUEUE_CALLS:
            answered(Shed(f"drive {self.drive.path} has too many calls outstanding"))
            return
        call = self._next_call = self._next_call + 1
        self._calls[call] = answered
        self._inbox.append(HEAD.pack(len(frame) + 4, call) + frame)
        if len(self._inbox) == 1:
            self.life.after(self.drive.work_s(), self._take)

    def _take(self) -> None:
        """On the process: whatever has come is one batch."""
        if self._server is None or not self._inbox:
            return
        frames, self._inbox = self._inbox, []
        self.drive.operations += len(frames)
        self._server._take(b"".join(frames))

    def _from_process(self, life: Life, data: bytes) -> None:
        self._owner.after(0.00005, self._answered, life, data)

    def _answered(self, life: Life, data: bytes) -> None:
        """On the node: answers have come."""
        if life is not self.life or not self.running:
            return
        self._pause_s = limits.DRIVE_RESPAWN_MIN_S
        at = 0
        while at < len(data):
            length, call = HEAD.unpack_from(data, at)
            reply = data[at + 8 : at + 4 + length]
            if reply[1] == _FAILED_TAG and self.on_failed is not None:
                self.on_failed(reply)
            answered = self._calls.pop(call, None)
            if answered is not None:
                answered(reply)
            at += 4 + length


# ---- what the modules of the drive process see ------------------------------------------------------------
class DriveRoom:
    """Every simulated drive, and the modules' way to the one whose code is running."""

    def __init__(self, seed: object) -> None:
        self.files = FileSystem()
        self.drives: dict[str, SimDrive] = {}
        self._by_life: dict[Life, SimDrive] = {}
        self._rng = random.Random(f"{seed}/drives")
        self.os = SimOs(self.files, self._rng.randbytes)
        self.on_verb: Callable[[SimDrive, bytes], None] = lambda drive, frame: None
        self.on_line: Callable[[str], None] = lambda line: None

    def add(self, path: str, wall: Callable[[], float]) -> SimDrive:
        rng = random.Random(self._rng.randbytes(16))
        drive = SimDrive(path, self.files.mount(path, rng), rng, wall)
        self.drives[path] = drive
        return drive

    def adopt(self, life: Life, drive: SimDrive) -> None:
        self._by_life[life] = drive

    def drive_at(self, path: str) -> SimDrive:
        return self.drives[path]

    def say(self, line: str, **_: object) -> None:
        """What a drive process writes to its standard error."""
        self.on_line(line)

    def current(self) -> SimDrive:
        life = current_life()
        assert life is not None
        return self._by_life[life]


_room: DriveRoom | None = None


def _here() -> DriveRoom:
    assert _room is not None, "only inside of `installed`"
    return _room


@contextlib.contextmanager
def installed(room: DriveRoom) -> Iterator[DriveRoom]:
    """The drive process's modules use `room` in place of the machine."""
    global _room

    def monotonic() -> float:
        return asyncio.get_running_loop().time()

    clock: Any = SimpleNamespace(monotonic=monotonic, time=lambda: room.current().wall())
    threads: Any = SimpleNamespace(Thread=_Thread, Lock=threading.Lock)
    open_: Any = SimOpen(room.os, room.files)
    kept: Any = functools.partial(remains.Remains, monotonic=monotonic)
    lock: Any = SimpleNamespace(flock=lambda *_: None, LOCK_EX=0, LOCK_NB=0)
    with contextlib.ExitStack() as stack:
        for module in (files, layout, store, sweep, whole):
            stack.enter_context(mock.patch.object(module, "os", room.os))
        for module in (files, layout, store):
            stack.enter_context(mock.patch.object(module, "time", clock))
        for module in (files, store, serve):
            stack.enter_context(mock.patch.object(module, "threading", threads))
        stack.enter_context(mock.patch.object(layout, "open", open_, create=True))
        stack.enter_context(mock.patch.object(files, "queue", SimpleNamespace(SimpleQueue=_Jobs)))
        stack.enter_context(mock.patch.object(store, "fcntl", lock))
        stack.enter_context(mock.patch.object(store, "print", room.say, create=True))
        stack.enter_context(mock.patch.object(store, "Engine", SimEngine))
        stack.enter_context(mock.patch.object(store, "Syncer", SimSyncer))
        stack.enter_context(mock.patch.object(store, "Remains", kept))
        before, _room = _room, room
        try:
            yield room
        finally:
            _room = before
