"""A real drive process in a directory, and the messages tests send it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from node.protocol import epoch as ep
from node.protocol import record as rec
from node.protocol import verbs
from node.runtime.arena import Arena
from node.runtime.drive_client import DriveProcess, DriveSettings

NO_DRIVE = bytes(16)
DRIVE = bytes(range(1, 17))
FORMAT = json.dumps({"drive_id": DRIVE.hex()}).encode()
SETTINGS = DriveSettings(reserve_bytes=0, reserve_fraction=0.0, unlink_after_s=0.0)
LONG_S = 30.0  # the machine is shared: a bound against hanging, not a measure

_attempts = ep.Attempts("test", 1)


def new_epoch(number: int = 1) -> bytes:
    return ep.make(number, _attempts.next())


def object_record(
    of: bytes,
    base: bytes = ep.ZERO,
    *,
    data: tuple[bytes, ...] = (),
    generation: int = 0,
    size: int = 3,
) -> bytes:
    """A record with shard files, or an inline one when there are none."""
    parts = tuple(rec.Part(i + 1, size, data_id, 1 << 20) for i, data_id in enumerate(data))
    return rec.encode(
        rec.Record(
            epoch=of,
            base=base,
            kind=rec.Kind.OBJECT,
            mtime_ns=1,
            bucket_generation=generation,
            size=size,
            inline=not data,
            parts=parts or (rec.Part(1, size, b"", 1 << 20),),
        )
    )


def tombstone(of: bytes, base: bytes) -> bytes:
    return rec.encode(rec.tombstone(of, base, 1, 0))


class World:
    def __init__(self, path: Path, settings: DriveSettings) -> None:
        self.path = path
        self.arena = Arena(1 << 20)
        self.drive = DriveProcess(str(path), self.arena, settings)

    async def ask(self, verb: verbs.Verb, drive_id: bytes = DRIVE) -> verbs.Reply:
        reply = self.drive.submit(drive_id + verbs.encode(verb))
        return verbs.decode_reply(await asyncio.wait_for(reply, LONG_S))

    async def together(self, *wanted: verbs.Verb) -> list[verbs.Reply]:
        return list(await asyncio.gather(*(self.ask(verb) for verb in wanted)))

    async def format(self) -> None:
        assert await self.ask(verbs.FormatWrite(FORMAT), NO_DRIVE) == verbs.Done()

    async def stage(self, data_id: bytes, content: bytes) -> list[verbs.Reply]:
        slab = await self.arena.alloc(len(content), deadline=asyncio.get_running_loop().time() + 9)
        slab.view[:] = content
        slab.pin()
        replies = await self.together(
            verbs.StageOpen(data_id, b""),
            verbs.StageWrite(data_id, 0, slab.offset, len(content)),
            verbs.StageSync(data_id, len(content)),
        )
        slab.unpin()
        slab.release()
        return replies

    async def read(self, data_id: bytes, length: int, offset: int = 0) -> bytes | verbs.Reply:
        slab = await self.arena.alloc(length, deadline=asyncio.get_running_loop().time() + 9)
        reply = await self.ask(verbs.ShardRead(data_id, offset, length, slab.offset))
        content = bytes(slab.view)
        slab.release()
        return content[: reply.count] if isinstance(reply, verbs.Count) else reply

    def file(self, data_id: bytes) -> Path:
        return self.path / "shards" / data_id.hex()[:2] / data_id.hex()

    async def gone(self, data_id: bytes) -> None:
        """Waits until the file is unlinked, which happens with some verb after the next flush."""
        async with asyncio.timeout(LONG_S):
            while self.file(data_id).exists():
                await self.ask(verbs.Check())
                await asyncio.sleep(0.01)

    async def crash(self) -> None:
        """SIGKILL, and wait until the next process runs."""
        starts = self.drive.starts
        self.drive.restart()
        await until(lambda: self.drive.starts > starts and self.drive.running)

    async def ended(self) -> None:
        pid = self.drive.pid
        self.drive.stop()
        await until(lambda: pid is None or not _alive(pid))


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something another process does; fails after LONG_S."""
    async with asyncio.timeout(LONG_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@asynccontextmanager
async def drive_world(
    path: Path, *, formatted: bool = True, settings: DriveSettings | None = None
) -> AsyncIterator[World]:
    os.makedirs(path, exist_ok=True)
    world = World(path, settings or SETTINGS)
    world.drive.start()
    try:
        if formatted:
            await world.format()
        yield world
    finally:
        await world.ended()
        world.arena.close()


def fault(reply: verbs.Reply | bytes) -> str:
    assert isinstance(reply, verbs.Failed), reply
    return reply.fault
