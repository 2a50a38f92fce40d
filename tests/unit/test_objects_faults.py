"""The object layer when drives, nodes and shards fail."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from node.errors import HoldfastError, NoSuchKey, QuorumLost, Unavailable
from node.limits import MIB
from node.objects.api import CompletedPart, NewObject
from node.objects.bodies import BytesBody
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from tests.fakes.cluster_world import ClusterWorld, Dark, simulate
from tests.fakes.memory_drive import Disk
from tests.unit.test_objects_everyday import content

LARGE = 2 * MIB + 77
SMALL = 3_000


def rot_file(disk: Disk, at: int = -5) -> None:
    (data,) = disk.files.values()
    data[at] ^= 0x40


def rot_inline(world: ClusterWorld, disk: Disk, key: str) -> None:
    """Flips a bit of an inline shard, and lets the row's checksum agree: rot from before it was sealed."""
    from node.runtime.drive import rows

    name = b"bucket\0" + key.encode()
    row = rows.REGISTER + name
    old = rows.decode_register(row, disk.engine.get(row) or b"")
    entry = old.entries[-1]
    shard = bytearray(entry.shard)
    shard[-1] ^= 1
    fresh = rows.RegisterRow(
        old.top, (rows.EntryRow(entry.epoch, entry.base, entry.record, bytes(shard)),)
    )
    disk.engine.write({row: rows.encode(row, fresh)}, {})
    disk.engine.flush()


# ---- nodes -------------------------------------------------------------------------------------------
def test_one_node_dark_everything_works_and_its_return_is_repaired() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for size in (SMALL, LARGE):
            await world.put(f"before{size}", content(size))
        world.power_off(4)
        await world.notice()
        for size in (SMALL, LARGE):
            assert await world.get(f"before{size}", at=2) == content(size)
            await world.put(f"during{size}", content(size), at=3)
            await world.put(f"before{size}", content(size, 2), at=2)
            assert await world.get(f"during{size}", at=1) == content(size)
        await world.delete(f"before{SMALL}", at=1)
        await world.power_on(4)
        await world.repair()
        census = await world.census(4)
        assert not census.short and set(census.by_shards) == {16}, census
        world.power_off(3)
        world.power_off(1)
        await world.notice()
        assert await world.get(f"before{LARGE}", at=4) == content(LARGE, 2)
        assert await world.get(f"during{SMALL}", at=2) == content(SMALL)
        assert await world.keys(at=4) == [f"before{LARGE}", f"during{SMALL}", f"during{LARGE}"][
            :1
        ] + sorted([f"during{SMALL}", f"during{LARGE}"])
        with pytest.raises(NoSuchKey):
            await world.get(f"before{SMALL}", at=4)

    simulate(story)


def test_a_node_lost_in_the_middle_of_an_upload_costs_it_nothing() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        sent = 0

        def cut(sender: str, target: str, what: str) -> None:
            nonlocal sent
            if what == "upload data" and target == world.names[3]:
                sent += 1
                if sent == 4:
                    world.power_off(4)

        world.on_send = cut
        data = content(12 * MIB)
        await world.put("k", data)
        assert sent >= 4
        assert await world.get("k", at=2) == data
        await world.power_on(4)
        await world.repair()
        census = await world.census()
        assert not census.short and set(census.by_shards) == {16}

    simulate(story)


def test_two_nodes_dark_reads_work_writes_are_refused_and_resume() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("small", content(SMALL))
        await world.put("large", content(LARGE))
        await world.repair()
        world.power_off(3)
        world.power_off(4)
        await world.notice()
        assert await world.get("small", at=1) == content(SMALL)
        assert await world.get("large", at=2) == content(LARGE)
        assert await world.keys(at=1) == ["large", "small"]
        began = world.clock.monotonic()
        for size in (SMALL, LARGE):
            with pytest.raises(Unavailable):
                await world.put("more", content(size))
        with pytest.raises(Unavailable):
            await world.delete("small")
        assert world.clock.monotonic() - began < 1.0, "refused at once"
        await world.power_on(4)
        await world.put("more", content(LARGE), at=4)
        await world.delete("small", at=1)
        assert await world.get("more", at=2) == content(LARGE)

    simulate(story)


def test_everything_off_at_once_loses_nothing_acknowledged() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for number in range(20):
            await world.put(f"k{number:02}", content(1 + number * 40_000, number))
        for number in (1, 2, 3, 4):
            world.power_off(number)
        await asyncio.sleep(1)
        for number in (1, 2, 3, 4):
            await world.power_on(number)
        for number in range(20):
            data = content(1 + number * 40_000, number)
            assert await world.get(f"k{number:02}", at=1 + number % 4) == data
        await world.repair()
        assert not (await world.census()).short

    simulate(story)


# ---- drives ------------------------------------------------------------------------------------------
def test_hung_drives_delay_nobody_for_long_and_are_repaired() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("before", content(LARGE))
        hung = [world.node(1).drives[0], world.node(2).drives[1]]
        for drive in hung:
            drive.disk.hung = True
        began = world.clock.monotonic()
        await world.put("small", content(SMALL))
        await world.put("large", content(LARGE), at=2)
        assert await world.get("before", at=3) == content(LARGE)
        assert await world.get("large", at=1) == content(LARGE)
        assert await world.get("small", at=4) == content(SMALL)
        assert world.clock.monotonic() - began < 15.0
        for drive in hung:
            drive.unhang()
        await asyncio.sleep(10)  # three good checks
        await world.repair()
        census = await world.census()
        assert not census.short and set(census.by_shards) == {16}

    simulate(story)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_full_drives(size: int) -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("before", content(size))
        for slot in range(0, 14, 2):
            world.disk(slot).full = True
        await world.put("k", content(size, 1))
        assert await world.get("k", at=3) == content(size, 1)
        world.disk(14).full = world.disk(1).full = True
        with pytest.raises(Unavailable):
            await world.put("too much", content(size, 2))
        assert await world.get("before", at=3) == content(size)
        await world.delete("before", at=2)  # a delete frees space; it must never need any
        for slot in range(16):
            world.disk(slot).full = False
        await world.repair()
        census = await world.census()
        assert not census.short and set(census.by_shards) == {16}

    simulate(story)


def test_rotten_shards_are_replaced_in_mid_read_and_repaired() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", content(LARGE))
        await world.repair()
        rotten = list(range(0, 16, 2))  # as many as there is parity
        for slot in rotten:
            rot_file(world.disk(slot), -5 if slot % 4 else 200)
        for node in (1, 2, 3, 4):
            assert await world.get("k", at=node) == content(LARGE)
        assert sum(len(world.node(n).metrics.rotten) for n in (1, 2, 3, 4)) >= 8
        await world.repair()
        for slot in range(1, 16, 2):
            rot_file(world.disk(slot))
        assert await world.get("k", at=1) == content(LARGE), "the first eight are whole again"

    simulate(story)


def test_lost_shard_files_are_replaced_and_repaired() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", content(LARGE))
        await world.repair()
        for slot in range(8):
            world.disk(slot).files.clear()
        for node in (1, 2, 3, 4):
            assert await world.get("k", at=node) == content(LARGE)
        await world.repair()
        census = await world.census()
        assert not census.short, census

    simulate(story)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_rotten_inline_shards_are_replaced_and_repaired(count: int) -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", content(SMALL))
        await world.repair()
        for slot in range(count):
            rot_inline(world, world.disk(slot), "k")
        for node in (1, 2, 3, 4):
            assert await world.get("k", at=node) == content(SMALL)
        await world.repair()
        for slot in range(8, 16):
            rot_inline(world, world.disk(slot), "k")
        assert await world.get("k", at=1) == content(SMALL)

    simulate(story)


def test_one_shard_too_few_is_an_honest_error_and_never_wrong_bytes() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("large", content(LARGE))
        await world.put("small", content(SMALL))
        await world.put("other", b"fine")
        await world.repair()
        for slot in range(9):
            rot_file(world.disk(slot))
            rot_inline(world, world.disk(slot), "small")
        for key in ("large", "small"):
            with pytest.raises(QuorumLost):
                await world.get(key, at=2)
        # One hopeless object never stops the repair of the others.
        world.disk(3).refuse = lambda verb: (
            DriveFault.IO if isinstance(verb, verbs.Commit) else None
        )
        await world.put("third", content(LARGE, 3))
        world.disk(3).refuse = lambda verb: None
        for _ in range(5):
            for node in world.up():
                await world.spawn(node.life, node.engine.repairs.round())
            await asyncio.sleep(2)
        assert all(
            disk.engine.get(b"rbucket\0third") for disks in world.disks.values() for disk in disks
        )

    simulate(story)


def test_a_slow_node_is_replaced_in_mid_read() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        data = content(12 * MIB)
        await world.put("k", data)
        await world.repair()
        for disk in world.disks[world.names[1]]:
            disk.delay_s = 5.0
        began = world.clock.monotonic()
        assert await world.get("k", at=1) == data
        assert world.clock.monotonic() - began < 5.0

    simulate(story)


def test_a_laggard_is_dropped_from_an_upload() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        for disk in world.disks[world.names[2]]:
            disk.delay_s = 2.9
        began = world.clock.monotonic()
        await world.put("k", content(24 * MIB))
        assert world.clock.monotonic() - began < 12.0
        for disk in world.disks[world.names[2]]:
            disk.delay_s = 0.001
        assert await world.get("k", at=3) == content(24 * MIB)
        await asyncio.sleep(15)
        await world.repair()
        assert not (await world.census()).short

    simulate(story)


# ---- memory ------------------------------------------------------------------------------------------
def test_requests_that_are_called_off_leave_no_buffer_behind() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        data = content(6 * MIB)
        await world.put("k", data)
        await world.repair()

        async def read(after_s: float) -> None:
            try:
                await asyncio.wait_for(world.get("k", at=2), after_s)
            except TimeoutError:
                return

        async def write(after_s: float) -> None:
            try:
                await asyncio.wait_for(world.put("k2", data, at=3), after_s)
            except TimeoutError:
                return

        for step in range(1, 80):
            await read(step * 0.00025)
            if step % 4 == 0:
                await write(step * 0.0005)
        await asyncio.sleep(30)
        for node in world.up():
            assert node.arena.free_bytes == node.arena.size_bytes, node.name
        assert await world.get("k", at=1) == data

    simulate(story)


def test_failed_requests_leave_no_buffer_behind() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        await world.put("k", content(6 * MIB))
        for slot in range(9):
            world.disk(slot).full = True
            for data in world.disk(slot).files.values():
                data[-3] ^= 1
        for node in (1, 2, 3, 4):
            with pytest.raises(HoldfastError):
                await world.get("k", at=node)
            with pytest.raises(HoldfastError):
                await world.put("k2", content(6 * MIB), at=node)
        await asyncio.sleep(30)
        for node in world.up():
            assert node.arena.free_bytes == node.arena.size_bytes, node.name

    simulate(story)


# ---- multipart across faults ----------------------------------------------------------------------------
@pytest.mark.parametrize("dark_ones", [(4, 3), (4, 3, 2), (4, 3, 2, 1)])
def test_parts_that_different_nodes_missed_complete_all_the_same(
    dark_ones: tuple[int, ...],
) -> None:
    """Eight, four or none of the drives have all parts, nine are needed: the rest is brought there first."""

    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        info = await world.on(
            1, lambda o, d: o.create_upload("bucket", "big", NewObject(), deadline=d)
        )
        etags = []
        for number, dark in enumerate(dark_ones, start=1):
            world.power_off(dark)
            await world.notice()
            part = await world.on(
                dark % 4 + 1,
                lambda o, d, n=number: o.upload_part(
                    "bucket", "big", info.upload_id, n, BytesBody(content(5 * MIB, n)), deadline=d
                ),
            )
            etags.append(part.etag)
            await world.power_on(dark)
            await world.notice()
        chosen = tuple(CompletedPart(number=i + 1, etag=e) for i, e in enumerate(etags))
        record = await world.on(
            2,
            lambda o, d: o.complete_upload(
                "bucket", "big", info.upload_id, chosen, checksums={}, deadline=d
            ),
        )
        assert len(record.parts) == len(dark_ones)
        whole = b"".join(content(5 * MIB, n) for n in range(1, len(dark_ones) + 1))
        assert await world.get("big", at=3) == whole
        await world.repair()
        assert not (await world.census()).short
        assert await world.get("big", at=4) == whole

    simulate(story)


@pytest.mark.parametrize("step", range(5, 250, 35))
def test_a_power_off_while_missing_parts_are_brought(step: int) -> None:
    """Complete is cut anywhere in it: it counts or not, and repeating it ends it."""

    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        info = await world.on(
            1, lambda o, d: o.create_upload("bucket", "big", NewObject(), deadline=d)
        )
        etags = []
        for number, dark in enumerate((4, 3, 1), start=1):
            world.power_off(dark)
            await world.notice()
            part = await world.on(
                dark % 4 + 1,
                lambda o, d, n=number: o.upload_part(
                    "bucket", "big", info.upload_id, n, BytesBody(content(5 * MIB, n)), deadline=d
                ),
            )
            etags.append(part.etag)
            await world.power_on(dark)
            await world.notice()
        chosen = tuple(CompletedPart(number=i + 1, etag=e) for i, e in enumerate(etags))

        async def complete(at: int) -> None:
            await world.on(
                at,
                lambda o, d: o.complete_upload(
                    "bucket", "big", info.upload_id, chosen, checksums={}, deadline=d
                ),
            )

        sent = 0

        def count(sender: str, target: str, what: str) -> None:
            nonlocal sent
            if sender == world.names[1]:
                sent += 1
                if sent == step:
                    world.power_off(2)

        world.on_send = count
        with contextlib.suppress(Dark, Unavailable):
            await complete(2)
        world.on_send = lambda sender, target, what: None
        if not world.node(2).life.alive:
            await world.notice()
            await world.power_on(2)
        await world.repair()
        await complete(3)
        whole = b"".join(content(5 * MIB, n) for n in (1, 2, 3))
        for number in (1, 2, 3, 4):
            assert await world.get("big", at=number) == whole
        await world.repair()
        assert not (await world.census()).short

    simulate(story, seed=step)


# ---- dead nodes and requests ------------------------------------------------------------------------
def test_a_request_at_a_node_that_dies_ends() -> None:
    async def story(world: ClusterWorld) -> None:
        await world.bucket()
        world.on_send = lambda sender, target, what: (
            world.power_off(2) if what == "COMMIT" and world.node(2).life.alive else None
        )
        with pytest.raises(Dark):
            await world.put("k", b"v", at=2)

    simulate(story)
