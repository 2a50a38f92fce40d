"""The scrub's verbs on a real drive: rot is found a piece at a time, progress is kept, rotten files are set aside."""

from __future__ import annotations

from pathlib import Path

from erasure import frame
from erasure.stripe import StripeLayout
from node.limits import KIB
from node.protocol import epoch as ep
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from node.runtime.drive import layout
from tests.contract.drive_world import World, drive_world, fault, new_epoch, object_record

KEY = b"bucket\0key"
DATA = b"d" * 16
LAYOUT = StripeLayout(80 * KIB, 2, 16 * KIB)


def shard_file() -> bytes:
    """Five blocks of 8 KiB."""
    header = frame.ShardHeader.of(LAYOUT, data_id=DATA, shard=1, n=4).encode()
    parts = [header]
    for block in range(LAYOUT.stripes):
        piece = bytearray(LAYOUT.block_bytes(block) + frame.CHECKSUM_BYTES)
        frame.seal(memoryview(piece), data_id=DATA, shard=1, block=block)
        parts.append(bytes(piece))
    return b"".join(parts)


def set_aside(path: Path) -> list[bytes]:
    found = [each for each in path.rglob(DATA.hex()) if layout.QUARANTINE in each.parts]
    return [each.read_bytes() for each in found]


async def scan(world: World, block: int, size: int) -> verbs.Reply:
    return await world.ask(verbs.ShardScan(DATA, size, block, 16 * KIB))


async def test_a_file_is_verified_piece_by_piece_and_set_aside_when_rebuilt(tmp_path: Path) -> None:
    content = shard_file()
    async with drive_world(tmp_path) as world:
        await world.stage(DATA, content)
        epoch = new_epoch(1)
        record = object_record(epoch, ep.ZERO, data=(DATA,))
        await world.ask(verbs.Commit(KEY, record))
        blocks, block = [], 0
        while True:
            answer = await scan(world, block, len(content))
            assert isinstance(answer, verbs.ShardScanned), answer
            blocks.append(block)
            block = answer.next_block
            if not block:
                break
        assert blocks == [0, 2, 4]
        page = await world.ask(verbs.Scrub(b"", 1, 1))
        assert isinstance(page, verbs.ScrubPage) and not page.faults
        assert page.files == ((KEY, epoch, DATA, len(content)),) and page.next_after == b""
        rotten = bytearray(content)
        rotten[-1] ^= 1
        world.file(DATA).write_bytes(bytes(rotten))
        assert isinstance(await scan(world, 0, len(content)), verbs.ShardScanned), "not there yet"
        assert fault(await scan(world, 4, len(content))) == DriveFault.CORRUPT
        assert fault(await scan(world, 0, len(content) + 1)) == DriveFault.CORRUPT
        await world.stage(DATA, content)
        assert world.file(DATA).read_bytes() == content
        assert set_aside(tmp_path) == [bytes(rotten)], "the rotten one is not deleted"
        world.file(DATA).unlink()
        assert fault(await scan(world, 0, len(content))) == DriveFault.NOT_FOUND


async def test_progress_outlives_a_restart(tmp_path: Path) -> None:
    state = verbs.ScrubState(b"bucket\0k", 5.0, 3.0, 7, 8, 1)
    async with drive_world(tmp_path) as world:
        assert await world.ask(verbs.ScrubMark(state)) == verbs.Done()
        usage = await world.ask(verbs.Check())
        assert isinstance(usage, verbs.Usage) and usage.scrub == state
    async with drive_world(tmp_path) as world:
        usage = await world.ask(verbs.Check())
        assert isinstance(usage, verbs.Usage) and usage.scrub == state
