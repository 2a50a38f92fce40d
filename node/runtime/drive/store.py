"""An opened, formatted drive: catalog, shard files and syncer, and every verb's way to one of them."""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from node import limits
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from node.runtime.drive import layout, sweep
from node.runtime.drive.catalog import Catalog
from node.runtime.drive.engine import Engine, LockedError
from node.runtime.drive.faults import DriveError
from node.runtime.drive.files import Files
from node.runtime.drive.keys import Keys
from node.runtime.drive.remains import Remains
from node.runtime.drive.scans import Scans
from node.runtime.drive.scrub import Scrubs
from node.runtime.drive.syncer import Encoded, Syncer


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveOptions:
    """How a drive process was started."""

    path: str
    relaxed: bool = False
    reserve_fraction: float = limits.DRIVE_RESERVE_FRACTION
    reserve_bytes: int = limits.DRIVE_RESERVE_BYTES
    unlink_after_s: float = limits.DRIVE_UNLINK_AFTER_S


class Outlet:
    """Where answers go, and where the drive is condemned; both from any thread."""

    def __init__(
        self,
        send: Callable[[Sequence[Encoded]], None],
        condemn: Callable[[DriveError], None],
    ) -> None:
        self.send = send
        self.condemn = condemn


class Store:
    """Opens the drive at `options.path`; DriveError when it cannot be opened."""

    def __init__(
        self,
        options: DriveOptions,
        drive_id: bytes,
        arena: mmap.mmap,
        outlet: Outlet,
        *,
        new_cluster: bool = True,
        fresh: bool = True,
    ) -> None:
        """`new_cluster`: see Catalog. `fresh`: there need not be a catalog yet."""
        self.drive_id = drive_id
        self._options = options
        self._outlet = outlet
        self._directory = _lock(options.path)
        catalog = os.path.join(options.path, layout.CATALOG)
        try:
            if not fresh and not Engine.there(catalog):
                # An empty one in its place would have forgotten every promise, under the same drive id.
                raise DriveError(
                    DriveFault.CORRUPT,
                    "its catalog is gone: put it back, or take the drive as a new one with "
                    "`holdfast drive rebuild`",
                )
            layout.make_directories(options.path)
            if not options.relaxed:
                layout.probe(options.path)
            self._space = layout.Space(
                options.path,
                options.reserve_fraction,
                options.reserve_bytes,
                limits.DRIVE_SMALL_BYTES,
            )
            self._space.refresh()
            engine = Engine(catalog)
            try:
                self.catalog = Catalog(
                    engine, drive_id, time.time, new_cluster=new_cluster, fresh=fresh
                )
            except DriveError:
                engine.close()  # or the next attempt finds it locked by this very process
                raise
        except DriveError:
            os.close(self._directory)
            raise
        self.files = Files(options.path, arena, self._space, relaxed=options.relaxed)
        self._syncer = Syncer(self.catalog, outlet.send, self._sync_failed)
        self._scans = Scans(self.catalog)
        self._keys = Keys(self.catalog, self._space)
        self._small = self._small_verbs()
        self._identity = layout.IdentityCopy(options.path)
        self._remains = Remains(self._owned, options.unlink_after_s)
        self._sweeping = False
        self._next_housekeeping = 0.0
        if not self.catalog.was_clean:
            self._start_sweep()

    def _small_verbs(self) -> dict[type, Callable[..., tuple[verbs.Reply, bool]]]:
        keys, scans, scrubs = self._keys, self._scans, Scrubs(self.catalog)
        return {
            verbs.Read: keys.read,
            verbs.Fence: keys.fence,
            verbs.Commit: keys.commit,
            verbs.Decided: keys.decided,
            verbs.Discard: keys.discard,
            verbs.Repair: keys.repair,
            verbs.Collect: keys.collect,
            verbs.BucketFence: keys.bucket_fence,
            verbs.Adopt: keys.adopt,
            verbs.Promise: keys.promise,
            verbs.Repaired: keys.repaired,
            verbs.Enqueue: keys.enqueue,
            verbs.Scan: scans.scan,
            verbs.Entries: scans.entries,
            verbs.Pending: scans.pending,
            verbs.Tombstones: scans.tombstones,
            verbs.Standing: keys.standing,
            verbs.Scrub: scrubs.page,
            verbs.ScrubMark: scrubs.mark,
            verbs.Filled: keys.filled,
        }

    # ---- the serving thread ------------------------------------------------------------------------
    def small(self, verb: object) -> tuple[verbs.Reply, bool] | None:
        """The answer of a verb that is done here and now, and whether it waits; None for one on files."""
        function = self._small.get(type(verb))
        return None if function is None else function(verb)

    def large(self, call: int, verb: object) -> None:
        """Starts a verb that works on files; it answers for itself."""
        finish = partial(self._finish, call)
        match verb:
            case verbs.StageOpen():
                self._make_room()
                data = self.catalog.data(_id(verb.data_id))
                staged = verb.data_id in self.catalog.staged
                self.files.open(verb, referenced=data is not None, staged=staged, finish=finish)
            case verbs.StageWrite():
                self.files.write(verb, finish)
            case verbs.StageSync():
                whole = partial(self.catalog.add_staged, verb.data_id, verb.size)
                self.files.sync(verb, whole, partial(self._finish_synced, call))
            case verbs.StageDrop():
                self._drop(verb.data_id, finish)
            case verbs.ShardRead():
                self.files.read(verb, finish)
            case verbs.ShardCheck():
                if not self._owned(verb.data_id):
                    # Written by an upload that gave up, or on its way out: whole perhaps, and not stored.
                    raise DriveError(
                        DriveFault.NOT_FOUND, f"{verb.data_id.hex()} is not stored here"
                    )
                self.files.check(verb, finish)
            case verbs.ShardScan():
                self.files.scan(verb, finish)
            case verbs.IdentityRead():
                self.files.run(self._identity.read, finish)
            case verbs.IdentityWrite():
                self.files.run(partial(self._identity.write, verb, self._space), finish)
            case verbs.Check():
                threading.Thread(
                    target=self._check, args=(finish,), name="check", daemon=True
                ).start()
                self._make_room()
                self._housekeeping()
            case _:
                raise DriveError(DriveFault.BAD_REQUEST, f"unknown verb {type(verb).__name__}")

    def end_batch(self, waiting: list[Encoded], now: list[Encoded]) -> None:
        """Writes what was gathered; afterwards `now` is to be sent, and what is left in `waiting` will be when
        it is durable.
        """
        changed = self.catalog.write_out()
        unlinks, self.catalog.unlinks = self.catalog.unlinks, []
        flushed = self._remains.add(unlinks) if unlinks else None
        for data_id in self._remains.due():
            self.files.unlink(data_id)
        if self._options.relaxed:
            now.extend(waiting)
            waiting.clear()
            if flushed is not None:
                flushed()
            return
        here = bool(waiting) and self._syncer.is_quick
        if here:
            self._syncer.flush_here()
            now.extend(waiting)
            waiting.clear()
        elif waiting:
            self._syncer.answer(waiting)
        if flushed is not None and here:
            flushed()
        elif flushed is not None:
            self._syncer.touch([flushed])
        elif changed and not waiting and not here:
            self._syncer.touch()

    def _owned(self, data_id: bytes) -> bool:
        return data_id in self.catalog.staged or self.catalog.data(data_id) is not None

    def _make_room(self) -> None:
        if self._space.tight():
            for data_id in self._remains.due(all_of_them=True):
                self.files.unlink(data_id)

    def _drop(self, data_id: bytes, finish: Callable[[verbs.Reply | DriveError], None]) -> None:
        referenced = self.catalog.data(data_id) is not None
        if data_id in self.catalog.staged:
            self.catalog.drop_staged(data_id)
            if not referenced:
                self.catalog.unlinks.append(data_id)
        if not self.files.drop(data_id, finish):
            finish(verbs.Done())

    def _housekeeping(self) -> None:
        now = time.monotonic()
        if now < self._next_housekeeping:
            return
        self._next_housekeeping = now + limits.DRIVE_HOUSEKEEPING_S
        for data_id in self.files.idle(limits.DRIVE_STAGE_IDLE_S):
            self.files.drop(data_id, lambda _: None)
        old = time.time() - limits.DRIVE_STAGED_KEEP_S
        for data_id, staged in list(self.catalog.staged.items()):
            if staged.since_s < old:
                self._drop(data_id, lambda _: None)
        threading.Thread(
            target=sweep.purge_quarantine, args=(self._options.path, time.time()), daemon=True
        ).start()

    def close(self, timeout_s: float) -> None:
        """A tidy end, if it can be had in time; else the next start sweeps."""
        tidy = self._syncer.stop(timeout_s) and not self._sweeping and not self.files.open_count()
        if tidy:
            self.catalog.write_out()
            self.catalog.engine.flush()
            for data_id in self._remains.all():
                self.files.remove(data_id)
        self.catalog.close(clean=tidy)
        os.close(self._directory)

    # ---- other threads ------------------------------------------------------------------------------
    def _finish(self, call: int, result: verbs.Reply | DriveError) -> None:
        self._outlet.send([(call, self._encode(result))])

    def _finish_synced(self, call: int, result: verbs.Reply | DriveError) -> None:
        answer = (call, self._encode(result))
        if isinstance(result, DriveError) or self._options.relaxed:
            self._outlet.send([answer])
        else:
            self._syncer.answer([answer])

    def _encode(self, result: verbs.Reply | DriveError) -> bytes:
        if isinstance(result, DriveError):
            if result.condemns:
                self._outlet.condemn(result)
            return verbs.encode(result.reply())
        return verbs.encode(result)

    def _sync_failed(self, error: DriveError, answers: Sequence[Encoded]) -> None:
        self._outlet.condemn(error)
        failed = verbs.encode(error.reply())
        self._outlet.send([(call, failed) for call, _ in answers])

    def _check(self, finish: Callable[[verbs.Reply | DriveError], None]) -> None:
        try:
            finish(self._usage())
        except DriveError as error:
            finish(error)

    def _usage(self) -> verbs.Usage:
        path = self._options.path
        try:
            opened, there = os.fstat(self._directory), os.stat(path)
        except OSError as error:
            raise DriveError(DriveFault.IO, str(error), condemns=True) from error
        if (opened.st_dev, opened.st_ino) != (there.st_dev, there.st_ino):
            raise DriveError(
                DriveFault.WRONG_DRIVE, "another directory lies at the path now", condemns=True
            )
        data = layout.read_format(path)
        if not data or layout.drive_id_of(data) != self.drive_id:
            raise DriveError(
                DriveFault.WRONG_DRIVE, "format.json is another one now", condemns=True
            )
        took_s = layout.probe(path)
        total, free = self._space.refresh()
        catalog = self.catalog
        return verbs.Usage(
            total,
            free,
            catalog.engine.keys_estimate(),
            len(catalog.undecided),
            catalog.queue_depth,
            took_s,
            catalog.filling,
            catalog.scrub,
        )

    def _start_sweep(self) -> None:
        """Files that were there when the catalog was opened and that it does not know."""
        self._sweeping = True
        staged = frozenset(self.catalog.staged)
        seen: set[bytes] = set()
        self.files.seen = seen
        engine = self.catalog.engine

        def owned(data_id: bytes) -> bool:
            return data_id in seen or data_id in staged or engine.get(b"d" + data_id) is not None

        def run() -> None:
            try:
                moved = sweep.sweep(self._options.path, owned, seen.__contains__)
            except (OSError, DriveError) as error:
                print(f"drive {self._options.path}: sweep: {error}", file=sys.stderr, flush=True)
                return
            self.files.seen = None
            self._sweeping = False
            if moved:
                print(
                    f"drive {self._options.path}: {moved} shard files without an owner are in quarantine",
                    file=sys.stderr,
                    flush=True,
                )

        threading.Thread(target=run, name="sweep", daemon=True).start()


def _lock(path: str) -> int:
    """The drive's directory, opened and locked for this process alone."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DriveError(DriveFault.IO, f"{path}: {error.strerror}") from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(directory)
        raise LockedError(DriveFault.IO, "another process has this drive open") from error
    return directory


def _id(data_id: bytes) -> bytes:
    if len(data_id) != 16:
        raise DriveError(DriveFault.BAD_REQUEST, f"a data id of {len(data_id)} bytes")
    return data_id
