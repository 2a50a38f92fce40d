"""The serving loop with the log's flush in the test's hand: who waits for it, who does not, what a failure does."""

from __future__ import annotations

import errno
import json
import mmap
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from node import limits
from node.protocol import epoch as ep
from node.protocol import record as rec
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from node.runtime.drive import files, layout
from node.runtime.drive.engine import Engine
from node.runtime.drive.faults import DriveError
from node.runtime.drive.serve import HEAD, Server
from node.runtime.drive.store import DriveOptions

DRIVE = bytes(range(1, 17))
KEY, OTHER = b"bucket\0key", b"bucket\0other"
LONG_S = 20.0


def epoch(number: int) -> bytes:
    return ep.make(number, bytes(ep.ATTEMPT_BYTES))


def commit(key: bytes, number: int, kind: rec.Kind = rec.Kind.OBJECT) -> verbs.Commit:
    base = epoch(number - 1) if number > 1 else ep.ZERO
    record = rec.Record(
        epoch=epoch(number), base=base, kind=kind, mtime_ns=1, inline=kind is rec.Kind.OBJECT
    )
    return verbs.Commit(key, rec.encode(record))


class Served:
    """A server on a thread; `gate` holds every flush while it is closed."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (path / layout.FORMAT_NAME).write_text(json.dumps({"drive_id": DRIVE.hex()}))
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()
        self.broken: DriveError | None = None
        flush = Engine.flush

        def held(engine: Engine) -> None:
            self.began.set()
            assert self.gate.wait(LONG_S)
            if self.broken is not None:
                raise self.broken
            flush(engine)

        monkeypatch.setattr(Engine, "flush", held)
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(LONG_S)
        options = DriveOptions(
            path=str(path), reserve_fraction=0.0, reserve_bytes=0, unlink_after_s=0.0
        )
        self.server = Server(options, theirs, mmap.mmap(-1, 4096))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        self.answers: dict[int, verbs.Reply] = {}
        self.calls = 0
        self.rest = b""

    def send(self, *wanted: verbs.Verb) -> list[int]:
        """All in one write, so that they are one batch."""
        data = b""
        calls = []
        for verb in wanted:
            self.calls += 1
            frame = DRIVE + verbs.encode(verb)
            data += HEAD.pack(len(frame) + 4, self.calls) + frame
            calls.append(self.calls)
        self.socket.sendall(data)
        return calls

    def answer(self, call: int) -> verbs.Reply:
        while call not in self.answers:
            received = self.socket.recv(65536)
            assert received, "the server has gone"
            self.rest += received
            while len(self.rest) >= 8:
                length, number = HEAD.unpack_from(self.rest)
                if len(self.rest) < 4 + length:
                    break
                self.answers[number] = verbs.decode_reply(self.rest[8 : 4 + length])
                self.rest = self.rest[4 + length :]
        return self.answers[call]

    def ask(self, verb: verbs.Verb) -> verbs.Reply:
        return self.answer(self.send(verb)[0])

    def unanswered(self, *calls: int) -> bool:
        """Whether none of these was answered, though a later question was."""
        self.ask(verbs.Read(b"bucket\0unheard of"))
        return not any(call in self.answers for call in calls)

    def close(self) -> None:
        self.gate.set()
        self.socket.close()
        self.thread.join(LONG_S)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A device that takes its time: the serving thread never flushes by itself."""
    monkeypatch.setattr(limits, "DRIVE_SYNC_HERE_S", 0.0)
    one = Served(tmp_path, monkeypatch)
    one.ask(verbs.Read(KEY))
    yield one
    one.close()


def test_answers_that_name_unsynced_state_wait_for_the_flush_and_others_do_not(
    served: Served,
) -> None:
    served.ask(commit(OTHER, 1))
    served.gate.clear()
    waiting = served.send(commit(KEY, 1))
    waiting += served.send(verbs.Read(KEY), commit(KEY, 1), verbs.Scan("bucket"))
    waiting += served.send(verbs.Fence(KEY, epoch(1)), commit(KEY, 3))
    other = served.ask(verbs.Read(OTHER))
    assert isinstance(other, verbs.State) and len(other.entries) == 1
    assert served.ask(verbs.Decided(OTHER, epoch(1))) == verbs.Done()
    assert served.unanswered(*waiting)
    served.gate.set()
    assert served.answer(waiting[0]) == verbs.Committed(True, epoch(1))
    read = served.answer(waiting[1])
    assert isinstance(read, verbs.State) and read.top == epoch(1)
    page = served.answer(waiting[3])
    assert isinstance(page, verbs.Page) and [e.key for e in page.entries] == [b"key", b"other"]
    assert served.answer(waiting[5]) == verbs.Committed(True, epoch(3))
    served.gate.clear()
    assert isinstance(served.ask(verbs.Read(KEY)), verbs.State), "synced now: answered at once"


def test_a_flush_that_began_before_a_write_does_not_answer_it(served: Served) -> None:
    served.gate.clear()
    served.began.clear()
    (first,) = served.send(commit(KEY, 1))
    assert served.began.wait(LONG_S)
    (second,) = served.send(commit(OTHER, 1))
    assert served.unanswered(first, second)
    flushed: list[int] = []
    release = served.server._send

    def counting(answers: Sequence[tuple[int, bytes]]) -> None:
        flushed.append(len(answers))
        release(answers)

    store = served.server._store
    assert store is not None
    store._syncer._send = counting
    served.gate.set()
    served.answer(first)
    served.answer(second)
    assert flushed == [1, 1], "two flushes: the second write came after the first had begun"


def test_the_floor_waits_too(served: Served) -> None:
    served.ask(commit(KEY, 1, rec.Kind.TOMBSTONE))
    served.ask(verbs.Decided(KEY, epoch(1)))
    served.gate.clear()
    waiting = served.send(verbs.Collect(KEY, epoch(1)), verbs.Read(OTHER))
    assert isinstance(served.ask(verbs.Decided(OTHER, epoch(9))), verbs.Done)
    assert not any(call in served.answers for call in waiting)
    served.gate.set()
    assert served.answer(waiting[1]) == verbs.State(epoch(1), epoch(1))


def test_a_failed_flush_condemns_the_drive_and_acknowledges_nothing(served: Served) -> None:
    served.broken = DriveError(DriveFault.IO, "log sync: Input/output error", condemns=True)
    reply = served.ask(commit(KEY, 1))
    assert isinstance(reply, verbs.Failed) and reply.fault == DriveFault.IO
    served.broken = None
    for verb in (verbs.Read(KEY), commit(OTHER, 1), verbs.Check(), verbs.StageDrop(b"d" * 16)):
        after = served.ask(verb)
        assert isinstance(after, verbs.Failed) and after.fault == DriveFault.CONDEMNED
        assert "Input/output" in after.detail


@pytest.mark.parametrize(
    ("number", "fault", "condemned"),
    [
        (errno.EIO, DriveFault.IO, True),
        (errno.EROFS, DriveFault.IO, True),
        (errno.ENOSPC, DriveFault.NO_SPACE, False),
    ],
)
def test_what_an_errno_of_a_shard_file_means(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    fault: DriveFault,
    condemned: bool,
) -> None:
    def failing(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    served.ask(verbs.StageOpen(b"d" * 16, b"header"))
    monkeypatch.setattr(files, "_write_all", failing)
    write = served.ask(verbs.StageWrite(b"d" * 16, 6, 0, 10))
    assert isinstance(write, verbs.Failed) and write.fault == fault
    monkeypatch.undo()
    sync = served.ask(verbs.StageSync(b"d" * 16, 6))
    assert isinstance(sync, verbs.Failed), "a file that missed a write is never whole"
    state = served.ask(verbs.Read(KEY))
    assert isinstance(state, verbs.Failed) is condemned


def test_an_unreadable_shard_file_condemns_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    served.ask(verbs.StageOpen(b"d" * 16, b"header"))
    served.ask(verbs.StageSync(b"d" * 16, 6))
    monkeypatch.setattr(os, "preadv", failing)
    read = served.ask(verbs.ShardRead(b"d" * 16, 0, 6, 0))
    assert isinstance(read, verbs.Failed) and read.fault == DriveFault.IO
    assert isinstance(served.ask(verbs.Read(KEY)), verbs.State)


def test_frames_may_come_in_any_pieces(served: Served) -> None:
    frame = DRIVE + verbs.encode(commit(KEY, 1))
    data = HEAD.pack(len(frame) + 4, 7777) + frame
    for cut in range(0, len(data), 7):
        served.socket.sendall(data[cut : cut + 7])
    assert served.answer(7777) == verbs.Committed(True, epoch(1))


def test_what_nobody_came_for_is_dropped_in_time(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished, unnamed = b"u" * 16, b"n" * 16
    old, young = tmp_path / layout.QUARANTINE / "old", tmp_path / layout.QUARANTINE / "young"
    for file in (old, young):
        file.write_bytes(b"?")
    os.utime(old, (1, 1))
    served.ask(verbs.StageOpen(unfinished, b"header"))
    served.ask(verbs.StageOpen(unnamed, b"header"))
    served.ask(verbs.StageSync(unnamed, 6))
    store = served.server._store
    assert store is not None
    paths = [Path(store.files.path_of(data_id)) for data_id in (unfinished, unnamed)]
    served.ask(verbs.Check())
    assert all(path.exists() for path in paths)
    monkeypatch.setattr(limits, "DRIVE_STAGE_IDLE_S", -1.0)
    monkeypatch.setattr(limits, "DRIVE_STAGED_KEEP_S", -1.0)
    store._next_housekeeping = 0.0
    served.ask(verbs.Check())
    finished = time.monotonic() + LONG_S
    while any(path.exists() for path in (*paths, old)) and time.monotonic() < finished:
        served.ask(verbs.Read(KEY))
    assert not any(path.exists() for path in (*paths, old)) and young.exists()
    lost = rec.Record(
        epoch=epoch(1),
        base=ep.ZERO,
        kind=rec.Kind.OBJECT,
        mtime_ns=1,
        parts=(rec.Part(1, 6, unnamed, 1),),
    )
    reply = served.ask(verbs.Commit(KEY, rec.encode(lost)))
    assert isinstance(reply, verbs.Failed) and reply.fault == DriveFault.NOT_FOUND


def test_completing_ten_thousand_parts_is_one_commit(served: Served) -> None:
    store = served.server._store
    assert store is not None
    ids = [number.to_bytes(16, "big") for number in range(1, 10_001)]
    for data_id in ids:
        store.catalog.add_staged(data_id, 6)
    record = rec.Record(
        epoch=epoch(1),
        base=ep.ZERO,
        kind=rec.Kind.OBJECT,
        mtime_ns=1,
        parts=tuple(rec.Part(i + 1, 6, data_id, 1) for i, data_id in enumerate(ids)),
    )
    reply = served.ask(verbs.Commit(KEY, rec.encode(record)))
    assert reply == verbs.Committed(True, epoch(1))
    assert not store.catalog.staged
    walk = served.ask(verbs.Entries())
    assert isinstance(walk, verbs.RawPage) and len(walk.entries[0].data) == 10_000


def rotten(change: Callable[[Engine], None], path: Path) -> None:
    engine = Engine(str(path / layout.CATALOG))
    change(engine)
    engine.flush()
    engine.close()


def test_a_rotten_row_is_never_ignored_and_a_repair_rebuilds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Served(tmp_path, monkeypatch)
    first.ask(commit(KEY, 1))
    first.close()

    def flip(engine: Engine) -> None:
        value = bytearray(engine.get(b"r" + KEY) or b"")
        value[5] ^= 1
        engine.write({b"r" + KEY: bytes(value)}, {})

    rotten(flip, tmp_path)
    served = Served(tmp_path, monkeypatch)
    for verb in (verbs.Read(KEY), commit(KEY, 2), verbs.Scan("bucket"), verbs.Fence(KEY, epoch(5))):
        reply = served.ask(verb)
        assert isinstance(reply, verbs.Failed) and reply.fault == DriveFault.CORRUPT
    walk = served.ask(verbs.Entries())
    assert isinstance(walk, verbs.RawPage)
    assert [(e.key, e.kind, e.newest) for e in walk.entries] == [(KEY, 0, b"")]
    refused = served.ask(verbs.Repair(KEY, commit(KEY, 2).record))
    assert isinstance(refused, verbs.Failed) and refused.fault == DriveFault.CORRUPT
    # What the row had promised is gone with it: the others' promises come along.
    repaired = served.ask(verbs.Repair(KEY, commit(KEY, 2).record, top=epoch(9)))
    assert isinstance(repaired, verbs.RepairDone)
    state = served.ask(verbs.Read(KEY))
    assert isinstance(state, verbs.State) and [e.epoch for e in state.entries] == [epoch(2)]
    assert state.top == epoch(9)
    pending = served.ask(verbs.Pending())
    assert isinstance(pending, verbs.PendingPage) and pending.depth_undecided == 0
    served.close()


def test_several_decided_marks_are_one_verb_and_a_bad_one_stops_no_other(served: Served) -> None:
    for key in (KEY, OTHER):
        assert served.ask(commit(key, 1)) == verbs.Committed(True, epoch(1))
    assert undecided(served) == {KEY, OTHER}
    marks = [
        verbs.Mark(KEY, epoch(1)),
        verbs.Mark(b"", epoch(1)),
        verbs.Mark(OTHER, epoch(1), (3,)),
    ]
    reply = served.ask(verbs.Decided.of(marks))
    assert isinstance(reply, verbs.Failed) and reply.fault == DriveFault.BAD_REQUEST
    assert undecided(served) == set()
    page = served.ask(verbs.Pending())
    assert isinstance(page, verbs.PendingPage)
    assert [(e.key, e.missed) for e in page.entries if e.decided] == [(OTHER, (3,))]


def undecided(served: Served) -> set[bytes]:
    page = served.ask(verbs.Pending())
    assert isinstance(page, verbs.PendingPage)
    return {entry.key for entry in page.entries if not entry.decided}


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A device that takes next to no time, once that is known."""
    monkeypatch.setattr(limits, "DRIVE_SYNC_HERE_S", 0.1)
    one = Served(tmp_path, monkeypatch)
    one.ask(commit(OTHER, 1))
    yield one
    one.close()


def test_quick_flushes_are_done_by_the_serving_thread_until_one_is_slow(
    quick: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    flush = Engine.flush

    def slow(engine: Engine) -> None:
        threads.append(threading.current_thread().name)
        if len(threads) > 3:
            time.sleep(1.0)
        flush(engine)

    monkeypatch.setattr(Engine, "flush", slow)
    for number in (1, 2, 3, 4, 5):
        assert quick.ask(commit(KEY, number)) == verbs.Committed(True, epoch(number))
    assert threads[:4] == [quick.thread.name] * 4
    assert threads[4] == "syncer", "the fourth took longer than a thread is worth"


def test_a_quick_flush_is_over_before_anything_of_its_batch_is_answered(quick: Served) -> None:
    quick.gate.clear()
    calls = quick.send(commit(KEY, 1), verbs.Read(KEY))
    assert quick.began.wait(LONG_S)
    quick.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        quick.socket.recv(1, socket.MSG_PEEK)
    quick.socket.settimeout(LONG_S)
    quick.gate.set()
    assert quick.answer(calls[0]) == verbs.Committed(True, epoch(1))
    state = quick.answer(calls[1])
    assert isinstance(state, verbs.State) and state.top == epoch(1)


def test_a_quick_flush_that_fails_acknowledges_nothing_and_condemns(quick: Served) -> None:
    quick.broken = DriveError(DriveFault.IO, "log sync", condemns=True)
    calls = quick.send(commit(KEY, 1), verbs.Read(OTHER))
    for call in calls:
        reply = quick.answer(call)
        assert isinstance(reply, verbs.Failed) and reply.fault == DriveFault.CONDEMNED
    after = quick.ask(commit(KEY, 2))
    assert isinstance(after, verbs.Failed) and after.fault == DriveFault.CONDEMNED


def test_deciding_drops_what_came_in_below_by_repair(served: Served) -> None:
    """The short way of "decided" is for keys that held nothing else, and still do not."""
    older = commit(KEY, 1).record
    served.ask(commit(KEY, 2))
    refused = served.ask(commit(KEY, 2))
    assert refused == verbs.Committed(True, epoch(2))
    served.ask(verbs.Repair(KEY, older))
    state = served.ask(verbs.Read(KEY))
    assert isinstance(state, verbs.State)
    assert [entry.epoch for entry in state.entries] == [epoch(1), epoch(2)]
    served.ask(verbs.Decided(KEY, epoch(2)))
    state = served.ask(verbs.Read(KEY))
    assert isinstance(state, verbs.State)
    assert [(entry.epoch, entry.decided) for entry in state.entries] == [(epoch(2), True)]
