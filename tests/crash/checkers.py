"""What has to hold after any power-off. A checker says what it found wrong by AssertionError."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

from node.protocol.record import Kind, decode
from node.runtime.drive import rows
from tests.crash.drive import CrashDrive
from tests.crash.story import Story
from tests.crash.world import CrashWorld

DEADLINE_SLACK_S = 1.0


class Seen:
    """What was seen of a story so far.

    An acknowledged request shows from its answer on. Of another one the outcome is unknown, as if it were
    under way still: it may be seen later than it was asked for, but once it was seen it stays; and when
    every node is back and repair is done, every node shows the same and nothing changes any more.
    """

    def __init__(self, story: Story, may_be: Iterable[Hashable], because: str) -> None:
        self._order = list(story.states.values())
        self._names: Mapping[str, Hashable] = story.states
        self._may_be = list(may_be)
        self._because = because
        self._newest: tuple[str, Hashable] | None = None
        self.final = False

    def add(self, state: Hashable, where: str) -> None:
        assert state in self._may_be, (
            f"{where} shows {self._name(state)}, not one of "
            f"{sorted(self._name(s) for s in self._may_be)}: {self._because}"
        )
        if self._newest is None:
            self._newest = (where, state)
        newest_where, newest = self._newest
        back = self._order.index(state) < self._order.index(newest)
        assert not back and (state == newest or not self.final), (
            f"first seen and then gone: {newest_where} showed {self._name(newest)}, "
            f"{where} shows {self._name(state)}"
        )
        self._newest = (where, state)

    def _name(self, state: Hashable) -> str:
        for name, known in self._names.items():
            if known == state:
                return name
        if isinstance(state, bytes):
            return f"{len(state)} bytes that nobody wrote ({state[:12].hex()}…)"
        return repr(state)


async def look(
    world: CrashWorld, story: Story, seen: Seen, when: str, *, final: bool = False
) -> None:
    """Every node that runs is asked. `final`: what the first one shows is for ever."""
    for number in world.lit():
        state = await story.look(world, number)
        seen.add(state, f"node {number}, {when},")
        seen.final |= final


def ended_in_time(took_s: float, allowed_s: float) -> None:
    assert took_s <= allowed_s + DEADLINE_SLACK_S, f"the request took {took_s:.1f} s"


def locks_free(world: CrashWorld) -> None:
    for node in world.up():
        table = node.engine.locks.table
        held = [entry.resource for entry in table.snapshot(world.clock.monotonic())]
        assert not table.size and not table.waiters, f"{node.name} still locks {held}"


def buffers_free(world: CrashWorld) -> None:
    for node in world.up():
        used = node.arena.size_bytes - node.arena.free_bytes
        assert not used, f"{node.name} holds {used} bytes of buffers"


def no_leftovers(world: CrashWorld) -> None:
    """On no drive is anything undecided, staged, queued, older than the version, or without an owner."""
    found: list[str] = []
    for node in world.up():
        for index, drive in enumerate(node.drives):
            assert isinstance(drive, CrashDrive)
            found += [f"{node.name} drive {index + 1}: {what}" for what in drive.leftovers()]
    assert not found, "\n".join(found)


def registers_agree(world: CrashWorld) -> None:
    """Every drive holds the same single version of every key, and no shard file but what those name."""
    versions: dict[bytes, dict[tuple[bytes, ...], list[str]]] = {}
    remaining: list[str] = []
    drives = 0
    for node in world.up():
        for index, drive in enumerate(node.drives):
            drives += 1
            named: dict[bytes, int] = {}
            for row, value in drive.disk.engine.scan(rows.REGISTER, rows.after(rows.REGISTER)):
                entries = rows.decode_register(row, value).entries
                held = tuple(entry.epoch for entry in entries)
                where = versions.setdefault(row[1:], {})
                where.setdefault(held, []).append(f"{node.name} drive {index + 1}")
                for entry in entries:
                    record = decode(entry.record)
                    for part in record.parts if not record.inline else ():
                        named[part.data_id] = named.get(part.data_id, 0) + 1
            for data_id, count in named.items():
                data = drive.catalog.data(data_id)
                if not data_id:
                    continue
                if data is None or data.references != count:
                    remaining.append(f"{node.name}: {count} records name {data_id.hex()}: {data}")
            for data_id in drive.disk.files:
                if data_id not in named:
                    remaining.append(f"{node.name}: nobody names {data_id.hex()}")
    for key, where in versions.items():
        (held, *others) = where
        if others or len(held) > 1 or (held and len(where[held]) != drives):
            shown = {tuple(e.hex()[:16] for e in h): len(w) for h, w in where.items()}
            remaining.append(f"{key!r} is held as {shown} on {drives} drives")
    assert not remaining, "\n".join(remaining)


def no_orphaned_parts(world: CrashWorld) -> None:
    """Every upload has ended by now: records of parts and uploads are gone."""
    drive = world.up()[0].drives[0]
    found = []
    for row, value in drive.disk.engine.scan(rows.REGISTER, rows.after(rows.REGISTER)):
        bucket, _, name = row[1:].partition(b"\0")
        if bucket != b".holdfast.sys" or not name.startswith((b"part/", b"multipart/")):
            continue
        entries = rows.decode_register(row, value).entries
        if entries and decode(entries[-1].record).kind == Kind.OBJECT:
            found.append(name)
    assert not found, f"an upload that has ended left {found}"


async def whole(world: CrashWorld) -> None:
    """The census: every object has all its shards."""
    census = await world.census(world.lit()[0])
    lacking = [(short.key, sorted(short.missed)) for short in census.lacking]
    assert census.whole, f"short of shards: {lacking}, objects by shards {dict(census.by_shards)}"
