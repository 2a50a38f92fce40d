"""Shard files: shards/<first two hex digits>/<data id in hex>.

Theory of operation. A file is created at its final name and written in place; it means nothing until
StageSync has synced it, its directory and its stage row. A file that a record already refers to is
rebuilt beside itself (".new") and swapped in by StageSync. The verbs of one open file run strictly in
order, each file's on any one of a few threads, so that bulk never delays a small verb. Files without
an owner after an unclean shutdown are moved to quarantine/, and dropped from there after a day.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from node import limits
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from node.runtime.drive import layout
from node.runtime.drive.faults import DriveError, of_os_error
from node.runtime.drive.writeback import start_writing

REBUILD_SUFFIX = ".new"
Finish = Callable[[verbs.Reply | DriveError], None]
Operation = Callable[[], None]


class Stage:
    """One shard file being written. `operations` run one after the other."""

    __slots__ = (
        "broken",
        "data_id",
        "descriptor",
        "idle_since",
        "operations",
        "path",
        "running",
        "started",
        "target",
    )

    def __init__(self, data_id: bytes, target: str, *, rebuild: bool) -> None:
        self.data_id = data_id
        self.target = target
        self.path = target + REBUILD_SUFFIX if rebuild else target
        self.descriptor = -1
        self.operations: deque[tuple[Callable[[Stage], verbs.Reply], Finish]] = deque()
        self.running = False
        self.broken: DriveError | None = None
        self.idle_since = time.monotonic()
        self.started = 0  # bytes that were told to go to the device already


class Files:
    """The shard files of one drive. `submit_*` return at once; `finish` is called on a file thread."""

    def __init__(self, path: str, arena: mmap.mmap, space: layout.Space, *, relaxed: bool) -> None:
        self._root = os.path.join(path, layout.SHARDS)
        self._quarantine = os.path.join(path, layout.QUARANTINE)
        self._arena = memoryview(arena)
        self._space = space
        self._relaxed = relaxed
        self._lock = threading.Lock()
        self._stages: dict[bytes, Stage] = {}
        self.seen: set[bytes] | None = None  # ids opened while a sweep runs: not its business
        self._jobs: queue.SimpleQueue[Operation] = queue.SimpleQueue()
        for number in range(limits.DRIVE_FILE_THREADS):
            threading.Thread(target=self._work, name=f"files-{number}", daemon=True).start()

    # ---- staging ---------------------------------------------------------------------------------
    def open(
        self, verb: verbs.StageOpen, *, referenced: bool, staged: bool, finish: Finish
    ) -> None:
        """`referenced`: a record names the file, so it is rebuilt; `staged`: it is whole, only unnamed."""
        target = self.path_of(verb.data_id)
        with self._lock:
            known = self._stages.get(verb.data_id)
            if known is None and len(self._stages) >= limits.DRIVE_OPEN_STAGES:
                finish(DriveError(DriveFault.BAD_REQUEST, "too many shard files are being written"))
                return
            stage = known or Stage(verb.data_id, target, rebuild=referenced or staged)
            self._stages[verb.data_id] = stage
            if self.seen is not None:
                self.seen.add(verb.data_id)
        self._queue(stage, lambda s: self._open(s, verb.header), finish)

    def write(self, verb: verbs.StageWrite, finish: Finish) -> None:
        self._on_stage(verb.data_id, lambda stage: self._write(stage, verb), finish)

    def sync(self, verb: verbs.StageSync, whole: Callable[[], None], finish: Finish) -> None:
        """`whole` is called on the file thread once the file and its directory are durable."""
        self._on_stage(verb.data_id, lambda stage: self._sync(stage, verb.size, whole), finish)

    def drop(self, data_id: bytes, finish: Finish) -> bool:
        """Ends a file being written and removes it; False when it is not being written."""
        with self._lock:
            stage = self._stages.get(data_id)
        if stage is None:
            return False
        self._queue(stage, self._drop, finish)
        return True

    def idle(self, idle_s: float) -> list[bytes]:
        """Files being written that nobody has written to for so long."""
        now = time.monotonic()
        with self._lock:
            return [d for d, s in self._stages.items() if now - s.idle_since > idle_s]

    def open_count(self) -> int:
        with self._lock:
            return len(self._stages)

    def being_written(self, data_id: bytes) -> bool:
        with self._lock:
            return data_id in self._stages

    # ---- reading ---------------------------------------------------------------------------------
    def read(self, verb: verbs.ShardRead, finish: Finish) -> None:
        self._job(lambda: self._read(verb), finish)

    def check(self, verb: verbs.ShardCheck, finish: Finish) -> None:
        self._job(lambda: self._check(verb), finish)

    def run(self, work: Callable[[], verbs.Reply], finish: Finish) -> None:
        """Some other work on a file, on one of the threads."""
        self._job(work, finish)

    def scan(self, verb: verbs.ShardScan, finish: Finish) -> None:
        self._job(lambda: self._scan(verb), finish)

    def unlink(self, data_id: bytes) -> None:
        """Removes a file that nothing refers to; called after that is durable. Never fails: a sweep finds it."""
        if not self.being_written(data_id):
            self._jobs.put(lambda: self._remove(self.path_of(data_id)))

    def remove(self, data_id: bytes) -> None:
        """The same here and now."""
        self._remove(self.path_of(data_id))

    def path_of(self, data_id: bytes) -> str:
        name = data_id.hex()
        return os.path.join(self._root, name[:2], name)

    # ---- threads ---------------------------------------------------------------------------------
    def _work(self) -> None:
        while True:
            self._jobs.get()()

    def _job(self, work: Callable[[], verbs.Reply], finish: Finish) -> None:
        def run() -> None:
            try:
                result: verbs.Reply | DriveError = work()
            except DriveError as error:
                result = error
            finish(result)

        self._jobs.put(run)

    def _on_stage(
        self, data_id: bytes, work: Callable[[Stage], verbs.Reply], finish: Finish
    ) -> None:
        with self._lock:
            stage = self._stages.get(data_id)
        if stage is None:
            finish(DriveError(DriveFault.NOT_FOUND, f"{data_id.hex()} is not being written"))
        else:
            self._queue(stage, work, finish)

    def _queue(self, stage: Stage, work: Callable[[Stage], verbs.Reply], finish: Finish) -> None:
        with self._lock:
            stage.operations.append((work, finish))
            stage.idle_since = time.monotonic()
            if stage.running:
                return
            stage.running = True
        self._jobs.put(lambda: self._run_stage(stage))

    def _run_stage(self, stage: Stage) -> None:
        while True:
            with self._lock:
                if not stage.operations:
                    stage.running = False
                    return
                work, finish = stage.operations.popleft()
            try:
                result: verbs.Reply | DriveError = work(stage)
            except DriveError as error:
                stage.broken = result = error
            finish(result)

    # ---- on a file thread ------------------------------------------------------------------------
    def _open(self, stage: Stage, header: bytes) -> verbs.Reply:
        self._space.need(len(header))
        with self._lock:  # an open that overtook the end of a drop takes its place again
            self._stages.setdefault(stage.data_id, stage)
        try:
            if stage.descriptor < 0:
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                stage.descriptor = os.open(stage.path, flags, 0o600)
            os.ftruncate(stage.descriptor, 0)
            stage.started = 0
            _write_all(stage.descriptor, memoryview(header), 0)
        except OSError as error:
            raise of_os_error(error, "creating a shard file", writing=True) from error
        stage.broken = None
        return verbs.Done()

    def _write(self, stage: Stage, verb: verbs.StageWrite) -> verbs.Reply:
        if stage.broken is not None or stage.descriptor < 0:
            raise stage.broken or DriveError(DriveFault.NOT_FOUND, "the file was dropped")
        view = self._slab(verb.arena_offset, verb.length)
        self._space.need(verb.length)
        try:
            _write_all(stage.descriptor, view, verb.offset)
        except OSError as error:
            raise of_os_error(error, "writing a shard file", writing=True) from error
        end = verb.offset + verb.length
        if not self._relaxed and end - stage.started >= limits.DRIVE_WRITE_BEHIND_BYTES:
            start_writing(stage.descriptor, stage.started, end - stage.started)
            stage.started = end
        return verbs.Done()

    def _sync(self, stage: Stage, size: int, whole: Callable[[], None]) -> verbs.Reply:
        if stage.broken is not None or stage.descriptor < 0:
            raise stage.broken or DriveError(DriveFault.NOT_FOUND, "the file was dropped")
        try:
            found = os.fstat(stage.descriptor).st_size
            if found != size:
                raise DriveError(
                    DriveFault.BAD_REQUEST, f"the file has {found} bytes, not the {size} announced"
                )
            if not self._relaxed:
                os.fsync(stage.descriptor)
            if stage.path != stage.target:
                self._set_aside(stage.target)
                os.rename(stage.path, stage.target)
            if not self._relaxed:
                layout.sync_directory(os.path.dirname(stage.target))
        except OSError as error:
            raise of_os_error(error, "syncing a shard file", writing=True) from error
        whole()
        self._end(stage)
        return verbs.Done()

    def _drop(self, stage: Stage) -> verbs.Reply:
        if stage.descriptor >= 0:
            self._remove(stage.path)
        self._end(stage)
        return verbs.Done()

    def _end(self, stage: Stage) -> None:
        descriptor, stage.descriptor = stage.descriptor, -1
        with self._lock:
            if self._stages.get(stage.data_id) is stage:
                del self._stages[stage.data_id]
        if descriptor >= 0:
            with contextlib.suppress(OSError):  # synced or given up: nothing hangs on the close
                os.close(descriptor)

    def _read(self, verb: verbs.ShardRead) -> verbs.Reply:
        view = self._slab(verb.arena_offset, verb.length)
        try:
            descriptor = os.open(self.path_of(verb.data_id), os.O_RDONLY | os.O_CLOEXEC)
            try:
                done = 0
                while done < len(view):
                    count = os.preadv(descriptor, [view[done:]], verb.offset + done)
                    if count == 0:
                        break
                    done += count
            finally:
                os.close(descriptor)
        except OSError as error:
            raise of_os_error(error, f"shard file {verb.data_id.hex()}", writing=False) from error
        return verbs.Count(done)

    def _check(self, verb: verbs.ShardCheck) -> verbs.Reply:
        from node.runtime.drive.whole import check_blocks

        try:
            descriptor = os.open(self.path_of(verb.data_id), os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = os.fstat(descriptor).st_size
                if found != verb.size:
                    raise DriveError(
                        DriveFault.CORRUPT, f"{verb.data_id.hex()}: {found} bytes of {verb.size}"
                    )
                if verb.deep:
                    check_blocks(descriptor, verb.data_id)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise of_os_error(error, f"shard file {verb.data_id.hex()}", writing=False) from error
        return verbs.Count(found)

    def _scan(self, verb: verbs.ShardScan) -> verbs.Reply:
        from node.runtime.drive.whole import scan_blocks

        try:
            descriptor = os.open(self.path_of(verb.data_id), os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = os.fstat(descriptor).st_size
                if verb.size and found != verb.size:
                    raise DriveError(
                        DriveFault.CORRUPT, f"{verb.data_id.hex()}: {found} bytes of {verb.size}"
                    )
                following, read = scan_blocks(descriptor, verb.data_id, verb.block, verb.max_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise of_os_error(error, f"shard file {verb.data_id.hex()}", writing=False) from error
        return verbs.ShardScanned(following, read)

    def _set_aside(self, target: str) -> None:
        """The file that a rebuilt one replaces goes to quarantine, not away, unless room is short."""
        aside = os.path.join(self._quarantine, os.path.basename(target))
        with contextlib.suppress(OSError):  # there is none, or no links here: the rebuild goes on
            if self._space.tight():
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
            os.link(target, aside)
            os.utime(aside)

    def _slab(self, offset: int, length: int) -> memoryview:
        if offset < 0 or length < 0 or offset + length > len(self._arena):
            raise DriveError(DriveFault.BAD_REQUEST, "outside of the arena")
        return self._arena[offset : offset + length]

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError):  # what stays is found by the sweep
            os.unlink(path)


def _write_all(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.pwritev(descriptor, [view], offset)
        view = view[count:]
        offset += count
