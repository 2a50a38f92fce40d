"""A drive's catalog against the pure register, over random messages, reopenings and power-offs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.protocol import epoch as ep
from node.protocol import record as rec
from node.protocol import register as reg
from node.protocol import verbs
from node.protocol.register import Entry, Register
from node.runtime.drive.catalog import Catalog
from node.runtime.drive.engine import Engine
from node.runtime.drive.faults import DriveError
from node.runtime.drive.keys import Keys
from node.runtime.drive.layout import Space

DRIVE = bytes(range(16))
KEYS = [b"bucket\0a", b"bucket\0a\0", b"bucket\0b"]
LARGE = b"L" * 3000  # has a row of its own
SMALL = b"s" * 100


def epoch(number: int, writer: int) -> bytes:
    return ep.make(number, bytes((writer,)) * ep.ATTEMPT_BYTES)


EPOCHS = [epoch(number, writer) for number in range(1, 6) for writer in (1, 2)]


def record(of: bytes, base: bytes, *, tombstone: bool, shard: bytes) -> bytes:
    if tombstone:
        return rec.encode(rec.tombstone(of, base, 1, 0))
    part = rec.Part(1, len(shard), b"", 1)
    return rec.encode(
        rec.Record(
            epoch=of,
            base=base,
            kind=rec.Kind.OBJECT,
            mtime_ns=1,
            inline=True,
            size=len(shard),
            parts=(part,),
        )
    )


class Oracle:
    """The same messages on the pure registers, nothing else."""

    def __init__(self) -> None:
        self.keys: dict[bytes, Register] = {}
        self.floor = ep.ZERO

    def copy(self) -> Oracle:
        other = Oracle()
        other.keys, other.floor = dict(self.keys), self.floor
        return other

    def apply(self, verb: verbs.Verb) -> object:
        key = verb.key  # type: ignore[union-attr]
        state = self.keys.get(key, Register())
        answer: object = None
        match verb:
            case verbs.Commit():
                got = rec.decode(verb.record)
                entry = Entry(got.epoch, False, (verb.record, verb.shard))
                state, answer = reg.commit(state, self.floor, got.base, entry)
            case verbs.Fence():
                state = reg.fence(state, verb.epoch)
            case verbs.Decided():
                state, _ = reg.decided(state, verb.epoch)
            case verbs.Discard():
                found = state.find(verb.epoch)
                if found is None or not found.decided:
                    state, _ = reg.discard(state, verb.epoch)
            case verbs.Repair():
                got = rec.decode(verb.record)
                entry = Entry(got.epoch, True, (verb.record, verb.shard))
                state, _, answer = reg.repair(state, self.floor, entry)
            case verbs.Collect():
                found = state.find(verb.epoch)
                if found and rec.decode(found.payload[0]).kind == rec.Kind.TOMBSTONE:
                    after, self.floor = reg.collect(state, self.floor, verb.epoch)
                    if after is None:
                        self.keys.pop(key, None)
                        return None
        self.keys[key] = state
        return answer

    def answer(self, key: bytes) -> verbs.State:
        state = self.keys.get(key, Register())
        entries = tuple(
            verbs.HeldEntry(
                e.epoch, rec.decode(e.payload[0]).base, e.decided, e.payload[0], e.payload[1]
            )
            for e in state.entries
        )
        return verbs.State(reg.effective_top(state, self.floor), self.floor, entries)


@st.composite
def messages(draw: st.DrawFn) -> verbs.Verb:
    key = draw(st.sampled_from(KEYS))
    of = draw(st.sampled_from(EPOCHS))
    kind = draw(st.integers(0, 11))
    # An epoch is one attempt's: its base and its bytes are the same in every message.
    base = epoch(ep.number(of) - 1, 1 + ep.number(of) % 2) if ep.number(of) > 1 else ep.ZERO
    tombstone = of[-1] == 2 and ep.number(of) % 2 == 0
    shard = b"" if tombstone else (LARGE if ep.number(of) % 3 == 0 else SMALL)
    if kind < 5:
        return verbs.Commit(key, record(of, base, tombstone=tombstone, shard=shard), shard)
    if kind < 7:
        return verbs.Decided(key, of)
    if kind == 7:
        return verbs.Fence(key, of)
    if kind == 8:
        return verbs.Discard(key, of)
    if kind == 9:
        return verbs.Repair(key, record(of, base, tombstone=tombstone, shard=shard), shard)
    return verbs.Collect(key, of)


class Drive:
    """One catalog in a directory, with a power switch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open()

    def open(self) -> None:
        self.engine = Engine(str(self.path / "catalog"))
        self.catalog = Catalog(self.engine, DRIVE, lambda: 1000.0)
        self.keys = Keys(self.catalog, Space(str(self.path), 0.0, 0, 0))
        self.verbs: dict[type, Callable[..., tuple[verbs.Reply, bool]]] = {
            verbs.Read: self.keys.read,
            verbs.Commit: self.keys.commit,
            verbs.Fence: self.keys.fence,
            verbs.Decided: self.keys.decided,
            verbs.Discard: self.keys.discard,
            verbs.Repair: self.keys.repair,
            verbs.Collect: self.keys.collect,
        }
        self.synced = self.log_sizes()

    def log_sizes(self) -> dict[str, int]:
        return {file.name: file.stat().st_size for file in (self.path / "catalog").glob("*.log")}

    def flush(self) -> None:
        written = self.catalog.written
        self.engine.flush()
        self.catalog.durable = written
        self.synced = self.log_sizes()

    def power_off(self, torn: float) -> None:
        """The log keeps what was synced, and of the rest a share, cut anywhere."""
        copy = self.path.with_name(self.path.name + "-after")
        shutil.copytree(self.path, copy)
        self.engine.close()
        shutil.rmtree(self.path)
        os.rename(copy, self.path)
        for file in (self.path / "catalog").glob("*.log"):
            kept = self.synced.get(file.name, 0)
            os.truncate(file, kept + int((file.stat().st_size - kept) * torn))
        self.open()


@contextmanager
def drive() -> Iterator[Drive]:
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    one = Drive(root / "drive")
    try:
        yield one
    finally:
        one.engine.close()
        shutil.rmtree(root)


def states(one: Drive) -> dict[bytes, verbs.Reply]:
    return {key: one.keys.read(verbs.Read(key, True))[0] for key in KEYS}


batches = st.lists(st.lists(messages(), min_size=1, max_size=5), min_size=1, max_size=14)
QUIET = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


def step(one: Drive, oracle: Oracle, verb: verbs.Verb) -> None:
    expected = oracle.apply(verb)
    try:
        reply, _ = one.verbs[type(verb)](verb)
    except DriveError:
        assert isinstance(verb, verbs.Discard | verbs.Collect)
        return
    if isinstance(verb, verbs.Commit):
        assert isinstance(reply, verbs.Committed)
        assert reply.accepted == expected
        assert reply.top == oracle.answer(verb.key).top
    elif isinstance(verb, verbs.Repair):
        assert reply == verbs.RepairDone(expected)  # type: ignore[arg-type]


@QUIET
@given(batches, st.sets(st.integers(0, 13)))
def test_it_is_the_register(script: list[list[verbs.Verb]], reopen: set[int]) -> None:
    oracle = Oracle()
    with drive() as one:
        for index, batch in enumerate(script):
            for verb in batch:
                step(one, oracle, verb)
                assert states(one) == {key: oracle.answer(key) for key in KEYS}
            one.catalog.write_out()
            if index in reopen:
                one.catalog.close(clean=True)
                one.open()
            assert states(one) == {key: oracle.answer(key) for key in KEYS}


@QUIET
@given(batches, st.sets(st.integers(0, 13)), st.floats(0, 1))
def test_power_off_leaves_a_prefix_with_all_that_was_synced(
    script: list[list[verbs.Verb]], flushes: set[int], torn: float
) -> None:
    oracle = Oracle()
    with drive() as one:
        history = [oracle.copy()]
        kept = 0
        for index, batch in enumerate(script):
            for verb in batch:
                step(one, oracle, verb)
            one.catalog.write_out()
            history.append(oracle.copy())
            if index in flushes:
                one.flush()
                kept = len(history) - 1
        one.power_off(torn)
        after = states(one)
        assert any(after == {key: past.answer(key) for key in KEYS} for past in history[kept:]), (
            "not a state at or after the last flush"
        )


@QUIET
@given(batches)
def test_an_answer_waits_exactly_while_what_it_names_could_be_forgotten(
    script: list[list[verbs.Verb]],
) -> None:
    """After a batch of which nothing was synced: a key's answer goes at once only if a power-off keeps its
    epochs and top (flags may go)."""
    oracle = Oracle()
    with drive() as one:
        one.flush()
        durable = oracle.copy()
        for batch in script:
            for verb in batch:
                step(one, oracle, verb)
            for key in KEYS:
                reply, waits = one.keys.read(verbs.Read(key))
                assert isinstance(reply, verbs.State)
                before = durable.answer(key)
                known = {e.epoch for e in before.entries}
                new = {e.epoch for e in reply.entries} - known
                if new or reply.top > before.top:
                    assert waits
            one.catalog.write_out()
            one.flush()
            durable = oracle.copy()
            for key in KEYS:
                assert not one.keys.read(verbs.Read(key))[1]
